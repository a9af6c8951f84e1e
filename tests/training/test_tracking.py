"""Metrics and pictures reach the trackers, and a tracker that fails ends nothing."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import tracking
from training.tracking import Tracking

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)


class Recorder(GeneralTracker):
    """A tracker without pictures, that keeps what it gets."""

    name, requires_logging_directory = "recorder", False

    def __init__(self) -> None:
        super().__init__()
        self.got: list[Any] = []

    @property
    def tracker(self) -> list[Any]:
        return self.got

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.got.append((values, step, kwargs))


class Album(Recorder):
    """One that takes pictures too."""

    name = "album"

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.got.append((values, step, kwargs))


class OneByOne(Album):
    """One that takes pictures one by one, as ClearML does."""

    name = "clearml"


class Torn(Album):
    """One that fails over pictures."""

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        raise TimeoutError("the tracker does not answer")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Tracking]]:
    """A run's trackers, started."""
    started = []

    def make(*trackers: str | GeneralTracker) -> Tracking:
        begun = Tracking(Accelerator(cpu=True, log_with=list(trackers), project_dir=str(tmp_path)))
        begun.start("run", {"seed": 0})
        started.append(begun)
        return begun

    yield make
    for begun in started:
        begun.end()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said of trackers."""
    caplog.set_level(logging.INFO, tracking.__name__)
    return lambda: [r.getMessage() for r in caplog.records if r.name == tracking.__name__]


def test_tensorboard_holds_the_picture_that_was_sent(start: Callable[..., Tracking], tmp_path: Path) -> None:
    trackers = start("tensorboard")
    trackers.log({"forgotten": 0.5}, 3)
    trackers.show("validation", PICTURE, 3, tmp_path)
    trackers.end()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("forgotten")] == [(3, 0.5)]
    (event,) = events.Images("validation")
    assert event.step == 3
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), PICTURE)


def test_every_tracker_that_takes_pictures_gets_them_in_the_form_it_takes(
    start: Callable[..., Tracking], tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    several, one = Album(), OneByOne()
    start(several, one, "tensorboard").show("validation", PICTURE, 3, tmp_path)
    for tracker, expected in ((several, PICTURE[None]), (one, PICTURE)):
        ((values, step, others),) = tracker.got
        assert step == 3 and values.keys() == {"validation"} and not others
        np.testing.assert_array_equal(values["validation"], expected)
    assert said() == []


def test_a_tracker_without_pictures_is_named_once_with_the_folder_they_are_in(
    start: Callable[..., Tracking], tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    recorder = Recorder()
    trackers = start(recorder)
    trackers.log({"forgotten": 0.5}, 0)
    for step in range(3):
        trackers.show("validation", PICTURE, step, tmp_path)
    (sentence,) = said()
    assert "recorder" in sentence and str(tmp_path) in sentence
    assert recorder.got == [({"forgotten": 0.5}, 0, {})]


def test_after_a_picture_that_failed_nothing_more_is_sent(
    start: Callable[..., Tracking], tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    torn, album = Torn(), Album()
    trackers = start(torn, album)
    for step in range(2):
        trackers.show("validation", PICTURE, step, tmp_path)
        trackers.log({"forgotten": 0.5}, step)
    assert len(said()) == 1 and torn.got == album.got == []
