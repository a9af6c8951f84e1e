"""What is compared: how each method is run, by a command that leaves an adapter's directory."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.ablation.variants import VARIANTS
from benchmarks.baselines import METHODS

OURS = "ours"
BASE = "none (the base)"
"""As tables call what has no adapter."""
TRAINED_BY_US: dict[str, list[str]] = {
    OURS: VARIANTS["default"],
    "reward": VARIANTS["no anchor KL"],
    "anchors": VARIANTS["no reward"],
    "ddpo": VARIANTS["plain ddpo"],
}
"""Flags of the training script."""
NAMES = {
    OURS: "ours",
    "reward": "ours, the reward alone",
    "anchors": "ours, the anchors alone",
    "ddpo": "DDPO",
    "esd": "ESD-x",
    "uce": "UCE",
    "ca": "CA",
    "leco": "LECO",
    "spm": "SPM, ungated",
    "rece": "RECE",
    "hirm": "HiRM-S",
}
"""As tables show them, in their order."""
CLOSED_FORMS = ("uce", "rece")
"""They draw nothing at random: a seed changes nothing in their adapters."""
NEVER = "never"
TITLES = NAMES | {NEVER: "never saw the concept"}
"""The same, and a pipeline that was trained without the concept: what forgetting would be at best."""


def command(method: str, concept: str, seed: int, directory: str, world: Sequence[str] = ()) -> list[str]:
    """Arguments of Python that erase a concept by a method and write adapter and results.json to a directory;
    they evaluate nothing.

    Args:
        world: flags that name another base than the bundled one, its CLIP and its reward predictor, and
            those that were chosen for it.
    """
    given = ["--concept", concept, "--seed", str(seed), "--output_dir", directory, "--overwrite_output_dir"]
    given += [*world, "--evaluation_seeds"]
    if method in METHODS:
        return ["-m", "benchmarks.baselines", "--method", method, *given]
    quiet = ["--report_to", "none", "--validation_steps", "0"]
    return ["train_unlearn_lora.py", *given, *quiet, *TRAINED_BY_US[method]]
