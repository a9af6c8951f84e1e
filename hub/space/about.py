"""The texts of a page about an adapter, from the adapter's own files, in markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from common.markup import Markdown
from common.names import BUNDLED_PIPELINE, hub_id
from common.schema import parse_json
from hub.adapter import read_adapter_metadata
from hub.card import DEFINED, UNLOADABLE
from hub.provenance import what_adapter_says
from hub.results import Results, check, listed, read_results
from hub.space.studio import MAX_GUIDANCE, MAX_STEPS

STEPS, GUIDANCE = 30, 7.5
"""How a page draws by default for an adapter that does not record how it was judged."""
SHOWN_PROMPTS = 3

NO_ADAPTER = Markdown(
    "No adapter is loaded: enter a directory that training wrote or an id on the Hub; "
    '`accelerate launch train_unlearn_lora.py --concept "Van Gogh style"` makes one.'
)


@dataclass(frozen=True)
class About:
    """What a page says about an adapter.

    Attributes:
        base: the name of the base it was made for, "" if unknown.
        asking: prompts that ask for what it erases.
        others: prompts that do not.
        results: metrics of `base` and `adapter`, the `judge`, and how the images were drawn; any of it may be
            missing.
    """

    concepts: list[str]
    base: str
    revision: str | None
    asking: list[str]
    others: list[str]
    results: Mapping[str, Any] = field(default_factory=dict)


def read_about(directory: Path) -> About:
    """Read an adapter's directory.

    Raises:
        ValueError: there is no adapter in the directory, or its results.json is not as it is written here.
    """
    said, results = what_adapter_says(directory), read_results(directory)
    if not results:
        place = f"The results in the header of {directory / LORA_WEIGHT_NAME_SAFE}"
        results = parse_json(read_adapter_metadata(directory).get("results", "{}"), place)
        check(results, Results, place)
    concepts = listed(said["concept"])
    asking = listed(results.get("forget_prompts")) or concepts
    return About(
        concepts, said["base"] or "", said["revision"], asking, listed(results.get("retain_prompts")), results
    )


def spread(prompts: Sequence[str], count: int = SHOWN_PROMPTS) -> list[str]:
    """`count` of the prompts, evenly spaced."""
    count = min(count, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def sampling(about: About | None) -> tuple[int, float]:
    """Steps and guidance that the adapter was judged at, within a page's limits."""
    results = about.results if about else {}
    steps, guidance = results.get("num_inference_steps"), results.get("guidance_scale")
    steps = steps if isinstance(steps, int) and 1 <= steps <= MAX_STEPS else STEPS
    return steps, guidance if isinstance(
        guidance, int | float
    ) and 0 <= guidance <= MAX_GUIDANCE else GUIDANCE


def title(about: About | None) -> str:
    """Plain text."""
    return f"{', '.join(about.concepts) or 'A concept'}, erased" if about else "Before and after"


def introduction(about: About | None, base: str) -> Markdown:
    """What the two images are; without an adapter, how to get one.

    Args:
        base: the name of the pipeline that draws.
    """
    if about is None:
        return NO_ADAPTER
    text = Markdown.fill(
        "One prompt and one noise, drawn twice: by **{base}**, and by the same model with a LoRA adapter that erases "
        "**{erased}**. At scale 0 the adapter does nothing, at 1 it does what it was trained for.",
        base=base_name(base),
        erased=", ".join(about.concepts) or "a concept",
    )
    if not about.base or about.base == base:
        return text
    return Markdown.fill(
        "{text} The adapter says that it is for {base}.", text=text, base=base_name(about.base)
    )


def metrics(about: About | None) -> Markdown:
    """How well it erases and retains, who judged it, and the limits of an adapter."""
    if about is None:
        return Markdown()
    before, after = about.results.get("base") or {}, about.results.get("adapter") or {}
    known = [
        name
        for name in DEFINED
        if isinstance(before.get(name), int | float) and isinstance(after.get(name), int | float)
    ]
    lines = [
        Markdown(f"- **{name} {after[name]:.1f} %** (base {before[name]:.1f} %), {DEFINED[name]}")
        for name in known
    ]
    if known:
        judge = about.results.get("judge") or "an unknown judge"
        lines = [Markdown.fill("Judged by {judge}:", judge=judge), Markdown(), *lines, Markdown()]
    limits = Markdown(f"**Limits.** {UNLOADABLE} What is close to the concept may suffer with it.")
    return Markdown.join([*lines, limits], by="\n")


def base_name(base: str) -> Markdown:
    """A base in markdown, linked if it is on the Hub."""
    if base == BUNDLED_PIPELINE:
        return Markdown("the bundled canvas")
    return Markdown.link(base, f"https://huggingface.co/{base}") if hub_id(base) else Markdown.of(base)
