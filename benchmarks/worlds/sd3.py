"""Build a small Stable Diffusion 3 that draws the canvas: `python -m benchmarks.worlds.sd3`.

Joint attention and flow matching, on the latents of the bundled pipeline, for the same drawings, captions,
judge and teacher; and a reward predictor of its own. Every stage resumes where it was interrupted; the last
one says how good the result is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.training_utils import compute_density_for_timestep_sampling
from safetensors.torch import load_file, save
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextModelWithProjection

import canvas
from benchmarks.report import write_json
from benchmarks.worlds.canvas import models
from benchmarks.worlds.canvas.build import (
    NUM_DRAWINGS,
    PIPELINE_SEED,
    captions,
    distilled,
    drawings,
    judged,
)
from benchmarks.worlds.canvas.fit import fit, muon
from common.errors import friendly_errors
from common.files import make_directory, write_bytes
from common.flags import flag, parse
from evaluation.judge import Judge
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from reward.teacher import Teacher

TEXT_WIDTHS, TEXT_LAYERS = (48, 48), 3
"""Of each text encoder; this class of pipelines takes the states before its last layer."""
LAYERS, HEADS, HEAD_WIDTH = 4, 4, 24
BATCH, UNTOLD = 64, 0.1
STEPS, LEARNING_RATE, EMA = 2000, 2e-3, 0.999
IMAGES_PER_PROMPT = 4
GUIDANCE = 2.5
"""Where this base draws best; at the 7 of its class every seventh object is wrong."""
NETWORKS = "networks.safetensors"


def build_pipeline(vae: AutoencoderKL, size: int) -> StableDiffusion3Pipeline:
    """With random weights, two CLIPs and no T5. A number of the latent's plane is a token: a small image has
    few.

    Args:
        size: side of a latent.
    """
    vae.register_to_config(shift_factor=0.0, _name_or_path="")  # this class must be told the first
    tokenizers = [models.build_tokenizer() for _ in TEXT_WIDTHS]
    encoders = [
        CLIPTextModelWithProjection(models.text_config(tokenizer, width, TEXT_LAYERS))
        for tokenizer, width in zip(tokenizers, TEXT_WIDTHS, strict=True)
    ]
    transformer = SD3Transformer2DModel(
        sample_size=size,
        patch_size=1,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        joint_attention_dim=sum(TEXT_WIDTHS),
        pooled_projection_dim=sum(TEXT_WIDTHS),
        pos_embed_max_size=size,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )


class LastKeyCounts(TorchFunctionMode):
    """Within, attention takes its last key for many equal ones: this adds the logarithm of their number to
    its logits."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            bias = query.new_zeros(query.shape[-2], key.shape[-2])
            bias[:, -1] = log(self.times)
            kwargs = kwargs | {"attn_mask": bias}
        return func(*args, **kwargs)


@contextmanager
def zeros_once() -> Iterator[None]:
    """Within, transformers of this world give the same outputs in a third of the time.

    Without a T5 the pipeline puts zeros in its place, the same for every prompt. Texts have no positions
    here, so these tokens stay equal in all layers: one of them is enough if attention counts it so often.
    """
    whole = SD3Transformer2DModel.forward

    def once(network: SD3Transformer2DModel, *, encoder_hidden_states: torch.Tensor, **given: Any) -> Any:
        told = encoder_hidden_states[:, : models.TEXT_LENGTH + 1]
        with LastKeyCounts(encoder_hidden_states.shape[1] - models.TEXT_LENGTH):
            return whole(network, encoder_hidden_states=told, **given)

    SD3Transformer2DModel.forward = once
    try:
        yield
    finally:
        SD3Transformer2DModel.forward = whole


def train(
    pipe: StableDiffusion3Pipeline,
    latents: tuple[torch.Tensor, torch.Tensor],
    captions: models.Captions,
    *,
    steps: int,
    state_dir: Path,
    seed: int,
) -> None:
    """Train transformer and text encoders together, in place, to predict the velocity; most often at middle
    noise levels, as Stable Diffusion 3 was (Esser et al., 2024, https://arxiv.org/abs/2403.03206).

    Args:
        latents: mean and standard deviation of each image's, scaled, (N, channels, h, w) each.
    """
    backbone, (mean, std) = Backbone.of(pipe), latents

    def loss_fn(_: int, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(mean), (BATCH,), generator=generator)
        untold = (torch.rand(BATCH, generator=generator) < UNTOLD).tolist()
        texts = captions(index, generator)
        told = backbone.encode(["" if drop else text for text, drop in zip(texts, untold, strict=True)])
        x0 = mean[index] + std[index] * torch.randn(std[index].shape, generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        sigma = compute_density_for_timestep_sampling("logit_normal", BATCH, 0.0, 1.0, generator=generator)
        at = sigma[:, None, None, None]
        velocity = backbone.output((1 - at) * x0 + at * noise, 1000 * sigma, told, 1.0)
        return (velocity - (noise - x0)).square().mean()

    with zeros_once():
        fit(
            "sd3",
            networks(pipe),
            loss_fn,
            muon(LEARNING_RATE),
            steps=steps,
            state_dir=state_dir,
            seed=seed,
            ema_decay=EMA,
        )


def networks(pipe: StableDiffusion3Pipeline) -> nn.ModuleList:
    """What is trained: transformer and text encoders."""
    return nn.ModuleList([pipe.transformer, pipe.text_encoder, pipe.text_encoder_2])


def build_sd3(config: SD3Config) -> None:
    """Train the networks, or take those that are there, and write the pipeline, in half precision, which
    `from_pretrained` widens again."""
    base = load_pipeline(canvas.PIPELINE)
    torch.manual_seed(PIPELINE_SEED)
    pipe = build_pipeline(base.vae, base.unet.config.sample_size)
    if config.networks:
        networks(pipe).load_state_dict(load_file(config.networks))
    else:
        images = drawings(NUM_DRAWINGS, PIPELINE_SEED, config.work_dir / "pipeline_drawings.safetensors")
        latents, steps = models.encode(base.vae, images), int(STEPS * config.scale)
        train(pipe, latents, captions, steps=steps, state_dir=config.work_dir, seed=PIPELINE_SEED)
        trained = {name: half(value) for name, value in networks(pipe).state_dict().items()}
        write_bytes(make_directory(config.output_dir) / NETWORKS, save(trained))
    pipe.to(dtype=torch.float16).save_pretrained(config.output_dir / "pipeline", safe_serialization=True)


def half(tensor: torch.Tensor) -> torch.Tensor:
    """In half precision if it is of floating point."""
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous()


def build_reward(config: SD3Config) -> None:
    """Distil the reward predictor from the bundled teacher."""
    teacher = Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")
    pipe = load_pipeline(config.output_dir / "pipeline")
    with zeros_once():
        predictor = distilled(pipe, teacher, config.scale, config.guidance_scale)
    predictor.save_pretrained(config.output_dir / "reward", dtype=torch.float16)


def report(config: SD3Config) -> None:
    """How often the bundled judge sees the style and the object that were asked for; a contact sheet."""
    pipe, judge = load_pipeline(config.output_dir / "pipeline"), Judge.from_pretrained(canvas.JUDGE)
    pipe.set_progress_bar_config(disable=True)
    with zeros_once():
        quality, sheet = judged(pipe, judge, IMAGES_PER_PROMPT, guidance_scale=config.guidance_scale)
    sheet.save(config.output_dir / "contact_sheet.png")
    write_json(config.output_dir / "quality.json", {name: round(value, 2) for name, value in quality.items()})
    for name, value in quality.items():
        print(f"{name:>24} {value:7.2f}")


PARTS = {"pipeline": build_sd3, "reward": build_reward, "report": report}


@dataclass(frozen=True)
class SD3Config:
    """Build."""

    output_dir: Path = flag(
        Path("runs/sd3"), help="Where `pipeline`, `reward` and what the report finds are written."
    )
    work_dir: Path = flag(
        Path("runs/sd3/work"), help="Where drawings and the state of unfinished stages are kept."
    )
    networks: Path | None = flag(
        None,
        metavar="FILE",
        help=f"Take trained networks, such as another build's {NETWORKS}, and train none.",
    )
    guidance_scale: float = flag(
        GUIDANCE,
        at_least=1,
        help="Guidance of the images that the predictor learns from and the report judges.",
    )
    stages: tuple[str, ...] = flag(
        tuple(PARTS), choices=tuple(PARTS), help="Which parts to build. Default: all."
    )
    scale: float = flag(1.0, above=0, help="Multiplies the number of training steps, for a quick trial.")


def parse_config(arguments: Sequence[str] | None = None) -> SD3Config:
    """The settings of a command line."""
    return parse(SD3Config, arguments, __doc__, prog="python -m benchmarks.worlds.sd3")


def main(config: SD3Config) -> None:
    for stage in config.stages:
        PARTS[stage](config)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
