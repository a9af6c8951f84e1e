"""Settings as frozen dataclasses, and the command line that they make: one field, one flag.

A class of settings lives beside what it sets. Its docstring's first line is the title of its group in
`--help`. Each field is made by `flag`, and its annotation says how text becomes a value: `bool` is a switch,
`int`, `float`, `str` and `Path` are converted, `tuple[...]` takes several, and `| None` may be left out. A
class whose fields are such classes joins them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from common.command_line import DiscreetParser
from common.names import public_name
from common.texts import load_yaml, read_text

T = TypeVar("T")
METADATA = "flag"
CONFIG, PRESET = "config", "preset"
LIMIT = 10**9
"""No number is larger where its range does not say so: a loop would not end, or single precision overflow."""
SHOWN = 80
"""Characters of a wrong value that are repeated."""


@dataclass(frozen=True)
class Range:
    """Where a number may lie. The lower bound may be absent; without an upper one it is LIMIT.

    Attributes:
        at_least, at_most: bounds that belong to it.
        above, below: bounds that do not.
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        words = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(
            f"{word} {bound:g}" if isinstance(bound, float) else f"{word} {bound}"
            for word, bound in words.items()
            if bound is not None
        )

    @property
    def is_bounded(self) -> bool:
        """Whether it says where it begins."""
        return self.at_least is not None or self.above is not None

    @property
    def most(self) -> float | None:
        """The largest number of it, if there is one."""
        return LIMIT if self.at_most is None and self.below is None else self.at_most

    def why_not(self, value: float) -> str:
        """What a number that is outside would have to be; empty for one that is inside."""
        if value in self:
            return ""
        return f"at most {LIMIT}" if value > LIMIT and self.most == LIMIT else str(self)

    def __contains__(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


SEED = Range(at_least=0, at_most=2**32 - 1)
"""Of a seed that every library takes; NumPy takes no other."""
IMAGE_SEED = Range(at_least=-(2**63), at_most=2**63 - 1)
"""Of a seed that an image's own seed is made from."""


def as_it_is(value: Any) -> Any:
    """For settings that anyone may see."""
    return value


def by_name(value: str | Path | None) -> str | None:
    """For a model, which is published by its name and not by where it lies."""
    return None if value is None else public_name(value)


@dataclass(frozen=True)
class Flag:
    """What a field knows beside its name, type and default.

    Attributes:
        help: for `--help`. It says "Default:" itself where the default is no plain value.
        range: of a number.
        choices: of a text.
        nargs: of a tuple: "+" or "*".
        positional: whether the command line gives it by its place and not by its name.
        metavar: what `--help` calls the value.
        negatable: of a switch that may also be given as --no-NAME.
        may_change: whether a resumed run may have another value.
        published: the value as results, card and a pushed config show it; None for never.
        secret: a token, which is never written or repeated.
    """

    help: str
    range: Range
    choices: tuple[str, ...] | None
    nargs: str | None
    metavar: str | None
    negatable: bool
    may_change: bool
    published: Callable[[Any], Any] | None
    secret: bool
    positional: bool = False


def flag(
    default: Any = MISSING,
    *,
    help: str,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    within: Range | None = None,
    choices: Sequence[str] | None = None,
    nargs: str | None = None,
    metavar: str | None = None,
    negatable: bool = False,
    may_change: bool = False,
    published: Callable[[Any], Any] | None = as_it_is,
    secret: bool = False,
    positional: bool = False,
) -> Any:
    """A field of a class of settings; see `Flag`. Without a default the flag is required.

    Args:
        at_least, at_most, above, below: of a number, as `Range` has them.
        within: such a range as a whole.
    """
    bounds = within or Range(at_least, at_most, above, below)
    known = Flag(
        help=help,
        range=bounds,
        choices=tuple(choices) if choices else None,
        nargs=nargs,
        metavar=metavar,
        negatable=negatable,
        may_change=may_change,
        published=None if secret else published,
        secret=secret,
        positional=positional,
    )
    return field(default=default, metadata={METADATA: known})


@dataclass(frozen=True)
class Setting:
    """One flag: the field, and what its annotation says.

    Attributes:
        kind: bool, int, float, str or Path.
        several: whether it takes several values, as a tuple.
        optional: whether it may be None.
        group: the class that it is a field of.
    """

    field: Field[Any]
    kind: type
    several: bool
    optional: bool
    group: type

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def flag(self) -> Flag:
        return self.field.metadata[METADATA]

    @property
    def required(self) -> bool:
        return self.field.default is MISSING

    def convert(self, text: str) -> Any:
        """One value from its text.

        Raises:
            argparse.ArgumentTypeError: it is of another type, or outside its range.
        """
        try:
            value = self.kind(text)
        except ValueError:
            wanted = {int: "a whole number", float: "a number"}[self.kind]
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {shown(text)}") from None
        if self.kind is float and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a finite number, got {shown(text)}")
        if self.kind in (int, float) and (wanted := self.flag.range.why_not(value)):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {shown(text)}")
        return value

    def read(self, value: Any) -> Any:
        """The value from a file, under the rules of the command line.

        Raises:
            argparse.ArgumentTypeError: it breaks one.
        """
        if value is None:
            if not self.optional:
                raise argparse.ArgumentTypeError("must have a value, got null")
            return None
        if self.kind is bool:
            if not isinstance(value, bool):
                raise argparse.ArgumentTypeError(f"must be true or false, got {shown(value)}")
            return value
        if self.several != isinstance(value, list) or isinstance(value, dict | bool):
            wanted = "a list" if self.several else "one value"
            got = "" if self.flag.secret else f", got {shown(value)}"
            raise argparse.ArgumentTypeError(f"must be {wanted}{got}")
        found = tuple(self._checked(item) for item in (value if self.several else [value]))
        if self.several and not found and self.flag.nargs != "*":
            raise argparse.ArgumentTypeError("must hold at least one value")
        return found if self.several else found[0]

    def _checked(self, item: Any) -> Any:
        value = self.convert(str(item))
        if self.flag.choices and value not in self.flag.choices:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(self.flag.choices)}, got {shown(item)}"
            )
        return value

    def add_to(self, group: argparse._ArgumentGroup, default: Any) -> None:
        """Add the flag to a parser's group; `default` is the one that the parser has."""
        known = self.flag
        options: dict[str, Any] = {"default": default, "help": self._help(default)}
        if self.kind is bool:
            options["action"] = argparse.BooleanOptionalAction if known.negatable else "store_true"
        else:
            options |= {"type": self.convert, "choices": known.choices, "metavar": known.metavar}
            if not known.positional:
                options["required"] = default is MISSING
            if self.several:
                options |= {"nargs": known.nargs or "+", "action": _Several}
        if default is MISSING:
            options["default"] = None
        group.add_argument(self.name if known.positional else f"--{self.name}", **options)

    def _help(self, default: Any) -> str:
        text, bounds = self.flag.help.replace("%", "%%"), str(self.flag.range)
        if bounds:
            text, own, rest = text.partition("Default:")
            text = f"{text.rstrip()} {bounds[0].upper()}{bounds[1:]}.{f' {own}{rest}' if own else ''}"
        if default is None or default is MISSING or self.kind is bool or "Default:" in text:
            return text
        said = (
            " ".join(map(str, default)) if self.several else f"{default:g}" if self.kind is float else default
        )
        return f"{text} Default: {said}."


def shown(value: Any) -> str:
    """A wrong value, as an error repeats it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


class _Several(argparse.Action):
    """Several values as a tuple."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def settings_of(config: type | Any) -> Iterator[Setting]:
    """All settings of a class, or an instance, those of the classes it joins included, in their order."""
    cls = config if isinstance(config, type) else type(config)
    hints = get_type_hints(cls)
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            yield from settings_of(hints[f.name])
        else:
            yield Setting(f, *_kind_of(hints[f.name]), group=cls)


def _kind_of(hint: Any) -> tuple[type, bool, bool]:
    """The type of one value, whether there may be several, and whether there may be none."""
    optional = get_origin(hint) in (Union, UnionType)
    if optional:
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True, optional
    return hint, False, optional


def title_of(config: type) -> str:
    """The first line of its docstring, without the full stop."""
    return (config.__doc__ or config.__name__).splitlines()[0].rstrip(".")


def make_parser(
    config: type, description: str | None, *, prog: str | None = None, **defaults: Any
) -> DiscreetParser:
    """The parser of all settings of a class, in groups; `defaults` replace its own."""
    parser = DiscreetParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_config(parser)
    parser.secret = frozenset(f"--{setting.name}" for setting in settings_of(config) if setting.flag.secret)
    groups: dict[type, argparse._ArgumentGroup] = {}
    for setting in settings_of(config):
        if setting.group not in groups:
            groups[setting.group] = parser.add_argument_group(title_of(setting.group))
        setting.add_to(groups[setting.group], defaults.get(setting.name, setting.field.default))
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        f"--{CONFIG}",
        type=Path,
        metavar="FILE",
        help="YAML file of flags by name; flags on the command line win.",
    )


def parse(
    config: type[T],
    arguments: Sequence[str] | None,
    description: str | None,
    *,
    prog: str | None = None,
    elsewhere: Mapping[str, str] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    **defaults: Any,
) -> T:
    """The settings of a command line and of the file of its `--config`; `defaults` replace the classes' own.

    Args:
        elsewhere: what to say of other programs' flags, by name.
        presets: by the name that `--preset` has of them, values in place of the defaults; the settings then
            have a field `preset`.

    Raises:
        SystemExit: with code 2, as argparse does, where a flag is unknown or a value is wrong.
    """
    parser = make_parser(config, description, prog=prog, **defaults)
    parser.elsewhere = elsewhere or {}
    parser.given = sys.argv[1:] if arguments is None else arguments
    presets = presets or {}
    path, preset = _named_first(arguments, presets)
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = read_file(config, path)
        except ValueError as error:
            parser.error(str(error))
    # What stands in the file was said by somebody, and wins over a preset.
    given = {**presets.get(preset or given.get(PRESET) or "", {}), **given}
    parser.set_defaults(**given)
    for action in parser._actions:
        action.required = action.required and action.dest not in given
    return build(config, vars(parser.parse_args(arguments)))


@dataclass(frozen=True)
class Command:
    """A sub-command: its settings and what runs it.

    Attributes:
        help: its line in the list of commands.
        description: what its own `--help` says first.
    """

    config: type
    run: Callable[[Any], None]
    help: str
    description: str


def parse_command(
    commands: Mapping[str, Command],
    arguments: Sequence[str] | None,
    description: str | None,
    *,
    prog: str,
) -> Any:
    """The settings of the sub-command that a command line begins with.

    Args:
        commands: by name.
        arguments: those of the process if None.

    Raises:
        SystemExit: as `parse` does, and where there is no such command.
    """
    parser = DiscreetParser(prog=prog, description=description)
    names = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in commands.items():
        names.add_parser(name, help=command.help, add_help=False)
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parser.parse_args(given[:1]).command
    command = commands[chosen]
    return parse(command.config, given[1:], command.description, prog=f"{prog} {chosen}")


def _named_first(arguments: Sequence[str] | None, presets: Mapping[str, Any]) -> tuple[Path | None, str]:
    """The file of settings and the preset that a command line names, both of which change the defaults.
    Whether there is such a preset is for the whole parser to say."""
    first = DiscreetParser(add_help=False)
    _add_config(first)
    if presets:
        first.add_argument(f"--{PRESET}")
    found = first.parse_known_args(arguments)[0]
    return found.config, getattr(found, PRESET, None) or ""


def read_file(config: type, path: Path) -> dict[str, Any]:
    """The settings of a YAML file, by name.

    Raises:
        ValueError: it cannot be read, or it holds a name or a value that is none; the message says which.
    """
    text = read_text(path, "settings file")
    try:
        found = load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"--config {path} is not YAML: {_why_not_yaml(error)}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"--config {path} must hold flags by name, as in `concept: [Van Gogh style]`.")
    known = {setting.name: setting for setting in settings_of(config)}
    values = {}
    for name, value in found.items():
        if name not in known:
            nearest = get_close_matches(str(name), known, n=1, cutoff=0)
            raise ValueError(f"--config {path}: there is no flag {shown(name)}; the nearest is {nearest[0]}.")
        try:
            values[name] = known[name].read(value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--config {path}: {name} {error}.") from error
    return values


def _why_not_yaml(error: Exception) -> str:
    """Without the lines of the file, which may hold a token."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split()) or type(error).__name__


def build(config: type[T], values: Mapping[str, Any]) -> T:
    """An instance of a class from the values of all its settings by name."""
    hints = get_type_hints(config)
    return config(
        **{
            f.name: build(hints[f.name], values) if is_dataclass(hints[f.name]) else values[f.name]
            for f in fields(config)  # type: ignore[arg-type]
        }
    )


def values_of(config: Any) -> dict[str, Any]:
    """The values of all settings of an instance, by name."""
    values: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        values |= values_of(value) if is_dataclass(value) else {f.name: value}
    return values


def public_values(config: Any) -> dict[str, Any]:
    """The values that may be published, as they may be."""
    values, found = values_of(config), {}
    for setting in settings_of(config):
        if setting.flag.published is not None:
            found[setting.name] = _plain(setting.flag.published(values[setting.name]))
    return found


def to_yaml(config: Any, *, public: bool = False) -> str:
    """The file that `--config` reads: every setting that is no secret, or those that may be published."""
    if public:
        values = public_values(config)
    else:
        secret = {setting.name for setting in settings_of(config) if setting.flag.secret}
        values = {name: _plain(value) for name, value in values_of(config).items() if name not in secret}
    return dump_yaml(values)


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Values by name, in their order, as `read_file` reads them."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)


def _plain(value: Any) -> Any:
    """As YAML and JSON write it."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
