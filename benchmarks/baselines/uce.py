"""Unified concept editing (Gandikota et al., 2024, arXiv 2308.14761, eq. 7): the keys and values of
cross-attention, edited in closed form,

    W = (λ W⁰ + s_e Σ_e v* c_eᵀ + s_p Σ_p W⁰ c_p c_pᵀ) (λ I + s_e Σ_e c_e c_eᵀ + s_p Σ_p c_p c_pᵀ)⁻¹,

c_e text states to be erased, v* = W⁰ c_g what the base makes of those put in their place, c_p text states to
be preserved. A text gives one state for each token from its last one to the end of the window, which repeats
the end-of-text token: the states that have read the whole text.

Published: s_e 1, s_p 1, λ 0.5; the first release had s_p 0.1, λ 0.1; UnlearnCanvas took s_e 0.05, λ 1 for
styles and 0.01, 10 for objects.

Here: c_e are the forget prompts' states and c_g those of one anchor each, of a class that the seed decides,
c_p those of the retain prompts; s_e, s_p and λ are published ones. All tokens of a text take part, aligned at
its last one, and not only those from there on (`States`): a thing whose name is not the last word is
otherwise erased in part.

A transformer that attends to texts and images at once has no cross-attention. There the authors' code for
FLUX edits the layers by which texts come in, of the states and of the pooled embedding (`ENTRANCES`); so does
this.

The change W - W⁰ = s_e Σ_e (v* - W⁰ c_e) c_eᵀ (…)⁻¹ becomes a LoRA by a singular value decomposition of each,
at the lowest rank that loses less than `tolerance` of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin
from peft import LoraConfig, set_peft_model_state_dict
from transformers import PreTrainedTokenizerBase

from benchmarks.baselines.task import Task
from benchmarks.baselines.trainer import Watch
from hub.factors import Factors
from hub.merge import truncate
from pipelines.backbone import Backbone
from policy.lora import ADAPTER
from reward.concept import ConceptSpec

TITLE = "UCE (arXiv 2308.14761)"


ENTRANCES = {
    "StableDiffusion3Pipeline": ("context_embedder", "time_text_embed.text_embedder.linear_1"),
    "FluxPipeline": ("context_embedder", "time_text_embed.text_embedder.linear_1"),
}
"""The layers of a transformer that are given the states of a text, and its pooled embedding."""


class States(StrEnum):
    """Those from the last token of the text on, to the end of the window, or those of all of its tokens
    too."""

    TAIL = "tail"
    TEXT = "text"


@dataclass(frozen=True)
class Settings:
    """What is published, but for what docs/baselines.md says.

    Attributes:
        erase_scale: s_e.
        preserve_scale: s_p.
        damping: λ.
        tolerance: share of the change, as a Frobenius norm, that its LoRA may lose.
        states: which of a text's states are edited, and preserved.
        target_modules: endings of the layers of a UNet that are edited.
    """

    erase_scale: float = 1.0
    preserve_scale: float = 1.0
    damping: float = 0.5
    tolerance: float = 0.01
    states: States = States.TEXT
    target_modules: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")


def uce_closed_form(
    weight: torch.Tensor,
    erased: torch.Tensor,
    values: torch.Tensor,
    preserved: torch.Tensor,
    settings: Settings,
) -> torch.Tensor:
    """The edited weight (out, in), in double precision.

    Args:
        weight: (out, in).
        erased: (N, in) text states c_e.
        values: (N, out), v* of each.
        preserved: (P, in) text states c_p.
    """
    weight, erased, values, preserved = (tensor.double() for tensor in (weight, erased, values, preserved))
    s_e, s_p = settings.erase_scale, settings.preserve_scale
    kept = s_p * preserved.T @ preserved + settings.damping * torch.eye(
        weight.shape[1], dtype=torch.float64, device=weight.device
    )
    left = weight @ kept + s_e * values.T @ erased
    return torch.linalg.solve(kept + s_e * erased.T @ erased, left, left=False)


def as_lora(changes: dict[str, torch.Tensor], tolerance: float) -> tuple[dict[str, Factors], float]:
    """Changes (out, in) of weights as pairs of matrices of one rank, the lowest that loses no more than
    `tolerance`, and what it loses."""
    full = {
        name: Factors(
            torch.eye(change.shape[1], dtype=change.dtype, device=change.device), change, change.shape[1]
        )
        for name, change in changes.items()
    }
    most = max(min(change.shape) for change in changes.values())
    return next(
        found
        for rank in range(1, most + 1)
        if (found := truncate(full, rank))[1] <= tolerance or rank == most
    )


def attach(denoiser: ModelMixin, factors: dict[str, Factors]) -> None:
    """Put the pairs onto the network as its adapter."""
    ranks = {name: f.rank for name, f in factors.items()}
    rank = max(ranks.values())
    lower = {f"^{name}": r for name, r in ranks.items() if r != rank}
    denoiser.requires_grad_(False)
    denoiser.add_adapter(
        LoraConfig(
            r=rank, lora_alpha=rank, rank_pattern=lower, alpha_pattern=lower, target_modules=sorted(factors)
        ),
        adapter_name=ADAPTER,
    )
    pairs = {f"{name}.lora_A.weight": f.down.float() for name, f in factors.items()} | {
        f"{name}.lora_B.weight": f.up.float() for name, f in factors.items()
    }
    set_peft_model_state_dict(denoiser, pairs, adapter_name=ADAPTER)


def paired_states(
    task: Task, texts: Sequence[str], others: Sequence[str], states: States
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, E) text states of `texts`, and beside each that of its counterpart in `others`, aligned at the
    last token of either text."""
    found, put = [], []
    for text, other in zip(texts, others, strict=True):
        for tokenizer, window in windows(task.backbone):
            a, b = task.states(text)[window], task.states(other)[window]
            of_text, of_other = aligned(tokenizer, (text, other), len(a), whole=states == States.TEXT)
            found.append(a[of_text])
            put.append(b[of_other])
    return torch.cat(found), torch.cat(put)


def aligned(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, str], window: int, *, whole: bool = True
) -> tuple[slice, slice]:
    """The states of either text that stand for one another, from the ends of the texts on: as many before
    the last tokens as the shorter text has, and what fills the window after them.

    Args:
        window: how many states each text has.
        whole: with the states before the last token; else only those that have read the whole text.
    """
    begin = len(tokenizer("").input_ids) - 1
    last, of_other = (len(tokenizer(text).input_ids) - 2 for text in texts)  # the end-of-text token follows
    before = min(last, of_other) - begin if whole else 0
    after = window - max(last, of_other)
    return slice(last - before, last + after), slice(of_other - before, of_other + after)


def windows(backbone: Backbone) -> list[tuple[PreTrainedTokenizerBase, slice]]:
    """Which tokenizer's tokens stand where among the states of a text."""
    if backbone.pipeline_class == "StableDiffusion3Pipeline":
        clip, _, *t5 = backbone.tokenizers
        end = clip.model_max_length
        return [(clip, slice(end)), *((tokenizer, slice(end, None)) for tokenizer in t5)]
    return [(backbone.readers[0], slice(None))]


class Edited(NamedTuple):
    """What layers are given of the texts that decide an edit, in double precision.

    Attributes:
        erased: (N, E), c_e.
        guides: (N, E), c_g of each.
        preserved: (P, E), c_p.
    """

    erased: torch.Tensor
    guides: torch.Tensor
    preserved: torch.Tensor


def stand_ins(spec: ConceptSpec, seed: int) -> list[str]:
    """The anchor of each forget prompt that stands in for the concept."""
    generator = torch.Generator().manual_seed(seed)
    column = int(torch.randint(min(map(len, spec.anchors)), (), generator=generator))
    return [row[column] for row in spec.anchors]


def edited_states(task: Task, settings: Settings, seed: int) -> Edited:
    """The states of the task's texts. The seed decides which anchors stand in for the concept."""
    forget, retain = task.spec.forget_prompts, task.spec.retain_prompts
    erased, guides = paired_states(task, forget, stand_ins(task.spec, seed), settings.states)
    preserved, _ = paired_states(task, retain, retain, settings.states)
    return Edited(erased.double(), guides.double(), preserved.double())


def edited_embeddings(task: Task, seed: int) -> Edited:
    """The pooled embeddings of the task's texts."""
    texts = (task.spec.forget_prompts, stand_ins(task.spec, seed), task.spec.retain_prompts)
    return Edited(*(task.encode(of).vector.double() for of in texts))


def entrances(task: Task, settings: Settings, seed: int) -> list[tuple[tuple[str, ...], Edited]]:
    """Endings of the layers by which texts come in, and what these are given.

    Raises:
        ValueError: the base has none that this method knows.
    """
    backbone = task.backbone
    if not backbone.is_flow:
        return [(settings.target_modules, edited_states(task, settings, seed))]
    if backbone.pipeline_class not in ENTRANCES:
        raise ValueError(f"{TITLE} edits no layer of a {backbone.pipeline_class}; take another method.")
    of_states, of_embeddings = ENTRANCES[backbone.pipeline_class]
    return [
        ((of_states,), edited_states(task, settings, seed)),
        ((of_embeddings,), edited_embeddings(task, seed)),
    ]


def weights_to_edit(denoiser: ModelMixin, target_modules: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """(out, in) weights of the layers whose names have such an ending, in double precision."""
    return {
        name: module.weight.detach().double()
        for name, module in denoiser.named_modules()
        if name.endswith(target_modules)
    }


def edit(weights: Mapping[str, torch.Tensor], states: Edited, settings: Settings) -> dict[str, torch.Tensor]:
    """The weights, each edited."""
    return {
        name: uce_closed_form(weight, states.erased, states.guides @ weight.T, states.preserved, settings)
        for name, weight in weights.items()
    }


def leave(
    denoiser: ModelMixin,
    base: Mapping[str, torch.Tensor],
    edited: Mapping[str, torch.Tensor],
    tolerance: float,
) -> float:
    """Put the change of the weights onto the network as its adapter; what the adapter loses of it."""
    factors, error = as_lora({name: edited[name] - weight for name, weight in base.items()}, tolerance)
    attach(denoiser, factors)
    return error


def erase(task: Task, settings: Settings, seed: int, watch: Watch | None = None) -> dict[str, Any]:
    """Leave the adapter on the task's network; returns facts for results.json."""
    base, edited = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for layers, states in entrances(task, settings, seed):
        weights = weights_to_edit(task.denoiser, layers)
        base |= weights
        edited |= edit(weights, states, settings)
    error = leave(task.denoiser, base, edited, settings.tolerance)
    if watch:
        watch(1)
    return {"iterations": 1, "images": 0, "relative_error": error}
