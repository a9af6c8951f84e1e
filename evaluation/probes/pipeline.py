"""How a probe works on a pipeline without changing it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline

from pipelines.backbone import Backbone


def twin(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline with its own copies of the network that denoises and of what else carries adapters, for
    whatever changes layers or weights; it shares the rest with the first."""
    second = copy.copy(pipe)
    for component in {Backbone.of(pipe).component, *pipe.get_list_adapters()}:
        setattr(second, component, copy.deepcopy(getattr(pipe, component)))
    return second


@contextmanager
def frozen(pipe: DiffusionPipeline) -> Iterator[None]:
    """Within: no parameter has a gradient, and dropout is off. After: every mode is as before."""
    modules = Backbone.of(pipe).modules
    parameters = [parameter for module in modules for parameter in module.parameters()]
    trainable, training = (
        [parameter.requires_grad for parameter in parameters],
        [module.training for module in modules],
    )
    for module in modules:
        module.requires_grad_(False)
        module.eval()
    try:
        yield
    finally:
        for parameter, was in zip(parameters, trainable, strict=True):
            parameter.requires_grad_(was)
        for module, mode in zip(modules, training, strict=True):
            module.train(mode)


def embedding_scale(weights: torch.Tensor) -> float:
    """Root mean square of a vocabulary's embeddings (V, E)."""
    return weights.detach().float().square().mean().sqrt().item()
