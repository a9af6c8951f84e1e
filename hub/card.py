"""The model card: what was erased, how well, how to use it and its limits, all from results.json.

Concepts, settings and results come from others. `Markdown.fill` and `Python.fill` escape whatever a template
is filled with, so that it stays text. Local paths are cut to their last part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from common.files import write_text
from common.markup import Markdown, Python
from common.names import BUNDLED_PIPELINE, file_name, hub_id, without_path
from hub.concepts import kohya_name
from hub.files import UnreadableAdapter, read_names
from hub.licences import BUNDLED_TEXT, licence_by_hand, licence_of
from hub.names import TEXT_ENCODERS
from hub.notes import notes_section, read_notes
from hub.provenance import was_without_t5
from hub.results import PipelineClass, interval, listed

CARD_NAME, GRID_NAME = "README.md", "before_after.png"
TAGS = [
    "lora",
    "text-to-image",
    "diffusers",
    "diffusers-training",
    "template:sd-lora",
    "concept-erasure",
    "unlearning",
]
TAGS_OF: dict[str, list[str]] = {
    "StableDiffusionXLPipeline": ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-xl-diffusers"],
    "StableDiffusion3Pipeline": ["sd3", "sd3-diffusers"],
    "FluxPipeline": ["flux", "flux-diffusers"],
    "ZImagePipeline": ["z-image"],
}
"""By the base's class; of every other, and of none, the first of Stable Diffusion's."""
PARTS = {
    "unet": "the UNet",
    "transformer": "the transformer",
    "text_encoder": "the text encoder",
    "text_encoder_2": "the second text encoder",
}
"""What an adapter may change, by the pipeline's name."""
PAPER = Markdown.link("Critic-Guided Reinforcement Unlearning", "https://arxiv.org/abs/2601.03213")
TRAINING = Markdown.fill(
    "Reinforcement learning: denoising is a decision process, rewarded for images in which the teacher no longer "
    "finds the concept, while a KL penalty keeps the steps of other images as they were. A reward of noisy latents "
    "says which steps earned it, together with a critic if one was used. Only the LoRA is trained. After "
    "{paper}.",
    paper=PAPER,
)
METRICS = {
    "UA": "unlearning accuracy: how often the judge does not find the concept where the prompt asks for it",
    "IRA": "in-domain retain accuracy: how often it finds the other classes of the concept's kind where they are "
    "asked for",
    "CRA": "cross-domain retain accuracy: the same for the other kinds, over all images",
    "NRA": "neighbour retain accuracy: IRA over the classes nearest to the concept alone",
}
DEFINED = METRICS | {
    "UA_synonyms": "UA where the prompt says a synonym of the concept",
    "UA_categories": "UA where the prompt says a category that the concept belongs to: its other members may be "
    "drawn",
    "UA_pairs": "UA where the prompt asks for the concept and for something else",
    "other_of_two": "how often the judge finds the something else there",
    "IRA_told": "IRA over the classes that training was told to keep",
    "IRA_untold": "IRA over those that it was not told of",
}
"""The same, and what single protocols measure beyond it."""

UNLOADABLE = (
    "Anyone who has the weights can unload an adapter: it keeps a service from drawing a concept, but removes "
    "nothing from a model that is given away."
)
UNPROBED = (
    "Fine-tuning, textual inversion or an indirect prompt may bring the concept back; the metrics above are about "
    "plain prompts."
)
ATTEMPTS = (
    "The attempts above have small budgets. More fine-tuning, textual inversion or prompt search may bring back "
    "more of the concept."
)

ADDRESS = re.compile(r"^pipe\.load_lora_weights\(.*\)  # a folder or an id on the Hub$", re.MULTILINE)
WORST, SHOWN_PROMPTS, SHOWN_SEEDS = 5, 3, 8
"""Numbers of classes that suffered, of prompts of a kind, and of seeds that the card shows at most."""


def model_card(results: Mapping[str, Any], output_dir: str | Path, notes: str = "") -> ModelCard:
    """The card of the adapter in `output_dir`; it leaves out what `results` lacks.

    The metadata name the base only if it is a Hub id, and the picture is shown only if `output_dir` has it.

    Args:
        notes: what people wrote into an older card (`hub.notes`).
    """
    concepts = listed(results.get("concept"))
    base = str(results.get("base_model_name_or_path") or "")
    picture = (Path(output_dir) / GRID_NAME).is_file()
    base_id = hub_id(base)
    measured = _eval_results(results)
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base_id,
        base_model_relation="adapter" if base_id else None,
        **licence_of(results),
        tags=TAGS + TAGS_OF.get(results.get("pipeline_class") or "", ["stable-diffusion"]),
        widget=[{"text": ", ".join(concepts) or "-", "output": {"url": GRID_NAME}}] if picture else None,
        model_name=file_name(output_dir) if measured else None,
        eval_results=measured,
    )
    erased = ", ".join(concepts) or "a concept"
    sections = [
        Markdown.fill("# LoRA that erases: {erased}", erased=erased),
        Markdown.fill(
            "An adapter for {base}, {made} so that it no longer draws {erased} and goes on drawing the rest.",
            base=_base_text(base, results.get("revision")),
            made="made" if results.get("method") else "trained",
            erased=erased,
        ),
        f"![Images of the base above, with the adapter below]({GRID_NAME})" if picture else "",
        _results_section(results),
        _suffered_section(results),
        _probes_section(results),
        _use_section(base, base_id, concepts, results, output_dir),
        _programs_section(results, output_dir),
        _limits_section(results),
        _training_section(results),
        notes_section(notes),
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def save_model_card(results: Mapping[str, Any], output_dir: str | Path) -> Path:
    """Write the card as README.md, complete or not at all; what people wrote into an older one, notes and a
    licence, is kept."""
    path = Path(output_dir) / CARD_NAME
    older = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    card = model_card({**results, **licence_by_hand(older)}, output_dir, read_notes(older))
    write_text(path, str(card))
    return path


def addressed(card: str, repo_id: str, revision: str | None = None) -> str:
    """A card whose example loads the adapter from a repository on the Hub."""
    given = Python.fill(", revision={revision}", revision=revision) if revision else ""
    return ADDRESS.sub(
        lambda _: f"pipe.load_lora_weights({Python.of(repo_id)}{given})  # a folder or an id on the Hub",
        card,
    )


def _lines(*lines: object) -> Markdown:
    return Markdown.join(lines, by="\n")


def _results_section(results: Mapping[str, Any]) -> Markdown | None:
    base, adapter = results.get("base") or {}, results.get("adapter") or {}
    names = [name for name in DEFINED if base.get(name) is not None or adapter.get(name) is not None]
    if not names:
        return None
    rows = [
        [label, *(_cell(side, name) for name in names)]
        for label, side in (("base", base), ("with this adapter", adapter))
    ]
    said = [Markdown.fill("Judge: {judge}.", judge=results.get("judge") or "unknown")]
    if seeds := listed(results.get("seeds")):
        few = len(seeds) <= SHOWN_SEEDS
        said.append(
            Markdown.fill("Seeds: {seeds}.", seeds=", ".join(seeds))
            if few
            else Markdown.fill("{count} seeds.", count=len(seeds))
        )
    if any(interval(side, name) for side in (base, adapter) for name in names):
        said.append(
            Markdown(
                "In brackets the 95 % interval: a bootstrap over prompts and their images, never narrower than "
                "Wilson's for as many images."
            )
        )
    return _lines(
        Markdown("## Results"),
        "",
        Markdown.table(["percent", *map(Markdown, names)], rows),
        "",
        Markdown.join(said, by=" "),
        "",
        *(Markdown(f"- {name}, {DEFINED[name]}") for name in names),
    )


def suffered(results: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
    """The retained classes, or prompts, whose accuracy fell, worst first: domain, name, percent of the base
    and of the adapter; empty if it is not known which were to be erased."""
    targets = results.get("targets") or {"prompt": listed(results.get("forget_prompts"))}
    erased = {name for names in targets.values() for name in names}
    if not erased:
        return []
    before, after = ((results.get(side) or {}).get("per_class") or {} for side in ("base", "adapter"))
    pairs = [
        (domain, name, before[domain][name], value)
        for domain, classes in after.items()
        for name, value in classes.items()
        if name in before.get(domain, {}) and name not in erased
    ]
    return sorted((pair for pair in pairs if pair[3] < pair[2]), key=lambda pair: pair[3] - pair[2])


def _suffered_section(results: Mapping[str, Any]) -> Markdown | None:
    fallen = suffered(results)
    if not fallen:
        return None
    rows = [
        [domain, name, Markdown(f"{base:.2f}"), Markdown(f"{adapter:.2f}")]
        for domain, name, base, adapter in fallen[:WORST]
    ]
    return _lines(
        Markdown("## What suffered most"),
        "",
        Markdown.table(["kind", "retained", "base", "with this adapter"], rows),
        "",
        "Percent recognised.",
    )


def _probes_section(results: Mapping[str, Any]) -> Markdown | None:
    """How much of the concept each probe brought back; None if none was run."""
    report = results.get("probes") or {}
    rows = [row for probe in (report.get("probes") or {}).values() for row in probe["rows"]]
    if not rows:
        return None
    cells = [
        [
            row["name"],
            _returned(row["adapter"]),
            _returned(row.get("base")),
            _spent(row.get("budget") or {}),
        ]
        for row in rows
    ]
    return _lines(
        Markdown("## How much comes back"),
        "",
        Markdown.table(
            ["attempt", "with this adapter", "the same on the base", "spent on the attempt"], cells
        ),
        "",
        Markdown.fill(
            "Percent of images in which the judge ({judge}) sees the concept; in brackets the 95 % interval. The "
            "base's column is the most that an attempt could find.",
            judge=report.get("judge") or "unknown",
        ),
    )


def _returned(found: Mapping[str, Any] | None) -> Markdown:
    if not found:
        return Markdown("–")
    return Markdown(f"{found['return']:.1f} [{found['ci95'][0]:.1f}, {found['ci95'][1]:.1f}]")


def _spent(budget: Mapping[str, Any]) -> str:
    spent = [f"{budget[name]} {name}" for name in ("steps", "images") if budget.get(name)]
    return ", ".join(spent) or "nothing"


def _use_section(
    base: str,
    base_id: str | None,
    concepts: Sequence[str],
    results: Mapping[str, Any],
    output_dir: str | Path,
) -> Markdown:
    revision = results.get("revision")
    given = Python.fill(", revision={revision}", revision=revision) if base_id and revision else Python("")
    if was_without_t5(results):
        given = Python(f"{given}, text_encoder_3=None, tokenizer_3=None")
    parts = _changed_parts(output_dir)
    components = f"[{Python.join(parts, by=', ')}], " if parts else ""
    loader, method, header = "DiffusionPipeline", "from_pretrained", []
    if base == BUNDLED_PIPELINE:
        header, source = (
            ["import canvas  # in the root of this project's repository"],
            Python("canvas.PIPELINE"),
        )
    elif base_id:
        source = Python.of(base_id)
    elif base.endswith(".safetensors"):
        loader, method = _single_file_class(results.get("pipeline_class")), "from_single_file"
        source = Python.of(f"path/to/{file_name(base)}")
    else:
        source = Python.of("path/to/the/base/pipeline")
    return _lines(
        Markdown("## Use"),
        "",
        Markdown.code(
            "python",
            [
                "import torch",
                f"from diffusers import {loader}",
                *header,
                "",
                f"pipe = {loader}.{method}({source}{given})",
                Python.fill(
                    "pipe.load_lora_weights({place})  # a folder or an id on the Hub",
                    place=_shown_path(output_dir),
                ),
                Python.fill(
                    "image = pipe({prompt}, generator=torch.Generator().manual_seed(0)).images[0]",
                    prompt=concepts[0] if concepts else "a prompt",
                ),
                "",
                "name = pipe.get_active_adapters()[0]",
                "pipe.set_adapters(name, 0.5)  # weaker; 0.0 gives the base's images back, bit for bit",
                "pipe.set_adapters(name, 1.0)",
                f"pipe.fuse_lora({components}adapter_names=[name])  # adds it to the weights: as fast as the base",
                "pipe.unfuse_lora()  # takes it out again",
                "pipe.unload_lora_weights()  # removes it",
            ],
        ),
        *(["", _parts_text(parts)] if parts else []),
    )


def _changed_parts(output_dir: str | Path) -> list[str]:
    """The components that the directory's adapter changes, if a text encoder is among them; else none."""
    try:
        names = read_names(Path(output_dir) / LORA_WEIGHT_NAME_SAFE)
    except UnreadableAdapter:
        return []
    found = {name.partition(".")[0] for name in names}
    return [] if found.isdisjoint(TEXT_ENCODERS) else [part for part in PARTS if part in found]


def _parts_text(parts: Sequence[str]) -> Markdown:
    *others, last = (PARTS[part] for part in parts)
    changed = f"{', '.join(others)} and {last}" if others else last
    return Markdown(
        f"It changes {changed}: load all of it, as `load_lora_weights` does, before prompts are encoded. A weight in "
        "`set_adapters` is for all of it."
    )


def _single_file_class(name: str | None) -> str:
    """Of the classes that this project knows; the card has it as code."""
    return name if name and name in get_args(PipelineClass) else "StableDiffusionPipeline"


def _programs_section(results: Mapping[str, Any], output_dir: str | Path) -> Markdown | None:
    """How other programs load the adapter; None if there is no file for them."""
    kind, twin = results.get("pipeline_class") or "", kohya_name(results)
    clip = bool(_changed_parts(output_dir))
    if kind == "ZImagePipeline":
        # The one file that ComfyUI knows the names of; it does not read the alpha in its header.
        strength = "`--lora_alpha` / `--rank`, which is 1 unless both were set"
        return _comfyui_alone(f"Load `{LORA_WEIGHT_NAME_SAFE}`.", _in_comfyui(strength, clip), results)
    if not (Path(output_dir) / twin).is_file():
        return None
    # The name is one of `hub.concepts.file_of`: letters, digits and dashes.
    if kind in ("StableDiffusion3Pipeline", "FluxPipeline"):
        load = f"Load `{twin}`, not the other file, whose scale ComfyUI does not read."
        return _comfyui_alone(load, _in_comfyui("1", clip), results)
    stem = twin.removesuffix(".safetensors")
    return _lines(
        Markdown("## Use in ComfyUI, AUTOMATIC1111, Forge and sd-scripts"),
        "",
        Markdown(
            f"Load `{twin}`, not the other file, whose names these programs do not know: they load it without a word "
            "and it does nothing."
        ),
        "",
        _in_comfyui("1", clip),
        Markdown(
            f"- AUTOMATIC1111 and Forge: put it in `models/Lora` and write `<lora:{stem}:1>` in the prompt."
        ),
        Markdown(f"- sd-scripts: `--network_module networks.lora --network_weights {twin}`."),
        "",
        _measured_between(results),
    )


def _comfyui_alone(load: str, node: Markdown, results: Mapping[str, Any]) -> Markdown:
    """Of a transformer's adapter, which the other programs have names of their own for."""
    return _lines(
        Markdown("## Use in ComfyUI"),
        "",
        Markdown(load),
        "",
        node,
        "",
        _measured_between(results),
    )


def _in_comfyui(strength: str, clip: bool) -> Markdown:
    strengths = (
        f"a model strength and a CLIP strength of {strength}."
        if clip
        else f"a model strength of {strength}. It has nothing for CLIP."
    )
    return Markdown(f"- ComfyUI: put it in `models/loras` and add the node *Load LoRA* with {strengths}")


def _measured_between(results: Mapping[str, Any]) -> Markdown:
    weights = [side["scale"] for side in results.get("scales") or [] if side["scale"]]
    measured = f"between {min(weights):g} and {max(weights):g}" if len(weights) > 1 else "at weight 1"
    return Markdown(
        f"It was measured {measured}. A lower weight erases less, and a negative one does not erase."
    )


def _training_section(results: Mapping[str, Any]) -> Markdown:
    training = results.get("training") or {}
    facts = {
        "iterations": training.get("iterations"),
        "images drawn": training.get("images"),
        "UNet samples": training.get("unet_samples"),
        "seconds": training.get("seconds"),
        "stopped by": training.get("stopped_by"),
        "reward model": _at_revision(results.get("reward_model"), results.get("reward_model_revision")),
        "critic model": _at_revision(results.get("critic_model"), results.get("critic_model_revision")),
        "forget prompts": _prompts(listed(results.get("forget_prompts"))),
        "retain prompts": _prompts(listed(results.get("retain_prompts"))),
        "relative error of the rank": results.get("relative_error"),
        "judged on": _judged(results.get("prompts") or {}),
        "versions": ", ".join(f"{name} {number}" for name, number in (results.get("versions") or {}).items()),
    }
    settings = {
        f"--{name}": value for name, value in (results.get("settings") or {}).items() if "token" not in name
    }
    method = results.get("method")
    heading, text = "How it was trained", TRAINING
    if method:
        by = "By" if training else "Not by training: by"
        heading, text = "How it was made", Markdown.fill("{by} {method}.", by=by, method=method)
    of_facts, of_settings = _rows(facts), _rows(settings)
    parts = [
        Markdown(f"## {heading}"),
        text,
        _made(results),
        Markdown.table(["", ""], of_facts) if of_facts else None,
    ]
    if of_settings:
        summary = Markdown(f"<summary>{len(of_settings)} settings</summary>")
        parts += [
            Markdown.fill("<details>{summary}", summary=summary),
            Markdown.table(["", ""], of_settings),
            Markdown("</details>"),
        ]
    return Markdown.join([part for part in parts if part], by="\n\n")


def _made(results: Mapping[str, Any]) -> Markdown:
    """The date, and the command that makes it again; empty if neither is known."""
    date, command = results.get("date"), results.get("command")
    said = [Markdown.fill("Made on {date}.", date=date)] if date else []
    if command:
        said.append(Markdown.fill("This makes it again: <code>{command}</code>", command=command))
    return Markdown.join(said, by=" ")


def _rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a table, of what is known."""
    return [[name, _value(value)] for name, value in facts.items() if value not in (None, "", [])]


def _limits_section(results: Mapping[str, Any]) -> Markdown:
    limits = [
        "It is meant for services and studies that run a base themselves and want it without the concept and "
        "otherwise unchanged.",
        UNLOADABLE,
        ATTEMPTS if results.get("probes") else UNPROBED,
        "What is close to the concept may suffer with it; look at the picture as well as at the means.",
    ]
    if (results.get("judge") or "").startswith("teacher"):
        limits.append(
            "The metrics come from the CLIP model that was also the reward. They are not independent and flatter "
            "the adapter."
        )
    return _lines(Markdown("## Intended use and limits"), "", *(Markdown(f"- {limit}") for limit in limits))


def _eval_results(results: Mapping[str, Any]) -> list[EvalResult] | None:
    judge, adapter = results.get("judge") or "unknown", results.get("adapter") or {}
    seeds = {"seeds": results["seeds"]} if results.get("seeds") else {}
    found = [
        EvalResult(
            task_type="text-to-image",
            dataset_type="prompts",
            dataset_name=f"prompts of the judge: {judge}",
            metric_type=name.lower(),
            metric_name=f"{name} in percent, judged by {judge}",
            metric_value=adapter[name],
            metric_args=seeds | ({"ci95": bounds} if (bounds := interval(adapter, name)) else {}) or None,
        )
        for name in DEFINED
        if adapter.get(name) is not None
    ]
    return found or None


def _base_text(base: str, revision: str | None) -> Markdown:
    if base == BUNDLED_PIPELINE:
        return Markdown(BUNDLED_TEXT)
    if hub_id(base):
        link = Markdown.link(base, f"https://huggingface.co/{base}")
        return (
            Markdown.fill("{link} at revision {revision}", link=link, revision=revision) if revision else link
        )
    if base:
        return Markdown.fill("a local pipeline ({name})", name=file_name(base))
    return Markdown("a Stable Diffusion pipeline")


def _cell(side: Mapping[str, Any], name: str) -> Markdown:
    if side.get(name) is None:
        return Markdown("–")
    bounds = interval(side, name)
    return Markdown(f"{side[name]:.2f}" + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else ""))


def _at_revision(name: str | None, revision: str | None) -> str | None:
    return f"{without_path(name)} at revision {revision}" if name and revision else name


def _prompts(prompts: Sequence[str]) -> str | None:
    if not prompts:
        return None
    shown = ", ".join(f'"{" ".join(prompt.split())}"' for prompt in prompts[:SHOWN_PROMPTS])
    return f"{len(prompts)}: {shown}{', …' if len(prompts) > SHOWN_PROMPTS else ''}"


def _judged(counts: Mapping[str, int]) -> str | None:
    return (
        f"{counts['forget']} prompts of the concept and {counts['retain']} others, an image a seed"
        if counts
        else None
    )


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return without_path(str(value))


def _shown_path(path: str | Path) -> str:
    """Relative to the working directory if it is below it, else its last part."""
    resolved = Path(path).resolve()
    below = resolved.is_relative_to(Path.cwd()) and resolved != Path.cwd()
    return resolved.relative_to(Path.cwd()).as_posix() if below else resolved.name
