"""What the classes of pipelines do differently: how a prompt becomes what the UNet is told, and how latents
become pixels.

Each is done as the pipeline's own `__call__` does it, so that a rollout is what the pipeline would draw.
Nothing else knows which class it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    ModelMixin,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pipelines.conditioning import Conditioning, PromptTable, batches

TILE = 512
"""Pixels of a side beyond which an image is decoded in tiles where memory is to be saved."""
SLICED = 512 * 512
"""Pixels of an image from which on images are decoded one by one: each keeps a device busy, and many take
more memory than an update does."""


def latent_shape(unet: UNet2DConditionModel) -> tuple[int, int, int]:
    """(C, H, W) of the latents that the UNet was trained on."""
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return unet.config.in_channels, height, width


NUMBERS = ("", "_2", "_3")
"""What the names of text encoders and tokenizers end in."""
CLIPS = (CLIPTextModel, CLIPTextModelWithProjection)
TOGETHER = 8 * 64 * 64
"""Numbers of a channel that go through the UNet together: eight latents of Stable Diffusion 1.5, which
keep a GPU busy and leave most of it free."""
TEXT_TOKENS = 64 * 77
"""Tokens that text encoders are given together: 64 texts of a CLIP. Of a T5, which reads up to 512 tokens of
each text, so many texts would take 5 GB."""


def usual_batch_size(latent_shape: tuple[int, int, int]) -> int:
    """How many latents (C, H, W) go through the UNet together where nothing else is asked for."""
    _, height, width = latent_shape
    return max(1, min(64, TOGETHER // (height * width)))


def attention_layers(name: str) -> tuple[str, ...]:
    """The layers of an attention that blocks call by this name."""
    return tuple(f"{name}.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0"))


class Backbone:
    """Stable Diffusion 1.x and 2.x; what other classes do in another way, they override."""

    pipeline: ClassVar[type[DiffusionPipeline]] = StableDiffusionPipeline
    """The class whose latents and texts networks are made for."""
    kinds: ClassVar[dict[type[DiffusionPipeline], type[Backbone]]] = {}
    """The backbone of each class of pipelines."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe

    def __init_subclass__(cls) -> None:
        if "pipeline" in vars(cls):
            Backbone.kinds[cls.pipeline] = cls

    @staticmethod
    def of(pipe: DiffusionPipeline) -> Backbone:
        """The backbone of a pipeline, or of one that begins with an image and is made of the same parts."""
        name = type(pipe).__name__
        fitting = [
            cls
            for cls in Backbone.kinds
            if isinstance(pipe, cls) or name.startswith(cls.__name__.removesuffix("Pipeline"))
        ]
        most_special = max(fitting, key=lambda cls: len(cls.__name__), default=StableDiffusionPipeline)
        return Backbone.kinds[most_special](pipe)

    component = "unet"
    """What the pipeline calls the network that denoises."""
    is_flow = False
    """Whether it was trained by flow matching."""
    kl_sensitivity = 0.77
    """The sensitivity to the network's output that KLs to the base are counted at in every step: the median
    of the steps that the defaults train on the bundled base, where the KLs' weights were chosen."""
    attention = "attn2"
    """What a block calls the layers where images attend to texts."""
    lora_targets = attention_layers(attention)
    """Endings of the modules that are adapted unless others are named."""
    sequence_length = 77
    """Tokens that an encoder is given which sets no limit itself."""

    @property
    def denoiser(self) -> ModelMixin:
        """The network that denoises."""
        return getattr(self.pipe, self.component)

    @property
    def first_layer(self) -> nn.Module:
        """The layer that latents meet first, by whose weights bases are told apart."""
        return next(
            layer
            for layer in self.denoiser.modules()
            if next(layer.parameters(recurse=False), None) is not None
        )

    @property
    def vae(self) -> AutoencoderKL:
        return self.pipe.vae

    @property
    def device(self) -> torch.device:
        """The device of the UNet, which never waits elsewhere; the pipeline's own `device` is that of
        whatever it lists first."""
        return self.denoiser.device

    @property
    def pipeline_class(self) -> str:
        """The class whose latents and texts networks are made for, by diffusers' name."""
        return self.pipeline.__name__

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return latent_shape(self.denoiser)

    @property
    def usual_batch_size(self) -> int:
        return usual_batch_size(self.latent_shape)

    @property
    def usual_texts(self) -> int:
        """How many texts go through the text encoders together."""
        return max(1, TEXT_TOKENS // self.sequence_length)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        _, height, width = self.latent_shape
        return height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor

    @property
    def size_step(self) -> int:
        """Of what the sides of an image must be multiples, in pixels: a UNet halves its latents a few
        times."""
        return self.pipe.vae_scale_factor * 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    def resize(self, size: int) -> None:
        """From now on draw squares of latents of this side."""
        self.denoiser.register_to_config(sample_size=size)

    def deterministic_sampler(self) -> SchedulerMixin:
        """The pipeline's noise schedule under the deterministic DDIM sampler; latents are clipped only if
        the pipeline says so."""
        config = self.pipe.scheduler.config
        return DDIMScheduler.from_config(config, clip_sample=config.get("clip_sample", False))

    def timed_scheduler(self, num_steps: int) -> SchedulerMixin:
        """A copy of the scheduler with its timesteps set as the pipeline sets them."""
        scheduler = deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(num_steps, **self.timing(num_steps))
        return scheduler

    def timing(self, num_steps: int) -> dict[str, Any]:
        """What the pipeline sets its timesteps by, beside their number."""
        return {}

    @torch.no_grad()
    def draw_latents(
        self,
        prompts: list[str],
        generator: torch.Generator,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        stochastic: bool,
    ) -> torch.Tensor:
        """What the pipeline draws for the prompts, before it is decoded: (B, C, h, w).

        Args:
            stochastic: with new noise in every step, or with none but the first.
        """
        height, width = self.image_size
        own = self.pipe.scheduler
        sampler, noise = (
            self.stochastic_sampler(generator) if stochastic else (self.deterministic_sampler(), {})
        )
        self.pipe.scheduler = sampler
        try:
            return self.pipe(
                list(prompts),  # Z-Image's writes into it
                height=height,
                width=width,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=generator,
                output_type="latent",
                **noise,
            ).images
        finally:
            self.pipe.scheduler = own

    def stochastic_sampler(self, generator: torch.Generator) -> tuple[SchedulerMixin, dict[str, float]]:
        """The pipeline's noise schedule under a sampler with new noise in every step, and what the pipeline
        is called with for that."""
        sampler = self.deterministic_sampler()
        # At zero terminal SNR all of the next state is new noise, and DDIMScheduler may take the root of a
        # rounding error below 0.
        return sampler, {"eta": 1.0 if sampler.alphas_cumprod[-1] > 0 else 0.999}

    @property
    def text_encoders(self) -> list[PreTrainedModel]:
        """Those that the pipeline has."""
        found = (getattr(self.pipe, f"text_encoder{number}", None) for number in NUMBERS)
        return [encoder for encoder in found if encoder is not None]

    @property
    def adaptable_encoders(self) -> dict[str, PreTrainedModel]:
        """The CLIP text encoders that `load_lora_weights` adapts, by the pipeline's name."""
        names = getattr(self.pipe, "_lora_loadable_modules", ())
        parts = {name: getattr(self.pipe, name) for name in names}
        return {name: part for name, part in parts.items() if isinstance(part, CLIPS)}

    @property
    def modules(self) -> list[nn.Module]:
        """Everything that decides what is drawn: UNet, VAE, text encoders."""
        return [self.denoiser, self.vae, *self.text_encoders]

    @property
    def tokenizers(self) -> list[PreTrainedTokenizerBase]:
        """One for each text encoder."""
        return [getattr(self.pipe, f"tokenizer{number}") for number in NUMBERS[: len(self.text_encoders)]]

    @property
    def readers(self) -> list[PreTrainedTokenizerBase]:
        """The tokenizers into whose windows a text must fit as a whole."""
        return self.tokenizers

    @contextmanager
    def on_device(self, *modules: nn.Module) -> Iterator[None]:
        """Within, the modules are on the UNet's device; after, those that were brought there are back
        where they waited."""
        waiting = [
            (module, place)
            for module in modules
            if (place := next(module.parameters()).device) != self.device
        ]
        for module, _ in waiting:
            module.to(self.device)
        try:
            yield
        finally:
            for module, place in waiting:
                module.to(place)

    def branches(self, guidance_scale: float) -> int:
        """How often the network is asked for a guided step."""
        return 2 if guidance_scale > 1 else 1

    def guidance_weight(self, guidance_scale: float) -> float:
        """Of the prompt's branch, where the other has one less this."""
        return guidance_scale

    def guided_output(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        prompts: Conditioning,
        *,
        negative: Conditioning,
        guidance_scale: float,
    ) -> torch.Tensor:
        """The network's output under classifier-free guidance, both branches in one pass.

        Args:
            x: (B, C, H, W) states.
            timestep: () or (B,), as the scheduler counts.
            prompts: conditioning of their prompts, length B.
            negative: conditioning of no prompt, length 1.
            guidance_scale: 1 or less asks for the prompt's branch alone.

        Returns:
            (B, C, H, W), with gradient if it is enabled.
        """
        if self.branches(guidance_scale) == 1:
            return self.output(x, timestep, prompts, guidance_scale)
        both = Conditioning.cat([negative.expand(len(x)), prompts])
        twice = timestep if timestep.ndim == 0 else timestep.repeat(2)
        without, with_prompt = self.output(torch.cat([x, x]), twice, both, guidance_scale).float().chunk(2)
        return without + self.guidance_weight(guidance_scale) * (with_prompt - without)

    def output(
        self, x: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> torch.Tensor:
        """The network's output (B, C, H, W) in one branch. It is called as the stock pipeline calls it,
        argument for argument: a compiled network is one for both.

        Args:
            guidance_scale: for a network that is told it.
        """
        conditioning = conditioning.to(self.denoiser.dtype)
        return self.denoiser(
            x.to(self.denoiser.dtype),
            timestep,
            encoder_hidden_states=conditioning.states,
            timestep_cond=None,
            cross_attention_kwargs=None,
            added_cond_kwargs=conditioning.added,
            return_dict=False,
        )[0]

    def decode_one_by_one(self) -> None:
        """From now on the VAE decodes one image at a time, the pipeline's own calls included, if they are
        large enough for that to cost nothing."""
        height, width = self.image_size
        if height * width >= SLICED:
            self.vae.enable_slicing()

    def decode_sparingly(self) -> None:
        """From now on the VAE decodes one image at a time, and one of more than `TILE` pixels in tiles of
        that size, which overlap and are blended."""
        self.vae.enable_slicing()
        self.vae.enable_tiling()
        # diffusers' tiles are as large as the images that the VAE was trained on: SDXL's would be one of 1024
        # pixels.
        self.vae.tile_sample_min_size = min(TILE, self.vae.tile_sample_min_size)
        self.vae.tile_latent_min_size = self.vae.tile_sample_min_size // self.pipe.vae_scale_factor

    def limit_windows(self) -> None:
        """Let each tokenizer say how many tokens its encoder is given; some files leave it open."""
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            window = getattr(encoder.config, "max_position_embeddings", self.sequence_length)
            tokenizer.model_max_length = min(tokenizer.model_max_length, window)

    def window(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens that a text may have."""
        return tokenizer.model_max_length

    def unseen(self, text: str) -> str:
        """The end of a text that a tokenizer cuts off, so that its encoder never sees it; empty if there is
        none."""
        ends = []
        for tokenizer in self.readers:
            ids = tokenizer(text, truncation=False, verbose=False).input_ids
            # The last token that is seen ends the text, and the last one of all would.
            ends.append(tokenizer.decode(ids[self.window(tokenizer) - 1 : -1]).strip())
        return max(ends, key=len)

    def check_window(self, text: str) -> None:
        """Refuse a text that a tokenizer would cut off.

        Raises:
            ValueError: it needs more tokens than the window holds.
        """
        for tokenizer in self.readers:
            used, window = (
                len(tokenizer(text, truncation=False, verbose=False).input_ids),
                self.window(tokenizer),
            )
            if used > window:
                shown = text if len(text) < 80 else text[:77] + "..."
                raise ValueError(
                    f'"{shown}" needs {used} tokens and the base model\'s tokenizer holds {window}; use fewer words.'
                )

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], batch_size: int | None = None) -> Conditioning:
        """What the UNet is told of each prompt, in the text encoder's precision.

        Raises:
            ValueError: a prompt does not fit into the tokenizer's window.
        """
        for prompt in prompts:
            self.check_window(prompt)
        with self.on_device(*self.text_encoders):
            together = batches(len(prompts), batch_size or self.usual_texts)
            return Conditioning.cat([self.encode(prompts[rows]) for rows in together])

    @torch.no_grad()
    def encode_no_prompt(self) -> Conditioning:
        """What the UNet is told in the other branch of classifier-free guidance where the user gives no
        negative prompt; length 1."""
        with self.on_device(*self.text_encoders):
            return self.encode([""])

    def prompt_table(self, prompts: list[str], forget: torch.Tensor | None = None) -> PromptTable:
        """The prompts with what the UNet is told of them; `forget` (N,) bool, by default none.

        Raises:
            ValueError: a prompt does not fit into the tokenizer's window.
        """
        forget = torch.zeros(len(prompts), dtype=torch.bool, device=self.device) if forget is None else forget
        with self.on_device(*self.text_encoders):
            return PromptTable(prompts, self.encode_prompts(prompts), self.encode_no_prompt(), forget)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """Latents (B, C, h, w) as the UNet knows them, wherever they lie -> pixels (B, 3, H, W) in [-1,
        1], float32."""
        with self.on_device(self.vae), self._vae_ready():
            unscaled = self._unscale(latents.to(self.vae.device, self.vae.dtype))
            return torch.cat(
                [self.vae.decode(chunk).sample.float() for chunk in unscaled.split(batch_size)]
            ).clamp(-1, 1)

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> the mode of their latents (B, C, h, w) as the UNet knows them,
        float32."""
        with self.on_device(self.vae), self._vae_ready():
            return self._scale(
                self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist.mode().float()
            )

    def encode(self, prompts: list[str]) -> Conditioning:
        """What the UNet is told of prompts of which it is known that they fit, in one batch; with gradient
        if it is enabled."""
        return Conditioning(
            self.pipe.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)[0]
        )

    def read_texts(self, texts: list[str]) -> Conditioning:
        """What those encoders alone tell the network of texts; with gradient if it is enabled."""
        return self.encode(texts)

    @contextmanager
    def _vae_ready(self) -> Iterator[None]:
        yield

    def _unscale(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / self.vae.config.scaling_factor

    def _scale(self, latents: torch.Tensor) -> torch.Tensor:
        return latents * self.vae.config.scaling_factor


class XLBackbone(Backbone):
    """SDXL: two text encoders, a pooled text embedding, the image's sizes, and a VAE that may overflow in
    float16."""

    pipe: StableDiffusionXLPipeline
    pipeline = StableDiffusionXLPipeline

    @torch.no_grad()
    def encode_no_prompt(self) -> Conditioning:
        """Zeros, or the states of the empty prompt, as the pipeline's `force_zeros_for_empty_prompt` says;
        length 1."""
        with self.on_device(*self.text_encoders):
            _, states, _, pooled = self.pipe.encode_prompt(
                [""], device=self.device, do_classifier_free_guidance=True
            )
        return self._with_sizes(states, pooled)

    def encode(self, prompts: list[str]) -> Conditioning:
        states, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False
        )
        return self._with_sizes(states, pooled)

    def _with_sizes(self, states: torch.Tensor, pooled: torch.Tensor) -> Conditioning:
        """The sizes are those of an image of the pipeline's own size that was never cropped, the
        pipeline's defaults."""
        size, dim = self.image_size, self.pipe.text_encoder_2.config.projection_dim
        ids = self.pipe._get_add_time_ids(
            size, (0, 0), size, dtype=states.dtype, text_encoder_projection_dim=dim
        )
        return Conditioning(states, pooled, ids.to(states.device).expand(len(states), -1))

    @contextmanager
    def _vae_ready(self) -> Iterator[None]:
        """In float32 while it works if it would overflow in float16 (`force_upcast`); from float16 and
        back, no weight changes."""
        upcast = self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        if upcast:
            self.vae.to(torch.float32)
        try:
            yield
        finally:
            if upcast:
                self.vae.to(torch.float16)

    def _unscale(self, latents: torch.Tensor) -> torch.Tensor:
        factor, statistics = self.vae.config.scaling_factor, self._statistics(latents)
        if statistics is None:
            return latents / factor
        mean, std = statistics
        return latents * std / factor + mean

    def _scale(self, latents: torch.Tensor) -> torch.Tensor:
        factor, statistics = self.vae.config.scaling_factor, self._statistics(latents)
        if statistics is None:
            return latents * factor
        mean, std = statistics
        return (latents - mean) * factor / std

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(1, C, 1, 1) mean and standard deviation of the VAE's latents, if its config has both."""
        mean, std = (getattr(self.vae.config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return None
        return latents.new_tensor(mean).view(1, -1, 1, 1), latents.new_tensor(std).view(1, -1, 1, 1)


Backbone.kinds[Backbone.pipeline] = Backbone
