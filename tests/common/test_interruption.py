from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import friendly_interrupts
from common.interruption import LAUNCHED, SIGNALS, Interruption, ended_by_signals, follow_launcher, leave


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """As in a terminal: a program in the background is started with some signals ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_ends(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert interruption.received is None
        os.kill(os.getpid(), number)
        assert interruption.received == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_the_exit_code_is_that_of_the_signal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        leave(signal.SIGTERM, "stopped")
    assert caught.value.code == 143 and capsys.readouterr().err == "SIGTERM: stopped\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_a_signal_ends_says_so_and_how_to_go_on(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, friendly_interrupts(lambda: "go on"):
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert caught.value.code == 128 + number and signal.getsignal(number) == before
    said = capsys.readouterr().err
    assert said.startswith("error: interrupted") and said.endswith(". go on\n") and said.count("\n") == 1


def test_under_nohup_a_terminal_that_is_closed_changes_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption, ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("launched", [*LAUNCHED, None])
def test_what_a_launcher_started_does_not_outlive_it(
    launched: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a shell started does."""
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    if launched:
        monkeypatch.setenv(launched, "1")
    follow_launcher.cache_clear()
    ready, ended, alive = (tmp_path / name for name in ("ready", "ended", "alive"))
    launcher = os.fork()
    if not launcher:
        if os.fork():
            time.sleep(60)
            os._exit(0)
        try:
            with friendly_interrupts():
                ready.touch()
                time.sleep(4)
                alive.touch()
        except SystemExit:
            ended.touch()
        os._exit(0)
    await_one_of(ready)
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    await_one_of(ended, alive)
    assert ended.exists() == bool(launched)


def await_one_of(*files: Path) -> None:
    for _ in range(3000):
        if any(file.exists() for file in files):
            return
        time.sleep(0.01)
    raise AssertionError(f"none of {files} in half a minute")
