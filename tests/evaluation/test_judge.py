"""The judge's two networks, and what a directory must hold to be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evaluation.judge import CONFIG_NAME, Judge

DOMAINS = {"style": ["ink", "oil", "neon"], "object": ["cat", "car"]}


def make(blocks: str) -> Judge:
    torch.manual_seed(0)
    return Judge(DOMAINS, "{object}, {style}", 16, (8, 12), blocks=blocks).eval()


@pytest.mark.parametrize("blocks", ["residual", "pooled"])
def test_a_judge_comes_back_as_it_was(blocks: str, tmp_path: Path) -> None:
    judge, pixels = make(blocks), torch.rand(3, 3, 16, 16) * 2 - 1
    judge.save_pretrained(tmp_path)
    again = Judge.from_pretrained(tmp_path)
    expected, found = judge(pixels), again(pixels)
    assert (
        found["style"].shape == (3, 3)
        and found["object"].shape == (3, 2)
        and judge.features(pixels).shape == (3, 12)
    )
    assert (
        all(torch.equal(found[domain], expected[domain]) for domain in DOMAINS)
        and again.identity() == judge.identity()
    )


def test_a_judge_may_see_several_classes_or_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Judge(DOMAINS, "{object}, {style}", 16, (8, 12), several=["object"]).save_pretrained(tmp_path)
    judge, pixels = Judge.from_pretrained(tmp_path), torch.rand(3, 3, 16, 16) * 2 - 1
    for head in judge.heads.values():
        head.weight.zero_()
    for biases, seen in [
        ((1.0, 2.0), [True, True]),
        ((-1.0, 2.0), [False, True]),
        ((-2.0, -1.0), [False] * 2),
    ]:
        judge.heads["object"].bias.copy_(torch.tensor(biases))
        judge.heads["style"].bias.copy_(torch.tensor([-3.0, -1.0, -2.0]))
        shown = judge.shown(pixels, batch_size=2)
        assert (
            shown["object"].tolist() == [seen] * 3 and shown["style"].tolist() == [[False, True, False]] * 3
        )
        assert judge.predict(pixels)["object"].tolist() == [1] * 3


def test_pooled_blocks_begin_as_the_identity() -> None:
    judge = make("pooled")
    first, second = (judge.stages[0].body[i] for i in (0, 4))
    x = torch.rand(1, 8, 6, 6)
    assert torch.allclose(second(x), x) and first.weight[:, :, 1, 1].equal(torch.eye(8, 24))


def test_a_mirrored_judge_sees_an_image_and_its_mirror_image_alike(tmp_path: Path) -> None:
    plain, pixels = make("pooled"), torch.rand(3, 3, 16, 16) * 2 - 1
    judge = Judge(DOMAINS, plain.prompt, 16, (8, 12), blocks="pooled", mirrored=True)
    judge.load_state_dict(plain.state_dict())
    judge.save_pretrained(tmp_path)
    judge = Judge.from_pretrained(tmp_path)
    both = (plain(pixels)["style"] + plain(pixels.flip(-1))["style"]) / 2
    assert torch.allclose(judge(pixels)["style"], both) and torch.allclose(
        judge(pixels.flip(-1))["style"], both
    )
    assert not torch.allclose(plain(pixels)["style"], both) and judge.identity() != plain.identity()
    assert torch.equal(judge.train().features(pixels), plain.train().features(pixels))


def test_a_network_that_is_not_known_is_named(tmp_path: Path) -> None:
    make("pooled").save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config | {"blocks": "dense"}))
    with pytest.raises(ValueError, match="'dense'"):
        Judge.from_pretrained(tmp_path)
