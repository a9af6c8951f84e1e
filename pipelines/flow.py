"""Flow-matching transformers: Stable Diffusion 3.x, FLUX.1 and Z-Image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedTokenizerBase

from pipelines.backbone import Backbone, attention_layers
from pipelines.conditioning import Conditioning
from pipelines.noise import ancestral_variances


class NoisyEuler(FlowMatchEulerDiscreteScheduler):
    """Euler's steps with new noise in each, as much as ancestral sampling has, times `eta`; what a state
    holds in all stays the same. diffusers' own draws from a generator that nobody can seed.

    Attributes:
        eta: 0 is Euler's own step.
        generator: what the noise is drawn from, on the CPU; or a list of one for each image.
    """

    eta = 1.0
    generator: torch.Generator | list[torch.Generator] | None = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
        **given: Any,
    ) -> tuple[torch.Tensor]:
        if self.step_index is None:
            self._init_step_index(timestep)
        now, after = self.sigmas[self.step_index].item(), self.sigmas[self.step_index + 1].item()
        x, output = sample.float(), model_output.float()
        x0, epsilon = x - now * output, x + (1 - now) * output
        fresh = ancestral_variances(self.sigmas)[self.step_index].item()
        variance = min(self.eta**2 * fresh, after**2)
        noise = randn_tensor(x.shape, self.generator, x.device)
        state = (1 - after) * x0 + (after**2 - variance) ** 0.5 * epsilon + variance**0.5 * noise
        self._step_index += 1
        return (state.to(model_output.dtype),)


def joint_attention_layers(name: str) -> tuple[str, ...]:
    """The further layers of an attention over image and text, which project the text."""
    return tuple(f"{name}.{layer}" for layer in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"))


class FlowBackbone(Backbone):
    """What flow-matching pipelines share: a transformer, and a scheduler of noise levels."""

    pipe: StableDiffusion3Pipeline | FluxPipeline | ZImagePipeline
    component = "transformer"
    is_flow = True
    kl_sensitivity = 1.09
    """KLs count twice what they count on a UNet."""
    attention = "attn"
    lora_targets = (*attention_layers(attention), *joint_attention_layers(attention))

    def deterministic_sampler(self) -> FlowMatchEulerDiscreteScheduler:
        """Euler's, with the pipeline's own shift."""
        kind = type(self.pipe.scheduler)
        return kind.from_config(self.pipe.scheduler.config, stochastic_sampling=False)

    def noisy_sampler(self, eta: float, generator: torch.Generator | None = None) -> NoisyEuler:
        """The pipeline's own noise levels with new noise in every step; `pipelines.generate.draw` gives it a
        generator for each image."""
        sampler = NoisyEuler.from_config(self.pipe.scheduler.config)
        sampler.eta, sampler.generator = eta, generator
        return sampler

    def stochastic_sampler(self, generator: torch.Generator) -> tuple[NoisyEuler, dict[str, float]]:
        return self.noisy_sampler(1.0, generator), {}

    @property
    def size_step(self) -> int:
        return self.pipe.vae_scale_factor * self._patch

    def timing(self, num_steps: int) -> dict[str, Any]:
        if not self.pipe.scheduler.config.use_dynamic_shifting:
            return {}
        return {"mu": self._shift()}

    def _shift(self) -> float:
        """How far noise levels are shifted at this size of the image (`calculate_shift` of the pipelines)."""
        config = self.pipe.scheduler.config
        _, height, width = self.latent_shape
        tokens = (height // self._patch) * (width // self._patch)
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        return config.base_shift + slope * (tokens - config.base_image_seq_len)

    @property
    def _patch(self) -> int:
        """Side of a token in numbers of the latent."""
        return 2

    def _unscale(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)

    def _scale(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - (self.vae.config.shift_factor or 0)) * self.vae.config.scaling_factor


class SizelessBackbone(FlowBackbone):
    """A transformer whose config names no size: it draws 1024 pixels unless it is asked for less. The size
    stays with the network, which other pipelines share."""

    @property
    def channels(self) -> int:
        """Of a latent."""
        return self.denoiser.config.in_channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = getattr(self.denoiser, "drawn_side", 1024 // self.pipe.vae_scale_factor)
        return self.channels, side, side

    def resize(self, size: int) -> None:
        self.denoiser.drawn_side = size


class SD3Backbone(FlowBackbone):
    """Stable Diffusion 3.x: two CLIPs, whose pooled embeddings are joined, and a T5, which may be
    left out."""

    pipe: StableDiffusion3Pipeline
    pipeline = StableDiffusion3Pipeline
    sequence_length = 256

    @property
    def readers(self) -> list[PreTrainedTokenizerBase]:
        """T5's, where there is one: it reads on where CLIP's windows end."""
        return self.tokenizers[2:] or self.tokenizers

    @property
    def _patch(self) -> int:
        return self.denoiser.config.patch_size

    def encode(self, prompts: list[str]) -> Conditioning:
        states, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return Conditioning(states, pooled)

    def read_texts(self, texts: list[str]) -> Conditioning:
        read = [
            self.pipe._get_clip_prompt_embeds(texts, device=self.device, clip_model_index=index)
            for index in range(2)
        ]
        return Conditioning(*(torch.cat(parts, dim=-1) for parts in zip(*read, strict=True)))

    def output(
        self, x: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> torch.Tensor:
        conditioning = conditioning.to(self.denoiser.dtype)
        return self.denoiser(
            hidden_states=x.to(self.denoiser.dtype),
            timestep=timestep.expand(len(x)),
            encoder_hidden_states=conditioning.states,
            pooled_projections=conditioning.pooled,
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]


class FluxBackbone(SizelessBackbone):
    """FLUX.1: latents packed into tokens, a pooled CLIP, T5's states, and guidance that the network is told
    (FLUX.1 [dev]) or has learnt (FLUX.1 [schnell]); it is never asked twice."""

    pipe: FluxPipeline
    pipeline = FluxPipeline
    sequence_length = 512

    @property
    def channels(self) -> int:
        """Of a latent; a token holds four of its places."""
        return self.denoiser.config.in_channels // 4

    @property
    def readers(self) -> list[PreTrainedTokenizerBase]:
        """T5's: CLIP gives one vector for the whole text."""
        return [self.pipe.tokenizer_2]

    def encode(self, prompts: list[str]) -> Conditioning:
        states, pooled, _ = self.pipe.encode_prompt(prompts, device=self.device)
        return Conditioning(states, pooled)

    def read_texts(self, texts: list[str]) -> Conditioning:
        pooled = self.pipe._get_clip_prompt_embeds(texts, device=self.device)
        return Conditioning(pooled.new_empty(len(pooled), 0, 1), pooled)

    def draw_latents(self, prompts: list[str], generator: torch.Generator, **settings: Any) -> torch.Tensor:
        packed = super().draw_latents(prompts, generator, **settings)
        return self.pipe._unpack_latents(packed, *self.image_size, self.pipe.vae_scale_factor)

    def branches(self, guidance_scale: float) -> int:
        return 1

    def output(
        self, x: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> torch.Tensor:
        count, channels, height, width = x.shape
        dtype, scale = self.denoiser.dtype, self.pipe.vae_scale_factor
        conditioning = conditioning.to(dtype)
        guidance = None
        if self.denoiser.config.guidance_embeds:
            guidance = torch.full((count,), guidance_scale, device=x.device, dtype=torch.float32)
        tokens = self.denoiser(
            hidden_states=self.pipe._pack_latents(x.to(dtype).contiguous(), count, channels, height, width),
            timestep=timestep.expand(count).to(dtype) / 1000,
            guidance=guidance,
            pooled_projections=conditioning.pooled,
            encoder_hidden_states=conditioning.states,
            txt_ids=torch.zeros(conditioning.states.shape[1], 3, device=x.device, dtype=dtype),
            img_ids=self.pipe._prepare_latent_image_ids(count, height // 2, width // 2, x.device, dtype),
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
        return self.pipe._unpack_latents(tokens, height * scale, width * scale, scale)

    def timing(self, num_steps: int) -> dict[str, Any]:
        return {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps), "mu": self._shift()}


class ZImageBackbone(SizelessBackbone):
    """Z-Image: a language model reads the prompt as what a user says to it, a prompt has as many states as
    tokens, and the network counts noise from the other end."""

    pipe: ZImagePipeline
    pipeline = ZImagePipeline
    attention = "attention"
    lora_targets = attention_layers(attention)
    sequence_length = 512

    def window(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Less by what the pipeline writes around a text."""
        around = tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        return min(tokenizer.model_max_length, self.sequence_length) - len(tokenizer(around).input_ids)

    def encode(self, prompts: list[str]) -> Conditioning:
        # The pipeline writes into the list.
        states, _ = self.pipe.encode_prompt(list(prompts), self.device, do_classifier_free_guidance=False)
        padded = [F.pad(own, (0, 0, 0, self.sequence_length - len(own))) for own in states]
        lengths = torch.tensor([len(own) for own in states], device=self.device)
        return Conditioning(torch.stack(padded), lengths=lengths)

    def branches(self, guidance_scale: float) -> int:
        return 2 if guidance_scale > 0 else 1

    def guidance_weight(self, guidance_scale: float) -> float:
        """Its scale counts from the prompt's own output."""
        return guidance_scale + 1

    def output(
        self, x: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> torch.Tensor:
        dtype = self.denoiser.dtype
        velocities = self.denoiser(
            list(x.to(dtype).unsqueeze(2).unbind()),
            (1000 - timestep.expand(len(x))) / 1000,
            conditioning.to(dtype).own_states,
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]
        return -torch.stack(velocities).squeeze(2)

    def timing(self, num_steps: int) -> dict[str, Any]:
        return {
            "sigmas": torch.linspace(1.0, 1 / num_steps, num_steps).tolist(),
            "mu": self._shift(),
        }
