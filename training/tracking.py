"""The tracker: what it gets is in `diagnostics.jsonl` too, so a run goes on without it where it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from common.discretion import discreet

logger = logging.getLogger(__name__)

ONE_IMAGE = {"aim", "clearml"}
"""Trackers whose `log_images` takes one image (H, W, 3) by a name; the others take several."""


class Tracking:
    """Accelerate's trackers; the first that fails under way is said once, and after it nothing more is
    sent to any."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.lost = accelerator, False
        self.without_pictures: set[str] = set()

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """
        Raises:
            OSError: a tracker could not be started.
        """
        try:
            self.accelerator.init_trackers(name, config=dict(config))
        except Exception as error:  # each tracker has errors of its own
            raise OSError(
                f"The tracker could not be started ({_reason(error)}); correct that, or go without one by --report_to none"
            ) from error

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send an iteration's metrics."""
        self._attempt(lambda: self.accelerator.log(dict(metrics), step=step))

    def show(self, title: str, picture: np.ndarray, step: int, folder: Path) -> None:
        """Send a picture (H, W, 3) to all trackers that take pictures; each other one is named once.

        Args:
            folder: where the picture is in any case.
        """
        for tracker in self.accelerator.trackers:
            if log_images := getattr(tracker, "log_images", None):
                values = {title: picture if tracker.name in ONE_IMAGE else picture[None]}
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                self._attempt(partial(log_images, values, step, **layout))
            elif tracker.name not in self.without_pictures:
                self.without_pictures.add(tracker.name)
                logger.info(f"{tracker.name} takes no pictures; they are in {folder}")

    def end(self) -> None:
        """Let the trackers write what they still hold."""
        self._attempt(self.accelerator.end_training)

    def _attempt(self, send: Callable[[], object]) -> None:
        if self.lost:
            return
        try:
            send()
        except Exception as error:  # each tracker has errors of its own
            self.lost = True
            logger.warning(
                f"The tracker failed ({_reason(error)}); the run goes on without it, and all metrics are in diagnostics.jsonl."
            )


def _reason(error: Exception) -> str:
    return discreet((str(error).strip() or type(error).__name__).splitlines()[0])
