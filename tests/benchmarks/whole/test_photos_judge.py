"""How the judge of photographs learns: whitening, passes, and going on after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.worlds.photos.data import CLASSES, Photos
from benchmarks.worlds.photos.judge import pass_order, train_judge, whitening
from evaluation.judge import Judge


def test_whitened_responses_are_uncorrelated_and_equally_strong() -> None:
    coarse = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear") * 2 - 1
    filters = whitening(images, 16, 3)
    assert filters.shape == (16, 3, 3, 3) and torch.equal(filters[8:], -filters[:8])
    responses = torch.nn.functional.conv2d(images, filters[:6]).transpose(0, 1).flatten(1)
    assert torch.allclose(responses.cov(), torch.eye(6), atol=0.1)


def test_every_item_comes_once_in_a_pass_and_each_pass_has_its_own_order() -> None:
    order = torch.cat([pass_order(step, count=100, size=30, seed=5) for step in range(10)])
    passes = order.split(100)
    assert len(passes) == 3 and all(torch.equal(p.sort().values, torch.arange(100)) for p in passes)
    assert not torch.equal(passes[0], passes[1]) and not torch.equal(passes[1], passes[2])


def test_a_judge_learns_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Ten classes of ten colours; the second run is cut off after its first save and begun anew."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(500) % 10
    colours = torch.randint(256, (10, 3, 1, 1), generator=generator)
    noise = torch.randint(-20, 20, (500, 3, 16, 16), generator=generator)
    photos = Photos((colours[labels] + noise).clamp(0, 255).to(torch.uint8), labels)

    def judge() -> Judge:
        torch.manual_seed(0)
        return Judge({"object": CLASSES}, "", 16, (16, 16), blocks="pooled")

    def same(images: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        return images

    whole, resumed = judge(), judge()
    stem = whole.stem[0].weight.clone()
    train_judge(photos, whole, same, steps=40, state_dir=tmp_path / "whole", seed=3, save_every=20)
    assert (whole.predict(photos.images.float() / 127.5 - 1)["object"] == labels).float().mean() > 0.9
    assert not torch.equal(whole.stem[0].weight, stem) and not whole.stem[0].weight.requires_grad

    def interrupted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls.append(generator)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return images

    calls: list[torch.Generator] = []
    with pytest.raises(KeyboardInterrupt):
        train_judge(
            photos, resumed, interrupted, steps=40, state_dir=tmp_path / "resumed", seed=3, save_every=20
        )
    train_judge(
        photos, again := judge(), same, steps=40, state_dir=tmp_path / "resumed", seed=3, save_every=20
    )
    states = (
        load_file(tmp_path / "whole" / "judge.safetensors"),
        load_file(tmp_path / "resumed" / "judge.safetensors"),
    )
    assert states[0].keys() == states[1].keys() and all(
        torch.allclose(states[0][k].float(), states[1][k].float(), atol=1e-4) for k in states[0]
    )
    assert torch.allclose(
        whole(torch.zeros(1, 3, 16, 16))["object"], again(torch.zeros(1, 3, 16, 16))["object"], atol=1e-3
    )
