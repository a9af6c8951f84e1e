"""What each denoising step is credited with: advantages, or gradients of values."""

from __future__ import annotations

from dataclasses import replace

import torch

from common.errors import Unsound
from common.processes import all_rows, keep_in_step, own_batches
from critic.advantages import centre_within, normalize
from critic.critic import Critic, CriticConfig
from critic.estimators import CreditConfig, Estimator
from critic.network import ValueNetwork
from critic.pathwise import action_gradients, linear_advantages, scaled
from environment.environment import Environment, ForgetScore
from policy.trajectory import Experience, Trajectory


def create_critic(config: CriticConfig, env: Environment, *, used: bool, seed: int) -> Critic:
    """Load the critic that is named, or make one that begins with the reward predictor's trunk.

    Args:
        used: whether the advantage asks a critic at all; else it is the prompts' baseline alone.
    """
    text_dim = env.table.pooled.shape[-1]
    if config.critic_model_name_or_path:
        network = ValueNetwork.from_pretrained(config.critic_model_name_or_path)
        network.check_fit(env.backbone.latent_shape, text_dim, env.backbone.pipeline_class)
    else:
        torch.manual_seed(seed)
        network = ValueNetwork.from_predictor(
            env.predictor,
            text_dim,
            env.spec.concepts,
            timestep_conditioning=config.critic_type != "timestep_blind",
            pipeline_class=env.backbone.pipeline_class,
        )
    network.to(env.kernel.stds.device)
    return Critic(
        network,
        len(env.table.prompts),
        env.kernel.num_steps,
        learning_rate=config.critic_learning_rate,
        buffer_iterations=config.critic_buffer_iterations,
        kind=config.critic_type if used else "none",
    )


def warm_up(
    critic: Critic,
    env: Environment,
    trajectory: Trajectory,
    potentials: torch.Tensor,
    *,
    config: CriticConfig,
    estimator: Estimator,
    generator: torch.Generator,
) -> None:
    """Fit the critic to what became of the base's trajectories of forget prompts; a quarter is held out.

    Raises:
        Unsound: the critic is NaN or infinite then.
    """
    order = torch.randperm(len(trajectory), generator=generator)
    count = max(1, len(order) // 4)
    held_out, learnt = order[:count], order[count:]
    observe(critic, env, trajectory[learnt], potentials[learnt], estimator=estimator)
    # A critic that was given is trained already; only its baselines and its trust belong to this run.
    steps = 0 if config.critic_model_name_or_path else config.critic_warmup_steps
    critic.fit(steps, config.critic_batch_size, generator)
    keep_in_step(critic.network)
    observe(critic, env, trajectory[held_out], potentials[held_out], estimator=estimator)
    check_critic(critic)


def observe(
    critic: Critic,
    env: Environment,
    trajectory: Trajectory,
    potentials: torch.Tensor,
    *,
    estimator: Estimator,
) -> None:
    """Show the critic trajectories and the returns (B, T) of their potentials (B, T+1)."""
    text = env.table.pooled[trajectory.prompt_ids]
    critic.observe(trajectory, text, potentials, estimator.returns(potentials))


def learn(critic: Critic, config: CriticConfig, generator: torch.Generator) -> dict[str, float]:
    """Train the critic on what it has observed; its loss, if it is a critic that learns.

    Raises:
        Unsound: it is NaN or infinite then.
    """
    if critic.kind == "none":
        return {}
    loss = critic.fit(config.critic_steps, config.critic_batch_size, generator)
    keep_in_step(critic.network)
    check_critic(critic)
    return {"critic_loss": loss}


def check_critic(critic: Critic) -> None:
    """
    Raises:
        Unsound: the critic holds something that is NaN or infinite.
    """
    if not critic.is_finite():
        raise Unsound(
            "The critic's weights or baselines are NaN or infinite; lower --critic_learning_rate, or train "
            "without a critic."
        )


def values_of(
    critic: Critic, env: Environment, trajectory: Trajectory, potentials: torch.Tensor
) -> torch.Tensor:
    """(B, T): the critic's value of every state that is acted on."""
    return critic.values(trajectory, env.table.pooled[trajectory.prompt_ids], potentials)


def estimate_advantages(
    config: CreditConfig, trajectory: Trajectory, potentials: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Advantages (B, T), centred within prompts and normalized."""
    advantages = config.estimator.advantages(potentials, values)
    return normalize(centre_within(advantages, trajectory.prompt_ids), config.advantage_clip)


def value_gradients(
    estimator: Estimator, env: Environment, critic: Critic, trajectory: Trajectory
) -> torch.Tensor:
    """(B, T, C, H, W), where the latents are: the gradient of each step's value with respect to the latent
    that it led to (`critic.pathwise`)."""

    def gradients(part: Trajectory) -> torch.Tensor:
        ids = part.prompt_ids
        text = env.table.pooled[ids]

        def value(x: torch.Tensor, state: int) -> torch.Tensor:
            potential, timestep = env.potential(x, state, ids), env.kernel.timesteps[state]
            return estimator.action_value(potential, critic.state_value(x, state, timestep, text, potential))

        on_device = replace(part, latents=part.latents.to(env.kernel.stds.device))
        return action_gradients(on_device, value).to(part.latents.device)

    rows = own_batches(len(trajectory), env.batch_size)
    mine = torch.cat([gradients(trajectory[part]) for part in rows])
    return all_rows(mine, len(trajectory))


def weighed_gradients(gradients: torch.Tensor, shortfall: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Value gradients (B, T, C, H, W) in units of `scale` (T,), times the `shortfall` (B,) of each finished
    image.

    The push on a trajectory is the gradient of -shortfall^2 / 2 rather than that of the reward: a reward
    predictor can be climbed for ever, by images that nobody would draw, but nothing is better than images of
    the anchors are.
    """
    left = shortfall.to(gradients.device)[:, None, None, None, None]
    return left * scaled(gradients, scale.to(gradients.device))


def credit(
    config: CreditConfig,
    env: Environment,
    critic: Critic,
    trajectory: Trajectory,
    score: ForgetScore,
    *,
    values: torch.Tensor,
    gradient_scale: torch.Tensor | None,
) -> Experience:
    """What each step of fresh trajectories was worth: by value gradients if there is a scale for them, or
    else by advantages over the critic's `values` (B, T).

    Args:
        gradient_scale: (T,), of the base's value gradients.
    """
    shortfall = env.reward.shortfall(score.terminal)
    if gradient_scale is None:
        advantages = estimate_advantages(config, trajectory, score.potentials, values)
        return Experience(trajectory, advantages, score.anchor_ids, shortfall=shortfall)
    gradients = value_gradients(config.estimator, env, critic, trajectory)
    gradients = weighed_gradients(gradients, shortfall, gradient_scale)
    advantages = linear_advantages(trajectory, gradients).to(env.kernel.stds.device)
    return Experience(trajectory, advantages, score.anchor_ids, gradients, shortfall)
