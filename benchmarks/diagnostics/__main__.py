"""Measure at frozen weights: `python -m benchmarks.diagnostics {gradients,critics,ceiling}`.

Each of the three has a `--help` of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.diagnostics import ceiling, critics, gradients
from common.errors import friendly_errors

COMMANDS = {"gradients": gradients.main, "critics": critics.main, "ceiling": ceiling.main}


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in COMMANDS:
        print((__doc__ or "").strip(), file=sys.stderr)
        sys.exit(0 if given[:1] in (["-h"], ["--help"]) else 2)
    COMMANDS[given[0]](given[1:])


if __name__ == "__main__":
    with friendly_errors():
        main()
