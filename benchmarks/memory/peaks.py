"""The most that lies on a GPU in each phase of a run, computed without one.

The training code itself runs on meta tensors, which have sizes and no numbers, and what it makes is counted;
what lies there all the time comes from `computed`. Not counted are CUDA's context, workspaces of its
libraries and gaps that PyTorch's allocator leaves.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import CenterCrop, Compose, Resize

import train_unlearn_lora as script
from benchmarks.memory.computed import Weights, components
from benchmarks.memory.models import TOKENS, Model
from critic.pathwise import value_slopes
from pipelines.backbone import Backbone, usual_batch_size
from pipelines.conditioning import Conditioning, PromptTable
from pipelines.memory import DTYPES
from policy.kernel import ReverseKernel
from policy.lora import add_lora
from policy.rollout import rollout
from policy.trajectory import Experience, Trajectory
from policy.update import Objective
from reward.teacher import Teacher

META = torch.device("meta")


class Allocations(TorchDispatchMode):
    """Counts the storages that are made on a device within it, while anything refers to them.

    Attributes:
        held: bytes at this moment.
        peak: the most at any moment since the last `mark`.
    """

    def __init__(self, device: torch.device = META) -> None:
        super().__init__()
        self.device, self.held, self.peak = device, 0, 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def mark(self) -> int:
        """Forget the peak so far; what is held."""
        self.peak = self.held
        return self.held

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        new = {key: storage for key, storage in self._storages(made).items() if key not in self._seen}
        if new:
            given = self._storages((args, kwargs))
            for key, storage in new.items():
                if key not in given:  # else it is a view of what was there before
                    self._count(key, storage)
        return made

    def _storages(self, tree: Any) -> dict[int, torch.UntypedStorage]:
        tensors = [
            leaf
            for leaf in tree_leaves(tree)
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device.type
        ]
        return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}

    def _count(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()

        def gone(_: Any) -> None:
            del self._seen[key]
            self.held -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.held += size
        self.peak = max(self.peak, self.held)


@contextmanager
def gpu_attention() -> Iterator[None]:
    """Within, attention takes what it takes on a GPU: of meta tensors PyTorch would keep all its weights,
    which no GPU does."""

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        kept = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, kept)[0]

    ours, F.scaled_dot_product_attention = F.scaled_dot_product_attention, attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = ours


def activations(model: Model, args: argparse.Namespace) -> dict[str, int]:
    """Bytes that come and go in each phase, beside what lies there all the time, for a base that is not
    quantised.

    Args:
        args: of the training script.
    """
    latent_shape = (4, model.latent_size, model.latent_size)
    count, dtype = args.train_batch_size or usual_batch_size(latent_shape), DTYPES[args.mixed_precision]
    with Allocations() as memory, gpu_attention():
        pipe = model.build_pipeline(dtype, "meta")
        with META:
            predictor = model.build_predictor().requires_grad_(False)
            states = torch.empty(count, TOKENS, model.unet["cross_attention_dim"], dtype=dtype)
            pooled = (
                (torch.empty(count, 1280, dtype=dtype), torch.empty(count, 6, dtype=dtype))
                if len(model.texts) == 2
                else ()
            )
            rows, empty = torch.arange(count), torch.empty(count, 2)
            noisy = torch.empty(count, args.num_inference_steps, *latent_shape)
        teacher = Teacher(
            model.build_teacher("meta"), Compose([Resize(224), CenterCrop(224)]), None, model.teacher
        )
        backbone = Backbone.of(pipe)
        for module in backbone.modules:
            module.requires_grad_(False)
        adapter = add_lora(backbone.unet, args.rank, args.lora_alpha or args.rank, args.lora_target_modules)
        if args.gradient_checkpointing:
            backbone.unet.enable_gradient_checkpointing()
        backbone.decode_one_by_one()
        if args.offload_models:
            backbone.decode_sparingly()
        for parameter in adapter:
            parameter.grad = torch.zeros_like(parameter)
        kernel = ReverseKernel.from_scheduler(pipe.scheduler, 2, device=META)
        told = Conditioning(states, *pooled)
        table = PromptTable([""] * count, told, told[:1], rows > 0)
        objective = Objective(backbone.unet, kernel, table, Accelerator(), script.update_config(args, count))
        found: dict[str, int] = {}

        def phase(name: str, run: Callable[[], object]) -> None:
            start = memory.mark()
            run()
            found[name] = memory.peak - start

        def roll_out() -> Trajectory:
            return rollout(
                backbone.unet, kernel, table, rows, args.guidance_scale, torch.Generator(), batch_size=count
            )

        phase("rollout", roll_out)
        drawn = roll_out()
        experience = Experience(drawn, empty, rows, torch.empty_like(drawn.means))
        phase("update", lambda: objective.forget(experience, 0, 1.0, 1.0))
        phase("update, retain states", lambda: objective.retain(drawn, torch.arange(count), 0, 1.0))
        phase(
            "slopes",
            lambda: value_slopes(
                drawn, lambda x, state: predictor(x, kernel.timesteps[state].expand(count)).sum(dim=1)
            ),
        )
        phase(
            "scores",
            lambda: predictor.score_trajectory(noisy, torch.zeros(args.num_inference_steps, device=META)),
        )
        phase("rewards", lambda: teacher.encode_images(backbone.decode(drawn.latents[:, -1])))
    return found


def peaks(model: Model, weights: Weights, args: argparse.Namespace) -> dict[str, float]:
    """Bytes at the worst moment of each phase; `args` are those of the training script."""
    parts, made = components(model, weights, args), activations(model, args)
    resident = sum(parts.values())
    everything = components(model, weights, argparse.Namespace(**vars(args) | {"offload_models": False}))
    brought = {name: everything[name] - parts[name] for name in ("text encoders", "VAE", "teacher")}
    # One quantised layer at a time is unpacked to be multiplied with.
    unpacked = (
        max(rows * columns for rows, columns in weights.linear) * DTYPES[args.mixed_precision].itemsize
        if args.load_in_4bit
        else 0
    )
    return {
        "there all the time": resident,
        "rollout": resident + unpacked + made["rollout"],
        "update": resident
        + unpacked
        + max(made["update"], made["update, retain states"], made["slopes"], made["scores"]),
        "rewards": resident + brought["VAE"] + brought["teacher"] + made["rewards"],
        "previews, evaluation": resident
        + sum(brought.values())
        + unpacked
        + max(made["rollout"], made["rewards"]),
    }
