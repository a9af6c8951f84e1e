"""What any critic could know of the finished image's reward, and what is known: `python -m
benchmarks.diagnostics ceiling`.

A state of a rollout is finished several times, with new noise. Where its rewards differ as much as those of
different states of the same prompt, the state decides nothing, and no critic can tell what will come of it.
The ceiling is the share of the variance of rewards within prompts that the state decides: Var[E[R|x_t]] /
Var[R]. Beside it stands the share that is explained by

- the potential: the reward predictor on the state;
- the predictor, and the teacher, on the one-step estimate of the finished latent (x0-hat), which the UNet's
  own pass yields;
- a straight line on the UNet's last features (`conv_norm_out`), pooled, learnt by ridge regression from
  further rollouts of this very policy.

Each is scaled by the coefficient that serves best on one half of the states, and judged on the other half.
The policy is the base, or that of each checkpoint of `--checkpoints`. Written are ceiling.json and
ceiling.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from benchmarks.diagnostics import quiet_arguments
from benchmarks.report import markdown, number, write_json, write_text
from common.checkpoints import load_checkpoint
from common.flags import SEED, flag, parse, values_of
from critic.advantages import centre_within
from environment.environment import Environment
from policy.policy import Policy
from training.config import parse_config
from training.setup import prepare

CEILING, POTENTIAL = "ceiling", "the predictor's potential"
ON_X0, SEEN, LEARNT = "the predictor on x0-hat", "the teacher on x0-hat", "the UNet's features"
KNOWERS = (CEILING, POTENTIAL, ON_X0, SEEN, LEARNT)
RIDGE = 3.0
"""Of the ridge regression, in units of the features' mean square."""
Found = dict[str, list[float]]
"""By who knows it, the share that is known at each step."""


@dataclass(frozen=True)
class CeilingConfig:
    """Ceiling."""

    concept: str = flag("Van Gogh style", help="What is to be erased.")
    checkpoints: tuple[Path, ...] = flag((), help="Checkpoints of runs that erase it. Default: the base.")
    steps: tuple[int, ...] = flag(
        (6, 8, 10, 12, 13), at_least=0, help="At which states of a rollout, counted from 0."
    )
    num_states: int = flag(96, at_least=4, help="Rollouts whose states are finished again.")
    continuations: int = flag(8, at_least=2, help="How often each is finished.")
    num_learnt: int = flag(384, at_least=4, help="Rollouts that the straight line is learnt from.")
    output_dir: Path = flag(Path("runs/ceiling"), help="Where ceiling.json and ceiling.md are written.")
    seed: int = flag(0, within=SEED, help="Seed of all rollouts.")


def decided(rewards: torch.Tensor, groups: torch.Tensor) -> float:
    """Var[E[R|x]] / Var[R] within groups, without bias in either variance.

    Args:
        rewards: (N, K) of N states, each finished K times.
        groups: (N,) their prompts.
    """
    noise = rewards.var(dim=1).mean()
    means = centre_within(rewards.mean(dim=1, keepdim=True), groups)
    between = means.square().sum() / (len(rewards) - len(groups.unique())) - noise / rewards.shape[1]
    return (between / (between + noise)).item()


def explained(values: torch.Tensor, rewards: torch.Tensor, groups: torch.Tensor) -> float:
    """The share of the variance of rewards within groups that values explain, cross-fitted.

    Args:
        values: (N,), of states.
        rewards: (N, K).
        groups: (N,).
    """
    v = centre_within(values[:, None], groups).expand_as(rewards)
    r = rewards - torch.stack([rewards[groups == group].mean() for group in groups])[:, None]
    order, shares = torch.randperm(len(values), generator=torch.Generator().manual_seed(0)), []
    half = order < len(order) // 2
    for fitted, judged in ((half, ~half), (~half, half)):
        power = v[fitted].square().sum()
        scale = ((v[fitted] * r[fitted]).sum() / power).clamp(min=0) if power > 0 else power
        shares.append(1 - (r[judged] - scale * v[judged]).square().sum() / r[judged].square().sum())
    return (sum(shares) / 2).item()


def ridge(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(N, F), (N,) -> the weights (F,) of a straight line."""
    gram = x.double() @ x.double().T
    eye = torch.eye(len(x), dtype=gram.dtype)
    return (
        x.double().T @ torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * eye, y.double())
    ).float()


@contextmanager
def listening(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What a layer puts out within: mean and standard deviation over positions, (B, 2 C) each time."""
    heard: list[torch.Tensor] = []

    def hear(module: nn.Module, given: object, out: torch.Tensor) -> None:
        heard.append(torch.cat([out.float().mean(dim=(2, 3)), out.float().std(dim=(2, 3))], dim=1))

    hook = layer.register_forward_hook(hear)
    try:
        yield heard
    finally:
        hook.remove()


@torch.no_grad()
def look(policy: Policy, x: torch.Tensor, step: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, C, H, W) states at `step` and their prompts -> x0-hat, and the features (B, F) of the prompt's
    branch of the same pass."""
    estimates, features = [], []
    for part, of in zip(x.split(policy.batch_size), ids.split(policy.batch_size), strict=True):
        with listening(policy.denoiser.conv_norm_out) as heard:
            output = policy.backbone.guided_output(
                part,
                policy.kernel.timesteps[step],
                policy.current.conditioning[of],
                negative=policy.current.negative,
                guidance_scale=policy.guidance_scale,
            )
        estimates.append(policy.kernel.x0_and_epsilon(output, part, step)[0])
        features.append(heard[0][-len(part) :])
    return torch.cat(estimates), torch.cat(features)


@torch.no_grad()
def finish(
    policy: Policy, x: torch.Tensor, step: int, ids: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """States (B, C, H, W) at `step` -> finished latents."""
    for later in range(step, policy.kernel.num_steps):
        means = [
            policy.mean(part, later, policy.current.conditioning[of])
            for part, of in zip(x.split(policy.batch_size), ids.split(policy.batch_size), strict=True)
        ]
        x = torch.cat(means) + policy.kernel.stds[later] * torch.randn(x.shape, generator=generator)
    return x


def measure(env: Environment, config: CeilingConfig, generator: torch.Generator, title: str) -> Found:
    """Who knows how much of what the policy, as it is, will draw."""
    policy, found = env.policy, Found({name: [] for name in KNOWERS})
    states = env.collect(env.draw(env.forget_ids, config.num_states, generator), generator)
    learnt = env.collect(env.draw(env.forget_ids, config.num_learnt, generator), generator)
    ids, others = states.prompt_ids, learnt.prompt_ids

    def see(latents: torch.Tensor) -> torch.Tensor:
        parts = latents.split(policy.batch_size)
        return torch.cat([env.teacher.encode_images(env.backbone.decode(part)) for part in parts])

    def reward(embeddings: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        return env.reward.margin(embeddings[:, None], of).squeeze(1)

    with torch.no_grad():
        outcome = centre_within(reward(see(learnt.latents[:, -1]), others)[:, None], others).squeeze(1)
        last = policy.kernel.timesteps[-1].expand(len(ids))
        for step in tqdm(config.steps, desc=title):
            x, copies = states.latents[:, step], config.continuations
            again = ids.repeat_interleave(copies)
            finished = finish(policy, x.repeat_interleave(copies, 0), step, again, generator)
            rewards = reward(see(finished), again).reshape(-1, copies)
            x0, features = look(policy, x, step, ids)
            _, known = look(policy, learnt.latents[:, step], step, others)
            centre, spread = known.mean(dim=0), known.std(dim=0).clamp(min=1e-6)
            known, features = (known - centre) / spread, (features - centre) / spread
            line = ridge(centre_within(known, others), outcome)
            values = {
                POTENTIAL: env.potential(x, step, ids),
                ON_X0: reward(env.predictor(x0, last), ids),
                SEEN: reward(see(x0), ids),
                LEARNT: features @ line,
            }
            found[CEILING].append(decided(rewards, ids))
            for name, value in values.items():
                found[name].append(explained(value, rewards, ids))
    return found


def table(by_policy: Mapping[str, Found], labels: Sequence[int]) -> str:
    """Markdown: a row for each policy and who knows it, a column for each timestep."""
    rows = [
        [policy, name, *(number(share, 2) for share in shares)]
        for policy, found in by_policy.items()
        for name, shares in found.items()
    ]
    return markdown(["policy", "known by", *(f"t = {label}" for label in labels)], rows)


def parse_ceiling(arguments: Sequence[str] | None = None) -> CeilingConfig:
    """The settings of a command line."""
    return parse(CeilingConfig, arguments, __doc__, prog="python -m benchmarks.diagnostics ceiling")


def measure_all(config: CeilingConfig) -> tuple[dict[str, Found], list[int]]:
    """What is known of each policy, and the timesteps.

    Raises:
        ValueError: a step is none of a rollout's, or a checkpoint is missing or of another adapter.
    """
    run = prepare(parse_config(quiet_arguments(config.concept, config.seed, config.output_dir)))
    env, schedule = run.env, run.config.schedule
    if outside := [step for step in config.steps if step >= env.kernel.num_steps]:
        raise ValueError(f"--steps {outside[0]}: a rollout's are 0 to {env.kernel.num_steps - 1}.")
    generator = torch.Generator().manual_seed(config.seed)
    anchored = torch.cat([env.retain_ids, env.anchor_ids])
    forget = env.collect(env.draw(env.forget_ids, schedule.warmup_rollouts, generator), generator)
    env.calibrate(forget, env.collect(env.draw(anchored, schedule.retain_rollouts, generator), generator))
    found = {}
    for checkpoint in config.checkpoints or (None,):
        name = "the base"
        if checkpoint:
            groups, _ = load_checkpoint(checkpoint.parent, checkpoint.name)
            run.policy.load_state(groups["lora"])
            name = f"{config.concept}, {checkpoint.name}"
        found[name] = measure(env, config, generator, name)
    return found, [env.kernel.labels[step] for step in config.steps]


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse_ceiling(arguments)
    found, labels = measure_all(config)
    settings = {name: str(value) for name, value in values_of(config).items()}
    content = {"settings": settings, "timesteps": labels, "known": found}
    write_json(config.output_dir / "ceiling.json", content)
    write_text(config.output_dir / "ceiling.md", table(found, labels))
    print(table(found, labels))
