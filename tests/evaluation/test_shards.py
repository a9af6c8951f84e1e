"""Images on disk: what is whole is not drawn again, what is not is named and drawn again, and nothing
else's images are taken for one's own."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.shards import Seen, Side, split

JOBS = [(0, 0), (1, 0), (0, 1)]


def pictures(seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in JOBS]


def never() -> list[Image.Image]:
    raise AssertionError("drawn again")


def same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return [image.tobytes() for image in one] == [image.tobytes() for image in other]


def test_a_png_keeps_every_pixel_and_is_drawn_once(tmp_path: Path) -> None:
    side = Side(tmp_path / "base", {"steps": 2})
    assert not side.is_whole(0, JOBS)
    assert same(side.images(0, JOBS, pictures), pictures())
    assert side.is_whole(0, JOBS)
    assert same(Side(tmp_path / "base", {"steps": 2}).images(0, JOBS, never), pictures())
    assert side.image((1, 0)).tobytes() == pictures()[1].tobytes()
    assert sorted(path.suffix for path in side.directory.iterdir()) == [
        ".json",
        ".json",
        ".png",
        ".png",
        ".png",
    ]


def test_a_jpeg_is_judged_as_it_is_kept(tmp_path: Path) -> None:
    side = Side(tmp_path / "base", {}, "jpeg")
    first = side.images(0, JOBS, pictures)
    assert not same(first, pictures()) and same(first, side.images(0, JOBS, never))


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: path.unlink()]
)
def test_a_damaged_image_is_named_and_its_shard_drawn_again(
    damage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    side = Side(tmp_path / "base", {})
    side.images(0, JOBS, pictures)
    damage(tmp_path / "base" / "00001-seed0.png")
    assert not side.is_whole(0, JOBS)
    with caplog.at_level(logging.WARNING):
        assert same(side.images(0, JOBS, pictures), pictures())
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'base' / '00001-seed0.png'} is missing or damaged; its shard of 3 images is drawn again."
    ]
    assert side.is_whole(0, JOBS)


def test_a_shard_counts_once_its_index_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill at any write leaves a shard that is drawn again, and no half file under a final name."""
    writes, replace = len(JOBS) + 1, os.replace
    for survived in range(writes):
        side, done = Side(tmp_path / str(survived), {}), []

        def killed(aside: Path, path: Path, done: list = done, survived: int = survived) -> None:
            if len(done) == survived:
                raise KeyboardInterrupt
            done.append(path)
            replace(aside, path)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(os, "replace", killed)
            side.images(0, JOBS, pictures)
        assert not side.is_whole(0, JOBS)
        assert same(side.images(0, JOBS, pictures), pictures()) and side.is_whole(0, JOBS)


def test_images_of_another_evaluation_are_refused_and_what_differs_is_said(tmp_path: Path) -> None:
    Side(tmp_path / "base", {"steps": 2, "guidance": 7.5})
    with pytest.raises(ValueError, match=r"guidance\b.*\b7\.5\b.*\b9\.0\b"):
        Side(tmp_path / "base", {"steps": 2, "guidance": 9.0})
    with pytest.raises(ValueError, match="image_format"):
        Side(tmp_path / "base", {"steps": 2, "guidance": 7.5}, "jpeg")


def test_what_was_seen_belongs_to_judge_and_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    side = Side(tmp_path / "base", {})
    side.images(0, JOBS, pictures)
    key, seen = (
        side.key(0, "judge"),
        Seen(
            [{"style": "Ünïcode"}] * 3,
            {"ssim": np.arange(3.0), "features": np.ones((3, 4), dtype=np.float32)},
        ),
    )
    assert side.read_seen(0, key) is None
    side.write_seen(0, key, seen)
    found = side.read_seen(0, key)
    assert found.verdicts == seen.verdicts and all(
        np.array_equal(found.values[name], seen.values[name]) for name in seen.values
    )
    assert side.key(0, "another judge") != key
    path = next((tmp_path / "base").glob("seen-*"))
    path.write_bytes(path.read_bytes()[:-5])
    assert side.read_seen(0, key) is None and "damaged" in caplog.text
    (tmp_path / "base" / "00000-seed0.png").unlink()
    side.images(0, JOBS, lambda: pictures(1))
    assert side.key(0, "judge") != key


def test_an_index_that_cannot_be_read_is_no_index(tmp_path: Path) -> None:
    side = Side(tmp_path / "base", {})
    side.images(0, JOBS, pictures)
    (tmp_path / "base" / "shard-00000.json").write_text("{")
    assert not side.is_whole(0, JOBS) and same(side.images(0, JOBS, pictures), pictures())
    assert len(json.loads((tmp_path / "base" / "shard-00000.json").read_text())) == 3


def test_split() -> None:
    assert split([(i, 0) for i in range(5)], 2) == [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0)]]
