"""The header of an adapter file: ModelSpec 1.0.1 and our own keys, in addition to rank, alpha and targets,
which diffusers writes.

ModelSpec: https://github.com/Stability-AI/ModelSpec. Every value is a text; lists and objects are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline

from common.names import without_path
from hub.card import METRICS
from hub.licences import licence_of
from hub.results import listed
from pipelines.backbone import Backbone

METHOD = "critic-guided reinforcement unlearning (arXiv 2601.03213)"
ARCHITECTURES = {
    (768, None): "stable-diffusion-v1",
    (1024, None): "stable-diffusion-v2-512",
    (2048, "text_time"): "stable-diffusion-xl-v1-base",
    (1280, "text_time"): "stable-diffusion-xl-v1-refiner",
}
"""ModelSpec's identifiers, by the UNet's text width and what else it is conditioned on."""
FLOWS = {
    "StableDiffusion3Pipeline": "stable-diffusion-3",
    "FluxPipeline": "flux-1",
    "ZImagePipeline": "z-image",
}
"""Those of flow-matching transformers, by diffusers' class."""
BASE_KEYS = tuple(
    f"modelspec.{key}"
    for key in ("sai_model_spec", "architecture", "implementation", "prediction_type", "resolution")
)
"""The keys that depend on the base."""


def architecture(unet_config: Mapping[str, Any], prediction_type: str) -> str:
    """ModelSpec's identifier of a base; without one, `stable-diffusion-custom-` and its text width."""
    width = unet_config["cross_attention_dim"]
    width = width if isinstance(width, int) else max(width)
    known = ARCHITECTURES.get((width, unet_config.get("addition_embed_type")))
    # Adapters of the full UNet do not fit one with fewer layers.
    if known is None or unet_config.get("layers_per_block", 2) != 2:
        known = f"stable-diffusion-custom-{width}"
    return (
        "stable-diffusion-v2-768-v"
        if known == "stable-diffusion-v2-512" and prediction_type == "v_prediction"
        else known
    )


def base_header(pipe: DiffusionPipeline) -> dict[str, str]:
    """The keys that depend on the base: the kind of model the adapter is for, and its image size."""
    backbone = Backbone.of(pipe)
    height, width = backbone.image_size
    header = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": f"{width}x{height}",
    }
    if backbone.is_flow:
        return header | {"modelspec.architecture": f"{FLOWS[backbone.pipeline_class]}/lora"}
    prediction_type = pipe.scheduler.config.get("prediction_type", "epsilon")
    return header | {
        "modelspec.architecture": f"{architecture(pipe.unet.config, prediction_type)}/lora",
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
    }


def results_header(results: Mapping[str, Any]) -> dict[str, str]:
    """The keys that depend on `results`, which hold all or some of results.json.

    Local paths are cut to their last part, and settings about tokens are left out. The default `method` is
    that of the training script.
    """
    concepts = [" ".join(concept.split()) for concept in listed(results.get("concept"))]
    base = without_path(results.get("base_model_name_or_path") or "")
    settings = {
        name: _public(value) for name, value in (results.get("settings") or {}).items() if "token" not in name
    }
    headline = _headline(results)
    method = results.get("method") or METHOD
    header = {
        "concept": concepts and _json(concepts),
        "base_model_name_or_path": base,
        "base_model_revision": results.get("revision"),
        "method": method,
        "settings": settings and _json(settings),
        "results": headline and _json(headline),
        "versions": results.get("versions") and _json(results["versions"]),
        "modelspec.title": concepts and f"LoRA that erases {', '.join(concepts)}",
        "modelspec.description": concepts and _description(concepts, base, method, headline),
        "modelspec.license": licence_of({**results, "base_model_name_or_path": base}).get("license"),
    }
    return {key: value for key, value in header.items() if value}


def _headline(results: Mapping[str, Any]) -> dict[str, Any]:
    """Headline metrics of base and adapter, judge and seeds; empty before the evaluation."""
    if not (results.get("base") and results.get("adapter")):
        return {}
    sides = {side: {name: results[side].get(name) for name in METRICS} for side in ("base", "adapter")}
    return sides | {
        "judge": without_path(str(results.get("judge") or "unknown")),
        "seeds": results.get("seeds"),
    }


def _description(concepts: list[str], base: str, method: str, headline: Mapping[str, Any]) -> str:
    text = (
        f"Erases {', '.join(concepts)} from {base or 'a Stable Diffusion pipeline'} and leaves the rest as it was, by "
        f"{method}."
    )
    if headline:
        before, after = headline["base"], headline["adapter"]
        shown = ", ".join(
            f"{name} {after[name]:.1f} ({before[name]:.1f})"
            for name in METRICS
            if None not in (before[name], after[name])
        )
        text += f" Percent, the base's in parentheses: {shown}; judge: {headline['judge']}."
    return text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _public(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return without_path(value) if isinstance(value, str) else value
