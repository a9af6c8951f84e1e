"""Command lines of every command with values of every kind: an error is a sentence and exit code 2, and
nothing is written."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from fuzzing import fuzz, tried
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

import critic.train
import evaluation.__main__
import evaluation.predictor.__main__
import hub.__main__
import reward.concept.__main__
import reward.train
import train_unlearn_lora as script
from common.errors import friendly_errors
from training.config import parse_config


def under_friendly_errors(module: Any) -> Callable[[list[str]], None]:
    def run(line: list[str]) -> None:
        with friendly_errors():
            module.main(module.parse_config(line))

    return run


NOWHERE = ["--pretrained_model_name_or_path", "nowhere/at/all", "--clip_model", "local-dir:nowhere"]
COMMANDS: dict[str, tuple[Callable[[list[str]], None], list[str]]] = {
    "train": (lambda line: script.main(parse_config(line)), ["--concept", "x", *NOWHERE]),
    "critic.train": (
        under_friendly_errors(critic.train),
        ["--concept", "x", "--output_dir", "out", *NOWHERE],
    ),
    "reward.train": (under_friendly_errors(reward.train), ["--output_dir", "out", *NOWHERE]),
    "reward.concept": (
        under_friendly_errors(reward.concept.__main__),
        ["--concept", "x", "--prompts", "nowhere.txt"],
    ),
    "evaluation.predictor": (under_friendly_errors(evaluation.predictor.__main__), [*NOWHERE]),
    "evaluation": (
        under_friendly_errors(evaluation.__main__),
        ["--adapter", "nowhere", "--output_dir", "out"],
    ),
    **{
        f"hub {name}": (under_friendly_errors(hub.__main__), [name, "nowhere"])
        for name in ("convert", "card", "push")
    },
    "hub pull": (under_friendly_errors(hub.__main__), ["pull", "no/where", "--output_dir", "out"]),
    "hub fuse": (under_friendly_errors(hub.__main__), ["fuse", "nowhere", "--output_dir", "out"]),
    "hub merge": (
        under_friendly_errors(hub.__main__),
        ["merge", "nowhere", "neither", "--output_dir", "out"],
    ),
    "hub space": (under_friendly_errors(hub.__main__), ["space", "--adapter", "nowhere"]),
}
"""How each is run, and arguments of which one names what is not there, so that no line can succeed."""


def flags_of(
    run: Callable[[list[str]], None], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Every flag that a command knows, as its parser has them when it is asked for help."""
    found: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, file=None: found.append(parser))
    with pytest.raises(SystemExit):
        run([*words[:1], "--help"] if words and not words[0].startswith("-") else ["--help"])
    monkeypatch.undo()
    return sorted(
        flag for action in found[0]._actions for flag in action.option_strings if flag not in ("-h", "--help")
    )


WORDS = [
    "0",
    "1",
    "-1",
    "3",
    "0.5",
    "1e309",
    "nan",
    "-inf",
    "1e-320",
    "99999999999999999999",
    "",
    " ",
    "-",
    "--",
    "x",
    "../..",
    "/proc/self/mem",
]
WORDS += [
    "nowhere",
    "a b",
    "é",
    "%s",
    "{x}",
    "$(touch planted)",
    "\n",
    "hf_secret",
    "fp16",
    "none",
    "all",
    "clip",
    "classifier",
    "latest",
    "--seed",
    "hf-hub:x/y",
]
words = st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10)


@pytest.fixture
def nobody_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield


@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines(
    command: str, nobody_outside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, valid = COMMANDS[command]
    with monkeypatch.context() as patched:
        flags = flags_of(run, valid, patched)
    monkeypatch.chdir(tmp_path / "here")

    @fuzz(30)
    @given(
        given_flags=st.lists(
            st.tuples(st.sampled_from(flags or ["--x"]), st.lists(words, max_size=2)), max_size=4
        )
    )
    def attempt(given_flags: list[tuple[str, list[str]]]) -> None:
        tried["command line"] += 1
        named = [word for flag, values in given_flags if flag not in valid for word in (flag, *values)]
        out, err = StringIO(), StringIO()
        with pytest.raises(SystemExit) as caught, redirect_stdout(out), redirect_stderr(err):
            run([*valid, *named])
        AcceleratorState._reset_state(reset_partial_state=True)
        said = err.getvalue()
        assert caught.value.code == 2 and said.count("error: ") >= 1 and "Traceback" not in said, said
        assert "hf_secret" not in said
        assert not list((tmp_path / "here").iterdir()) and list(tmp_path.iterdir()) == [tmp_path / "here"]

    attempt()
