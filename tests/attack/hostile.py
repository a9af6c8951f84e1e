"""What others may have written into a field, and every file that has it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any


def nested(depth: int, inner: Any = 0) -> Any:
    """Lists in one another."""
    for _ in range(depth):
        inner = [inner]
    return inner


TEXTS = [
    "",
    " ",
    "x" * 300,
    "é" * 5000,
    "x" * 200_000,
    "<script>document.title = 'run'</script>",
    "</td></table><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><a href='javascript:alert(1)'>x</a>",
    "</style><style>*{display:none}</style>",
    "--><iframe src=https://example.org></iframe><!--",
    "```\n<b>x</b>\n```python\nimport os\n",
    "\n```\n\n# a heading\n\n- a list\n",
    "~~~\nx\n~~~",
    "`x` **x** _x_ ~~x~~ [x](https://example.org) ![x](https://example.org/x.png)",
    "[x]: https://example.org 'x'\n\n[x]",
    "| a | b |\n|---|---|\n| c | d |",
    "<https://example.org> &lt;b&gt; &#60;b&#62;",
    "---\nlicense: mit\n---\n",
    "x\n---\ny: [\n...\n",
    "!!python/object/apply:os.system ['true']",
    "*a &b {c: d} %e @f `g` \t: #",
    'x") ; import os ; print("',
    "x\\",
    "{0} {x} {x.__class__} %s $x",
    "\u202ereversed\u2066",
    "\x00",
    "a\x1b[2Jb\x07\x85\u2028\u2029c",
    "\ud800",
    "../../../etc/passwd",
    "/etc/passwd\n",
    "C:\\Windows\\x",
    "owner/" + "n" * 300,
    "local-dir:/" + "d" * 400,
]
NUMBERS = [-1, 1e9, 10**30, 10**400, -1e300, float("nan"), float("inf"), True]
OTHERS = [
    None,
    [],
    {},
    [None],
    ["<b>x</b>", "x"],
    [1, 2, 3],
    {"<b>x</b>": "<i>y</i>"},
    {"return": "x", "ci95": [1], "UA": {}},
    nested(50),
    nested(900),
]
VALUES = [*TEXTS, *NUMBERS, *OTHERS]
NAMES = ["<b>x</b>", "../../x", "`|\n```"]
"""What a key may be called."""


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every field of a value, however deep."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def changes(value: Any) -> list[tuple[tuple[str | int, ...], str, Any]]:
    """Every change of one field: where, what is done there, and what with."""
    found: list[tuple[tuple[str | int, ...], str, Any]] = []
    for path in places(value):
        found += [(path, "replace", put) for put in VALUES]
        found.append((path, "delete", None))
        found += [(path, "rename", name) for name in NAMES if isinstance(path[-1], str)]
    return found


def changed(value: Any, change: tuple[tuple[str | int, ...], str, Any]) -> Any:
    """The value with one field changed."""
    (*path, last), kind, put = change
    value = copy.deepcopy(value)
    parent = value
    for key in path:
        parent = parent[key]
    if kind == "replace":
        parent[last] = put
    elif kind == "delete":
        del parent[last]
    else:
        parent[put] = parent.pop(last)
    return value


def as_text(value: Any) -> str:
    """JSON of anything, digits without end included; it is nested deeper than Python's own encoder goes."""
    return json.dumps(value)
