"""What the fuzz tests share: how many inputs, counting them, and strategies for files that somebody else
has written or damaged."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Inputs of a test; without it as many as take a fraction of a second, always the same."""

tried: Counter[str] = Counter()
"""How many inputs each reader was given."""


def fuzz(examples: int = 120) -> settings:
    """A tenth of these examples by default; FUZZ_EXAMPLES says otherwise."""
    return settings(
        max_examples=EXAMPLES or max(4, examples // 10),
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def refused_or_read(what: str, read: Callable[..., Any], *given: Any) -> Any:
    """What comes of an input: the reader's answer, or None and an error of one line. Any other error is a
    bug and goes through."""
    tried[what] += 1
    try:
        return read(*given)
    except ValueError as error:
        message = str(error)
        assert message.strip() and "\n" not in message and len(message) < 4000, message[:4000]
        return None


def put(path: Path, content: bytes) -> Path:
    """Write a file anew; one that is still mapped into memory stays as it was."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def anything(max_leaves: int = 8) -> st.SearchStrategy[Any]:
    """Whatever JSON can hold, numbers beyond all sense and NaN among it."""
    numbers = st.integers() | st.sampled_from([-1, 0, 2**31, 2**63, 10**30]) | st.floats()
    leaves = (
        st.none()
        | st.booleans()
        | numbers
        | st.text(max_size=12)
        | st.sampled_from(["", "../../x", "<script>", "a\nb", "[", "\ud800"])
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
        max_leaves=max_leaves,
    )


@st.composite
def changed(draw: st.DrawFn, valid: Any) -> Any:
    """Valid JSON with some values somewhere in it replaced, taken out, or put under another name."""
    value = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        parent, key = None, None
        place = value
        while isinstance(place, dict | list) and place and draw(st.integers(0, 3)):
            parent, key = (
                place,
                draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))),
            )
            place = parent[key]
        if parent is None:
            continue
        kind = draw(st.integers(0, 5))
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[draw(st.text(max_size=5))] = parent.pop(key)
        else:
            parent[key] = draw(anything(4))
    return value


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """Bytes of a valid file with some changed, put in, taken out or cut off; now and then bytes that never
    were a file."""
    if not draw(st.integers(0, 9)):
        return draw(st.binary(max_size=200))
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 5))):
        if not content:
            break
        at = draw(st.integers(0, min(len(content) - 1, 600)) | st.integers(0, len(content) - 1))
        kind, other = draw(st.integers(0, 4)), draw(st.binary(min_size=1, max_size=8))
        if kind == 0:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            content[at:at] = other
        elif kind == 2:
            del content[at : at + len(other)]
        elif kind == 3:
            content[at : at + len(other)] = other
        else:
            del content[at:]
    return bytes(content)


def file_of(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with any JSON as its header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


DEEP = b"[" * 100_000
"""JSON that is nested deeper than any parser goes."""
