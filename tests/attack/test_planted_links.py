"""Links that somebody has planted in a directory: no writer writes to what they lead to, and nothing outside
a directory is uploaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from attack import Tally
from writers import NEW_ONLY, WRITERS, Material, build, content_of

from common.files import LOCK_NAME
from common.lock import exclusive
from hub.__main__ import main, parse_config
from hub.files import refuse_links_out
from hub.push import ADAPTER_FILES, push_adapter
from hub.space.push import push_space


@pytest.fixture(scope="session")
def world(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return build(tiny_pipeline_dir, tmp_path_factory.mktemp("world"))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "mine"
    path.parent.mkdir()
    path.write_text("mine")
    return path


@pytest.mark.parametrize("name", sorted(set(WRITERS) - NEW_ONLY))
def test_no_writer_follows_a_link(
    name: str, world: Material, victim: Path, tmp_path: Path, tally: Tally
) -> None:
    """In the place of every file that it writes, and of the temporary files of older releases."""
    (tmp_path / "seen").mkdir()
    WRITERS[name](world, tmp_path / "seen", 1)
    planted = list(content_of(tmp_path / "seen"))
    for file in planted:
        for place in (file, str(Path(file).with_name(f".{Path(file).name}.tmp"))):
            path = tmp_path / "out" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(victim)
    try:
        WRITERS[name](world, tmp_path / "out", 1)
        ending = "replaced"
    except (OSError, ValueError):
        ending = "refused"
    assert planted and victim.read_text() == "mine" and not victim.is_symlink()
    assert [path.name for path in victim.parent.iterdir()] == ["mine"]
    tally("planted links", ending)


def test_no_lock_follows_a_link(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK_NAME).symlink_to(victim)
    with pytest.raises(OSError, match=LOCK_NAME), exclusive(tmp_path / "out"):
        pass
    assert victim.read_text() == "mine"


def push_network(directory: Path) -> None:
    main(parse_config(["push", str(directory), "--hub_model_id", "someone/critic"]))


PUSHES: dict[str, Callable[[Path], object]] = {
    "adapter": lambda directory: push_adapter(directory, "someone/adapter"),
    "space": lambda directory: push_space(directory, "someone/adapter"),
}


@pytest.mark.parametrize("push", PUSHES.values(), ids=PUSHES)
@pytest.mark.parametrize("file", ADAPTER_FILES)
def test_nothing_outside_the_directory_is_uploaded(
    file: str, push: Callable[[Path], object], world: Material, victim: Path, tmp_path: Path, tally: Tally
) -> None:
    WRITERS["adapter"](world, tmp_path / "out", 1)
    path = tmp_path / "out" / file
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    with pytest.raises(ValueError, match=rf"{path.name} is a link"):
        push(tmp_path / "out")
    tally("planted links", "refused")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_nothing_outside_a_networks_directory_is_uploaded(
    file: str, world: Material, tmp_path: Path, tally: Tally
) -> None:
    for name in ("out", "elsewhere"):
        WRITERS["critic"](world, tmp_path / name, 1)
    (tmp_path / "out" / file).unlink()
    (tmp_path / "out" / file).symlink_to(tmp_path / "elsewhere" / file)
    with pytest.raises(ValueError, match=rf"{file} is a link"):
        push_network(tmp_path / "out")
    tally("planted links", "refused")


def test_a_link_within_the_directory_is_no_link_out(world: Material, tmp_path: Path) -> None:
    WRITERS["adapter"](world, tmp_path, 1)
    (tmp_path / "card.md").write_text("mine")
    (tmp_path / "README.md").symlink_to("card.md")
    refuse_links_out(tmp_path, ADAPTER_FILES)
