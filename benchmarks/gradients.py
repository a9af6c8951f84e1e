"""How good a gradient each advantage estimator gives at frozen weights: `python -m benchmarks.gradients`.

Independent batches of trajectories of one policy (the base, or --adapter), and for each estimator and critic
the gradient of the surrogate by every batch, through the trainer's own update. With g_i the gradients, n of
them:

- *agreement*: mean cosine of g_i and g_j: how much of a batch's gradient is direction rather than noise;
- *signal*: |E g|^2 by the mean of g_i . g_j, which chance does not raise, and *noise*: the trace of their
covariance; their ratio is the SNR of one batch;
- *bias*: cosine of the mean gradient and that of the finished image's reward without any baseline or critic,
which is unbiased.
  It is itself an estimate; its own cosine between two halves of the batches bounds what can be reached.
  Beside it the cosine to the mean gradient of "pathwise", which has the expectation of the likelihood ratio
  of the same value.

Every advantage is normalised as in training, so that no estimator is favoured by its scale. Written are
gradients.json and gradients.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import train_unlearn_lora as script
from benchmarks.frozen import quiet_arguments
from common.files import write_aside
from critic.advantages import normalize
from critic.pathwise import slope_scale
from policy.lora import load_lora_state
from policy.trajectory import Experience
from policy.update import UpdateConfig, update_policy

ESTIMATORS = {
    "pathwise": ["--advantage", "pathwise"],
    "pathwise, with a critic": ["--advantage", "pathwise", "--gamma", "0.5"],
    "pathwise, critic alone": ["--advantage", "pathwise", "--gamma", "1", "--reward_signal", "terminal"],
    "step": ["--advantage", "step"],
    "step, no critic": ["--advantage", "step", "--critic_type", "none"],
    "step, no finished image": [
        "--advantage",
        "step",
        "--terminal_weight",
        "0",
    ],  # the likelihood ratio's twin of "pathwise"
    "td": ["--advantage", "td"],
    "gae 0.9": ["--advantage", "gae"],
    "mc": ["--advantage", "mc"],
    "mc, terminal reward": ["--advantage", "mc", "--reward_signal", "terminal"],
    "ddpo": ["--advantage", "ddpo"],
}
REFERENCE = "no baseline"


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the gradient and moves nothing."""

    gradient: torch.Tensor

    def step(self, closure: Any = None) -> None:
        self.gradient = torch.cat(
            [
                p.grad.flatten() if p.grad is not None else torch.zeros_like(p).flatten()
                for p in self.param_groups[0]["params"]
            ]
        )


def agreement(gradients: torch.Tensor) -> float:
    """Mean cosine between different rows of (n, P)."""
    unit = torch.nn.functional.normalize(gradients, dim=1)
    n = len(gradients)
    return ((unit.sum(0).square().sum() - n) / (n * (n - 1))).item()


def signal_and_noise(gradients: torch.Tensor) -> tuple[float, float]:
    """Unbiased |E g|^2, which may come out negative, and the trace of the covariance of (n, P)."""
    n = len(gradients)
    power = gradients.square().sum(1).mean()
    signal = (gradients.sum(0).square().sum() - n * power) / (n * (n - 1))
    return signal.item(), (power - signal).item()


def figures(gradients: torch.Tensor, references: dict[str, torch.Tensor]) -> dict[str, float]:
    """What an estimator's gradients (n, P) come to beside those of the references (n, P), by name."""
    signal, noise = signal_and_noise(gradients)
    found = {
        "agreement": agreement(gradients),
        "signal": signal,
        "noise": noise,
        "snr": signal / max(noise, 1e-12),
    }
    return found | {
        f"cosine_to_{name}": torch.cosine_similarity(gradients.mean(0), r.mean(0), dim=0).item()
        for name, r in references.items()
    }


def measure(concept: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of every estimator on one concept."""
    given = quiet_arguments(concept, args.seed, args.output_dir)
    settings = script.parse_args(given)
    accelerator, env, _, optimizer, *_ = script.prepare(settings)
    unet = env.pipe.unet
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    recorder = Recorder(parameters, lr=0.0)
    prepared = accelerator.prepare(recorder)
    if args.adapter:
        load_lora_state(unet, script.load_checkpoint(args.adapter.parent, str(args.adapter))[0]["lora"])
    generator = torch.Generator().manual_seed(args.seed)
    retain = env.collect(env.draw(env.retain_ids, settings.retain_rollouts, generator), generator)
    warmup = env.collect(env.draw(env.forget_ids, settings.warmup_rollouts, generator), generator)
    warmup_images, _ = env.calibrate(warmup, retain)
    warmup_score = env.score_forget(warmup, warmup_images)
    batches = [
        env.collect(env.draw(env.forget_ids, settings.images_per_iteration, generator), generator)
        for _ in tqdm(range(args.num_batches), desc=f"{concept}: rollouts")
    ]
    scores = [env.score_forget(batch) for batch in batches]
    config = UpdateConfig(
        clip_range=settings.clip_range,
        kl_coef=0.0,
        anchor_kl_coef=0.0,
        adversarial_radius=0.0,
        target_kl=float("inf"),
        inner_epochs=1,
        batch_size=env.batch_size,
        retain_batch_size=1,
        accumulation=10**6,
        timestep_fraction=1.0,
        masked_steps=settings.masked_steps,
        guidance_scale=settings.guidance_scale,
        max_grad_norm=float("inf"),
    )

    def gradient(batch: int, advantages: torch.Tensor, slopes: torch.Tensor | None = None) -> torch.Tensor:
        experience = Experience(batches[batch], advantages, scores[batch].anchor_ids, slopes)
        update_policy(
            unet,
            env.kernel,
            env.table,
            [experience],
            retain,
            prepared,
            accelerator,
            config,
            torch.Generator().manual_seed(0),
        )
        return recorder.gradient.clone()

    found: dict[str, torch.Tensor] = {}
    raw = [score.potentials[:, -1:].expand(-1, env.kernel.num_steps) for score in scores]
    found[REFERENCE] = torch.stack(
        [
            gradient(i, normalize(r - r.mean(), 5.0))
            for i, r in enumerate(tqdm(raw, desc=f"{concept}: {REFERENCE}"))
        ]
    )
    for name, flags in ESTIMATORS.items():
        chosen = script.parse_args([*given, *flags])
        critic = script.create_critic(chosen, env)
        script.warm_up_critic(
            chosen, env, critic, warmup, warmup_score, torch.Generator().manual_seed(args.seed)
        )
        values = [
            script.values_of(env, critic, b, s.potentials) for b, s in zip(batches, scores, strict=True)
        ]
        advantages = [
            script.estimate_advantages(chosen, b, s.potentials, v)
            for b, s, v in zip(batches, scores, values, strict=True)
        ]
        slopes: list[torch.Tensor | None] = [None] * len(batches)
        if script.choose_estimator(chosen).pathwise:
            scale = slope_scale(script.slopes_of_values(chosen, env, critic, warmup), env.kernel.stds)
            slopes = [
                script.weighed_slopes(chosen, env, critic, b, s, scale)
                for b, s in zip(batches, scores, strict=True)
            ]
        pairs = zip(tqdm(advantages, desc=f"{concept}: {name}"), slopes, strict=True)
        found[name] = torch.stack([gradient(i, *pair) for i, pair in enumerate(pairs)])
    halves = found[REFERENCE].split(args.num_batches // 2)
    references = {"no_baseline": found[REFERENCE], "pathwise": found["pathwise"]}
    result = {name: figures(gradients, references) for name, gradients in found.items()}
    result[REFERENCE]["cosine_to_no_baseline"] = torch.cosine_similarity(
        halves[0].mean(0), halves[1].mean(0), dim=0
    ).item()
    return result


def table(by_concept: dict[str, dict[str, dict[str, float]]]) -> str:
    """Means over the concepts."""
    lines = [
        "| advantage | agreement of batches | SNR of a batch | cosine to no baseline | cosine to pathwise |",
        "|---|---|---|---|---|",
    ]
    for name in next(iter(by_concept.values())):
        rows = [found[name] for found in by_concept.values()]
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        cosines = f"{mean['cosine_to_no_baseline']:.2f} | {mean['cosine_to_pathwise']:.2f}"
        lines.append(f"| {name} | {mean['agreement']:.2f} | {mean['snr']:.3f} | {cosines} |")
    return "\n".join(lines)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gradients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--concepts",
        nargs="+",
        default=["Van Gogh style", "cat"],
        help="What is to be erased, each measured by itself.",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="CHECKPOINT",
        help="A checkpoint directory of a run, whose policy acts. Default: the base.",
    )
    parser.add_argument(
        "--num_batches",
        type=int,
        default=8,
        help="Independent batches, of as many trajectories as an iteration has; at least 4.",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/gradients"),
        help="Where gradients.json and gradients.md are written.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of rollouts and critics.")
    args = parser.parse_args(input_args)
    if args.num_batches < 4:
        parser.error("--num_batches must be at least 4.")
    return args


def main(args: argparse.Namespace) -> None:
    by_concept = {concept: measure(concept, args) for concept in args.concepts}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    text = (
        json.dumps({"settings": {k: str(v) for k, v in vars(args).items()}, "concepts": by_concept}, indent=2)
        + "\n"
    )
    write_aside(args.output_dir / "gradients.json", lambda path: path.write_text(text, encoding="utf-8"))
    write_aside(
        args.output_dir / "gradients.md",
        lambda path: path.write_text(table(by_concept) + "\n", encoding="utf-8"),
    )
    print(table(by_concept))


if __name__ == "__main__":
    main(parse_args())
