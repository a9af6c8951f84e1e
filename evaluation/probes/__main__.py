"""Try to get an erased concept back: `python -m evaluation.probes --adapter DIR` reports how often the judge
sees it again, and at what price.

Each probe is run on the erased model and on the base without the adapter: the base bounds what an attempt can
find, plain prompts show what comes back without any attempt. A probe that has been run is not run again.
docs/robustness.md explains probes, budgets and the threat model.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from diffusers import DiffusionPipeline

from common.errors import friendly_errors, friendly_interrupts
from common.files import make_directory, write_json
from common.flags import flag, parse
from common.lock import exclusive
from common.memory import advised
from common.names import public_name
from common.schema import read_json
from common.versions import versions
from evaluation.choice import Choice, ExaminationConfig, choose
from evaluation.probes import (
    attack,
    completion,
    composition,
    image_to_image,
    inpainting,
    inversion,
    noise,
    paraphrase,
    relearning,
    removal,
)
from evaluation.probes.rows import Row, cell, save_samples
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject
from evaluation.probes.words import whole_words
from hub.adapter import load_adapter
from hub.provenance import AdapterBase
from hub.results import PROBES_NAME, RESULTS_NAME, check, read_results
from hub.results import Row as AttemptRow
from pipelines.backbone import Backbone
from pipelines.base import with_downloads
from reward.concept.exemplars import read_images

logger = logging.getLogger(__name__)

PLAIN = "plain"
OF_WORDS = ("inversion", "attack")
"""Probes that put other embeddings, or other words, in the place of words."""
PROBES: dict[str, tuple[str, Callable[[Subject, Settings], list[Row]]]] = {
    PLAIN: (
        "plain prompts",
        lambda subject, settings: [subject.compare("plain prompts", subject.plain, settings.num_images)],
    ),
    "paraphrase": ("the concept in other words, and misspelt", paraphrase.run),
    "composition": ("the concept together with something else", composition.run),
    "noise": ("more noise on the way than ancestral sampling adds", noise.run),
    "completion": ("the base draws the first steps", completion.run),
    "image_to_image": ("from an image of the concept, made noisy", image_to_image.run),
    "inpainting": ("a part of an image of the concept redrawn", inpainting.run),
    "inversion": ("an embedding learnt from images of the concept", inversion.run),
    "attack": ("words before the prompt, searched for with the model's gradients", attack.run),
    "relearning": ("fine-tuning, on the concept and on anything else", relearning.run),
    "removal": ("the adapter unloaded, weakened, fused, merged", removal.run),
}
"""What each probe tries, and the function that does; plain prompts always come first."""
NAMED = tuple(name for name in PROBES if name != PLAIN)
"""The probes to choose from."""


@dataclass(frozen=True)
class OutputConfig:
    """Probes and output."""

    probes: tuple[str, ...] = flag(
        NAMED,
        choices=NAMED,
        metavar="NAME",
        help=f"Which probes to run, of {', '.join(NAMED)}. Default: all.",
    )
    output_dir: Path | None = flag(
        None,
        metavar="DIR",
        help=f"Where {PROBES_NAME} and the samples are written. Default: probes within --adapter.",
        published=None,
    )
    overwrite_output_dir: bool = flag(
        False,
        help="Run probes again that have been run, for example with other budgets.",
        published=None,
    )
    without_base: bool = flag(
        False,
        help="Skip the attempts on the base, if another adapter's probes have them: half the time.",
    )
    concept_images: Path | None = flag(
        None,
        metavar="DIR",
        help="Images of the concept to learn from or to begin with. Default: the base draws them.",
        published=None,
    )
    merge_with: Path | None = flag(
        None,
        metavar="DIR",
        help="Another adapter for the same base, for the removal probe.",
        published=None,
    )


@dataclass(frozen=True)
class ProbesConfig:
    """All settings of the probes."""

    output: OutputConfig
    examination: ExaminationConfig
    base: AdapterBase
    budgets: Settings

    @property
    def output_dir(self) -> Path:
        """Where reports and samples are written."""
        assert self.examination.adapter  # `check_config` has refused anything else
        return self.output.output_dir or Path(self.examination.adapter) / "probes"

    def with_batch_size(self, usual: int) -> ProbesConfig:
        """With the base's usual batch size where none was given."""
        return replace(self, examination=self.examination.with_batch_size(usual))


def parse_config(arguments: Sequence[str] | None = None) -> ProbesConfig:
    """The settings of a command line."""
    return parse(ProbesConfig, arguments, __doc__, prog="python -m evaluation.probes")


def check_config(config: ProbesConfig) -> None:
    """Refuse what can be known to be wrong before anything is loaded.

    Raises:
        ValueError: which flag is missing.
    """
    adapter = config.examination.adapter
    if not adapter:
        raise ValueError("Probes try to get back what an adapter erased; name it with --adapter.")
    if config.output.output_dir is None and not Path(adapter).is_dir():
        raise ValueError("--output_dir is needed where --adapter is no directory.")


def check_steps(config: ProbesConfig, steps: int) -> None:
    """Refuse shares of the steps that are none, before anything is drawn.

    Raises:
        ValueError: which flag is wrong.
    """
    if "completion" in config.output.probes:
        for share in config.budgets.completion_shares:
            completion.switch_after(share, steps)
    if "image_to_image" in config.output.probes:
        for strength in config.budgets.image_to_image_strengths:
            image_to_image.check_strength(strength, steps)


def runnable(names: Sequence[str], backbone: Backbone) -> tuple[str, ...]:
    """Those of the probes that can be run on a base, with a warning of the others.

    Raises:
        ValueError: none can.
    """
    needing = [name for name in names if name in OF_WORDS]
    try:
        if needing:
            whole_words(backbone)
    except ValueError as error:
        left = tuple(name for name in names if name not in needing)
        if not left:
            raise
        logger.warning(f"Not run: {', '.join(needing)}. {error}")
        return left
    return tuple(names)


@advised("eval_batch_size", "train_batch_size")
@with_downloads
def main(config: ProbesConfig) -> None:
    check_config(config)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = choose(config.base, config.examination, device)
    if not any(chosen.examination.forget):
        raise ValueError("No prompt of --protocol asks for the concept, so there is nothing to get back.")
    check_steps(config, config.examination.num_inference_steps or chosen.examination.num_inference_steps)
    pipe = chosen.load_base()
    probes = runnable(config.output.probes, Backbone.of(pipe))
    config = replace(config, output=replace(config.output, probes=probes))
    run = advised("eval_batch_size", "train_batch_size")(partial(run_all, chosen=chosen, pipe=pipe))
    with exclusive(config.output_dir):
        run(config.with_batch_size(Backbone.of(pipe).usual_batch_size))


def run_all(config: ProbesConfig, *, chosen: Choice, pipe: DiffusionPipeline) -> None:
    """Run the probes and write what they found."""
    given, examination = config.examination, chosen.examination
    assert given.adapter and chosen.directory  # `check_config` has refused anything else
    subject = Subject(
        pipe,
        load_adapter(pipe, given.adapter),
        chosen.concepts or [],
        examination,
        num_inference_steps=given.num_inference_steps or examination.num_inference_steps,
        guidance_scale=examination.guidance_scale if given.guidance_scale is None else given.guidance_scale,
        eval_batch_size=given.eval_batch_size or Backbone.of(pipe).usual_batch_size,
        images=read_images(config.output.concept_images) if config.output.concept_images else None,
        adapter_dir=chosen.directory,
        merge_with=config.output.merge_with,
        sides=(False,) if config.output.without_base else (False, True),
    )
    said = described(subject, chosen, config)
    with friendly_interrupts("The probes that are done are kept; the same command goes on."):
        found = run_probes(
            subject,
            config.budgets,
            said,
            names=[PLAIN, *config.output.probes],
            directory=config.output_dir,
            overwrite=config.output.overwrite_output_dir,
        )
    report = {**said, "probes": found}
    write_json(config.output_dir / PROBES_NAME, report)
    merge_into_results(report, chosen.directory)
    print(f"\n{table(report)}\nwrote {config.output_dir / PROBES_NAME}")


def described(subject: Subject, chosen: Choice, config: ProbesConfig) -> dict[str, Any]:
    """What the results depend on, as JSON."""
    assert chosen.adapter
    given = config.output
    said = {
        "concept": subject.concepts,
        "base_model_name_or_path": public_name(chosen.base.name),
        "judge": chosen.examination.name,
        "protocol": chosen.examination.protocol,
        "adapter_sha256": hashlib.sha256(chosen.adapter.read_bytes()).hexdigest(),
        "num_inference_steps": subject.num_inference_steps,
        "guidance_scale": subject.guidance,
        "mixed_precision": config.examination.mixed_precision,
        "concept_images_from": given.concept_images.name if given.concept_images else "the base",
        "without_base": given.without_base,
        "merged_with": given.merge_with.resolve().name if given.merge_with else None,
        "settings": config.budgets.as_json(),
        "versions": versions(),
    }
    return json.loads(json.dumps(said))


def run_probes(
    subject: Subject,
    settings: Settings,
    said: dict[str, Any],
    *,
    names: Sequence[str],
    directory: Path,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run the probes that the directory has no results of; what each of them found, by name.

    Each writes `probe-NAME.json` and a picture for each of its rows.

    Args:
        said: what the results depend on, by `described`.

    Raises:
        ValueError: the directory holds a probe that was run under other circumstances.
    """
    make_directory(directory)
    found = {}
    for name in PROBES:
        path, circumstances = directory / f"probe-{name}.json", circumstances_of(name, said)
        known = None if overwrite and name in names else read_probe(path)
        if known is not None and known["circumstances"] != circumstances:
            if name not in names:
                continue
            differs = next(
                key for key in circumstances if known["circumstances"].get(key) != circumstances[key]
            )
            raise ValueError(
                f"{path} is of other circumstances ({differs} differs); choose another --output_dir, or add "
                "--overwrite_output_dir."
            )
        if known is None:
            if name not in names:
                continue
            tries, probe = PROBES[name]
            rows = probe(subject, settings)
            for number, row in enumerate(rows, start=1):
                save_samples(row, directory / f"probe-{name}-{number}.png")
            known = {"tries": tries, "rows": [row.as_json() for row in rows], "circumstances": circumstances}
            write_json(path, known)
        found[name] = {"tries": known["tries"], "rows": known["rows"]}
    return found


def circumstances_of(probe: str, said: dict[str, Any]) -> dict[str, Any]:
    """What the results of one probe depend on: not the versions, nor the budgets of the others."""
    circumstances = {
        name: value
        for name, value in said.items()
        if name not in ("versions", "settings", "without_base", "merged_with")
    }
    own = (
        "merged_with" if probe == "removal" else "without_base"
    )  # removal compares with the base in any case
    circumstances[own] = said[own]
    others = tuple(f"{name}_" for name in PROBES if name != probe)
    return circumstances | {
        name: value for name, value in said["settings"].items() if not name.startswith(others)
    }


class Finished(TypedDict):
    """probe-NAME.json."""

    tries: str
    rows: list[AttemptRow]
    circumstances: dict[str, Any]


def read_probe(path: Path) -> dict[str, Any] | None:
    """What a probe found; None if it was not run, or its file is damaged."""
    try:
        known = read_json(path)
        check(known, Finished, str(path))
    except ValueError:
        return None
    return cast(dict[str, Any], known)


def merge_into_results(report: dict[str, Any], directory: Path) -> None:
    """Put the probes into the adapter's own results.json, if it has one, for its card and its report;
    `python -m hub card` writes the card anew."""
    path = directory / RESULTS_NAME
    if path.is_file():
        write_json(path, {**read_results(directory), "probes": report})


def table(report: dict[str, Any]) -> str:
    """The rows as text."""
    lines = [
        f"{'the concept is seen, percent':46} {'with the adapter':>22} {'same on the base':>22} {'steps':>6} "
        f"{'UNet samples':>13} {'seconds':>8}"
    ]
    for probe in (report.get("probes") or {}).values():
        for row in probe["rows"]:
            budget = row.get("budget") or {}
            steps, samples, seconds = (
                "-" if budget.get(of) is None else budget[of] for of in ("steps", "unet_samples", "seconds")
            )
            lines.append(
                f"{row['name']:46} {cell(row['adapter']):>22} {cell(row.get('base')):>22} {steps:>6} {samples:>13} "
                f"{seconds:>8}"
            )
    return "\n".join([*lines, f"judge: {report.get('judge') or 'unknown'}; in brackets 95 % intervals"])


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
