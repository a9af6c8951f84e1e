"""README and docs: commands parse, links resolve, sizes hold, and what is copied agrees with its source."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from run_as_main import run_as_main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("README.md")),
]
LINKED = [*DOCUMENTS, ROOT / "CHANGELOG.md"]
SCRIPT = "train_unlearn_lora.py"
PROGRAMS_WITH_COMMANDS = {"hub", "benchmarks.diagnostics", "benchmarks.worlds.artwork"}
"""Modules whose first argument names a command with flags of its own."""
INSTALLED = {"pytest"}
"""Modules that are run and are no part of the checkout."""
FORMER_NAMES = re.compile(
    r"python -m (?:reward\.(?:spec|evaluate)|canvas\.build|benchmarks\.(?:photos\.build|gradients|critics|endurance|scaling))\b"
)
WIDTH, README_BYTES = 100, 12_000
OPENING = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\S*/)?(?:python3?|accelerate launch|make)(?= |$)")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\)[^()\s]*)*)\)")
INTERVAL = re.compile(r"[\d.]+ \[[\d.]+, [\d.]+\]|\([\d.]+\)")


@dataclass(frozen=True)
class Use:
    """A program of the checkout as a document calls it.

    Attributes:
        program: a script, or a module and, where it has commands, the command.
        flags: that it is given.
        document: that calls it.
    """

    program: tuple[str, ...]
    flags: frozenset[str]
    document: str


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def lines_of(path: Path) -> list[tuple[str, str]]:
    """Lines of a document with their kind: "code", "python", "table", "heading", "image" or "prose"."""
    lines, fence = [], None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fence = None if fence else ("python" if "python" in line else "code")
            lines.append(("python", ""))
        elif fence:
            lines.append((fence, line))
        elif line.startswith("    "):
            lines.append(("code", line))
        elif line.startswith("|"):
            lines.append(("table", line))
        elif re.match(r"#{1,6} ", line):
            lines.append(("heading", line))
        elif line.startswith("!["):
            lines.append(("image", line))
        else:
            lines.append(("prose", line))
    return lines


def snippets(path: Path) -> Iterator[str]:
    """Lines of code blocks, continued ones joined, and inline code."""
    code = "\n".join(line if kind == "code" else "" for kind, line in lines_of(path))
    yield from re.sub(r"\\\n\s*", " ", code).splitlines()
    for _, span in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", text_of(path), re.DOTALL):
        yield " ".join(span.split())


def text_of(path: Path) -> str:
    """All but code blocks."""
    return "\n".join("" if kind in ("code", "python") else line for kind, line in lines_of(path))


def commands(path: Path) -> Iterator[list[str]]:
    """What a document has a shell run, as arguments, from the program's name on."""
    for snippet in snippets(path):
        for part in re.split(r" (?:&&|[|;]) ", snippet.strip()):
            if OPENING.match(part):
                words = shlex.split(part, comments=True)
                while re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                yield [Path(words[0]).name, *words[1:]]


def uses_of(words: list[str], document: str) -> Iterator[Use]:
    """Programs of the checkout that a command runs; what follows a lone -- is for the training script."""
    if words[0] == "make":
        return
    rest = words[1:]
    start = next((i for i, word in enumerate(rest) if word == "-m" or word.endswith(".py")), None)
    if start is None:
        return
    called = rest[start + 1 : start + 2] if rest[start] == "-m" else rest[start : start + 1]
    rest = rest[start + 2 :] if rest[start] == "-m" else rest[start + 1 :]
    if not called or called[0] in INSTALLED:
        return
    if called[0] in PROGRAMS_WITH_COMMANDS and rest and re.fullmatch(r"[a-z]+", rest[0]):
        called, rest = [*called, rest[0]], rest[1:]
    own, passed_on = (rest[: rest.index("--")], rest[rest.index("--") :]) if "--" in rest else (rest, [])
    yield Use(tuple(called), flags_in(own), document)
    if passed_on:
        yield Use((SCRIPT,), flags_in(passed_on), document)


def flags_in(words: list[str]) -> frozenset[str]:
    return frozenset(word.partition("=")[0] for word in words if re.match(r"--\w", word))


@cache
def uses() -> dict[tuple[str, ...], list[Use]]:
    """Uses of each program, in all documents."""
    found = defaultdict(list)
    for path in DOCUMENTS:
        for words in commands(path):
            for use in uses_of(words, named(path)):
                found[use.program].append(use)
    return dict(found)


def targets() -> list[tuple[str, str]]:
    """Targets of make with the document that names them."""
    return [
        (word, named(path))
        for path in DOCUMENTS
        for words in commands(path)
        if words[0] == "make"
        for word in words[1:]
        if "=" not in word
    ]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.lstrip("#").strip())
    return re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")


@cache
def sections(path: Path) -> dict[str, str]:
    """Each anchor of a document, with its text down to the next heading of its level or above."""
    lines, begun = lines_of(path), []
    for i, (kind, line) in enumerate(lines):
        if kind == "heading":
            begun.append((i, len(line) - len(line.lstrip("#")), slug(line)))
    found: dict[str, str] = {}
    for j, (start, level, anchor) in enumerate(begun):
        end = next((i for i, other, _ in begun[j + 1 :] if other <= level), len(lines))
        repeated = sum(name == anchor for _, _, name in begun[:j])
        found[f"{anchor}-{repeated}" if repeated else anchor] = "\n".join(
            line for _, line in lines[start:end]
        )
    return found


def links(path: Path) -> list[str]:
    without_code = re.sub(r"(`+)[^`]+\1", "", text_of(path))
    return [target for target in LINK.findall(without_code) if not re.match(r"[a-z]+:", target)]


def wide(kind: str, line: str) -> bool:
    """Whether prose could have been broken and was not."""
    return kind == "prose" and len(line) > WIDTH and " " in line.strip()


@pytest.fixture
def accepted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Flags that a program's --help lists."""
    monkeypatch.setenv("COLUMNS", "200")
    program, *command = request.param
    code, shown = run_as_main(program, *command, "--help")
    assert code == 0
    heads = [re.split(r" {2,}", line.strip())[0] for line in shown.splitlines() if re.match(r"  -", line)]
    return {flag for head in heads for flag in re.findall(r"--\w[\w-]*", head)}


def test_commands_are_found_in_blocks_in_prose_and_over_several_lines() -> None:
    found = uses()
    assert len(found) > 20 and sum(map(len, found.values())) > 80
    training = [use for use in found[(SCRIPT,)] if use.document == "README.md"]
    assert any({"--pretrained_model_name_or_path", "--mixed_precision"} <= use.flags for use in training)
    assert {("hub", "push"), ("hub", "merge"), ("evaluation",), ("reward.train",)} <= found.keys()
    assert {"install", "demo", "test"} <= {
        target for target, document in targets() if document == "README.md"
    }


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m a.b --x 1 --y=2", [Use(("a.b",), frozenset({"--x", "--y"}), "d")]),
        ("python -m hub push DIR --space", [Use(("hub", "push"), frozenset({"--space"}), "d")]),
        (
            "accelerate launch --multi_gpu -m evaluation --adapter A",
            [Use(("evaluation",), frozenset({"--adapter"}), "d")],
        ),
        (f"accelerate launch --multi_gpu {SCRIPT} --seed 1", [Use((SCRIPT,), frozenset({"--seed"}), "d")]),
        (
            "python -m a --x -- --rank 4",
            [Use(("a",), frozenset({"--x"}), "d"), Use((SCRIPT,), frozenset({"--rank"}), "d")],
        ),
        ("python -m pytest tests", []),
    ],
)
def test_a_command_is_read_as_its_program_and_flags(command: str, expected: list[Use]) -> None:
    assert list(uses_of(shlex.split(command), "d")) == expected


def test_targets_of_make_exist() -> None:
    known = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert [named_in for named_in in targets() if named_in[0] not in known] == []


@pytest.mark.parametrize("program", uses(), ids=" ".join)
def test_programs_exist(program: tuple[str, ...]) -> None:
    if program[0].endswith(".py"):
        assert (ROOT / program[0]).is_file()
    else:
        path = ROOT.joinpath(*program[0].split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.mark.parametrize(
    ("accepted", "program"),
    [
        pytest.param(program, program, id=" ".join(program))
        for program, found in uses().items()
        if any(use.flags for use in found)
    ],
    indirect=["accepted"],
)
def test_flags_are_accepted(accepted: set[str], program: tuple[str, ...]) -> None:
    assert [
        (use.document, sorted(use.flags - accepted)) for use in uses()[program] if use.flags - accepted
    ] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_no_former_name_is_used(path: Path) -> None:
    assert FORMER_NAMES.findall(" ".join(path.read_text(encoding="utf-8").split())) == []


@pytest.mark.parametrize("path", LINKED, ids=named)
def test_links_and_anchors_resolve(path: Path) -> None:
    broken = []
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in sections(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", LINKED, ids=named)
def test_prose_is_wrapped(path: Path) -> None:
    assert [line for kind, line in lines_of(path) if wide(kind, line)] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= README_BYTES


def test_results_of_the_readme_are_those_of_the_tables_they_link_to() -> None:
    rows = [
        row.replace("**", "")
        for row in sections(README)["results"].splitlines()
        if LINK.search(row) and row[0] == "|"
    ]
    assert len(rows) == 4
    for row in rows:
        page, _, anchor = LINK.search(row)[1].partition("#")
        source = sections(ROOT / page)[anchor].replace("**", "")
        numbers = INTERVAL.findall(row.partition("](")[2])
        assert len(numbers) >= 3
        assert [
            number
            for number in numbers
            if not re.search(rf"(?<![\d.]){re.escape(number.strip('()'))}", source)
        ] == []
