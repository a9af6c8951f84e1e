"""Odd command lines for every command: what is wrong ends with exit code 2 and a sentence, and no token is
ever repeated."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from attack import Tally, sample, share
from commands import MODULES, ROOT, flags_of, run, sub_commands

LINES = 1500
"""In all, for all commands."""
TOKENS = [
    "hf_abcDEF123456",
    "hf_abc-DEF\n123",
    "api_org_abcDEF123456",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4fw",
    "https://me:Passw0rdOfMine@hub.example/a/b",
]
"""Told by their look, wherever they stand; what must not be said of each is in TELLTALES."""
TELLTALES = ("abcDEF", "abc-DEF", "IUzI1NiJ9", "SflKxw", "Passw0rd", "0paque")
OPAQUE = "0paqueSecretWord"
"""A secret that has no look: told by what stands before it."""
TOKEN_FLAGS = ["--hub_token", "--hub_tok", "--hub-token", "--hubtoken", "--token", "--hf_token", "--hub_tokn"]
WORDS = [
    "0",
    "-1",
    "1e300",
    "nan",
    "9" * 20,
    "9" * 5000,
    "",
    " ",
    "--",
    "-",
    "x",
    "é",
    "%s",
    "{x}",
    "a\nb",
    "../..",
]
WORDS += [
    "/dev/zero",
    "/dev/null",
    "[",
    "null",
    "-inf",
    "0x10",
    "1_000",
    "\ud800",
    "x" * 10_000,
    "--seed",
    "-h_",
]


def odd(chance: random.Random, flags: list[str]) -> list[str]:
    """A line of a few flags, some of them spelt wrongly, with values of every kind and tokens among them."""
    line: list[str] = []
    for _ in range(chance.randint(1, 4)):
        flag, kind = chance.choice(flags), chance.randrange(8)
        values = chance.choices([*WORDS, *TOKENS], k=chance.randrange(3))
        if kind == 0:
            flag = chance.choice(TOKEN_FLAGS)
            values = [chance.choice([OPAQUE, *TOKENS]), *chance.choices([OPAQUE, "x"], k=chance.randrange(2))]
        elif kind == 1:
            flag, values = f"{chance.choice(TOKEN_FLAGS)}={chance.choice([OPAQUE, *TOKENS])}", []
        elif kind == 2:
            flag = f"--hub_token{chance.choice([OPAQUE, *TOKENS])}"
        elif kind == 3:
            flag = flag[: chance.randint(2, len(flag))]
        elif kind == 4:
            flag = flag.replace("_", "-") + chance.choice(["s", "", "x"])
        elif kind == 5:
            flag, values = f"{flag}={chance.choice([*WORDS, *TOKENS])}", []
        line += [flag, *values]
    return line


def file_of(chance: random.Random, flags: list[str], path: Path) -> list[str]:
    """The same in a file of settings."""
    lines = []
    for _ in range(chance.randint(1, 3)):
        name = chance.choice([*flags, "--hub_token", "--nothing"]).lstrip("-")
        value = OPAQUE if "token" in name else chance.choice([*WORDS[:12], *TOKENS])
        lines.append(
            chance.choice(["{}: {}", "{}: [{}]", "{}: {{a: {}}}", "{}: [{}", "{} {}"]).format(name, value)
        )
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    return ["--config", str(path)]


@pytest.mark.parametrize("module", MODULES)
def test_odd_lines(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    chance = random.Random(module)
    known = [(words, flags_of(module, words, monkeypatch)) for words in sub_commands(module)]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "100")
    for _ in range(share(LINES // len(MODULES))):
        words, flags = chance.choice(known)
        line = odd(chance, flags)
        if not chance.randrange(4):
            line = [*file_of(chance, flags, tmp_path / "settings.yaml"), *line[:2]]
        ended = run(module, [*words, *line], monkeypatch, parse_only=True)
        assert ended.code in (None, 0, 2), (line, ended.said)
        assert "Traceback" not in ended.said, (line, ended.said)
        assert not [secret for secret in TELLTALES if secret in ended.said], (line, ended.said)
        assert len(ended.said) < 60_000
        assert ended.code != 2 or ended.said.splitlines()[-1].strip(), line
        tally("odd command lines", {None: "accepted", 0: "help", 2: "refused"}[ended.code])
    assert not list((tmp_path / "here").iterdir())


MISTYPED = [
    *([flag, token] for flag in TOKEN_FLAGS for token in (OPAQUE, *TOKENS)),
    *([f"{flag}={token}"] for flag in TOKEN_FLAGS for token in (OPAQUE, *TOKENS)),
    *(["--hub_t", token, token] for token in (OPAQUE, *TOKENS)),
    *([token] for token in TOKENS),
]


@pytest.mark.parametrize("module", MODULES)
def test_a_token_on_a_mistyped_line(module: str, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    """The line of somebody who takes one command for another."""
    for words in sub_commands(module):
        for given in sample(MISTYPED):
            ended = run(module, [*words, *given, "--no_such_flag"], monkeypatch, parse_only=True)
            assert ended.code == 2 and not [secret for secret in TELLTALES if secret in ended.said], (
                ended.said
            )
            tally("tokens on a mistyped line", "not repeated")


@pytest.mark.parametrize("module", MODULES)
def test_what_can_be_started_ends_errors_in_sentences(module: str) -> None:
    """Or passes on to what does."""
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    assert any(words in source for words in ("friendly_errors()", "runpy.run_module", "run_script("))
