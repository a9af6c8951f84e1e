"""Names of modules in other layouts, by diffusers' names."""

from __future__ import annotations

import re

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""What pipelines call the text encoders that adapters may be on."""
KOHYA = {
    "unet": ("lora_unet",),
    "transformer": ("lora_transformer",),
    "text_encoder": ("lora_te", "lora_te1"),
    "text_encoder_2": ("lora_te2",),
}
"""How kohya's names of each component's modules begin: where it has one text encoder and, if that is another,
where it numbers them."""
OF_TEXT_ENCODER = re.compile(r"^(text_encoder\w*)\.(?=encoder\.layers\.)")
ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""Modules of SDXL's UNet outside the blocks."""
RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""Modules of a residual block."""
BLOCK = re.compile(
    r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
LAYERS = 2
"""Residual blocks in a block on the way down."""
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def in_text_model(name: str) -> str:
    """The same for any release of transformers: `text_encoder.encoder.layers.0.mlp.fc1` ->
    `text_encoder.text_model.encoder.layers.0.mlp.fc1`, as diffusers, kohya and ComfyUI write it; newer ones
    have no `text_model` in some encoders. Other names are as they were."""
    return OF_TEXT_ENCODER.sub(r"\1.text_model.", name)


def original_name(module: str) -> str:
    """`down_blocks.1.attentions.0.proj_in` -> `input_blocks.4.1.proj_in`, for SDXL: two layers in a block,
    and attention in all blocks that are upsampled.

    Raises:
        ValueError: that layout has no such module.
    """
    if module in ENDS:
        return ENDS[module]
    if found := MIDDLE.fullmatch(module):
        kind, number, rest = found[1], int(found[2]), found[3]
        return (
            f"middle_block.{2 * number}.{RESNET.get(rest, rest)}"
            if kind == "resnets"
            else f"middle_block.{2 * number + 1}.{rest}"
        )
    if found := BLOCK.fullmatch(module):
        side, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = block * (LAYERS + 1) + (side == "down_blocks")
        name = "input_blocks" if side == "down_blocks" else "output_blocks"
        if kind == "downsamplers":
            return f"{name}.{first + LAYERS}.0.op"
        if kind == "upsamplers":
            return f"{name}.{first + LAYERS}.2.conv"
        end = f"1.{rest}" if kind == "attentions" else f"0.{RESNET.get(rest, rest)}"
        return f"{name}.{first + number}.{end}"
    raise ValueError(f"SDXL's original layout has no module {module}.")
