"""What a critic knows: explained variance on held-out rollouts, by where it begins: `python -m
benchmarks.diagnostics critics`.

Rollouts of the base on each concept's forget prompts; some are learnt from, the others held out. Their
returns are Monte-Carlo returns, by default of the finished image alone. A critic begins from scratch, with
the trunk of the reward predictor, or as the critic of the concept before, and learns from as many rollouts as
a run's warm-up has, or from all of them. Explained variance is 1 - Var[G - V] / Var[G]: in all, which knowing
the prompt alone goes far to explain, and within prompts, which is what a baseline for each prompt leaves to a
critic. Written are critics.json and critics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.canvas import CONCEPTS
from benchmarks.diagnostics import quiet_arguments
from benchmarks.report import markdown, number, write_json, write_text
from common.flags import SEED, flag, parse, values_of
from critic.advantages import centre_within, explained_variance
from critic.critic import Critic
from critic.estimators import SIGNALS, Estimator
from critic.network import ValueNetwork
from environment.environment import Environment
from policy.trajectory import Trajectory
from training.config import RunConfig
from training.config import parse_config as parse_run
from training.setup import prepare

STARTS = ("from scratch", "the reward predictor's trunk", "the critic of another concept")
Found = dict[str, dict[str, dict[str, list[float]]]]
"""Explained variance by start, number of rollouts and kind, one for each step."""


@dataclass(frozen=True)
class CriticsConfig:
    """Critics."""

    concepts: tuple[str, ...] = flag(
        CONCEPTS, help="What is to be erased, each measured by itself, in this order."
    )
    num_rollouts: int = flag(512, at_least=1, help="Rollouts to learn from, more than a warm-up has.")
    num_held_out: int = flag(256, at_least=1, help="Rollouts held out.")
    fit_steps: int = flag(1500, at_least=0, help="Optimizer steps on all rollouts.")
    gamma: float = flag(1.0, at_least=0, at_most=1, help="Discount over denoising steps.")
    reward_signal: str = flag("terminal", choices=SIGNALS, help="What the returns are made of.")
    output_dir: Path = flag(Path("runs/critics"), help="Where critics.json and critics.md are written.")
    seed: int = flag(0, within=SEED, help="Seed of rollouts and critics.")


@dataclass(frozen=True)
class Rollouts:
    """Rollouts of the base with what a critic sees of them; a part of them by its rows."""

    trajectory: Trajectory
    text: torch.Tensor
    potentials: torch.Tensor
    returns: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> Rollouts:
        return Rollouts(self.trajectory[rows], self.text[rows], self.potentials[rows], self.returns[rows])

    def show(self, critic: Critic) -> None:
        """Let a critic observe them."""
        critic.observe(self.trajectory, self.text, self.potentials, self.returns)

    def explained(self, critic: Critic) -> dict[str, list[float]]:
        """How much of their returns a critic's values explain at each step, in all and within prompts."""
        values = critic.values(self.trajectory, self.text, self.potentials)
        ids = self.trajectory.prompt_ids
        within = explained_variance(centre_within(values, ids), centre_within(self.returns, ids))
        return {
            "in all": explained_variance(values, self.returns).tolist(),
            "within prompts": within.tolist(),
        }


def collect(
    env: Environment, settings: RunConfig, config: CriticsConfig, generator: torch.Generator
) -> Rollouts:
    """Roll the base out, with the reward calibrated on what it draws."""
    count = config.num_rollouts + config.num_held_out
    trajectory = env.collect(env.draw(env.forget_ids, count, generator), generator)
    retain_ids = env.draw(env.retain_ids, settings.schedule.retain_rollouts, generator)
    finished, _ = env.calibrate(trajectory, env.collect(retain_ids, generator))
    potentials = env.score_forget(trajectory, finished).potentials
    returns = Estimator(config.gamma, 0.0, signal=config.reward_signal).returns(potentials)
    return Rollouts(trajectory, env.table.pooled[trajectory.prompt_ids], potentials, returns)


def first_network(start: str, env: Environment, donor: ValueNetwork | None, seed: int) -> ValueNetwork:
    """The network that a critic begins with."""
    torch.manual_seed(seed)
    text_dim, known = env.table.pooled.shape[-1], env.predictor.config
    if start == STARTS[0]:
        return ValueNetwork(known["in_channels"], known["sample_size"], text_dim)
    network = ValueNetwork.from_predictor(env.predictor, text_dim)
    if start == STARTS[2]:
        assert donor is not None
        network.load_state_dict(donor.state_dict())
    return network


def measure(
    concept: str, donor: ValueNetwork | None, config: CriticsConfig
) -> tuple[Found, ValueNetwork, list[int]]:
    """For each start and number of rollouts: explained variance by step, in all and within prompts. And
    the critic for the next concept, and the timesteps."""
    settings = parse_run(quiet_arguments(concept, config.seed, config.output_dir))
    env, fit = prepare(settings).env, settings.critic
    generator = torch.Generator().manual_seed(config.seed)
    rollouts = collect(env, settings, config, generator)
    order = torch.randperm(len(rollouts.trajectory), generator=generator)
    held_out, learnable = rollouts[order[: config.num_held_out]], order[config.num_held_out :]
    found: Found = {}
    for start in STARTS[: 2 if donor is None else 3]:
        for count in (settings.schedule.warmup_rollouts, config.num_rollouts):
            network = first_network(start, env, donor, config.seed)
            critic = Critic(
                network,
                len(env.table.prompts),
                env.kernel.num_steps,
                learning_rate=fit.critic_learning_rate,
                buffer_iterations=2,
            )
            rows = learnable[:count]
            rollouts[rows[count // 4 :]].show(critic)
            steps = fit.critic_warmup_steps if count < config.num_rollouts else config.fit_steps
            critic.fit(steps, fit.critic_batch_size, generator)
            rollouts[rows[: count // 4]].show(critic)
            found.setdefault(start, {})[str(count)] = held_out.explained(critic)
        if start == STARTS[1]:
            passed_on = network
    return found, passed_on, env.kernel.labels


def table(by_concept: Mapping[str, Found]) -> str:
    """Means over concepts and steps, and over the first and the last quarter of the steps."""
    rows = []
    for start in STARTS:
        having = [found[start] for found in by_concept.values() if start in found]
        for count in having[0] if having else ():
            whole = [mean(found[count]["in all"]) for found in having]
            within = [found[count]["within prompts"] for found in having]
            quarter = len(within[0]) // 4
            cells = [
                mean(whole),
                mean(map(mean, within)),
                mean(mean(w[:quarter]) for w in within),
                mean(mean(w[-quarter:]) for w in within),
            ]
            rows.append([start, count, *(number(cell, 2) for cell in cells)])
    header = ["begins with", "rollouts", "in all", "within prompts", "first quarter of the steps"]
    return markdown([*header, "last quarter"], rows)


def parse_critics(arguments: Sequence[str] | None = None) -> CriticsConfig:
    """The settings of a command line."""
    return parse(CriticsConfig, arguments, __doc__, prog="python -m benchmarks.diagnostics critics")


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse_critics(arguments)
    by_concept: dict[str, Found] = {}
    donor, timesteps = None, []
    for concept in tqdm(config.concepts, desc="concepts"):
        by_concept[concept], donor, timesteps = measure(concept, donor, config)
    content: dict[str, Any] = {
        "settings": {name: str(value) for name, value in values_of(config).items()},
        "timesteps": timesteps,
        "concepts": by_concept,
    }
    write_json(config.output_dir / "critics.json", content)
    write_text(config.output_dir / "critics.md", table(by_concept))
    print(table(by_concept))
