"""Text files that never end, or are no files: every reader of a user's text refuses them. It reads a pipe."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attack import Tally

from common import texts
from common.flags import read_file
from evaluation.prompt_file import read_prompt_file
from pipelines.memory import read_quantization
from reward.concept.files import read_prompts, read_spec
from training.config import RunConfig

READERS: dict[str, Callable[[Path], Any]] = {
    "--config": partial(read_file, RunConfig),
    "--bnb_quantization_config_path": read_quantization,
    "--reward_spec": read_spec,
    "--forget_prompts": read_prompts,
    "--protocol": read_prompt_file,
}
"""By a flag that reads with it."""
VALID = {
    "--config": "rank: 3\n",
    "--bnb_quantization_config_path": '{"load_in_4bit": true}',
    "--reward_spec": "concepts: [cat]\nforget: [a cat]\nretain: [a dog]\nanchors: [a dog]\n",
    "--forget_prompts": "a cat\n",
    "--protocol": "prompt,forget\na cat,1\n",
}


@pytest.mark.parametrize("reader", READERS)
def test_what_does_not_end_is_refused(reader: str, tmp_path: Path, tally: Tally) -> None:
    large = tmp_path / "large.csv"
    with large.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no room
    os.mkfifo(tmp_path / "endless.csv")
    threading.Thread(target=fill, args=(tmp_path / "endless.csv", b"a" * 2**20), daemon=True).start()
    wrong = ["/dev/zero", "/dev/urandom", "/dev/tty", "/dev/null", tmp_path, large, tmp_path / "endless.csv"]
    for path in [*map(Path, wrong), tmp_path / "none.csv", Path("/proc/self/mem")]:
        with pytest.raises(ValueError, match=str(path)) as caught:
            READERS[reader](path)
        assert "\n" not in str(caught.value)
        tally("texts that never end", "refused")


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_read(reader: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    threading.Thread(
        target=fill, args=(pipe, VALID[reader].encode()), kwargs={"times": 1}, daemon=True
    ).start()
    assert READERS[reader](pipe)


@pytest.mark.parametrize("reader", READERS)
def test_a_text_may_be_as_long_as_is_said(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MOST", len(VALID[reader]))
    path = tmp_path / "file.csv"
    path.write_text(VALID[reader])
    assert READERS[reader](path)
    path.write_text(VALID[reader] + " ")
    with pytest.raises(ValueError, match=r"file\.csv"):
        READERS[reader](path)


def fill(pipe: Path, content: bytes, times: int = 1000) -> None:
    """Write into a pipe until nobody reads it."""
    try:
        with pipe.open("wb") as file:
            for _ in range(times):
                file.write(content)
    except BrokenPipeError:
        return
