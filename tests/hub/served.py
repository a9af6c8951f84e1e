"""Pages that another process serves, watched for whom it asks."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradio_client import Client

ROOT = Path(__file__).parents[2]

START = """
import runpy, sys

checkout, program, *arguments = sys.argv[1:]

def tell(event, given):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = given[1] if event == "socket.connect" else given[0]
        host = host[0] if isinstance(host, tuple) else host
        if host not in (None, "127.0.0.1", "localhost", "::1", "0.0.0.0", b"127.0.0.1", b"localhost"):
            print("ASKED OUTSIDE:", host, file=sys.stderr, flush=True)

sys.addaudithook(tell)
sys.argv[:] = [program, *arguments]
if program.endswith(".py"):
    # A Space has its own files and nothing of this checkout, however that is installed, nor what else this project needs.
    sys.modules.update(dict.fromkeys(("bitsandbytes", "matplotlib", "open_clip", "tensorboard", "timm", "torchvision")))
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
    sys.path[:] = [".", *(place for place in sys.path if place not in ("", checkout))]
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__")
"""
"""Runs a program that is watched for whom it asks."""


class Server:
    """A page that is served by another process: its address, and what that process has said."""

    def __init__(self, address: str, log: Path) -> None:
        self.address, self.log = address, log

    def draw(self, *given: Any) -> list[tuple[Any, ...]]:
        """All that comes back for a prompt, a scale, a seed, steps and guidance, one answer after another.

        Raises:
            AppError: the page refuses.
        """
        client = Client(
            self.address,
            verbose=False,
            analytics_enabled=False,
            download_files=str(self.log.parent / "downloads"),
        )
        job = client.submit(*given, api_name="/draw")
        job.result()
        return list(job)


@contextmanager
def serve(
    arguments: list[str], directory: Path, environment: dict[str, str], folder: Path = ROOT
) -> Iterator[Server]:
    """Start a program that serves a page, with a free port to do it on, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    directory.mkdir()
    environment = environment | {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(directory / "gradio"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("GRADIO_ANALYTICS_ENABLED", None)
    log = directory / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(ROOT), *arguments],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=said,
        )
    try:
        server = Server(f"http://127.0.0.1:{port}/", log)
        deadline = time.monotonic() + 180
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
