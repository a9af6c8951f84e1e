"""How many attacks a suite tries."""

from __future__ import annotations

import attack
import pytest


@pytest.mark.parametrize(("full", "count"), [(False, 3), (True, 300)])
def test_the_suite_tries_a_hundredth_and_make_attack_all(
    full: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack, "FULL", full)
    assert attack.share(300) == len(attack.sample(range(300))) == count
    assert attack.sample(range(300)) == attack.sample(range(300))


def test_at_least_one_is_tried() -> None:
    assert attack.share(7) >= 1
