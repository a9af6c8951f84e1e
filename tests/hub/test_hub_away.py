"""A Hub that goes away while a run is under way and does not come back: the run is complete, and says how
to upload it later."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback import LoopbackHub
from loopback_http import FaultKind

import train_unlearn_lora as script
from hub.__main__ import main, parse_config
from hub.access import HubError
from hub.pull import pull
from training.config import RunConfig


@pytest.mark.parametrize("kind", [503, "reset"])
def test_an_hour_without_the_hub(
    kind: FaultKind,
    arguments: Callable[..., RunConfig],
    loopback_hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was there when the run began. The client waits between its attempts; here the clock is moved on
    instead."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    train = script.train

    def then_away(*given: object) -> object:
        results = train(*given)
        loopback_hub.fail(re.compile("."), times=1_000_000, status=kind)
        return results

    monkeypatch.setattr(script, "train", then_away)
    with pytest.raises(SystemExit) as caught:
        script.main(arguments(max_train_iterations=1, push_to_hub=True))
    said = capsys.readouterr().err
    assert (
        caught.value.code == 2
        and "Traceback" not in said
        and f"push {tmp_path / 'out'}" in said
        and len(waited) < 100
    )
    assert {"pytorch_lora_weights.safetensors", "results.json", "README.md"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    with pytest.raises(HubError, match="someone/out"):
        pull("someone/out", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()

    for fault in loopback_hub._traffic.faults:
        fault.times = 0
    again = parse_config(["push", str(tmp_path / "out"), "--hub_model_id", "someone/out"])
    main(again)  # the command that the run named, an hour later
    assert "pytorch_lora_weights.safetensors" in loopback_hub.files("someone/out")
