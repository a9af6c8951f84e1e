from __future__ import annotations

import pytest

from common.errors import Unsound, friendly_errors, friendly_interrupts


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ValueError("the concept is empty"), 2, "the concept is empty"),
        (OSError(28, "No space left on device", "/full/file"), 1, "No space left on device: /full/file"),
        (KeyboardInterrupt(), 130, ""),
        (Unsound("the critic is NaN"), 1, "the critic is NaN"),
        (RuntimeError("gloo: connection closed by peer"), 1, ""),
    ],
)
def test_errors_of_users_and_disks_are_one_sentence(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, friendly_errors():
        raise error
    assert caught.value.code == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and says in err and err.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(TypeError), friendly_errors():
        raise TypeError("a bug")


def test_an_interrupted_run_says_where_it_can_go_on_and_its_bugs_keep_their_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(SystemExit) as caught,
        friendly_interrupts("go on with --resume_from_checkpoint latest"),
    ):
        raise KeyboardInterrupt
    assert caught.value.code == 130
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.endswith(" go on with --resume_from_checkpoint latest\n")
    with pytest.raises(ValueError), friendly_interrupts():
        raise ValueError("a bug")
