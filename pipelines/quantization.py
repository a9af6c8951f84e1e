"""The frozen base in 8 or 4 bits: its Linear layers become bitsandbytes' own, on which peft puts a float32
LoRA."""

from __future__ import annotations

import logging

import torch
from diffusers import BitsAndBytesConfig, UNet2DConditionModel
from torch import nn


def quantize(unet: UNet2DConditionModel, config: BitsAndBytesConfig, device: torch.device) -> None:
    """Quantise the Linear layers of a UNet whose weights are in main memory, layer by layer onto `device`;
    all else of it stays.

    diffusers quantises while it loads, which it refuses on a CPU and which cannot be had for a checkpoint in
    one file; this is the same for every base and every device.

    Args:
        config: 8 bits (LLM.int8()) or 4 bits (NF4, FP4), and which modules to leave as they are.
    """
    # It warns at every pass of every layer that 8-bit layers round what they are given to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    left_out = set(config.llm_int8_skip_modules or ())
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Linear) and not left_out & set(name.split(".")) and name not in left_out:
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, _quantized(module, config, device))
    # By these peft knows on which kind of layer it puts an adapter.
    unet.is_loaded_in_4bit, unet.is_loaded_in_8bit = config.load_in_4bit, config.load_in_8bit


@torch.no_grad()
def _quantized(module: nn.Linear, config: BitsAndBytesConfig, device: torch.device) -> nn.Linear:
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    sizes = (module.in_features, module.out_features, module.bias is not None)
    if config.load_in_4bit:
        layer = Linear4bit(
            *sizes,
            compute_dtype=config.bnb_4bit_compute_dtype,
            quant_type=config.bnb_4bit_quant_type,
            device="meta",
        )
        # On a CPU with AVX512-BF16 it would repack its weights at the first pass without gradient, for
        # kernels that have no backward pass.
        layer.support_avx512bf16_for_cpu = False
        weight = Params4bit(
            module.weight.data,
            requires_grad=False,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            module=layer,
        )
    else:
        layer = Linear8bitLt(
            *sizes, has_fp16_weights=False, threshold=config.llm_int8_threshold, device="meta"
        )
        weight = Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
    layer.weight = weight.to(device)
    if module.bias is not None:
        layer.bias = nn.Parameter(module.bias.data.to(device), requires_grad=False)
    return layer.train(module.training)
