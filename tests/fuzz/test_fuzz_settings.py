"""Files of settings, whoever wrote them: what `--config` reads is a run's settings, or an error of one
sentence and exit code 2."""

from __future__ import annotations

import json
from contextlib import redirect_stderr
from dataclasses import fields
from io import StringIO
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
from fuzzing import DEEP, anything, changed, damaged, fuzz, put, refused_or_read, tried
from hypothesis import given
from hypothesis import strategies as st

from common.flags import settings_of, to_yaml, values_of
from training.checks import check
from training.config import RunConfig, parse_config

VALID = {
    "concept": ["Van Gogh style"],
    "output_dir": "out",
    "rank": 4,
    "learning_rate": 1e-3,
    "gamma": None,
    "lora_target_modules": ["attn2.to_k"],
    "evaluation_seeds": [],
    "mixed_precision": "bf16",
    "output_kohya_format": True,
    "hub_model_id": None,
}
NAMES = sorted(setting.name for setting in settings_of(RunConfig))
settings = st.builds(lambda name, value: VALID | {name: value}, st.sampled_from(NAMES), anything(4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read_settings(path: Path) -> RunConfig | None:
    """What is read; None where it is refused as a command line is."""
    tried["settings"] += 1
    said = StringIO()
    try:
        with redirect_stderr(said):
            return parse_config(["--config", str(path)])
    except SystemExit as error:
        text = said.getvalue()
        assert error.code == 2 and text.count("error: ") == 1 and len(text) < 20_000
        return None


def may_be_none(group: type, name: str) -> bool:
    return NoneType in get_args(get_type_hints(group)[name])


def use_settings(folder: Path, content: bytes) -> None:
    """What was read is of the kinds that it is to be of, can be checked, and comes back from the file that
    a run would write."""
    config = read_settings(put(folder / "config.yaml", content))
    if config is None:
        return
    for group in (getattr(config, f.name) for f in fields(config)):
        for name, value in vars(group).items():
            assert value is not None or may_be_none(type(group), name), name
    refused_or_read("settings", check, config)
    put(folder / "again.yaml", to_yaml(config).encode(errors="surrogatepass"))
    again = read_settings(folder / "again.yaml")
    assert again is None or values_of(again) | {"hub_token": config.hub.hub_token} == values_of(config)


@fuzz()
@given(content=(settings | changed(VALID) | anything()).map(lambda value: json.dumps(value).encode()))
def test_settings_of_any_kind(folder: Path, content: bytes) -> None:
    use_settings(folder, content)


@fuzz()
@given(content=damaged(json.dumps(VALID, indent=1).encode()))
def test_damaged_files_of_settings(folder: Path, content: bytes) -> None:
    use_settings(folder, content)


@pytest.mark.parametrize(
    "content", [DEEP, b'{"a":' * 50_000, b"a: &a [*a]", b"\xff\xfe", b"rank: !!python/name:os.system", b""]
)
def test_files_of_settings_that_break_parsers(tmp_path: Path, content: bytes) -> None:
    assert read_settings(put(tmp_path / "config.yaml", content)) is None


def test_what_is_not_damaged_is_read(tmp_path: Path) -> None:
    config = read_settings(put(tmp_path / "config.yaml", json.dumps(VALID).encode()))
    assert config is not None
    found: dict[str, Any] = values_of(config)
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in VALID.items()}
    assert found.items() >= (expected | {"output_dir": Path("out")}).items()
