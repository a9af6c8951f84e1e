"""How good a gradient each advantage estimator gives at frozen weights: `python -m benchmarks.diagnostics
gradients`.

Independent batches of trajectories of one policy (the base, or --adapter), and for each estimator and critic
the gradient of the surrogate by every batch, through the trainer's own update. With g_i the gradients, n of
them:

- *agreement*: mean cosine of g_i and g_j: how much of a batch's gradient is direction rather than noise;
- *signal*: |E g|^2 by the mean of g_i . g_j, which chance does not raise, and *noise*: the trace of their
  covariance; their ratio is the SNR of one batch;
- *bias*: cosine of the mean gradient and that of the finished image's reward without any baseline or critic,
  which is unbiased. It is itself an estimate; its own cosine between two halves of the batches bounds what
  can be reached. Beside it the cosine to the mean gradient of "pathwise", which has the expectation of the
  likelihood ratio of the same value.

Every advantage is normalized as in training, so that no estimator is favoured by its scale. Written are
gradients.json and gradients.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.diagnostics import quiet_arguments
from benchmarks.report import markdown, write_json, write_text
from common.checkpoints import load_checkpoint
from common.flags import SEED, flag, parse, values_of
from critic.advantages import normalize
from critic.credit import create_critic, credit, value_gradients, warm_up
from critic.credit import values_of as critic_values
from critic.pathwise import gradient_scale
from environment.environment import ForgetScore
from policy.trajectory import Experience, Trajectory
from training.config import RunConfig, parse_config
from training.setup import Run, prepare

ESTIMATORS = {
    "pathwise": ["--advantage", "pathwise"],
    "pathwise, with a critic": ["--advantage", "pathwise", "--gamma", "0.5"],
    "pathwise, critic alone": ["--advantage", "pathwise", "--gamma", "1", "--reward_signal", "terminal"],
    "step": ["--advantage", "step"],
    "step, no critic": ["--advantage", "step", "--critic_type", "none"],
    # The likelihood ratio's twin of "pathwise".
    "step, no finished image": ["--advantage", "step", "--terminal_weight", "0"],
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
        parameters = self.param_groups[0]["params"]
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.gradient = torch.cat([gradient.flatten() for gradient in found])


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


def metrics(gradients: torch.Tensor, references: Mapping[str, torch.Tensor]) -> dict[str, float]:
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


@dataclass
class Sample:
    """What the gradients of one concept are taken on.

    Attributes:
        retain: the base's trajectories of retain prompts.
        warmup: the base's trajectories of forget prompts, which critics are warmed up on.
        batches: independent ones of forget prompts.
    """

    run: Run
    retain: Trajectory
    warmup: Trajectory
    warmup_score: ForgetScore
    batches: list[Trajectory]
    scores: list[ForgetScore]


def draw_sample(run: Run, num_batches: int, seed: int, title: str) -> Sample:
    """Roll the policy out as it is."""
    env, schedule = run.env, run.config.schedule
    generator = torch.Generator().manual_seed(seed)

    def collect(ids: torch.Tensor, count: int) -> Trajectory:
        return env.collect(env.draw(ids, count, generator), generator)

    retain = collect(env.retain_ids, schedule.retain_rollouts)
    warmup = collect(env.forget_ids, schedule.warmup_rollouts)
    warmup_images, _ = env.calibrate(warmup, retain)
    warmup_score = env.score_forget(warmup, warmup_images)
    batches = [
        collect(env.forget_ids, schedule.images_per_iteration) for _ in tqdm(range(num_batches), desc=title)
    ]
    scores = [env.score_forget(batch) for batch in batches]
    return Sample(run, retain, warmup, warmup_score, batches, scores)


def gradient_by(run: Run, retain: Trajectory) -> Callable[[Experience], torch.Tensor]:
    """What gives the gradient (P,) of the surrogate alone by an experience, through the policy's update."""
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    recorder = Recorder(parameters, lr=0.0)
    prepared = run.accelerator.prepare(recorder)
    config = replace(
        run.config.update,
        kl_coef=0.0,
        anchor_kl_coef=0.0,
        adversarial_radius=0.0,
        target_kl=float("inf"),
        inner_epochs=1,
        retain_batch_size=1,
        gradient_accumulation_steps=10**6,
        train_timestep_fraction=1.0,
        max_grad_norm=float("inf"),
    )

    def gradient(experience: Experience) -> torch.Tensor:
        run.policy.update(
            [experience],
            retain,
            optimizer=prepared,
            accelerator=run.accelerator,
            config=config,
            generator=torch.Generator().manual_seed(0),
        )
        return recorder.gradient.clone()

    return gradient


def without_baseline(sample: Sample) -> list[Experience]:
    """The batches credited with the finished image's reward alone."""
    found = []
    for batch, score in zip(sample.batches, sample.scores, strict=True):
        reward = score.potentials[:, -1:].expand(-1, batch.num_steps)
        found.append(Experience(batch, normalize(reward - reward.mean(), 5.0), score.anchor_ids))
    return found


def credited(sample: Sample, config: RunConfig, seed: int) -> list[Experience]:
    """The batches credited as settings say."""
    env, estimator = sample.run.env, config.credit.estimator
    critic = create_critic(config.critic, env, used=estimator.uses_critic, seed=config.output.seed)
    warm_up(
        critic,
        env,
        sample.warmup,
        sample.warmup_score.potentials,
        config=config.critic,
        estimator=estimator,
        generator=torch.Generator().manual_seed(seed),
    )
    scale = None
    if estimator.pathwise:
        scale = gradient_scale(value_gradients(estimator, env, critic, sample.warmup), env.kernel.stds)
    return [
        credit(
            config.credit,
            env,
            critic,
            batch,
            score,
            values=critic_values(critic, env, batch, score.potentials),
            gradient_scale=scale,
        )
        for batch, score in zip(sample.batches, sample.scores, strict=True)
    ]


@dataclass(frozen=True)
class GradientsConfig:
    """Gradients."""

    concepts: tuple[str, ...] = flag(
        ("Van Gogh style", "cat"), help="What is to be erased, each measured by itself."
    )
    adapter: Path | None = flag(
        None,
        metavar="CHECKPOINT",
        help="A checkpoint directory of a run, whose policy acts. Default: the base.",
    )
    num_batches: int = flag(
        8, at_least=4, help="Independent batches, of as many trajectories as an iteration has; at least 4."
    )
    output_dir: Path = flag(Path("runs/gradients"), help="Where gradients.json and gradients.md are written.")
    seed: int = flag(0, within=SEED, help="Seed of rollouts and critics.")


def measure(concept: str, config: GradientsConfig) -> dict[str, dict[str, float]]:
    """The metrics of every estimator on one concept."""
    given = quiet_arguments(concept, config.seed, config.output_dir)
    run = prepare(parse_config(given))
    if config.adapter:
        groups, _ = load_checkpoint(config.adapter.parent, str(config.adapter))
        run.policy.load_state(groups["lora"])
    sample = draw_sample(run, config.num_batches, config.seed, f"{concept}: rollouts")
    gradient = gradient_by(run, sample.retain)

    def gradients(name: str, experiences: Sequence[Experience]) -> torch.Tensor:
        return torch.stack([gradient(e) for e in tqdm(experiences, desc=f"{concept}: {name}")])

    found = {REFERENCE: gradients(REFERENCE, without_baseline(sample))}
    for name, flags in ESTIMATORS.items():
        found[name] = gradients(name, credited(sample, parse_config([*given, *flags]), config.seed))
    references = {"no_baseline": found[REFERENCE], "pathwise": found["pathwise"]}
    result = {name: metrics(of, references) for name, of in found.items()}
    first, second = found[REFERENCE].split(config.num_batches // 2)[:2]
    cosine = torch.cosine_similarity(first.mean(0), second.mean(0), dim=0)
    result[REFERENCE]["cosine_to_no_baseline"] = cosine.item()
    return result


def table(by_concept: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Means over the concepts."""
    rows = []
    for name in next(iter(by_concept.values())):
        of = [found[name] for found in by_concept.values()]
        mean = {key: sum(row[key] for row in of) / len(of) for key in of[0]}
        cosines = [f"{mean[f'cosine_to_{other}']:.2f}" for other in ("no_baseline", "pathwise")]
        rows.append([name, f"{mean['agreement']:.2f}", f"{mean['snr']:.3f}", *cosines])
    header = ["advantage", "agreement of batches", "SNR of a batch", "cosine to no baseline"]
    return markdown([*header, "cosine to pathwise"], rows)


def parse_gradients(arguments: Sequence[str] | None = None) -> GradientsConfig:
    """The settings of a command line."""
    return parse(GradientsConfig, arguments, __doc__, prog="python -m benchmarks.diagnostics gradients")


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse_gradients(arguments)
    by_concept = {concept: measure(concept, config) for concept in config.concepts}
    settings = {name: str(value) for name, value in values_of(config).items()}
    content: dict[str, Any] = {"settings": settings, "concepts": by_concept}
    write_json(config.output_dir / "gradients.json", content)
    write_text(config.output_dir / "gradients.md", table(by_concept))
    print(table(by_concept))
