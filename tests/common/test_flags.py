"""Settings as dataclasses: what a command line and a file make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.flags import by_name, flag, make_parser, parse, public_values, to_yaml, values_of


@dataclass(frozen=True)
class SizeConfig:
    """Sizes.

    And more about them.
    """

    count: int = flag(3, at_least=1, at_most=9, help="How many.")
    share: float = flag(0.5, above=0, below=1, help="Which share.")
    limit: float | None = flag(None, at_least=0, help="A limit. Default: none.")


@dataclass(frozen=True)
class NameConfig:
    """Names."""

    output: Path = flag(help="Where.", published=None)
    kind: str = flag("small", choices=("small", "large"), help="Which kind.", may_change=True)
    names: tuple[str, ...] = flag(("a", "b"), help="Names.")
    seeds: tuple[int, ...] | None = flag(None, nargs="*", help="Seeds.")
    model: str | None = flag(None, help="A model.", published=by_name)
    quick: bool = flag(False, help="Whether 100 % quick.")
    warm: bool | None = flag(None, negatable=True, help="Whether warm.")
    token: str | None = flag(None, help="A token.", secret=True)


@dataclass(frozen=True)
class AllConfig:
    """Everything."""

    sizes: SizeConfig
    names: NameConfig


def read(*arguments: str) -> AllConfig:
    return parse(AllConfig, ["--output", "out", *arguments], "A command.")


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(AllConfig, arguments, "A command.")
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_values_are_converted_and_left_at_their_defaults() -> None:
    config = read("--count", "4", "--names", "x", "--seeds", "--quick", "--no-warm")
    assert config.sizes == SizeConfig(4, 0.5, None)
    assert config.names == NameConfig(Path("out"), "small", ("x",), (), None, True, False, None)
    assert read("--seeds", "1", "2", "--warm", "--limit", "0").names.seeds == (1, 2)
    assert read().names.warm is None and read().names.names == ("a", "b")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--count", "0"),
        ("--count", "10"),
        ("--count", "x"),
        ("--share", "0"),
        ("--share", "1"),
        ("--share", "inf"),
        ("--limit", "-0.1"),
        ("--kind", "medium"),
        ("--names",),
        ("--count=--",),
        ("--model=--",),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert arguments[0].partition("=")[0] in refused(["--output", "out", *arguments], capsys)


def test_a_required_flag_is_asked_for_and_a_file_may_give_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--output" in refused([], capsys)
    (tmp_path / "c.yaml").write_text("output: there\n")
    assert parse(AllConfig, ["--config", str(tmp_path / "c.yaml")], None).names.output == Path("there")


def test_help_has_groups_and_defaults() -> None:
    text = " ".join(make_parser(AllConfig, "A command.").format_help().split())
    assert "Sizes:" in text and "Names:" in text and "And more" not in text
    assert (
        "How many. At least 1 and at most 9. Default: 3." in text
        and "Names. Default: a b." in text
        and "100 % quick." in text
    )
    assert text.count("Default: none.") == 1


def test_a_file_gives_what_the_command_line_does_not(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("count: 7\nnames: [x, y]\nquick: true\nshare: 2e-1\nseeds: []\nlimit: null\n")
    for option in ("--config", "--conf"):
        config = read(option, str(path), "--count", "2")
        assert config.sizes == SizeConfig(2, 0.2, None)
        assert config.names.names == ("x", "y") and config.names.quick and config.names.seeds == ()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("counts: 7", "count"),
        ("count: 0", "count"),
        ("count: true", "count"),
        ("count: [1]", "count"),
        ("names: x", "names"),
        ("names: []", "names"),
        ("quick: 1", "quick"),
        ("quick: null", "quick"),
        ("count: null", "count"),
        ("output: null", "output"),
        ("kind: medium", "kind"),
        ("- count", "--config"),
        ("count: [", "--config"),
        ("", "--config"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(
    text: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    said = refused(["--output", "out", "--config", str(path)], capsys)
    assert named in said and str(path) in said
    assert "--config" in refused(["--output", "out", "--config", str(tmp_path / "none.yaml")], capsys)


def test_what_is_written_reads_back_and_holds_no_secret(tmp_path: Path) -> None:
    config = read("--token", "hf_secret", "--seeds", "1", "--names", "é: ü", "--limit", "0.1", "--warm")
    text = to_yaml(config)
    assert "hf_secret" not in text and "token" not in text
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    again = parse(AllConfig, ["--config", str(tmp_path / "c.yaml"), "--token", "hf_secret"], None)
    assert again == config


def test_what_is_published_has_names_for_models_and_no_local_paths(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = read("--model", str(tmp_path / "model"), "--token", "hf_secret")
    shown = public_values(config)
    assert shown["model"] == "model" and shown["names"] == ["a", "b"]
    assert shown.keys() == values_of(config).keys() - {"output", "token"}
    assert str(tmp_path) not in to_yaml(config, public=True)
