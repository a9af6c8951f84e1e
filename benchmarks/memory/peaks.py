"""The most that lies on a GPU in each phase of a run, computed without one.

The training code itself runs on meta tensors, which have sizes and no numbers, and what it makes is counted;
what lies there all the time comes from `computed`. Not counted are CUDA's context, workspaces of its
libraries and gaps that PyTorch's allocator leaves.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torchvision.transforms import CenterCrop, Compose, Resize

from benchmarks.memory.computed import DENOISER, WAITING, Weights, components
from benchmarks.memory.models import Model
from critic.pathwise import action_gradients
from pipelines.backbone import Backbone, usual_batch_size
from pipelines.memory import DTYPES
from policy.kernel import ReverseKernel
from policy.lora import add_lora
from policy.policy import Policy
from policy.trajectory import Experience
from policy.update import Objective
from reward.predictor import RewardPredictor
from reward.teacher import Teacher
from training.config import RunConfig

T = TypeVar("T")
META = torch.device("meta")


class Shape(NamedTuple):
    """What a meta tensor has beside its place."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Shape:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def make(self) -> torch.Tensor:
        return torch.empty_strided(self.size, self.strides, dtype=self.dtype, device=META)


class Repeated(TorchDispatchMode):
    """Works out once what an operation makes of meta tensors of these shapes: PyTorch takes milliseconds for
    it, and the blocks of a network are alike."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Any, Any] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._is_told_by_shapes(func, (args, kwargs)):
            return func(*args, **kwargs)
        key = func, _described(args), _described(kwargs)
        if key not in self._made:
            made = func(*args, **kwargs)
            self._made[key] = tree_map_only(torch.Tensor, Shape.of, made)
            return made
        return tree_map_only(Shape, Shape.make, self._made[key], is_leaf=lambda x: isinstance(x, Shape))

    def _is_told_by_shapes(self, func: Any, given: Any) -> bool:
        """Whether all tensors are on the meta device, and what is made is neither one of them nor a view."""
        schema = func._schema
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
        return (
            bool(tensors)
            and all(tensor.device == META for tensor in tensors)
            and "device" not in given[1]
            and all(value.alias_info is None for value in (*schema.arguments, *schema.returns))
        )


def _described(tree: Any) -> Any:
    """Tensors by their shapes, all else by value and type."""
    if isinstance(tree, torch.Tensor):
        return Shape.of(tree)
    if isinstance(tree, (list, tuple)):
        return tuple(map(_described, tree))
    if isinstance(tree, dict):
        return tuple((name, _described(value)) for name, value in sorted(tree.items()))
    return type(tree), tree


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


def activations(model: Model, config: RunConfig) -> dict[str, int]:
    """Bytes that come and go in each phase of a run, beside what lies there all the time, for a base that is
    not quantised."""
    shape, steps = model.latent_shape, config.environment.num_inference_steps
    count = config.environment.train_batch_size or usual_batch_size(shape)
    found: dict[str, int] = {}
    with Repeated(), Allocations() as memory, gpu_attention():

        def phase(name: str, run: Callable[[], T]) -> T:
            start = memory.mark()
            made = run()
            found[name] = memory.peak - start
            return made

        backbone, policy = build_policy(model, config, count)
        with META:
            predictor = model.build_predictor().requires_grad_(False)
            rows, empty = torch.arange(count), torch.empty(count, 2)
            noisy = torch.empty(count, steps, *shape)
        look = Compose([Resize(224), CenterCrop(224)])
        teacher = Teacher(model.build_teacher("meta"), look, None, model.teacher)
        objective = Objective(policy, Accelerator(), config.update)

        phase("prompts", lambda: backbone.encode_prompts([""] * backbone.usual_texts))
        drawn = phase("rollout", lambda: policy.rollout(rows, torch.Generator()))
        experience = Experience(drawn, empty, rows, torch.empty_like(drawn.means))
        phase("update", lambda: objective.forget(experience, 0, 1.0))
        phase("update, retain states", lambda: objective.retain(drawn, torch.arange(count), 0, 1.0))
        phase("value gradients", lambda: action_gradients(drawn, values(predictor, policy, count)))
        phase("scores", lambda: predictor.score_trajectory(noisy, torch.zeros(steps, device=META)))
        phase("rewards", lambda: teacher.encode_images(backbone.decode(drawn.latents[:, -1])))
    return found


def build_policy(model: Model, config: RunConfig, count: int) -> tuple[Backbone, Policy]:
    """The base and its policy on meta tensors, with an adapter whose gradients are there, for `count` prompts
    at a time."""
    backbone = Backbone.of(model.build_pipeline(DTYPES[config.memory.precision], "meta"))
    for module in backbone.modules:
        module.requires_grad_(False)
    adapter = config.adapter
    parameters = add_lora(backbone.denoiser, adapter.rank, adapter.alpha, adapter.targets(backbone))
    if config.memory.gradient_checkpointing:
        backbone.denoiser.enable_gradient_checkpointing()
    backbone.decode_one_by_one()
    if config.memory.offload_models:
        backbone.decode_sparingly()
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    policy = Policy(
        backbone,
        ReverseKernel.of(backbone, 2),
        backbone.prompt_table([""] * count),
        guidance_scale=config.environment.guidance_scale,
        batch_size=count,
    )
    return backbone, policy


def values(
    predictor: RewardPredictor, policy: Policy, count: int
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """A value of `count` states at an index, through the predictor."""
    return lambda x, state: predictor(x, policy.kernel.timesteps[state].expand(count)).sum(dim=1)


def peaks(model: Model, weights: Weights, config: RunConfig) -> dict[str, float]:
    """Bytes at the worst moment of each phase of a run."""
    memory, made = config.memory, activations(model, config)
    parts = components(model, weights, config)
    resident = sum(parts.values())
    together = replace(config, memory=replace(memory, offload_models=False))
    everything = components(model, weights, together)
    brought = {name: everything[name] - parts[name] for name in WAITING}
    loaded = sum(everything[name] for name in (DENOISER, *WAITING, "reward predictor", "prompts"))
    unpacked = 0
    if memory.load_in_4bit:  # one quantised layer at a time is unpacked to be multiplied with
        largest = max(rows * columns for rows, columns in weights.linear)
        unpacked = largest * DTYPES[memory.precision].itemsize
    update = max(made[name] for name in ("update", "update, retain states", "value gradients", "scores"))
    drawing = max(made["rollout"], made["rewards"])
    return {
        "there all the time": resident,
        "prompts": loaded + made["prompts"],
        "rollout": resident + unpacked + made["rollout"],
        "update": resident + unpacked + update,
        "rewards": resident + brought["VAE"] + brought["teacher"] + made["rewards"],
        "previews, evaluation": resident + sum(brought.values()) + unpacked + drawing,
    }
