from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from attack import Tally

KEY = "attack"


@pytest.fixture
def tally(record_property: Any) -> Tally:
    """Counts an attack and how it ended; the sums of all tests stand at the end of the output."""

    def count(kind: str, ending: str) -> None:
        record_property(KEY, (kind, ending))

    return count


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much was tried and how it ended."""
    endings: dict[str, Counter[str]] = {}
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    for report in reports:
        if report.when == "call":
            for kind, ending in (value for key, value in report.user_properties if key == KEY):
                endings.setdefault(kind, Counter())[ending] += 1
    for kind, counts in sorted(endings.items()):
        each = ", ".join(f"{count:,} {ending}" for ending, count in counts.most_common())
        terminalreporter.write_line(f"{kind}: {counts.total():,} ({each})")
