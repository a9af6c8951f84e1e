"""Train a critic by itself on the base model's rollouts, from the reward predictor's trunk on: `python -m
critic.train`.

The training script warms a critic up in the run; one trained here, on more rollouts, can be given to it
with `--critic_model_name_or_path` and reused over runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from common.command_line import number, positive_int, whole_number
from common.errors import Unsound, friendly_errors
from critic.advantages import centre_within, explained_variance
from critic.critic import Critic
from critic.estimators import SIGNALS, Estimator
from critic.network import ValueNetwork
from environment.build import add_environment_arguments, build_environment


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m critic.train",
        description="Train a critic for a concept on the base model's rollouts.",
    )
    add_environment_arguments(parser)
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="Where config.json and model.safetensors are written."
    )
    parser.add_argument(
        "--num_rollouts",
        type=int,
        default=768,
        help="Rollouts of forget prompts; a sixth of them is held out.",
    )
    parser.add_argument("--max_train_steps", type=whole_number, default=1000, help="Optimizer steps.")
    parser.add_argument("--train_states", type=positive_int, default=256, help="States in an optimizer step.")
    parser.add_argument("--learning_rate", type=number, default=1e-3, help="Learning rate of AdamW.")
    parser.add_argument(
        "--gamma",
        type=number,
        default=0.5,
        help="Discount over denoising steps of the later run, whose returns it learns.",
    )
    parser.add_argument(
        "--reward_signal", choices=SIGNALS, default="noisy", help="Reward signal of the later run."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of rollouts and weights.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    accelerator = Accelerator()
    set_seed(args.seed)
    with friendly_errors():
        if args.num_rollouts < 6:
            raise ValueError("--num_rollouts must be at least 6, one to hold out and five to learn from.")
        env = build_environment(args, accelerator.device)
    generator = torch.Generator().manual_seed(args.seed)
    print(f"Rolling the base out {args.num_rollouts} times on {len(env.spec.forget_prompts)} forget prompts")
    trajectory = env.collect(env.draw(env.forget_ids, args.num_rollouts, generator), generator)
    finished, _ = env.calibrate(
        trajectory, env.collect(env.draw(env.retain_ids, args.num_rollouts // 2, generator), generator)
    )
    potentials = env.score_forget(trajectory, finished).potentials
    returns = Estimator(args.gamma, 0.0, signal=args.reward_signal).returns(potentials)
    text = env.table.pooled[trajectory.prompt_ids]

    network = ValueNetwork.from_predictor(
        env.predictor, text.shape[-1], env.spec.concepts, pipeline_class=env.backbone.pipeline_class
    ).to(accelerator.device)
    critic = Critic(
        network, len(env.table.prompts), env.kernel.num_steps, args.learning_rate, buffer_iterations=1
    )
    order = torch.randperm(args.num_rollouts, generator=generator)
    held_out, train = order[: args.num_rollouts // 6], order[args.num_rollouts // 6 :]
    critic.observe(trajectory[train], text[train], potentials[train], returns[train])
    loss = critic.fit(args.max_train_steps, args.train_states, generator)
    if not critic.is_finite():
        raise Unsound(
            "The critic has become numbers that are none, so it is not written; lower --learning_rate."
        )
    network.save_pretrained(args.output_dir)

    groups = trajectory.prompt_ids[held_out]
    values = critic.values(trajectory[held_out], text[held_out], potentials[held_out])
    explained = explained_variance(centre_within(values, groups), centre_within(returns[held_out], groups))
    print(
        f"loss {loss:.4f}; explained variance within prompts on {len(held_out)} held-out rollouts, by timestep:"
    )
    print(
        "  ".join(
            f"t={t}: {ev:.2f}"
            for t, ev in zip(trajectory.timesteps[:-1].tolist(), explained.tolist(), strict=True)
        )
    )
    print(
        f"Wrote {args.output_dir}; use it with --critic_model_name_or_path {args.output_dir} --gamma {args.gamma:g}"
    )


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
