"""One way to write a file: complete or not at all, wherever it lies, and nothing is left of a failure."""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sources import nodes

from common.files import (
    UNFINISHED,
    append_text,
    directory_aside,
    discard,
    disk_errors,
    is_empty,
    make_directory,
    put,
    sweep,
    write_bytes,
    write_json,
    write_text,
    write_together,
)

# --- who writes
# -----------------------------------------------------------------------------

FILES = "common/files.py"
ROUND = {
    ("common/checkpoints.py", "save_file"): "into a directory aside",
    ("common/checkpoints.py", "(aside / NUMBERS).write_text"): "into a directory aside",
    ("common/checkpoints.py", "(aside / MANIFEST).write_text"): "into a directory aside",
    ("common/lock.py", "os.open"): "a lock, which holds nothing",
    ("common/room.py", "tempfile.TemporaryFile"): "room, which has no name",
    ("hub/files.py", "os.replace"): "out of a directory aside",
    ("hub/fuse.py", "pipe.save_pretrained"): "into a directory aside",
    ("hub/space/page.py", "image.save"): "into a temporary directory of the system",
    ("hub/pull.py", "shutil.rmtree"): "within a directory aside",
}
"""Calls that write and do not go through `common.files`, with the reason."""
WRITERS = {"write_text", "write_bytes", "save_file", "serialize_file", "savefig", "touch", "tofile"}
WRITERS |= {"mkdtemp", "mkstemp", "NamedTemporaryFile", "TemporaryFile", "mkdir", "makedirs", "rmtree"}
WRITERS |= {"copytree", "copyfile", "copy2", "move", "rename", "renames", "symlink_to", "hardlink_to", "dump"}
IN_MEMORY = {"buffer", "picture"}
"""What pictures are saved to before `write_bytes` takes them."""


def is_in_memory(call: ast.Call) -> bool:
    to = call.args[0] if call.args else None
    to = to.target if isinstance(to, ast.NamedExpr) else to
    return isinstance(to, ast.Name) and to.id in IN_MEMORY


def writes(call: ast.Call) -> bool:
    """Whether a call may write a file or a directory, by what is called and with what."""
    called = ast.unparse(call.func)
    name = called.rpartition(".")[2]
    if name == "open":
        modes = [*call.args[:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        opened = {mode.value for mode in modes if isinstance(mode, ast.Constant)}
        return called == "os.open" or any(set("wax+") & set(str(mode)) for mode in opened)
    if name == "replace":
        return called == "os.replace"
    if name in ("save", "savefig"):
        return called.startswith(("image", "sheet", "figure", "picture")) and not is_in_memory(call)
    if name == "save_pretrained":
        return called.startswith(("pipe", "tokenizer", "unet", "vae", "text_encoder"))
    return name in WRITERS and (isinstance(call.func, ast.Attribute) or name == "save_file")


def test_no_other_module_writes_files() -> None:
    found = {
        (name, ast.unparse(node.func))
        for name, node in nodes()
        if isinstance(node, ast.Call) and writes(node) and name != FILES
    }
    assert found == set(ROUND)


GOING_ROUND = (
    "path.write_text(x)",
    "path.write_bytes(x)",
    "open(path, 'w')",
    "path.open('ab')",
    "open(path, mode='x')",
    "save_file(x, path)",
    "safetensors.torch.save_file(x, path)",
    "figure.savefig(path)",
    "image.save(path)",
    "pipe.save_pretrained(path)",
    "path.mkdir()",
    "os.makedirs(path)",
    "os.replace(a, b)",
    "path.rename(b)",
    "shutil.rmtree(path)",
    "shutil.copytree(a, b)",
    "json.dump(x, file)",
    "tempfile.mkdtemp()",
    "os.open(path, flags)",
)


@pytest.mark.parametrize("source", GOING_ROUND)
def test_the_search_finds_what_goes_round(source: str) -> None:
    (call,) = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    assert writes(call)


@pytest.mark.parametrize(
    "source", ["write_text(path, x)", "open(path, 'rb')", "image.save(buffer)", "open(path)"]
)
def test_the_search_passes_over_the_common_way(source: str) -> None:
    (call,) = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    assert not writes(call)


# --- links
# ----------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file elsewhere that nobody means to write to."""
    path = tmp_path / "elsewhere" / "mine.txt"
    path.parent.mkdir()
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine" and not path.is_symlink()


def test_a_link_in_the_place_of_a_file_is_replaced(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("README.md", ".README.md.tmp"):
        (tmp_path / "out" / name).symlink_to(victim)
    write_text(tmp_path / "out" / "README.md", "card")
    assert not (tmp_path / "out" / "README.md").is_symlink()
    assert (tmp_path / "out" / "README.md").read_text() == "card"


def test_nothing_is_added_to_what_a_link_leads_to(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(OSError, match="log"):
        append_text(tmp_path / "log", "more")


def test_a_link_in_the_place_of_a_directory_is_put_away_and_not_followed(
    victim: Path, tmp_path: Path
) -> None:
    link = tmp_path / "checkpoint-1"
    link.symlink_to(victim.parent)
    with directory_aside(tmp_path) as aside:
        (aside / "a").write_text("a")
        put(aside, link)
    assert not link.is_symlink() and [path.name for path in link.iterdir()] == ["a"]
    other = tmp_path / "checkpoint-2"
    other.symlink_to(victim.parent)
    discard(other)
    assert not os.path.lexists(other)


# --- what is left
# ----------------------------------------------------------------------------------


def test_what_a_killed_process_has_left_is_swept_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    (tmp_path / f"{UNFINISHED}file").write_text("half")
    (tmp_path / f"{UNFINISHED}directory").mkdir()
    (tmp_path / f"{UNFINISHED}directory" / "a").write_text("half")
    (tmp_path / "mine").write_text("mine")
    os.mkfifo(tmp_path / f"{UNFINISHED}pipe")  # which must not be waited for
    (tmp_path / f"{UNFINISHED}link").symlink_to(tmp_path / "mine")
    with directory_aside(tmp_path) as held:
        assert is_empty(held)
        make_directory(tmp_path)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"mine", held.name, f"{UNFINISHED}link"}
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_sweep_that_is_quicker_than_the_lock_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, times = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not times:
            times.append(1)
            sweep(tmp_path)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_text(tmp_path / "file", "new")
    assert times and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_there_are_no_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    (tmp_path / f"{UNFINISHED}file").write_text("half")
    monkeypatch.setattr(fcntl, "flock", refuse)
    write_text(tmp_path / "file", "new")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", f"{UNFINISHED}file"}


# --- modes and errors
# ----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_those_may_read_whom_the_umask_lets_read(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"")
        with directory_aside(tmp_path) as aside:
            assert stat.S_IMODE(aside.stat().st_mode) == 0o700
            (aside / "a").touch(0o600)
            put(aside, tmp_path / "directory")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"file": 0o666 & ~umask, "a": 0o666 & ~umask, "directory": 0o777 & ~umask}


@pytest.mark.parametrize(
    "error", [RuntimeError("I/O error: No space left on device (os error 28)"), OSError(28, "full")]
)
def test_a_full_disk_is_one_sentence_whoever_says_it(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, disk_errors(tmp_path / "file"), disk_errors(tmp_path):
        raise error
    assert caught.value.errno == 28 and str(tmp_path) in str(caught.value.strerror)
    assert "\n" not in str(caught.value)


def test_a_bug_stays_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="bug"), disk_errors(tmp_path):
        raise RuntimeError("a bug")


def test_files_that_need_each_other_are_all_new_or_all_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_together({tmp_path / name: b"old" for name in "ab"})
    sync, times = os.fsync, []

    def fail(descriptor: int) -> None:
        times.append(1)
        if len(times) == 2:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="b could not"):
        write_together({tmp_path / name: b"new" for name in "ab"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


WRITE: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: write_bytes(path, b"new"),
    "text": lambda path: write_text(path, "new"),
    "json": lambda path: write_json(path, "new"),
}


@pytest.mark.parametrize("write", WRITE.values(), ids=WRITE)
def test_a_directory_in_the_way_is_named_and_stays(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "file" / "mine").mkdir(parents=True)
    with pytest.raises(OSError, match="file could not be written"):
        write(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file" / "mine").is_dir()
    shutil.rmtree(tmp_path / "file")
    write(tmp_path / "file")
    assert b"new" in (tmp_path / "file").read_bytes()
