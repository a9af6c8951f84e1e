"""Train a critic by itself on the base model's rollouts, from the reward predictor's trunk on: `python -m
critic.train`.

The training script warms a critic up in the run; one trained here, on more rollouts, can be given to it
with `--critic_model_name_or_path` and reused over runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from common.errors import Unsound, friendly_errors
from common.flags import SEED, flag, parse
from common.room import Room
from critic.advantages import centre_within, explained_variance
from critic.critic import Critic
from critic.estimators import SIGNALS, Estimator
from critic.network import ValueNetwork
from environment.build import EnvironmentConfig, build_environment
from pipelines.base import BaseConfig
from reward.arguments import ConceptConfig, RewardConfig


@dataclass(frozen=True)
class TrainingConfig:
    """Training."""

    output_dir: Path = flag(help="Where config.json and model.safetensors are written.")
    num_rollouts: int = flag(768, at_least=6, help="Rollouts of forget prompts; a sixth of them is held out.")
    max_train_steps: int = flag(1000, at_least=0, help="Optimizer steps.")
    train_states: int = flag(256, at_least=1, help="States in an optimizer step.")
    learning_rate: float = flag(1e-3, above=0, help="Learning rate of AdamW.")
    gamma: float = flag(
        0.5,
        at_least=0,
        at_most=1,
        help="Discount over denoising steps of the later run, whose returns it learns.",
    )
    reward_signal: str = flag("noisy", choices=SIGNALS, help="Reward signal of the later run.")
    seed: int = flag(0, within=SEED, help="Seed of rollouts and weights.")


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a critic's training."""

    concept: ConceptConfig
    base: BaseConfig
    reward: RewardConfig
    environment: EnvironmentConfig
    training: TrainingConfig


def parse_config(arguments: Sequence[str] | None = None) -> TrainConfig:
    """The settings of a command line."""
    description = "Train a critic for a concept on the base model's rollouts."
    return parse(TrainConfig, arguments, description, prog="python -m critic.train")


def main(config: TrainConfig) -> None:
    accelerator = Accelerator()
    training = config.training
    set_seed(training.seed)
    with friendly_errors(), config.base.downloads():
        env = build_environment(
            config.base, config.concept, config.reward, config.environment, device=accelerator.device
        )
    generator = torch.Generator().manual_seed(training.seed)
    print(
        f"Rolling the base out {training.num_rollouts} times on {len(env.spec.forget_prompts)} forget prompts"
    )
    trajectory = env.collect(env.draw(env.forget_ids, training.num_rollouts, generator), generator)
    finished, _ = env.calibrate(
        trajectory, env.collect(env.draw(env.retain_ids, training.num_rollouts // 2, generator), generator)
    )
    potentials = env.score_forget(trajectory, finished).potentials
    returns = Estimator(training.gamma, 0.0, signal=training.reward_signal).returns(potentials)
    text = env.table.pooled[trajectory.prompt_ids]

    network = ValueNetwork.from_predictor(
        env.predictor, text.shape[-1], env.spec.concepts, pipeline_class=env.backbone.pipeline_class
    ).to(accelerator.device)
    critic = Critic(
        network,
        len(env.table.prompts),
        env.kernel.num_steps,
        learning_rate=training.learning_rate,
        buffer_iterations=1,
    )
    order = torch.randperm(training.num_rollouts, generator=generator)
    held_out, train = order[: training.num_rollouts // 6], order[training.num_rollouts // 6 :]
    critic.observe(trajectory[train], text[train], potentials[train], returns[train])
    with Room(training.output_dir, sum(p.nbytes for p in network.parameters())):
        loss = critic.fit(training.max_train_steps, training.train_states, generator)
    if not critic.is_finite():
        raise Unsound("The critic's weights are NaN or infinite; nothing was saved. Lower --learning_rate.")
    network.save_pretrained(training.output_dir)

    groups = trajectory.prompt_ids[held_out]
    values = critic.values(trajectory[held_out], text[held_out], potentials[held_out])
    explained = explained_variance(centre_within(values, groups), centre_within(returns[held_out], groups))
    print(
        f"loss {loss:.4f}; explained variance within prompts on {len(held_out)} held-out rollouts, by timestep:"
    )
    print("  ".join(f"t={t}: {ev:.2f}" for t, ev in zip(env.kernel.labels, explained.tolist(), strict=True)))
    print(
        f"Wrote {training.output_dir}; use it with --critic_model_name_or_path {training.output_dir} --gamma {training.gamma:g}"
    )


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
