"""A pipeline's weights as checkpoints in one file hold them: Stable Diffusion's original layout, from
diffusers'."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def save_original(pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, path: Path) -> None:
    """Everything but configs and tokenizers in one file."""
    layers = pipe.unet.config.layers_per_block
    state = {
        f"model.diffusion_model.{unet_name(name, layers, attention_at(pipe))}": t
        for name, t in pipe.unet.state_dict().items()
    }
    state |= {
        f"first_stage_model.{vae_name(name, len(pipe.vae.config.block_out_channels))}": t
        for name, t in pipe.vae.state_dict().items()
    }
    if isinstance(pipe, StableDiffusionXLPipeline):
        state |= clip(pipe.text_encoder.state_dict(), "conditioner.embedders.0.transformer.")
        state |= open_clip(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")
    elif pipe.text_encoder.config.hidden_act == "gelu":
        state |= open_clip(pipe.text_encoder.state_dict(), "cond_stage_model.model.")
    else:
        state |= clip(pipe.text_encoder.state_dict(), "cond_stage_model.transformer.")
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)


def attention_at(pipe: StableDiffusionPipeline | StableDiffusionXLPipeline) -> Callable[[int], bool]:
    return lambda block: hasattr(pipe.unet.up_blocks[block], "attentions")


def unet_name(name: str, layers: int, attention: Callable[[int], bool]) -> str:
    for module, original in OUTSIDE.items():
        if name.startswith(f"{module}."):
            return name.replace(module, original, 1)
    name = re.sub(r"conv_shortcut", "skip_connection", name)
    if "resnets" in name:
        for module, original in RESNET.items():
            name = name.replace(f".{module}.", f".{original}.")
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        return f"middle_block.{2 * int(found[2]) if found[1] == 'resnets' else 1}.{found[3]}"
    found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert found, name
    block, number = int(found[2]), int(found[4])
    first = block * (layers + 1)
    if found[1] == "down":
        place = {
            "resnets": f"{first + number + 1}.0",
            "attentions": f"{first + number + 1}.1",
            "downsamplers": f"{first + layers + 1}.0",
        }
        return f"input_blocks.{place[found[3]]}.{found[5].replace('conv.', 'op.') if found[3] == 'downsamplers' else found[5]}"
    place = {
        "resnets": f"{first + number}.0",
        "attentions": f"{first + number}.1",
        "upsamplers": f"{first + layers}.{2 if attention(block) else 1}",
    }
    return f"output_blocks.{place[found[3]]}.{found[5]}"


def vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    for module, original in {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }.items():
        name = name.replace(f"attn_1.{module}.", f"attn_1.{original}.")
    return name


def clip(state: State, prefix: str) -> State:
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()
    }


def open_clip(state: State, prefix: str) -> State:
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    made = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        made["text_projection"] = state["text_projection.weight"].T
    for name in [name for name in state if name.startswith("encoder.layers.") and ".q_proj." in name]:
        start, end = name.split(".q_proj.")
        block = start.replace("encoder.layers.", "transformer.resblocks.").replace(".self_attn", ".attn")
        made[f"{block}.in_proj_{end}"] = torch.cat([state[f"{start}.{part}_proj.{end}"] for part in "qkv"])
    for name, tensor in state.items():
        if name.startswith("encoder.layers.") and not re.search(r"\.[qkv]_proj\.", name):
            name = name.replace("encoder.layers.", "transformer.resblocks.").replace(".self_attn.", ".attn.")
            name = (
                name.replace("layer_norm1", "ln_1")
                .replace("layer_norm2", "ln_2")
                .replace(".fc1.", ".c_fc.")
                .replace(".fc2.", ".c_proj.")
            )
            made[name] = tensor
    return {f"{prefix}{name}": tensor for name, tensor in made.items()}
