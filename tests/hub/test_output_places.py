"""Where directories are written: new ones, empty ones, links, mount points, the working directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from loopback import LoopbackHub

from hub.adapter import save_adapter
from hub.files import filled, require_empty
from hub.fuse import save_pipeline
from hub.pull import pull
from hub.push import push_adapter
from pipelines.base import load_pipeline

REPO = "someone/adapter"


def new(tmp: Path) -> Path:
    return tmp / "deep" / "new"


def empty(tmp: Path) -> Path:
    (tmp / "empty").mkdir()
    return tmp / "empty"


def root_of_a_file_system(tmp: Path) -> Path:
    (tmp / "mounted" / "lost+found").mkdir(parents=True)
    return tmp / "mounted"


def link(tmp: Path) -> Path:
    (tmp / "elsewhere").mkdir()
    (tmp / "link").symlink_to(tmp / "elsewhere")
    return tmp / "link"


def link_to_nothing(tmp: Path) -> Path:
    (tmp / "link").symlink_to(tmp / "absent")
    return tmp / "link"


def working_directory(tmp: Path) -> Path:
    (tmp / "here").mkdir()
    os.chdir(tmp / "here")
    return Path()


PLACES = [new, empty, root_of_a_file_system, link, link_to_nothing, working_directory]


@pytest.fixture
def keep_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("keep_working_directory")
@pytest.mark.parametrize("place", PLACES)
def test_a_pipeline_fills_the_directory(
    place: Callable[[Path], Path], tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    directory = place(tmp_path)
    before = directory.stat().st_ino if directory.exists() else None
    linked = directory.is_symlink()
    require_empty(directory)
    save_pipeline(load_pipeline(tiny_pipeline_dir), directory)
    assert before in (None, directory.stat().st_ino), "a mount point cannot be replaced"
    assert directory.is_symlink() == linked
    StableDiffusionPipeline.from_pretrained(directory, local_files_only=True)
    assert not [name for name in os.listdir(directory) if name.startswith(".")]


@pytest.mark.usefixtures("keep_working_directory")
@pytest.mark.parametrize("place", PLACES)
def test_a_pull_fills_the_directory(
    place: Callable[[Path], Path], trained: UNet2DConditionModel, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "adapter", trained)
    push_adapter(tmp_path / "adapter", REPO)
    directory = place(tmp_path)
    names = pull(REPO, directory)
    assert set(os.listdir(directory)) - {"lost+found"} == set(names)


def test_it_is_complete_last_and_an_error_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    (tmp_path / "there").mkdir()
    monkeypatch.setattr("hub.files.os.replace", lambda source, target: moved.append(Path(target).name))
    with filled(tmp_path / "there", "b") as aside:
        for name in "abc":
            (aside / name).write_text(name)
    assert moved == ["a", "c", "b"]
    (tmp_path / "given").mkdir()
    for directory in (tmp_path / "new", tmp_path / "given"):
        with pytest.raises(OSError, match="full"), filled(directory, "b") as aside:
            (aside / "a").write_text("half")
            raise OSError("the disk is full")
    assert not (tmp_path / "new").exists() and not os.listdir(tmp_path / "given")
    (tmp_path / "given" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty directory"):
        require_empty(tmp_path / "given")
