"""Prove the reward predictor: `python -m evaluation.predictor --output_dir DIR`.

How well, at each timestep, a score of the noisy latent foretells what the teacher says of the finished image,
and what the score costs.
Six ways to score are compared: the predictor; twins of it that are not told the timestep, or never saw noise;
    the teacher on the decoded
noisy latent; the teacher on the decoded one-step estimate of the finished latent (x0-hat), which also knows
the prompt; and the same for the empty prompt, which like the predictor has nothing but the latent.

They are compared on two sets that no predictor was trained on: finished latents of the base with noise added
by the forward process ("latents"), and the states of stochastic rollouts ("rollouts"), of the base or, with
--adapter, of a trained policy, whose own x0-hat it then is. A rollout begins with pure noise, from which
nothing can be told but by
knowing the prompt: that state is in the curves and not in the means. The figures are defined in
`evaluation/predictor/figures.py`. Written are reward_predictor.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from diffusers import DDIMScheduler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import canvas
from common.command_line import number, positive_int
from common.errors import friendly_errors
from common.files import write_aside
from common.memory import advised
from common.names import public_name
from common.network import CheckpointError
from common.versions import versions
from environment.build import uses_bundled_base
from evaluation.predictor.figures import foresight, mean_of, within_prompts
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
from pipelines.base import BY_LATENTS, add_base_arguments, base_options, load_pipeline
from policy.kernel import ReverseKernel
from policy.rollout import rollout
from policy.trajectory import Trajectory
from reward.concept import read_prompts
from reward.distil import (
    CACHE_NAME,
    DEFAULT_IMAGES,
    add_distillation_arguments,
    check_width,
    distil_config,
    fit_predictor,
)
from reward.latents import BaseRollouts, BaseSamples, collect
from reward.origin import check_fit
from reward.predictor import RewardPredictor
from reward.teacher import Teacher

NAME = "reward_predictor"
FIGURES = {"auc": "AUC", "spearman": "Spearman", "within": "Spearman within prompts", "cosine": "cosine"}
NOISY_HALF = 500
HELD_OUT_SEED = 1_000_000
"""Added to --seed for what is evaluated on, which is thereby nothing that a predictor was trained on."""


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
def noised_states(
    process: Process, teacher: Teacher, prompts: list[str], count: int, seed: int, batch_size: int
) -> States:
    """Finished latents that the base draws for the prompts in turn, noise added at every step's timestep."""
    source = BaseSamples(
        process.backbone.pipe, prompts, process.kernel.num_steps, process.guidance_scale, batch_size, seed
    )
    data = collect(source, teacher, count)
    scheduler = DDIMScheduler.from_config(process.backbone.pipe.scheduler.config)
    generator = torch.Generator().manual_seed(seed)
    steps = [
        scheduler.add_noise(
            data.latents, torch.randn(data.latents.shape, generator=generator), t.cpu().repeat(count)
        )
        for t in process.kernel.timesteps[:-1]
    ]
    return States(torch.stack(steps, 1), data.embeddings, torch.arange(count) % len(prompts))


@torch.no_grad()
def rollout_states(process: Process, teacher: Teacher, count: int, seed: int, batch_size: int) -> States:
    """The states of stochastic rollouts for the prompts in turn."""
    rows = torch.arange(count, device=process.table.forget.device) % len(process.table.prompts)
    generator = torch.Generator().manual_seed(seed)
    unet, parts = process.backbone.unet, []
    for ids in tqdm(rows.split(batch_size), desc="rollouts"):
        parts.append(rollout(unet, process.kernel, process.table, ids, process.guidance_scale, generator))
    trajectory = Trajectory.cat(parts)
    scorer = noisy_decode_scorer(process, teacher)
    truth = score_states(scorer, trajectory.latents[:, -1], process.kernel.num_steps, rows, batch_size)
    return States(trajectory.latents[:, :-1].cpu(), truth, rows.cpu())


def by_timestep(
    scorer: Scorer,
    states: States,
    texts: torch.Tensor,
    prompt_texts: torch.Tensor,
    process: Process,
    batch_size: int,
    progress: str,
) -> dict[str, dict[str, float]]:
    """The figures at every timestep, noisiest first: `{"931": {"auc": ..., "spearman": ..., "within": ...,
    "cosine": ...}, ...}`."""
    device, result = process.table.forget.device, {}
    for step in tqdm(range(process.kernel.num_steps), desc=progress):
        embeddings = score_states(
            scorer, states.latents[:, step].to(device), step, states.rows.to(device), batch_size
        )
        result[str(process.kernel.timesteps[step].item())] = foresight(embeddings, states.truth, texts) | {
            "within": within_prompts(embeddings, states.truth, prompt_texts, states.rows)
        }
    return result


def means(figures: Mapping[str, Mapping[str, float]], pure_noise: int = 0) -> dict[str, dict[str, float]]:
    """Of each figure over all timesteps, and over the noisy half (t > 500), without the first `pure_noise`
    timesteps."""
    timesteps = list(figures)[pure_noise:]
    halves = {"all": timesteps, "noisy": [t for t in timesteps if int(t) > NOISY_HALF]}
    return {
        half: {name: mean_of([figures[t][name] for t in of]) for name in FIGURES}
        for half, of in halves.items()
    }


def bars(scorers: Mapping[str, Any], sets: list[str]) -> dict[str, dict[str, Any]]:
    """What the predictor is held to, of those scorers that are there: what was found, and whether it is met.

    It must have a higher AUC than each twin in the noisy half, an AUC over all timesteps within 0.02 of that
    of x0-hat, at a tenth of its time.
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
            f"| scorer | {' | '.join(f'{label}, all t | t > {NOISY_HALF}' for label in FIGURES.values())} | ms per latent |",
            f"|---|{'---|' * (2 * len(FIGURES) + 1)}",
        ]
        for name, scorer in results["scorers"].items():
            cells = [
                f"{scorer[of]['means'][half][figure]:.3f}" for figure in FIGURES for half in ("all", "noisy")
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {scorer['ms_per_latent']:.3f} |")
        lines.append("")
    for bar, found in results["bars"].items():
        lines.append(
            f"- {bar}: {found['ours']:.3f} against {found['other']:.3f}, {'met' if found['met'] else 'not met'}"
        )
    return "\n".join(lines) + "\n"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Every figure against the timestep, a row for each set, a line for each scorer."""
    sets, shown = list(results["sets"]), list(FIGURES)
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
            axes[i][j].set_title(f"{of}: {FIGURES[name]}", fontsize=10)
            axes[i][j].set_xlabel("timestep (1000 is noise)", fontsize=8)
            axes[i][j].grid(alpha=0.3)
            if name == "auc":
                axes[i][j].axhline(0.5, color="grey", linewidth=0.8)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncol=3, fontsize=9, frameon=False
    )
    write_aside(path, lambda aside: figure.savefig(aside, format="png"))


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.predictor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help=f"Where {NAME}.json, .md and .png are written, and twins that are trained.",
    )
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="Replace an earlier evaluation in --output_dir."
    )
    add_base_arguments(parser)
    parser.add_argument(
        "--clip_model", help="Teacher: open_clip name, hf-hub:ID or local-dir:DIR. Default: the bundled one."
    )
    parser.add_argument(
        "--clip_pretrained",
        help="open_clip's pretrained tag or a safetensors file, for an architecture name.",
    )
    parser.add_argument(
        "--reward_model_name_or_path",
        help="The predictor to prove. Default: trained with the twins if there are any to train, else the bundled one.",
    )
    parser.add_argument(
        "--blind_twin",
        metavar="DIR",
        help="The timestep-blind twin, made by `python -m reward.train --no-timestep_conditioning`.",
    )
    parser.add_argument(
        "--clean_twin",
        metavar="DIR",
        help="The clean-only twin, made by `python -m reward.train --noise_levels clean`.",
    )
    parser.add_argument(
        "--train_twins",
        action="store_true",
        help="Train those of the twins that are not given, on the same latents and budget.",
    )
    parser.add_argument(
        "--adapter", type=Path, metavar="DIR", help="Roll out the base with this adapter. Default: the base."
    )
    parser.add_argument(
        "--prompts", type=Path, help="Prompts to draw, one a line. Default: those that the predictor records."
    )
    parser.add_argument(
        "--concepts",
        nargs="+",
        metavar="TEXT",
        help="Texts whose score is examined, at least two. Default: the prompts.",
    )
    parser.add_argument(
        "--num_latents",
        type=int,
        default=512,
        help="How many finished latents are noised, and how many rollouts are made.",
    )
    parser.add_argument(
        "--num_inference_steps", type=positive_int, default=16, help="Denoising steps of both."
    )
    parser.add_argument("--guidance_scale", type=number, default=7.5, help="Guidance of both, and of x0-hat.")
    parser.add_argument(
        "--eval_batch_size",
        type=positive_int,
        help=f"Latents drawn, scored and timed at a time. {BY_LATENTS}",
    )
    parser.add_argument(
        "--num_images", type=int, default=DEFAULT_IMAGES, help="How many images the twins are trained on."
    )
    parser.add_argument(
        "--learn_from_rollouts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Train the twins on the states of rollouts, too.",
    )
    parser.add_argument(
        "--cache_dir",
        type=Path,
        help=f"Where these images' latents are kept. Default: {CACHE_NAME} in --output_dir.",
    )
    add_distillation_arguments(parser)
    args = parser.parse_args(input_args)
    if args.num_latents < 2 or args.num_images < 2:
        parser.error("--num_latents and --num_images must be at least 2.")
    if args.concepts and len(set(args.concepts)) < 2:
        parser.error("--concepts needs at least two texts: an image shows the one that is nearest to it.")
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Everything that can be told to be wrong before anything is loaded.

    Raises:
        ValueError: what, and what to give instead.
    """
    if (args.output_dir / f"{NAME}.json").exists() and not args.overwrite_output_dir:
        raise ValueError(
            f"{args.output_dir} already holds an evaluation; choose another --output_dir or add --overwrite_output_dir."
        )
    check_width(args.width)
    bundled = uses_bundled_base(args)
    if not bundled and not args.clip_model:
        raise ValueError(
            "This base needs a teacher: name an open_clip model with --clip_model (and --clip_pretrained)."
        )
    if not bundled and not args.reward_model_name_or_path and not args.train_twins:
        raise ValueError(
            "This base has no bundled predictor: give one with --reward_model_name_or_path, or train it with the twins by --train_twins."
        )
    if args.train_twins and not args.reward_model_name_or_path and not args.prompts and not bundled:
        raise ValueError("There are no prompts to train on: give --prompts FILE.")


def load_predictors(
    args: argparse.Namespace, process: Process, teacher: Teacher, known: RewardPredictor | None
) -> dict[str, RewardPredictor]:
    """The predictor and its twins by the scorer's name: given, or trained on the same latents, steps,
    batch and seed."""
    backbone, prompts = process.backbone, process.table.prompts
    pipe = backbone.pipe
    given = {OURS: known, BLIND: args.blind_twin, CLEAN: args.clean_twin}
    found = {
        name: RewardPredictor.from_pretrained(of) if isinstance(of, str) else of
        for name, of in given.items()
        if of is not None
    }
    check_twins(found)
    missing = [name for name in given if name not in found] if args.train_twins else []
    if missing:
        kind = BaseRollouts if args.learn_from_rollouts else BaseSamples
        source = kind(
            pipe, prompts, args.num_inference_steps, args.guidance_scale, args.eval_batch_size, args.seed
        )
        data = collect(source, teacher, args.num_images, args.cache_dir or args.output_dir / CACHE_NAME)
    for name in missing:
        print(f"Training the {name}")
        found[name] = fit_predictor(
            pipe,
            teacher,
            source,
            data,
            distil_config(args, noise_levels="clean" if name == CLEAN else "all"),
            prompts=prompts,
            base={
                "name": public_name(args.pretrained_model_name_or_path or canvas.PIPELINE),
                "revision": args.revision,
            },
            width=args.width if known is None else known.config["width"],
            timestep_conditioning=name != BLIND,
            clip_model=args.clip_model,
        )
        directory = args.output_dir / name.replace(" ", "-")
        found[name].save_pretrained(directory, dtype=torch.float16)
        found[name] = RewardPredictor.from_pretrained(directory)
    for name in found:
        check_fit(found[name], backbone.latent_shape, backbone.pipeline_class, pipe.scheduler, teacher)
    return {name: found[name].to(pipe.device).requires_grad_(False) for name in given if name in found}


def check_twins(predictors: Mapping[str, RewardPredictor]) -> None:
    """Whether the twins lack what they are to lack.

    Raises:
        CheckpointError: one of them does not.
    """
    if BLIND in predictors and predictors[BLIND].config["timestep_conditioning"]:
        raise CheckpointError(
            "--blind_twin is told the timestep; make it with `python -m reward.train --no-timestep_conditioning`."
        )
    if (
        CLEAN in predictors
        and predictors[CLEAN].config["origin"].get("training", {}).get("noise_levels") != "clean"
    ):
        raise CheckpointError(
            "--clean_twin was trained on noisy latents; make it with `python -m reward.train --noise_levels clean`."
        )


@advised("eval_batch_size")
def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    set_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = load_pipeline(
        args.pretrained_model_name_or_path or canvas.PIPELINE, args.revision, **base_options(args)
    ).to(device)
    teacher = Teacher.from_pretrained(
        args.clip_model or f"local-dir:{canvas.CLIP}", args.clip_pretrained, device
    )
    path = args.reward_model_name_or_path or (None if args.train_twins else str(canvas.REWARD))
    known = RewardPredictor.from_pretrained(path) if path else None
    if args.prompts:
        prompts = read_prompts(args.prompts)
    else:
        prompts = (known or RewardPredictor.from_pretrained(canvas.REWARD)).config["prompts"]
    if not prompts:
        raise ValueError("The predictor records no prompts; give the prompts to draw with --prompts FILE.")
    if len(prompts) < 2 and not args.concepts:
        raise ValueError(
            "One prompt is one concept, which every image shows; give at least two prompts, or --concepts."
        )
    backbone = Backbone.of(pipe)
    args.eval_batch_size = args.eval_batch_size or backbone.usual_batch_size
    table = backbone.prompt_table(prompts)
    kernel = ReverseKernel.from_scheduler(pipe.scheduler, args.num_inference_steps, device=device)
    process = Process(backbone, kernel, table, args.guidance_scale)
    predictors = load_predictors(args, process, teacher, known)

    scorers: dict[str, Scorer] = {
        name: predictor_scorer(predictor, kernel) for name, predictor in predictors.items()
    }
    scorers |= {NOISY_DECODE: noisy_decode_scorer(process, teacher)}
    scorers |= {X0_PROMPT: x0_scorer(process, teacher, True), X0_ALONE: x0_scorer(process, teacher, False)}
    texts, prompt_texts = (
        teacher.encode_text(list(dict.fromkeys(args.concepts or prompts))).cpu(),
        teacher.encode_text(prompts).cpu(),
    )
    seed = args.seed + HELD_OUT_SEED
    found: dict[str, dict[str, Any]] = {name: {} for name in scorers}

    def examine(of: str, states: States) -> int:
        for name, scorer in scorers.items():
            figures = by_timestep(
                scorer, states, texts, prompt_texts, process, args.eval_batch_size, f"{name} on {of}"
            )
            found[name][of] = {"means": means(figures, int(of == "rollouts")), "by_timestep": figures}
        return len(states.truth)

    states = noised_states(process, teacher, prompts, args.num_latents, seed, args.eval_batch_size)
    sets = {"latents": examine("latents", states)}
    middle, rows = kernel.num_steps // 2, states.rows[: args.eval_batch_size].to(device)
    for name, scorer in scorers.items():
        found[name]["ms_per_latent"] = milliseconds_per_latent(
            scorer, states.latents[: len(rows), middle].to(device), middle, rows
        )
    if args.adapter:
        load_adapter(pipe, args.adapter)
    sets["rollouts"] = examine(
        "rollouts", rollout_states(process, teacher, args.num_latents, seed, args.eval_batch_size)
    )
    results = {
        "base": public_name(args.pretrained_model_name_or_path or canvas.PIPELINE),
        "adapter": public_name(args.adapter) if args.adapter else None,
        "sets": sets,
        "prompts": len(prompts),
        "concepts": args.concepts or "the prompts",
        "scorers": found,
        "parameters": {
            name: sum(p.numel() for p in predictor.parameters()) for name, predictor in predictors.items()
        },
        "bars": bars(found, list(sets)),
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "timed": {"batch": len(rows), "device": device.type, "threads": torch.get_num_threads()},
        "seed": args.seed,
        "versions": versions(),
    }
    write_results(results, args.output_dir)


def write_results(results: Mapping[str, Any], output_dir: Path) -> None:
    """JSON, Markdown and picture, each complete or not at all; the table is printed too."""
    output_dir.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(
        json.dumps(results), parse_float=lambda text: round(float(text), 4), parse_constant=lambda _: None
    )
    write_aside(
        output_dir / f"{NAME}.json",
        lambda aside: aside.write_text(
            json.dumps(rounded, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        ),
    )
    text = markdown(results)
    write_aside(output_dir / f"{NAME}.md", lambda aside: aside.write_text(text, encoding="utf-8"))
    plot(results, output_dir / f"{NAME}.png")
    print(text)
    print(f"Wrote {output_dir / NAME}.json, .md and .png")


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
