"""What a critic knows: explained variance on held-out rollouts, by where it begins: `python -m
benchmarks.critics`.

Rollouts of the base on each concept's forget prompts; some are learnt from, the others held out. Their
returns are Monte-Carlo returns, by default of the finished image alone. A critic begins from scratch, with
the trunk of the reward predictor, or as the critic of the concept before, and learns from as many rollouts as
a run's warm-up has, or from all of them. Explained variance is 1
- Var[G - V] / Var[G]: in all, which knowing the prompt alone goes far to explain, and within prompts, which
is what a baseline for each prompt leaves to a critic. Written are critics.json and critics.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm.auto import tqdm

import train_unlearn_lora as script
from benchmarks.canvas import CONCEPTS
from benchmarks.frozen import quiet_arguments
from common.files import write_aside
from critic.advantages import centre_within, explained_variance
from critic.critic import Critic
from critic.estimators import SIGNALS, Estimator
from critic.network import ValueNetwork

STARTS = ("from scratch", "the reward predictor's trunk", "the critic of another concept")
Found = dict[str, dict[str, dict[str, list[float]]]]


def measure(
    concept: str, donor: ValueNetwork | None, args: argparse.Namespace
) -> tuple[Found, ValueNetwork, list[int]]:
    """For each start and number of rollouts: explained variance by step, in all and within prompts. And
    the critic for the next concept, and the timesteps."""
    settings = script.parse_args(quiet_arguments(concept, args.seed, args.output_dir))
    env = script.prepare(settings).env
    generator = torch.Generator().manual_seed(args.seed)
    count = args.num_rollouts + args.num_held_out
    trajectory = env.collect(env.draw(env.forget_ids, count, generator), generator)
    finished, _ = env.calibrate(
        trajectory, env.collect(env.draw(env.retain_ids, settings.retain_rollouts, generator), generator)
    )
    potentials = env.score_forget(trajectory, finished).potentials
    returns = Estimator(args.gamma, 0.0, signal=args.reward_signal).returns(potentials)
    text = env.table.pooled[trajectory.prompt_ids]
    order = torch.randperm(count, generator=generator)
    held_out, learnable = order[: args.num_held_out], order[args.num_held_out :]

    def begin(start: str) -> ValueNetwork:
        torch.manual_seed(args.seed)
        if start == STARTS[0]:
            return ValueNetwork(
                env.predictor.config["in_channels"], env.predictor.config["sample_size"], text.shape[-1]
            )
        network = ValueNetwork.from_predictor(env.predictor, text.shape[-1])
        if start == STARTS[2]:
            assert donor is not None
            network.load_state_dict(donor.state_dict())
        return network

    found: Found = {}
    for start in STARTS[: 2 if donor is None else 3]:
        for number in (settings.warmup_rollouts, args.num_rollouts):
            network = begin(start)
            critic = Critic(
                network,
                len(env.table.prompts),
                env.kernel.num_steps,
                settings.critic_learning_rate,
                buffer_iterations=2,
            )
            rows = learnable[:number]
            learnt, trusted = rows[number // 4 :], rows[: number // 4]
            critic.observe(trajectory[learnt], text[learnt], potentials[learnt], returns[learnt])
            critic.fit(
                settings.critic_warmup_steps if number < args.num_rollouts else args.fit_steps,
                settings.critic_batch_size,
                generator,
            )
            critic.observe(trajectory[trusted], text[trusted], potentials[trusted], returns[trusted])
            values, groups = (
                critic.values(trajectory[held_out], text[held_out], potentials[held_out]),
                trajectory.prompt_ids[held_out],
            )
            known = {
                "in all": explained_variance(values, returns[held_out]),
                "within prompts": explained_variance(
                    centre_within(values, groups), centre_within(returns[held_out], groups)
                ),
            }
            found.setdefault(start, {})[str(number)] = {name: ev.tolist() for name, ev in known.items()}
        if start == STARTS[1]:
            passed_on = network
    return found, passed_on, trajectory.timesteps[:-1].tolist()


def table(by_concept: dict[str, Found]) -> str:
    """Means over concepts and steps, and over the first and the last quarter of the steps."""
    lines = [
        "| begins with | rollouts | in all | within prompts | first quarter of the steps | last quarter |",
        "|---|---|---|---|---|---|",
    ]
    for start in STARTS:
        having = [found[start] for found in by_concept.values() if start in found]
        for number in having[0] if having else ():
            whole = [mean(found[number]["in all"]) for found in having]
            within = [found[number]["within prompts"] for found in having]
            quarter = len(within[0]) // 4
            cells = [
                mean(whole),
                mean(map(mean, within)),
                mean(mean(w[:quarter]) for w in within),
                mean(mean(w[-quarter:]) for w in within),
            ]
            lines.append(f"| {start} | {number} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(lines)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.critics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--concepts",
        nargs="+",
        default=CONCEPTS,
        help="What is to be erased, each measured by itself, in this order.",
    )
    parser.add_argument(
        "--num_rollouts", type=int, default=512, help="Rollouts to learn from, more than a warm-up has."
    )
    parser.add_argument("--num_held_out", type=int, default=256, help="Rollouts held out.")
    parser.add_argument("--fit_steps", type=int, default=1500, help="Optimizer steps on all rollouts.")
    parser.add_argument("--gamma", type=float, default=1.0, help="Discount over denoising steps.")
    parser.add_argument(
        "--reward_signal", choices=SIGNALS, default="terminal", help="What the returns are made of."
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/critics"),
        help="Where critics.json and critics.md are written.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of rollouts and critics.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    by_concept: dict[str, Found] = {}
    donor, timesteps = None, []
    for concept in tqdm(args.concepts, desc="concepts"):
        by_concept[concept], donor, timesteps = measure(concept, donor, args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "settings": {k: str(v) for k, v in vars(args).items()},
        "timesteps": timesteps,
        "concepts": by_concept,
    }
    write_aside(
        args.output_dir / "critics.json",
        lambda path: path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"),
    )
    write_aside(
        args.output_dir / "critics.md",
        lambda path: path.write_text(table(by_concept) + "\n", encoding="utf-8"),
    )
    print(table(by_concept))


if __name__ == "__main__":
    main(parse_args())
