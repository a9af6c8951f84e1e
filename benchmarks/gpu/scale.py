"""How large the measurements are: full size for a GPU, tiny for a rehearsal on a CPU with the same code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import open_clip

from benchmarks.memory.models import MODELS, XL, Model, text

TINY_CLIP = Path(__file__).with_name("clip-tiny.json")
open_clip.add_model_config(TINY_CLIP)


@dataclass(frozen=True)
class Scale:
    """Sizes of everything.

    Attributes:
        models: bases by name, "sd15" and "sdxl" among them.
        precision: of the base where time is measured.
        images: trajectories of an iteration whose time is measured, at `steps` denoising steps.
        batches: values of --train_batch_size that are compared at those steps.
        batch: the one that everything else is measured at.
        whole_steps: denoising steps of the one iteration that is measured as a run has it.
        card_images: trajectories of an iteration under a card's cap.
        cards: number of caps that each base and quantisation is tried under, the smallest first.
        compilers: backend and mode of --torch_compile, as `accelerate launch` calls them, by stage.
        demo: further flags of the demo.
        short: further flags of its first two iterations, which a GPU and a CPU both run.
        peer_budget: images that the peer's trainer and ours may draw, each.
        peer: further flags of ours beside the peer.
        patience: what the bounds of stages are multiplied by.
    """

    models: Mapping[str, Model]
    precision: str
    images: int
    steps: int
    batches: tuple[int, ...]
    batch: int
    whole_steps: int
    card_images: int
    cards: int
    compilers: Mapping[str, tuple[str, str]]
    demo: tuple[str, ...]
    short: tuple[str, ...]
    peer_budget: int
    peer: tuple[str, ...]
    patience: float = 1.0


TINY_TEXT = text(16, 2, 2)
TINY_VAE = {
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TINY_UNET = {
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
TINY_XL = {
    "cross_attention_dim": 32,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
TINY_MODELS = {
    "sd15": Model(
        "tiny SD", 8, TINY_UNET | {"cross_attention_dim": 16}, TINY_VAE, (TINY_TEXT,), teacher=TINY_CLIP.stem
    ),
    "sdxl": Model(
        "tiny SDXL", 8, TINY_UNET | TINY_XL, TINY_VAE, (TINY_TEXT, TINY_TEXT), XL, teacher=TINY_CLIP.stem
    ),
}
SHORT = (
    *("--max_train_iterations", "2", "--cooldown_updates", "0", "--num_inference_steps", "4"),
    *("--images_per_iteration", "8", "--retain_batch_size", "4", "--retain_rollouts", "8"),
    *("--warmup_rollouts", "8", "--num_vocabulary_prompts", "0", "--masked_steps", "1"),
    "--no-train_text_encoder",
)
QUICK = (*SHORT, "--num_inference_steps", "2", "--images_per_iteration", "4", "--warmup_rollouts", "4")
FULL = Scale(
    models=MODELS,
    precision="bf16",
    images=32,
    steps=2,
    batches=(1, 2, 4, 8, 16, 32),
    batch=8,
    whole_steps=16,
    card_images=8,
    cards=9,
    compilers={"compile": ("inductor", "default"), "graphs": ("inductor", "reduce-overhead")},
    demo=(),
    short=SHORT,
    peer_budget=384,
    peer=(),
)
TINY = Scale(
    models=TINY_MODELS,
    precision="no",
    images=2,
    steps=2,
    batches=(1, 2),
    batch=2,
    whole_steps=3,
    card_images=2,
    cards=1,
    compilers={"compile": ("eager", "default"), "graphs": ("eager", "default")},
    demo=(*QUICK, "--evaluation_seeds", "--validation_steps", "0", "--num_validation_images", "1"),
    short=(*QUICK, "--validation_steps", "0", "--num_validation_images", "1"),
    peer_budget=16,
    peer=(*QUICK, "--retain_rollouts", "4", "--train_batch_size", "4"),
    patience=5.0,
)
