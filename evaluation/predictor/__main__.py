"""Evaluate the reward predictor: `python -m evaluation.predictor --output_dir DIR`.

At each timestep: how well a score of the noisy latent predicts what the teacher says of the finished image,
and what the score costs. Six scorers are compared: the predictor; a twin that is not conditioned on the
timestep, and one that never saw noise; the teacher on the decoded noisy latent; the teacher on the decoded
one-step estimate of the finished latent (x0-hat), which is also conditioned on the prompt; and the same for
the empty prompt, which like the predictor has only the latent.

They are compared on two sets that no predictor was trained on: finished latents of the base with noise added
by the forward process ("latents"), and the states of stochastic rollouts ("rollouts") of the base or, with
--adapter, of a trained policy, whose own x0-hat it then is. A rollout begins with pure noise, which says
nothing except by the prompt: that state is in the curves and not in the means. The metrics are defined in
`evaluation/predictor/metrics.py`. Results are reward_predictor.json, .md and .png.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import canvas
from common.errors import friendly_errors
from common.files import make_directory, write_bytes, write_json, write_text
from common.flags import by_name, flag, parse
from common.lock import exclusive
from common.memory import advised
from common.names import public_name
from common.network import CheckpointError
from common.versions import versions
from evaluation.predictor.metrics import foresight, mean_of, within_prompts
from evaluation.predictor.scorers import (
    BLIND,
    CLEAN,
    NOISY_DECODE,
    OURS,
    X0_ALONE,
    X0_PROMPT,
    Process,
    Scorer,
    milliseconds_per_latent,
    noisy_decode_scorer,
    predictor_scorer,
    score_states,
    x0_scorer,
)
from hub.adapter import load_adapter
from pipelines.backbone import Backbone
from pipelines.base import BY_LATENTS, BaseConfig, load_base, with_downloads
from pipelines.noise import NoiseSchedule
from policy.kernel import ReverseKernel
from policy.policy import Policy
from policy.trajectory import Trajectory
from reward.arguments import NO_TEACHER
from reward.concept import read_prompts
from reward.distil import CACHE_NAME, DEFAULT_IMAGES, DistilFlags, fit_predictor
from reward.latents import BaseRollouts, BaseSamples, collect
from reward.origin import check_fit
from reward.predictor import RewardPredictor
from reward.teacher import Teacher

NAME = "reward_predictor"
METRICS = {"auc": "AUC", "spearman": "Spearman", "within": "Spearman within prompts", "cosine": "cosine"}
NOISY_HALF = 500
HELD_OUT_SEED = 1_000_000
"""Added to --seed for what is evaluated on, so that no predictor was trained on it."""


@dataclass(frozen=True)
class OutputConfig:
    """Output."""

    output_dir: Path = flag(
        help=f"Where {NAME}.json, .md and .png are written, and twins that are trained.", published=None
    )
    overwrite_output_dir: bool = flag(
        False, help="Replace an earlier evaluation in --output_dir.", published=None
    )


@dataclass(frozen=True)
class PredictorsConfig:
    """Predictor, twins and teacher."""

    clip_model: str | None = flag(
        None,
        help="Teacher: open_clip name, hf-hub:ID or local-dir:DIR. Default: the bundled one.",
        published=None,
    )
    clip_pretrained: str | None = flag(
        None,
        help="open_clip's pretrained tag or a safetensors file, for an architecture name.",
        published=None,
    )
    reward_model_name_or_path: str | None = flag(
        None,
        help="The predictor to evaluate. Default: trained with the twins if --train_twins is given, else the "
        "bundled one.",
        published=by_name,
    )
    blind_twin: str | None = flag(
        None,
        metavar="DIR",
        help="The timestep-blind twin, made by `python -m reward.train --no-timestep_conditioning`.",
        published=by_name,
    )
    clean_twin: str | None = flag(
        None,
        metavar="DIR",
        help="The clean-only twin, made by `python -m reward.train --noise_levels clean`.",
        published=by_name,
    )
    train_twins: bool = flag(
        False, help="Train the twins that are not given, on the same latents and budget."
    )


@dataclass(frozen=True)
class StatesConfig:
    """Latents and rollouts."""

    adapter: Path | None = flag(
        None,
        metavar="DIR",
        help="Roll out the base with this adapter. Default: the base.",
        published=by_name,
    )
    prompts: Path | None = flag(
        None,
        help="Prompts to draw, one a line. Default: those that the predictor records.",
        published=None,
    )
    concepts: tuple[str, ...] | None = flag(
        None,
        metavar="TEXT",
        help="Texts whose score is evaluated, at least two. Default: the prompts.",
    )
    num_latents: int = flag(512, at_least=2, help="Number of finished latents to noise, and of rollouts.")
    num_inference_steps: int = flag(16, at_least=1, help="Denoising steps of both.")
    guidance_scale: float = flag(7.5, at_least=0, help="Guidance of both, and of x0-hat.")
    eval_batch_size: int | None = flag(
        None, at_least=1, help=f"Latents drawn, scored and timed at a time. {BY_LATENTS}"
    )


@dataclass(frozen=True)
class TwinsConfig:
    """Images of the twins."""

    num_images: int = flag(DEFAULT_IMAGES, at_least=2, help="Number of images that the twins are trained on.")
    learn_from_rollouts: bool = flag(
        True, negatable=True, help="Also train the twins on the states of rollouts."
    )
    latents_dir: Path | None = flag(
        None,
        help=f"Where these images' latents are kept. Default: {CACHE_NAME} in --output_dir.",
        published=None,
    )


@dataclass(frozen=True)
class PredictorConfig:
    """All settings of a predictor's evaluation."""

    output: OutputConfig
    base: BaseConfig
    predictors: PredictorsConfig
    states: StatesConfig
    twins: TwinsConfig
    distil: DistilFlags

    @property
    def base_name(self) -> str:
        """What results call the base."""
        return public_name(self.base.name)

    def with_batch_size(self, usual: int) -> PredictorConfig:
        """With the base's usual batch size where none was given."""
        states = replace(self.states, eval_batch_size=self.states.eval_batch_size or usual)
        return replace(self, states=states)


@dataclass(frozen=True)
class States:
    """N states at each of T steps, and what their images came to.

    Attributes:
        latents: (N, T, C, H, W).
        truth: (N, D), the teacher's embeddings of the finished images.
        rows: (N,), their prompts.
    """

    latents: torch.Tensor
    truth: torch.Tensor
    rows: torch.Tensor


@torch.no_grad()
def noised_states(process: Process, teacher: Teacher, prompts: list[str], *, count: int, seed: int) -> States:
    """Finished latents that the base draws for the prompts in turn, noise added at every step's timestep."""
    policy, pipe = process.policy, process.backbone.pipe
    source = BaseSamples(
        pipe,
        prompts,
        policy.kernel.num_steps,
        policy.guidance_scale,
        shard_size=policy.batch_size,
        seed=seed,
    )
    data = collect(source, teacher, count)
    schedule = NoiseSchedule.of(pipe.scheduler)
    generator = torch.Generator().manual_seed(seed)
    steps = [
        schedule.add_noise(
            data.latents,
            torch.randn(data.latents.shape, generator=generator),
            t.cpu().round().long().repeat(count),
        )
        for t in policy.kernel.timesteps[:-1]
    ]
    return States(torch.stack(steps, 1), data.embeddings, torch.arange(count) % len(prompts))


@torch.no_grad()
def rollout_states(process: Process, teacher: Teacher, *, count: int, seed: int) -> States:
    """The states of stochastic rollouts for the prompts in turn."""
    policy = process.policy
    rows = torch.arange(count, device=policy.table.forget.device) % len(policy.table.prompts)
    generator = torch.Generator().manual_seed(seed)
    parts = [policy.rollout(ids, generator) for ids in tqdm(rows.split(policy.batch_size), desc="rollouts")]
    trajectory = Trajectory.cat(parts)
    scorer = noisy_decode_scorer(process, teacher)
    truth = score_states(
        scorer, trajectory.latents[:, -1], policy.kernel.num_steps, rows, batch_size=policy.batch_size
    )
    return States(trajectory.latents[:, :-1].cpu(), truth, rows.cpu())


def by_timestep(
    scorer: Scorer,
    states: States,
    policy: Policy,
    *,
    texts: torch.Tensor,
    prompt_texts: torch.Tensor,
    progress: str,
) -> dict[str, dict[str, float]]:
    """The metrics at every timestep, noisiest first: `{"931": {"auc": ..., "spearman": ..., "within": ...,
    "cosine": ...}, ...}`.

    Args:
        texts: (K, D), the concepts'.
        prompt_texts: (P, D), the prompts'.
        progress: the progress bar's label.
    """
    device, result = policy.table.forget.device, {}
    for step in tqdm(range(policy.kernel.num_steps), desc=progress):
        embeddings = score_states(
            scorer,
            states.latents[:, step].to(device),
            step,
            states.rows.to(device),
            batch_size=policy.batch_size,
        )
        result[str(policy.kernel.labels[step])] = foresight(embeddings, states.truth, texts) | {
            "within": within_prompts(embeddings, states.truth, prompt_texts, states.rows)
        }
    return result


def means(curves: Mapping[str, Mapping[str, float]], pure_noise: int = 0) -> dict[str, dict[str, float]]:
    """Mean of each metric over all timesteps, and over the noisy half (t > 500), without the first
    `pure_noise` timesteps."""
    timesteps = list(curves)[pure_noise:]
    halves = {"all": timesteps, "noisy": [t for t in timesteps if int(t) > NOISY_HALF]}
    return {
        half: {name: mean_of([curves[t][name] for t in of]) for name in METRICS}
        for half, of in halves.items()
    }


def bars(scorers: Mapping[str, Any], sets: list[str]) -> dict[str, dict[str, Any]]:
    """The criteria that the predictor has to meet, for the scorers there are: what was found, and whether it
    is met.

    In the noisy half its AUC must be higher than each twin's; over all timesteps it must be within 0.02 of
    x0-hat's, at a tenth of its time.
    """
    found: dict[str, dict[str, Any]] = {}
    ours = scorers[OURS]
    for of in sets:
        for twin in (BLIND, CLEAN):
            if twin in scorers:
                a, b = ours[of]["means"]["noisy"]["auc"], scorers[twin][of]["means"]["noisy"]["auc"]
                found[f"{of}: AUC at t > {NOISY_HALF} above the {twin}'s"] = {
                    "ours": a,
                    "other": b,
                    "met": a > b,
                }
        for other in (X0_PROMPT, X0_ALONE):
            a, b = ours[of]["means"]["all"]["auc"], scorers[other][of]["means"]["all"]["auc"]
            found[f"{of}: AUC within 0.02 of {other}"] = {"ours": a, "other": b, "met": a >= b - 0.02}
    for other in (X0_PROMPT, X0_ALONE):
        a, b = ours["ms_per_latent"], scorers[other]["ms_per_latent"]
        found[f"time at most a tenth of {other}"] = {"ours": a, "other": b, "met": a <= b / 10}
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """One row for each scorer: means over all timesteps and over the noisy half, and the time; then the
    bars."""
    lines = []
    for of in results["sets"]:
        lines += [
            f"**{of}** ({results['sets'][of]} of them)",
            "",
            f"| scorer | {' | '.join(f'{label}, all t | t > {NOISY_HALF}' for label in METRICS.values())} "
            "| ms per latent |",
            f"|---|{'---|' * (2 * len(METRICS) + 1)}",
        ]
        for name, scorer in results["scorers"].items():
            cells = [
                f"{scorer[of]['means'][half][figure]:.3f}" for figure in METRICS for half in ("all", "noisy")
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {scorer['ms_per_latent']:.3f} |")
        lines.append("")
    for bar, found in results["bars"].items():
        lines.append(
            f"- {bar}: {found['ours']:.3f} against {found['other']:.3f}, "
            f"{'met' if found['met'] else 'not met'}"
        )
    return "\n".join(lines) + "\n"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Plot every metric against the timestep, a row for each set, a line for each scorer."""
    sets, shown = list(results["sets"]), list(METRICS)
    figure = Figure(figsize=(4.0 * len(shown), 3.0 * len(sets) + 0.8), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(sets), len(shown), squeeze=False)
    for i, of in enumerate(sets):
        for j, name in enumerate(shown):
            for k, (scorer, found) in enumerate(results["scorers"].items()):
                points = [(int(t), values[name]) for t, values in found[of]["by_timestep"].items()]
                style = (
                    {"linewidth": 2.4, "zorder": 9}
                    if scorer == OURS
                    else {"linewidth": 1.3, "linestyle": "--" if "x0-hat" in scorer else "-"}
                )
                axes[i][j].plot(*zip(*points, strict=True), label=scorer, color=f"C{k}", **style)
            axes[i][j].set_title(f"{of}: {METRICS[name]}", fontsize=10)
            axes[i][j].set_xlabel("timestep (1000 is noise)", fontsize=8)
            axes[i][j].grid(alpha=0.3)
            if name == "auc":
                axes[i][j].axhline(0.5, color="grey", linewidth=0.8)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncol=3, fontsize=9, frameon=False
    )
    figure.savefig(picture := io.BytesIO(), format="png")
    write_bytes(path, picture.getvalue())


def parse_config(arguments: Sequence[str] | None = None) -> PredictorConfig:
    """The settings of a command line."""
    return parse(PredictorConfig, arguments, __doc__, prog="python -m evaluation.predictor")


def check_config(config: PredictorConfig) -> None:
    """Refuse what can be known to be wrong before anything is loaded.

    Raises:
        ValueError: what, and what to give instead.
    """
    output, predictors, states = config.output, config.predictors, config.states
    if states.concepts and len(set(states.concepts)) < 2:
        raise ValueError("--concepts needs at least two texts: an image shows the one that is nearest to it.")
    if (output.output_dir / f"{NAME}.json").exists() and not output.overwrite_output_dir:
        raise ValueError(
            f"{output.output_dir} already holds an evaluation; choose another --output_dir or add "
            "--overwrite_output_dir."
        )
    config.distil.check_width()
    if config.base.is_bundled:
        return
    if not predictors.clip_model:
        raise ValueError(NO_TEACHER)
    if not predictors.reward_model_name_or_path and not predictors.train_twins:
        raise ValueError(
            "This base has no bundled predictor: give one with --reward_model_name_or_path, or train it with the "
            "twins by --train_twins."
        )
    if predictors.train_twins and not predictors.reward_model_name_or_path and not states.prompts:
        raise ValueError("There are no prompts to train on: give --prompts FILE.")


def load_predictors(
    config: PredictorConfig, process: Process, teacher: Teacher, known: RewardPredictor | None
) -> dict[str, RewardPredictor]:
    """The predictor and its twins by the scorer's name: given, or trained on the same latents, steps, batch
    and seed.

    Args:
        known: the predictor, if it is not to be trained.
    """
    backbone, pipe = process.backbone, process.backbone.pipe
    given = {OURS: known, BLIND: config.predictors.blind_twin, CLEAN: config.predictors.clean_twin}
    found = {
        name: RewardPredictor.from_pretrained(of) if isinstance(of, str) else of
        for name, of in given.items()
        if of is not None
    }
    check_twins(found)
    missing = [name for name in given if name not in found] if config.predictors.train_twins else []
    if missing:
        found |= train_missing(config, process, teacher, missing, known)
    for name in found:
        check_fit(found[name], backbone.latent_shape, backbone.pipeline_class, pipe.scheduler, teacher)
    return {name: found[name].to(pipe.device).requires_grad_(False) for name in given if name in found}


def train_missing(
    config: PredictorConfig,
    process: Process,
    teacher: Teacher,
    missing: Sequence[str],
    known: RewardPredictor | None,
) -> dict[str, RewardPredictor]:
    """Train predictors of these names on one set of latents, and keep them in --output_dir."""
    pipe, prompts, output = process.backbone.pipe, process.policy.table.prompts, config.output.output_dir
    source = (BaseRollouts if config.twins.learn_from_rollouts else BaseSamples)(
        pipe,
        prompts,
        config.states.num_inference_steps,
        config.states.guidance_scale,
        shard_size=config.states.eval_batch_size,
        seed=config.distil.seed,
    )
    data = collect(source, teacher, config.twins.num_images, config.twins.latents_dir or output / CACHE_NAME)
    found = {}
    for name in missing:
        print(f"Training the {name}")
        trained = fit_predictor(
            pipe,
            teacher,
            source,
            data,
            config.distil.config(noise_levels="clean" if name == CLEAN else "all"),
            prompts=prompts,
            base={"name": config.base_name, "revision": config.base.revision},
            width=config.distil.width if known is None else known.config["width"],
            timestep_conditioning=name != BLIND,
            clip_model=config.predictors.clip_model,
        )
        directory = output / name.replace(" ", "-")
        trained.save_pretrained(directory, dtype=torch.float16)
        found[name] = RewardPredictor.from_pretrained(directory)
    return found


def check_twins(predictors: Mapping[str, RewardPredictor]) -> None:
    """Refuse twins that do not lack what they have to lack.

    Raises:
        CheckpointError: which twin, and how to make it.
    """
    if BLIND in predictors and predictors[BLIND].config["timestep_conditioning"]:
        raise CheckpointError(
            "--blind_twin is conditioned on the timestep; make it with "
            "`python -m reward.train --no-timestep_conditioning`."
        )
    training = predictors[CLEAN].config["origin"].get("training", {}) if CLEAN in predictors else None
    if training is not None and training.get("noise_levels") != "clean":
        raise CheckpointError(
            "--clean_twin was trained on noisy latents; make it with "
            "`python -m reward.train --noise_levels clean`."
        )


@advised("eval_batch_size")
@with_downloads
def main(config: PredictorConfig) -> None:
    check_config(config)
    set_seed(config.distil.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = load_base(config.base).to(device)
    predictors, states = config.predictors, config.states
    teacher = Teacher.from_pretrained(
        predictors.clip_model or f"local-dir:{canvas.CLIP}", predictors.clip_pretrained, device
    )
    path = predictors.reward_model_name_or_path or (None if predictors.train_twins else canvas.REWARD)
    known = RewardPredictor.from_pretrained(path) if path else None
    if states.prompts:
        prompts = read_prompts(states.prompts)
    else:
        prompts = (known or RewardPredictor.from_pretrained(canvas.REWARD)).config["prompts"]
    if not prompts:
        raise ValueError("The predictor records no prompts; give the prompts to draw with --prompts FILE.")
    if len(prompts) < 2 and not states.concepts:
        raise ValueError(
            "One prompt is one concept, which every image shows; give at least two prompts, or --concepts."
        )
    backbone = Backbone.of(pipe)
    examine = partial(compare, backbone=backbone, teacher=teacher, prompts=prompts, known=known)
    with exclusive(config.output.output_dir):
        advised("eval_batch_size")(examine)(config.with_batch_size(backbone.usual_batch_size))


def compare(
    config: PredictorConfig,
    *,
    backbone: Backbone,
    teacher: Teacher,
    prompts: list[str],
    known: RewardPredictor | None,
) -> None:
    """Compare the scorers on both sets, and write what was found.

    Args:
        known: the predictor, if it is not to be trained.
    """
    states, pipe = config.states, backbone.pipe
    table = backbone.prompt_table(prompts)
    kernel = ReverseKernel.of(backbone, states.num_inference_steps)
    policy = Policy(
        backbone,
        kernel,
        table,
        guidance_scale=states.guidance_scale,
        batch_size=states.eval_batch_size or backbone.usual_batch_size,
    )
    process = Process(backbone, policy)
    predictors = load_predictors(config, process, teacher, known)
    scorers: dict[str, Scorer] = {
        name: predictor_scorer(predictor, kernel) for name, predictor in predictors.items()
    }
    scorers |= {NOISY_DECODE: noisy_decode_scorer(process, teacher)}
    scorers |= {X0_PROMPT: x0_scorer(process, teacher, True), X0_ALONE: x0_scorer(process, teacher, False)}
    texts = teacher.encode_text(list(dict.fromkeys(states.concepts or prompts))).cpu()
    prompt_texts = teacher.encode_text(prompts).cpu()
    found: dict[str, dict[str, Any]] = {name: {} for name in scorers}

    def examine(of: str, drawn: States) -> int:
        for name, scorer in scorers.items():
            curves = by_timestep(
                scorer,
                drawn,
                policy,
                texts=texts,
                prompt_texts=prompt_texts,
                progress=f"{name} on {of}",
            )
            found[name][of] = {"means": means(curves, int(of == "rollouts")), "by_timestep": curves}
        return len(drawn.truth)

    drawn_as = {"count": states.num_latents, "seed": config.distil.seed + HELD_OUT_SEED}
    noised = noised_states(process, teacher, prompts, **drawn_as)
    sets = {"latents": examine("latents", noised)}
    middle, rows = kernel.num_steps // 2, noised.rows[: policy.batch_size].to(pipe.device)
    for name, scorer in scorers.items():
        found[name]["ms_per_latent"] = milliseconds_per_latent(
            scorer, noised.latents[: len(rows), middle].to(pipe.device), middle, rows
        )
    if states.adapter:
        load_adapter(pipe, states.adapter)
    sets["rollouts"] = examine("rollouts", rollout_states(process, teacher, **drawn_as))
    results = {
        "base": config.base_name,
        "adapter": public_name(states.adapter) if states.adapter else None,
        "sets": sets,
        "prompts": len(prompts),
        "concepts": list(states.concepts) if states.concepts else "the prompts",
        "scorers": found,
        "parameters": {
            name: sum(p.numel() for p in predictor.parameters()) for name, predictor in predictors.items()
        },
        "bars": bars(found, list(sets)),
        "num_inference_steps": states.num_inference_steps,
        "guidance_scale": states.guidance_scale,
        "timed": {"batch": len(rows), "device": pipe.device.type, "threads": torch.get_num_threads()},
        "seed": config.distil.seed,
        "versions": versions(),
    }
    report(results, config.output.output_dir)


def report(results: Mapping[str, Any], output_dir: Path) -> None:
    """Write JSON, Markdown and picture, each complete or not at all, and print the table."""
    make_directory(output_dir)
    rounded = json.loads(
        json.dumps(results), parse_float=lambda text: round(float(text), 4), parse_constant=lambda _: None
    )
    write_json(output_dir / f"{NAME}.json", rounded)
    text = markdown(results)
    write_text(output_dir / f"{NAME}.md", text)
    plot(results, output_dir / f"{NAME}.png")
    print(text)
    print(f"Wrote {output_dir / NAME}.json, .md and .png")


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
