"""SPM, one-dimensional adapters with latent anchoring (Lyu et al., 2024, arXiv 2312.16145), without the gate
that its inference adds:

    |ε_θ(x_t, c) - [ε(x_t, c_0) - η (ε(x_t, c) - ε(x_t, c_0))]|²  +  λ E_a |ε_θ(x_t, a) - ε(x_t, a)|²,

ε without the adapter, c the concept, c_0 what stands in its place. The anchors a are other concepts, each the
likelier the less its text states resemble the concept's (`anchor_weights`). x_t is drawn by the model that is
being trained, under c, up to a random step of DDIM.

Published: rank 1 on every linear layer and 1x1 convolution of the transformer blocks, η 1, λ 1,000, 4 anchors
a state, guidance 3 while denoising, 30 DDIM steps, AdamW 1e-4 for 3,000 updates of one state with a warm-up
over a sixth of them and 3 cosine cycles, c_0 the empty prompt. The gate scales the adapter by the likeness of
the user's prompt and the concept; a plain LoRA has none ("ungated"). The authors' code draws its anchors from
a normal distribution of text states, the paper among concepts.

Here: c are the forget prompts, c_0 their anchors, a the retain prompts. These are so near to c, on a state
that shows c, that with λ 1,000 nothing was erased in 50 updates: it is 10. Learning rate 3e-3, 100 updates of
8 states, 16 DDIM steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.baselines.leco import entries
from benchmarks.baselines.task import Prompts, Task, draw
from benchmarks.baselines.trainer import Training, Watch, train_lora

TITLE = "SPM, ungated (arXiv 2312.16145)"


@dataclass(frozen=True)
class Settings(Training):
    """What is published, but for what docs/baselines.md says.

    Attributes:
        erase_scale: η.
        anchoring: λ.
        anchors: drawn for each state.
        guidance_scale: while denoising.
        num_inference_steps: of DDIM.
        prompts: what c and c_0 are, as `benchmarks.baselines.leco.entries` has them.
    """

    learning_rate: float = 3e-3
    steps: int = 100
    batch_size: int = 8
    rank: int = 1
    lora_alpha: float = 1.0
    target_modules: tuple[str, ...] = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "proj_in",
        "proj_out",
    )
    lr_scheduler: str = "cosine_with_restarts"
    lr_warmup: float = 1 / 6
    lr_cycles: int = 3
    erase_scale: float = 1.0
    anchoring: float = 10.0
    anchors: int = 4
    guidance_scale: float = 3.0
    num_inference_steps: int = 16
    prompts: Prompts = Prompts.SPEC


def spm_target(neutral: torch.Tensor, positive: torch.Tensor, erase_scale: float) -> torch.Tensor:
    """What the prediction under the concept is trained towards; all (B, C, H, W)."""
    return neutral - erase_scale * (positive - neutral)


def anchor_weights(concept: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Probabilities (N,) of N candidates' text states (N, L, E) as anchors of the concept's (L, E): 1
    minus their cosine, normalised."""
    weights = (1 - F.cosine_similarity(concept.flatten()[None], candidates.flatten(1))).clamp(min=0)
    return weights / weights.sum()


def spm_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    anchored: torch.Tensor,
    base_anchored: torch.Tensor,
    anchoring: float,
) -> torch.Tensor:
    """Erasing loss of B states and `anchoring` times that of their anchors' (B * anchors, C, H, W)."""
    return F.mse_loss(prediction, target) + anchoring * F.mse_loss(anchored, base_anchored)


def erase(task: Task, settings: Settings, seed: int, watch: Watch | None = None) -> dict[str, Any]:
    """Leave the adapter on the task's network; returns facts for results.json."""
    file, kept = entries(task.spec, settings.prompts), task.spec.retain_prompts
    states = task.encode(kept).states
    weights = {
        target: anchor_weights(task.states(target), states).cpu() for target in task.targets(settings.prompts)
    }

    def loss(generator: torch.Generator) -> torch.Tensor:
        target, _, neutral, _ = zip(*draw(file, settings.batch_size, generator), strict=True)
        done = int(torch.randint(1, settings.num_inference_steps, (), generator=generator))
        x, t = task.denoise(
            target,
            done,
            generator,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
        )
        rows = [
            weights[text].multinomial(settings.anchors, replacement=True, generator=generator).tolist()
            for text in target
        ]
        anchors = [kept[row[k]] for k in range(settings.anchors) for row in rows]
        many = x.repeat(settings.anchors, 1, 1, 1)
        positive, without = task.predict_base(x, t, target, neutral)
        (base_anchored,) = task.predict_base(many, t, anchors)
        prediction, anchored = task.predict(torch.cat([x, many]), t, [*target, *anchors]).split(
            [len(x), len(many)]
        )
        return spm_loss(
            prediction,
            spm_target(without, positive, settings.erase_scale),
            anchored,
            base_anchored,
            settings.anchoring,
        )

    train_lora(task, settings, loss, seed, watch)
    return {"iterations": settings.steps, "images": 0}
