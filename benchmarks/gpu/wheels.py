"""Gather what a machine with PyTorch and no network lacks: `python -m benchmarks.gpu.wheels`.

Wheels for Python 3.12 on 64-bit x86 Linux, at the versions of constraints.txt, go into a folder that git
ignores. Of bitsandbytes only the libraries for CPUs and CUDA 13.0 are kept, which are 4 MB of its 43. Wheels
and working tree together must not be larger than what can be copied.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.jobs import SCRIPT
from benchmarks.peers.settings import PEER_RELEASE
from common.errors import friendly_errors
from common.files import make_directory, write_bytes
from common.flags import flag, parse

ROOT = SCRIPT.parent
MISSING = ("diffusers", "open_clip_torch", "ftfy", "wcwidth", "bitsandbytes")
"""What such a machine lacks of the requirements."""
PEER = (PEER_RELEASE, "datasets==4.8.5", "dill==0.4.1", "multiprocess==0.70.19")
"""The peer, and what it needs beside them."""
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (28, 24, 17))
KEPT_LIBRARIES = ("libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so")


@dataclass(frozen=True)
class WheelsConfig:
    """Wheels."""

    directory: Path = flag(
        Path(__file__).with_name("wheelhouse"), help="Where they go. Default: benchmarks/gpu/wheelhouse."
    )
    limit: float = flag(55.0, above=0, help="MiB that wheels and working tree may have together.")


def requirements(constraints: str) -> list[str]:
    """What is gathered, each at its version.

    Args:
        constraints: the text of constraints.txt.

    Raises:
        ValueError: it does not name one of them.
    """
    found = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE))
    if unknown := [name for name in MISSING if name not in found]:
        raise ValueError(f"constraints.txt has no version of {', '.join(unknown)}.")
    return [*(f"{name}=={found[name]}" for name in MISSING), *PEER]


def download(wanted: Sequence[str], directory: Path) -> None:
    """Have pip put the wheels of these requirements, and no others, into a directory.

    Raises:
        ValueError: pip found one of them nowhere; it has said more.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    if subprocess.run([*command, "--dest", str(directory), *wanted]).returncode:
        raise ValueError("pip could not download all wheels.")


def repack(wheel: Path, keep: Callable[[str], bool]) -> None:
    """Leave files out of a wheel, in place; its RECORD lists what is left, with SHA-256 and size.

    Args:
        keep: whether a file stays, by its name in the archive.
    """
    written = io.BytesIO()
    with (
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        rows = []
        for member in old.infolist():
            if member.filename != record and not member.is_dir() and keep(member.filename):
                content = old.read(member)
                new.writestr(member, content, zipfile.ZIP_DEFLATED)
                rows.append([member.filename, f"sha256={urlsafe_digest(content)}", str(len(content))])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*rows, [record, "", ""]])
        new.writestr(old.getinfo(record), text.getvalue(), zipfile.ZIP_DEFLATED)
    write_bytes(wheel, written.getvalue())


def urlsafe_digest(content: bytes) -> str:
    """SHA-256 as a RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def is_needed(name: str) -> bool:
    """Whether a file of bitsandbytes is for a CPU or CUDA 13.0, or for all devices."""
    file = name.rpartition("/")[2]
    return not file.startswith("libbitsandbytes_") or file in KEPT_LIBRARIES


def tree_size() -> int:
    """Bytes of the working tree, without what git ignores."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def check_size(sizes: dict[str, int], limit: float) -> str:
    """The sum of sizes in bytes as a sentence.

    Args:
        limit: in MiB.

    Raises:
        ValueError: they are larger together.
    """
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    parts = ", ".join(f"{name} {sizes[name] / 2**20:.1f}" for name in largest)
    together = sum(sizes.values()) / 2**20
    if together > limit:
        raise ValueError(f"{together:.1f} MiB are more than {limit:g}; the largest: {parts}.")
    return f"{together:.1f} MiB of {limit:g}; the largest: {parts}."


def main(config: WheelsConfig) -> None:
    directory = make_directory(config.directory)
    for wheel in directory.glob("*.whl"):
        wheel.unlink()  # two versions of one package stop an installation
    download(requirements((ROOT / "constraints.txt").read_text(encoding="utf-8")), directory)
    for wheel in directory.glob("bitsandbytes-*.whl"):
        repack(wheel, is_needed)
    sizes = {wheel.name: wheel.stat().st_size for wheel in directory.glob("*.whl")}
    print(check_size(sizes | {"the working tree": tree_size()}, config.limit))


if __name__ == "__main__":
    with friendly_errors():
        main(parse(WheelsConfig, None, __doc__, prog="python -m benchmarks.gpu.wheels"))
