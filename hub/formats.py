"""Files that are called adapters: what they are, and peft's own format as diffusers reads it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from diffusers.utils.state_dict_utils import StateDictType
from peft import LoraConfig
from safetensors.torch import save

from common.files import write_bytes
from hub.files import UnreadableAdapter
from hub.names import TEXT_ENCODERS, in_text_model

PREFIX = "base_model.model."
"""Of every name in peft's format."""
PEFT_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
OF_UNETS = (
    *("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.", "add_embedding."),
    *("encoder_hid_proj.", "class_embedding."),
)
"""How the names of a UNet's layers begin; no transformer's do."""
NOT_SETTINGS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
}
"""What a config of peft says beside the adapter's own settings."""
CONVERT = "fuse it into its base, or convert it to a LoRA, with the program that made it."
OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("model.diffusion_model.", "first_stage_model."), "a whole checkpoint", "name it as the base."),
    ((".hada_w",), "a LoHa", CONVERT),
    ((".lokr_w",), "a LoKr", CONVERT),
    ((".oft_", ".boft_"), "an OFT adapter", CONVERT),
    ((".on_input", ".ia3_"), "an IA3 adapter", CONVERT),
    ((".diff", ".diff_b"), "a full difference of weights", CONVERT),
    ((".dora_scale",), "a DoRA in kohya's format, whose magnitudes diffusers drops", CONVERT),
    (
        ("emb_params", "string_to_param", "<", "clip_l", "clip_g"),
        "an embedding of textual inversion",
        "load it as such.",
    ),
    (("adapter.body.", "adapter.conv_in."), "a T2I-Adapter", "load it as such."),
    (("control_model.", "controlnet_", "lllite_"), "a ControlNet", "load it as such."),
    (("ip_adapter", "image_proj."), "an IP-Adapter", "load it as such."),
    (
        ("lora_transformer_",),
        "a transformer's LoRA for ComfyUI and OneTrainer",
        "load the file in diffusers' format, pytorch_lora_weights.safetensors, instead.",
    ),
    (
        ("double_blocks.", "diffusion_model.", "lora_unet_double_blocks_", "lora_unet_joint_blocks_"),
        "a LoRA with the names of the original layout of Flux or Stable Diffusion 3",
        "load it in ComfyUI, or find it in diffusers' format.",
    ),
    (
        ("conv_in.", "encoder.conv_in.", "decoder.conv_in.", "text_model.embeddings."),
        "a model's own weights",
        "name it as the base's part.",
    ),
)
"""By what a name holds or begins with: what the file is, and what to do with it."""


def what_else(names: Collection[str]) -> str:
    """What a file is that is no LoRA that can be read here, as the end of a sentence that begins with its
    name; empty if its names tell nothing."""
    for signs, kind, advice in OTHERS:
        if any(
            sign in name if sign.startswith(".") else name.startswith(sign)
            for name in names
            for sign in signs
        ):
            return f"is {kind}, which is not read here; {advice}"
    return ""


def is_kohya(names: Collection[str]) -> bool:
    """Whether a file with these names is in kohya's format."""
    return any(name.startswith(("lora_unet_", "lora_transformer_", "lora_te")) for name in names)


@contextmanager
def as_diffusers_reads(path: Path, tensors: Mapping[str, torch.Tensor]) -> Iterator[Path]:
    """Within: a file that `load_lora_weights` reads: the adapter's own, or a copy of one in peft's format.

    Args:
        tensors: what the adapter's file holds.

    Raises:
        UnreadableAdapter: it is in peft's format and the config beside it cannot be read.
    """
    if not all(name.startswith(PREFIX) for name in tensors):
        yield path
        return
    settings, renamed = _settings(path.with_name(CONFIG_NAME)), {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(PREFIX)
        renamed[f"{component_of_layer(plain)}.{plain}"] = tensor.contiguous()
    components = {name.partition(".")[0] for name in renamed}
    said = {f"{part}.{key}": value for part in components for key, value in settings.items()}
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside) / LORA_WEIGHT_NAME_SAFE
        write_bytes(copy, save(renamed, {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(said)}))
        yield copy


def by_peft_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter's tensors by component and peft's names, from diffusers' older or newer ones; a text
    encoder's are in its `text_model`."""
    others = dict(tensors)
    texts = {name: others.pop(name) for name in tensors if name.partition(".")[0] in TEXT_ENCODERS}
    # What maps the older names maps the newer ones too; diffusers' own guess fails where few are given.
    texts = convert_state_dict_to_peft(texts, StateDictType.DIFFUSERS_OLD)
    return convert_unet_state_dict_to_peft(others | {in_text_model(name): t for name, t in texts.items()})


def component_of_layer(name: str) -> str:
    """Whose a layer is, by its name in diffusers, or after peft's prefix."""
    if name.startswith(OF_UNETS):
        return "unet"
    return "text_encoder" if ".self_attn." in name or ".mlp." in name else "transformer"


def decisive(config: LoraConfig) -> dict[str, Any]:
    """Rank, alpha and everything that is not peft's default, but nothing about where it was made; older
    releases of peft refuse settings that they do not know."""
    defaults = LoraConfig().to_dict()
    return {
        name: value
        for name, value in config.to_dict().items()
        if name in ("r", "lora_alpha") or (value != defaults[name] and name not in NOT_SETTINGS)
    }


def _settings(path: Path) -> dict[str, Any]:
    """The settings of a config of peft.

    Raises:
        UnreadableAdapter: there is none, or it is not a LoRA's.
    """
    try:
        config = LoraConfig.from_pretrained(str(path.parent))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnreadableAdapter(
            f"{path} cannot be read, and an adapter in peft's format needs it: {reason}"
        ) from error
    return {
        name: sorted(value) if isinstance(value, set) else value for name, value in decisive(config).items()
    }
