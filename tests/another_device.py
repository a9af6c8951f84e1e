"""A device that is not the CPU, for machines that have no other.

Its tensors keep their numbers in main memory and say that they lie elsewhere. Whatever mixes devices is an
error, as it is on a GPU, and whatever makes the CPU wait for the device is counted.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

aten = torch.ops.aten
NAME = "elsewhere"
TRANSFERS = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}
LOOKUPS = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
"""A GPU looks up rows by indices that lie in main memory, too."""
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
}

needs_another_device = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no devices written in Python",
)
waits: Counter[str] = Counter()
"""How often the CPU has waited for the device, by what for."""


class Elsewhere(torch.Tensor):
    """A tensor of that device; `here` has its numbers."""

    here: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, here: torch.Tensor) -> Elsewhere:
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, here.size(), device=torch.device(NAME, 0), **layout)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def _replace(self, other: Elsewhere) -> None:
        torch.Tensor.data.__set__(self, other)
        self.here = other.here

    data = property(lambda self: torch.Tensor.data.__get__(self), _replace)

    def tolist(self) -> Any:
        waits["tolist"] += 1
        return self.here.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    __array__ = numpy


class Strict(TorchDispatchMode):
    """Within, tensors can be made on that device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation where its tensors lie, or are asked for."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    there = [x for x in leaves if isinstance(x, Elsewhere)]
    asked = next((x for x in leaves if isinstance(x, torch.device)), None)
    if not there and (asked is None or asked.type != NAME):
        return func(*args, **kwargs)
    if func is aten._fused_sdp_choice.default:
        return torch._C._SDPBackend.MATH.value
    here = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere)]
    indices = [i for i in args[1] if i is not None] if func in LOOKUPS else []
    goes_there = bool(there) if asked is None else asked.type == NAME
    if func in TRANSFERS:
        waits["transfer"] += (bool(here) and bool(there)) or goes_there != bool(there)
    else:
        may_differ = indices if isinstance(args[0], Elsewhere) else []
        if there and any(x.dim() > 0 and not any(x is i for i in may_differ) for x in here):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({func})"
            )
        waits[str(func)] += func in WAITING or any(i.dtype == torch.bool for i in indices)
    brought_args, brought_kwargs = pytree.tree_unflatten([_bring(x) for x in leaves], spec)
    made = func(*brought_args, **brought_kwargs)
    known = {id(x.here): x for x in there} | {id(x): x for x in here}

    def back(x: torch.Tensor) -> torch.Tensor:
        return known[id(x)] if id(x) in known else Elsewhere(x) if goes_there else x

    if isinstance(made, torch.Tensor):
        return back(made)
    return pytree.tree_map_only(torch.Tensor, back, made)


def _bring(x: Any) -> Any:
    if isinstance(x, Elsewhere):
        return x.here
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x


def run_on_another_device(
    command: Callable[[list[str]], object], arguments: list[str], seconds: float = 300
) -> None:
    """Run `command(arguments)` in a process of its own whose accelerator is that device; it must end well."""
    worker = multiprocessing.get_context("fork").Process(target=_work, args=(command, arguments))
    worker.start()
    worker.join(seconds)
    assert worker.exitcode == 0


def _work(command: Callable[[list[str]], object], arguments: list[str]) -> None:
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library(
        "aten", "IMPL"
    )  # for what PyTorch makes where no mode is asked, such as torch.tensor(..., device=...)

    def empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> torch.Tensor:
        with _disable_current_modes():
            return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))

    def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        _bring(target).copy_(_bring(source))
        return target

    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    safetensors.torch.storage_ptr = lambda tensor: _bring(tensor).data_ptr()
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState.default_device = property(lambda self: torch.device(NAME, 0))
    with Strict(), torch.autograd.set_multithreading_enabled(False):
        command(arguments)
