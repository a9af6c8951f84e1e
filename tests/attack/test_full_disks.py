"""Disks that are full, broken, or full after so many bytes: every writer ends well or in one sentence; what
was there is as it was; nothing is left of what failed."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attack import Tally, sample
from safetensors.torch import load_file
from writers import NEW_ONLY, WRITERS, Material, build, check_whole, content_of, unfinished_in

import train_unlearn_lora as script
from common.checkpoints import load_checkpoint
from common.errors import friendly_errors
from training.collect import Batch
from training.config import RunConfig
from training.reporter import Reporter

Means = Callable[[Path, int], object]


@pytest.fixture(scope="session")
def world(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return build(tiny_pipeline_dir, tmp_path_factory.mktemp("world"))


@contextmanager
def full_after(disk: Path, size: int) -> Iterator[None]:
    """No file may become larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def almost_full(disk: Path, free: int) -> Iterator[None]:
    """A file system of its own with so many bytes left."""
    room = os.statvfs(disk)
    filler = disk / "lost+found"
    with open(filler, "wb") as file:
        file.write(b"0" * max(0, room.f_bavail * room.f_frsize - free))
    yield


@contextmanager
def failing_at(disk: Path, k: int) -> Iterator[None]:
    """The k-th thing that is asked of the disk fails."""
    count = 0
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (os, "fsync"),
            (os, "replace"),
            (os, "fchmod"),
            (tempfile, "mkstemp"),
            (tempfile, "mkdtemp"),
        ):
            real = getattr(module, name)

            def call(*given: object, _real: Callable[..., object] = real, **named: object) -> object:
                nonlocal count
                count += 1
                if count == k:
                    raise OSError(errno.EIO if k % 2 else errno.ENOSPC, "Input/output error")
                return _real(*given, **named)

            patch.setattr(module, name, call)
        yield


MEANS: dict[str, tuple[Means, tuple[int, ...]]] = {
    "full after": (full_after, (0, 1, 100, 2_000, 10_000, 40_000)),
    "failing at": (failing_at, (1, 2, 3, 4, 5, 6, 8, 11)),
    "almost full": (almost_full, (0, 4096, 8192, 16384, 32768, 65536, 131072)),
}
DISKS = [(name, means, size) for name in WRITERS for means, (_, sizes) in MEANS.items() for size in sizes]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    mounted = subprocess.run(line, capture_output=True).returncode == 0
    yield place
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(("name", "means", "size"), sample(DISKS))
def test_a_full_disk(
    name: str,
    means: str,
    size: int,
    world: Material,
    disk: Path,
    tally: Tally,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if means == "almost full" and not os.path.ismount(disk):
        pytest.skip("a small file system can be mounted by root alone")
    attack_disk(name, MEANS[means][0], size, world, disk, tally, capsys)


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_where_the_disk_fails_at_once(
    name: str, world: Material, tmp_path: Path, tally: Tally, capsys: pytest.CaptureFixture[str]
) -> None:
    attack_disk(name, full_after, 1, world, tmp_path, tally, capsys)


@pytest.mark.parametrize("iteration", sample(range(3)))
def test_a_disk_that_becomes_full_in_a_training_costs_no_adapter(
    iteration: int,
    arguments: Callable[..., RunConfig],
    disk: Path,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """But for reports, checkpoints and results."""
    if not os.path.ismount(disk):
        pytest.skip("a small file system can be mounted by root alone")
    report = Reporter.iteration

    def filled(reporter: Reporter, batch: Batch) -> None:
        if reporter.state.progress.iteration == iteration:
            with almost_full(disk, 0):
                pass
        report(reporter, batch)

    monkeypatch.setattr(Reporter, "iteration", filled)
    settings = {"max_train_iterations": 3, "checkpointing_steps": 1, "validation_steps": 1}
    try:
        script.main(arguments(output_dir=disk / "out", **settings))
    except SystemExit as ended:
        assert ended.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("error: ") <= 1
    assert load_file(disk / "out" / "pytorch_lora_weights.safetensors")
    for found in (disk / "out").glob("checkpoint-*"):
        assert load_checkpoint(disk / "out", found.name)
    assert not unfinished_in(disk)
    tally("full disks", "trained all the same")


def attack_disk(
    name: str,
    means: Means,
    size: int,
    world: Material,
    disk: Path,
    tally: Tally,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write = WRITERS[name]
    if name not in NEW_ONLY:
        write(world, disk, 1)
    before = content_of(disk)
    ending = "written"
    with means(disk, size):
        try:
            with friendly_errors():
                write(world, disk, 2)
        except SystemExit as ended:
            ending = "refused in a sentence"
            assert ended.code == 1
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == (ending != "written") and "Traceback" not in said
    check_whole(disk, before, name)
    assert not unfinished_in(disk)
    (disk / "lost+found").unlink(missing_ok=True)
    if name not in NEW_ONLY or not any(disk.iterdir()):
        write(world, disk, 3)  # and once there is room it goes on
    check_whole(disk, before, name)
    tally("full disks", ending)
