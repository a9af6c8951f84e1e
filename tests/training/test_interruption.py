from __future__ import annotations

import os
import signal

import pytest

from training.interruption import Interruption, leave


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
