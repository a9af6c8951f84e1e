"""Text-to-image pictures of open-licensed emoji: `python -m benchmarks.worlds.artwork data --packages DIR`.

Drawings of npm packages -> one file of sprites with names, synonyms and categories (the pack).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.worlds.artwork.pack import CREDITS, Artwork, load, make, save
from benchmarks.worlds.artwork.packages import NAMES, STYLES, credits
from benchmarks.worlds.artwork.sheets import contact_sheet, scene_sheet
from common.errors import friendly_errors
from common.files import write_aside
from common.flags import Command, flag, parse_command

PROG = "python -m benchmarks.worlds.artwork"


@dataclass(frozen=True)
class DataConfig:
    """Data."""

    packages: Path = flag(help="Where `npm pack` has put the packages (see above).")
    pack: Path = flag(
        Path("runs/artwork/pack.zip"),
        help="The file that is written. Two sheets of pictures and CREDITS.md are written beside it.",
    )
    objects: int = flag(64, at_least=3, help="How many objects are chosen: 64 for CPUs, 256 for GPUs.")


def run_data(config: DataConfig) -> None:
    """Make the pack, say what is in it and draw two sheets to look at."""
    save(make(config.packages, config.objects), config.pack)
    artwork = load(config.pack)
    print(summary(artwork))
    folder, stem = config.pack.parent, config.pack.stem
    write_aside(folder / CREDITS, lambda aside: aside.write_text(credits(artwork.sources), "utf-8"))
    for name, sheet in {"objects": contact_sheet(artwork), "scenes": scene_sheet(artwork)}.items():
        write_aside(folder / f"{stem}_{name}.png", partial(sheet.save, format="PNG"))
    print(f"{config.pack}: {config.pack.stat().st_size / 1e6:.1f} MB")


def summary(artwork: Artwork) -> str:
    """Objects by subgroup with their synonyms, then categories with their members."""
    lines = [f"{len(artwork.styles)} styles: {', '.join(artwork.styles)}", f"{len(artwork.names)} objects"]
    for subgroup in dict.fromkeys(obj.subgroup for obj in artwork.objects):
        of_it = [obj for obj in artwork.objects if obj.subgroup == subgroup]
        named = [f"{obj.name} ({', '.join(obj.synonyms)})" if obj.synonyms else obj.name for obj in of_it]
        lines.append(f"  {subgroup}: {', '.join(named)}")
    lines.append(f"{len(artwork.categories)} categories")
    lines += [
        f"  {name} ({len(members)}): {', '.join(members)}" for name, members in artwork.categories.items()
    ]
    return "\n".join(lines)


COMMANDS = {
    "data": Command(
        DataConfig,
        run_data,
        help="Make the pack from npm packages.",
        description="Make the pack from npm packages, which these commands put into DIR:\n\n"
        + "\n".join(f"  {p.command(Path('DIR'))}" for p in (*(style.package for style in STYLES), NAMES)),
    )
}


def parse_config(arguments: Sequence[str] | None = None) -> Any:
    """The settings of a command line."""
    return parse_command(COMMANDS, arguments, __doc__, prog=PROG)


def main(config: Any) -> None:
    """Run the command that the settings belong to; a user's error ends in a sentence and exit code 2."""
    run = next(command.run for command in COMMANDS.values() if isinstance(config, command.config))
    with friendly_errors():
        run(config)


if __name__ == "__main__":
    main(parse_config())
