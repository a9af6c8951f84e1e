"""How a run ends early: what it calls complete is complete, and no advice names what is not there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import evaluation.__main__ as evaluation
import reward.train as reward
import train_unlearn_lora as script
from common.files import LOCK_NAME, disk_errors
from common.lock import exclusive
from evaluation.judge import Judge
from training.config import RunConfig
from training.run_state import RunState

ADAPTER = "pytorch_lora_weights.safetensors"
RESUME = "--resume_from_checkpoint latest"
Arguments = Callable[..., RunConfig]


def end(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and error of a run that does not end well."""
    with pytest.raises(SystemExit) as caught:
        script.main(config)
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("error: ") == 1
    return caught.value.code, said[said.index("error: ") :]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_final_evaluation(
    number: signal.Signals,
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored
    monkeypatch.setattr(script, "evaluate_run", interrupted)
    code, said = end(arguments(max_train_iterations=1), capsys)
    assert code == 128 + number and f"--adapter {tmp_path / 'out'}" in said and RESUME not in said
    assert load_file(tmp_path / "out" / ADAPTER)


@pytest.mark.parametrize("every", [0, 1])
def test_an_adapter_that_cannot_be_written(
    every: int,
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The advice names the checkpoint, if there is one; going on from it writes the adapter."""

    def refuse(*_: object) -> None:
        with disk_errors(tmp_path / "out" / ADAPTER):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(script, "save", refuse)
        code, said = end(arguments(max_train_iterations=1, checkpointing_steps=every), capsys)
    assert code == 1 and ADAPTER in said
    assert (RESUME in said) == ("checkpoint-1" in said) == bool(every)
    if every:
        resumed = arguments(max_train_iterations=1, checkpointing_steps=1, resume_from_checkpoint="latest")
        script.main(resumed)
        assert load_file(tmp_path / "out" / ADAPTER)


def test_a_run_goes_on_without_the_reports_and_checkpoints_that_cannot_be_written(
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunState, "save", refuse)
    monkeypatch.setattr("training.diagnostics.append_text", refuse)
    monkeypatch.setattr("training.reporter.log_validation", refuse)
    script.main(arguments(max_train_iterations=1, checkpointing_steps=1, validation_steps=1))
    assert load_file(tmp_path / "out" / ADAPTER) and caplog.text.count("No space left") == 4


@pytest.mark.parametrize("command", [evaluation, reward])
def test_a_command_in_a_directory_that_another_writes_to_is_refused(
    command: Any, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    line = ["--output_dir", str(tmp_path / "out"), "--pretrained_model_name_or_path", str(tiny_pipeline_dir)]
    if command is evaluation:
        judge = Judge({"style": ["Van Gogh", "Mosaic"]}, "{style}", 16, widths=(4, 8))
        judge.save_pretrained(tmp_path / "judge")
        line += ["--judge_name_or_path", str(tmp_path / "judge"), "--concept", "Van Gogh"]
    with exclusive(tmp_path / "out"), pytest.raises(ValueError, match="Another run"):
        command.main(command.parse_config(line))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_NAME]
