from __future__ import annotations

import pytest
import torch

from critic.advantages import centre_within, discounted_returns, explained_variance
from critic.critic import Critic
from critic.network import ValueNetwork
from policy.trajectory import Trajectory
from reward.predictor import RewardPredictor

PROMPTS, STEPS, TEXT = 4, 3, 6


def new_critic(learning_rate: float = 3e-3, buffer_iterations: int = 2) -> Critic:
    torch.manual_seed(0)
    return Critic(
        ValueNetwork(4, 8, TEXT, width=8, condition_dim=16),
        PROMPTS,
        STEPS,
        learning_rate=learning_rate,
        buffer_iterations=buffer_iterations,
    )


def world(count: int, seed: int) -> tuple[Trajectory, torch.Tensor, torch.Tensor]:
    """Trajectories whose states share a brightness, which can be seen, their texts, and that brightness
    (count,)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, generator=generator)
    latents = torch.randn(count, STEPS + 1, 4, 8, 8, generator=generator)
    latents[:, :, 0] += hidden[:, None, None, None]
    prompt_ids = torch.randint(PROMPTS, (count,), generator=generator)
    zeros = torch.zeros(count, STEPS)
    trajectory = Trajectory(latents, latents[:, 1:], zeros, torch.tensor([900, 600, 300, 0]), prompt_ids)
    return trajectory, torch.eye(PROMPTS, TEXT)[prompt_ids], hidden


def measure_trust(critic: Critic, seed: int, returns: torch.Tensor | None = None) -> None:
    """Show the critic trajectories it has not learnt from; `returns` (96, STEPS) default to those of the
    brightness."""
    trajectory, text, hidden = world(96, seed)
    returns = returns_of(hidden, trajectory.prompt_ids) if returns is None else returns
    critic.observe(trajectory, text, torch.zeros(96, STEPS + 1), returns)


def within_prompt(
    critic: Critic, trajectory: Trajectory, text: torch.Tensor, returns: torch.Tensor
) -> torch.Tensor:
    values = critic.values(trajectory, text, torch.zeros(len(trajectory), STEPS + 1))
    groups = trajectory.prompt_ids
    return explained_variance(centre_within(values, groups), centre_within(returns, groups))


def train(
    critic: Critic, trajectory: Trajectory, text: torch.Tensor, returns: torch.Tensor, steps: int = 200
) -> float:
    critic.observe(trajectory, text, torch.zeros(len(trajectory), STEPS + 1), returns)
    return critic.fit(steps, 64, torch.Generator().manual_seed(0))


def returns_of(reward: torch.Tensor, prompt_ids: torch.Tensor) -> torch.Tensor:
    """A reward at the end, apart from a large part that the prompt alone decides."""
    rewards = torch.zeros(len(reward), STEPS)
    rewards[:, -1] = 0.02 * reward + 0.5 * prompt_ids
    return discounted_returns(rewards, 0.9)


def test_it_learns_what_can_be_seen_in_the_latent_and_holds_on_new_trajectories() -> None:
    critic = new_critic()
    trajectory, text, hidden = world(192, seed=1)
    train(critic, trajectory, text, returns_of(hidden, trajectory.prompt_ids))
    measure_trust(critic, seed=3)
    trajectory, text, hidden = world(96, seed=2)
    assert (within_prompt(critic, trajectory, text, returns_of(hidden, trajectory.prompt_ids)) > 0.5).all()


def test_a_value_may_depend_on_the_timestep() -> None:
    """The same brightness is good at one timestep and bad at another: only a network that is told the time
    can know."""
    critic = new_critic()
    sign = torch.tensor([1.0, -1.0, -1.0])
    trajectory, text, hidden = world(192, seed=1)
    train(critic, trajectory, text, hidden[:, None] * sign)
    measure_trust(critic, 3, world(96, 3)[2][:, None] * sign)
    trajectory, text, hidden = world(96, seed=2)
    assert (
        within_prompt(critic, trajectory, text, hidden[:, None] * sign) > 0.2
    ).all()  # one blind to time is below 0 somewhere


def test_random_returns_teach_it_nothing() -> None:
    critic = new_critic()
    trajectory, text, _ = world(192, seed=1)
    train(critic, trajectory, text, returns_of(torch.randn(192), trajectory.prompt_ids), steps=100)
    trajectory, text, _ = world(96, seed=3)
    measure_trust(critic, 3, returns_of(torch.randn(96), trajectory.prompt_ids))
    assert (critic.trust < 0.3).all()
    trajectory, text, _ = world(96, seed=2)
    assert (
        within_prompt(critic, trajectory, text, returns_of(torch.randn(96), trajectory.prompt_ids)).max()
        < 0.15
    )


def test_untrained_it_is_the_mean_return_of_each_prompt() -> None:
    critic = new_critic()
    trajectory, text, hidden = world(64, seed=1)
    returns = returns_of(hidden, trajectory.prompt_ids)
    critic.observe(trajectory, text, torch.zeros(64, STEPS + 1), returns)
    values = critic.values(trajectory, text, torch.zeros(64, STEPS + 1))
    for prompt in range(PROMPTS):
        rows = trajectory.prompt_ids == prompt
        torch.testing.assert_close(values[rows], returns[rows].mean(dim=0).expand(int(rows.sum()), STEPS))
    torch.testing.assert_close(
        within_prompt(critic, trajectory, text, returns), torch.zeros(STEPS), atol=1e-5, rtol=0
    )


def test_baselines_follow_new_returns_and_leave_other_prompts_alone() -> None:
    critic = new_critic()
    trajectory, text, _ = world(64, seed=1)
    critic.observe(trajectory, text, torch.zeros(64, STEPS + 1), torch.zeros(64, STEPS))
    only = trajectory[trajectory.prompt_ids == 2]
    count = len(only)
    for _ in range(30):
        critic.observe(only, text[:count], torch.zeros(count, STEPS + 1), torch.ones(count, STEPS))
    torch.testing.assert_close(critic.baseline[2], torch.ones(STEPS), atol=1e-3, rtol=0)
    assert torch.equal(critic.baseline[[0, 1, 3]], torch.zeros(3, STEPS))


def test_it_remembers_so_many_iterations() -> None:
    critic = new_critic(buffer_iterations=2)
    for seed in range(3):
        trajectory, text, hidden = world(8, seed)
        critic.observe(trajectory, text, torch.zeros(8, STEPS + 1), returns_of(hidden, trajectory.prompt_ids))
    assert len(critic.buffer) == 2
    assert torch.equal(critic.buffer[-1][0].latents, trajectory.latents)


def test_fitting_lowers_the_loss_and_no_steps_change_nothing() -> None:
    critic = new_critic()
    trajectory, text, hidden = world(128, seed=1)
    first = train(critic, trajectory, text, returns_of(hidden, trajectory.prompt_ids), steps=1)
    last = critic.fit(150, 64, torch.Generator().manual_seed(1))
    assert last < 0.6 * first
    before = [p.detach().clone() for p in critic.network.parameters()]
    assert critic.fit(0, 64, torch.Generator()) != critic.fit(0, 64, torch.Generator())  # not a number
    assert all(torch.equal(p, b) for p, b in zip(critic.network.parameters(), before, strict=True))


def test_values_do_not_depend_on_what_is_asked_beside() -> None:
    critic = new_critic()
    trajectory, text, hidden = world(16, seed=1)
    train(critic, trajectory, text, returns_of(hidden, trajectory.prompt_ids), steps=20)
    measure_trust(critic, seed=3)
    potentials = torch.randn(16, STEPS + 1)
    values = critic.values(trajectory, text, potentials)
    assert values.shape == (16, STEPS)
    torch.testing.assert_close(critic.values(trajectory[3:5], text[3:5], potentials[3:5]), values[3:5])


@pytest.mark.parametrize("side", [8, 16])
def test_the_network_sees_latent_time_text_and_potential(side: int) -> None:
    torch.manual_seed(0)
    network = ValueNetwork(4, side, TEXT, width=8, condition_dim=16)
    inputs = (torch.randn(2, 4, side, side), torch.tensor([900, 100]), torch.randn(2, TEXT), torch.randn(2))
    assert torch.equal(network(*inputs), torch.zeros(2))  # before training the baseline speaks alone
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    others = (torch.randn(2, 4, side, side), torch.tensor([500, 300]), torch.randn(2, TEXT), torch.randn(2))
    for i in range(4):
        changed = [*inputs[:i], others[i], *inputs[i + 1 :]]
        assert (network(*changed) - network(*inputs)).abs().min() > 1e-4


def test_it_begins_with_what_the_reward_predictor_has_learnt() -> None:
    torch.manual_seed(0)
    predictor = RewardPredictor(4, 8, 12, width=8, condition_dim=16)
    for p in predictor.parameters():
        torch.nn.init.normal_(p, std=0.3)  # FiLM no longer is the identity
    network = ValueNetwork.from_predictor(predictor, TEXT, ["cat"])
    features: dict[ValueNetwork | RewardPredictor, torch.Tensor] = {}
    for module in (network, predictor):
        module.trunk.register_forward_hook(
            lambda _, __, output, module=module: features.update({module: output})
        )
    latents, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([900, 500, 20])
    predictor(latents, timesteps)
    assert network(latents, timesteps, torch.randn(3, TEXT), torch.randn(3)).abs().max() == 0
    assert torch.equal(features[network], features[predictor])


def test_a_baseline_alone_keeps_no_trajectories() -> None:
    critic = Critic(
        new_critic().network, PROMPTS, STEPS, learning_rate=1e-3, buffer_iterations=2, kind="none"
    )
    measure_trust(critic, 1)
    assert not critic.buffer and critic.baseline.abs().max() > 0
