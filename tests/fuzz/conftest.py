from __future__ import annotations

from fuzzing import tried


def pytest_terminal_summary(terminalreporter: object) -> None:
    """Say how much was tried."""
    if tried:
        each = ", ".join(f"{name} {count}" for name, count in sorted(tried.items()))
        terminalreporter.write_line(f"fuzzing: {sum(tried.values())} inputs tried ({each})")  # type: ignore[attr-defined]
