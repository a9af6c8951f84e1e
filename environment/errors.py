"""User errors end in one sentence and an exit code, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Turn a ValueError that reaches the top (bad input; ours say what to do) into `error: ...` and exit code 2, a full disk into 1."""
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; run again with --resume_from_checkpoint latest to go on", file=sys.stderr)
        sys.exit(130)
