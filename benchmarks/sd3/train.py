"""The training script on the small Stable Diffusion 3: the same in a third of the time. `python -m
benchmarks.sd3` runs it."""

import sys

from benchmarks.jobs import run_script
from benchmarks.worlds.sd3 import zeros_once

if __name__ == "__main__":
    with zeros_once():
        run_script(sys.argv[1:])
