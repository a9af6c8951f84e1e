"""Every number that any command takes has a range, which ends where it says, on the command line and in a
file of settings."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import pytest
from attack import Tally
from commands import ROOMS, ROOT

from benchmarks.baselines import METHODS
from benchmarks.baselines.command import RANGES, changed
from common.flags import LIMIT, METADATA, Range, Setting, settings_of

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ROOMS
    if room != "tests"
    for path in (ROOT / room).rglob("*.py")
    if " = flag(" in path.read_text(encoding="utf-8")
)
"""Where classes of settings stand."""


def numbers_of(module: str) -> Iterator[Setting]:
    """The settings of a module's classes that are numbers."""
    try:
        loaded = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        assert str(error.name).split(".")[0] not in ROOMS, error
        pytest.skip(f"{module} needs {error.name}")
    for config in loaded.values():
        if (
            isinstance(config, type)
            and is_dataclass(config)
            and config.__module__ == module
            and any(METADATA in field.metadata for field in fields(config))
        ):
            yield from (setting for setting in settings_of(config) if setting.kind in (int, float))


def ends_of(bounds: Range, kind: type) -> tuple[list[float], list[float]]:
    """Numbers just inside and just outside."""
    inside: list[float] = []
    outside: list[float] = (
        [math.inf, -math.inf, math.nan, 1e300, -1e300] if kind is float else [10**20, -(10**20)]
    )
    for bound, beyond, belongs in (
        (bounds.at_least, -math.inf, True),
        (bounds.above, -math.inf, False),
        (bounds.at_most, math.inf, True),
        (bounds.below, math.inf, False),
        (LIMIT if bounds.most == LIMIT else None, math.inf, True),
    ):
        if bound is not None:
            step = 1 if beyond > 0 else -1
            out = bound + step if kind is int else math.nextafter(bound, beyond)
            within = bound - step if kind is int else math.nextafter(bound, -beyond)
            inside.append(bound if belongs else within)
            outside.append(out if belongs else bound)
    return inside, outside


def accepts(setting: Setting, value: float) -> bool:
    """Whether the command line takes it; a file takes the same."""
    answers = []
    given = [value] if setting.several else value
    for read in (lambda: setting.convert(repr(value)), lambda: setting.read(given)):
        try:
            read()
            answers.append(True)
        except argparse.ArgumentTypeError as error:
            assert "must be " in str(error)
            answers.append(False)
    assert len(set(answers)) == 1
    return answers[0]


@pytest.mark.parametrize("module", MODULES)
def test_every_number_has_a_range_that_ends_where_it_says(module: str, tally: Tally) -> None:
    for setting in numbers_of(module):
        bounds = setting.flag.range
        assert bounds.is_bounded, f"{module} {setting.name} does not say where it begins"
        assert str(bounds).casefold() in setting._help(setting.field.default).casefold()
        inside, outside = ends_of(bounds, setting.kind)
        assert all(accepts(setting, value) for value in inside), (setting.name, inside)
        assert not any(accepts(setting, value) for value in outside), (setting.name, outside)
        for ending, values in (("accepted", inside), ("refused", outside)):
            for _ in values:
                tally("ends of ranges", ending)


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_a_baseline_have_ranges(method: str, tally: Tally) -> None:
    settings = METHODS[method].settings()
    for field in fields(settings):
        value = getattr(settings, field.name)
        if type(value) not in (int, float):
            continue
        assert value in RANGES[field.name]
        inside, outside = ends_of(RANGES[field.name], type(value))
        for number in inside:
            assert getattr(changed(settings, [f"{field.name}={number!r}"]), field.name) == number
            tally("ends of ranges", "accepted")
        for number in outside:
            with pytest.raises(ValueError, match=field.name):
                changed(settings, [f"{field.name}={number!r}"])
            tally("ends of ranges", "refused")
