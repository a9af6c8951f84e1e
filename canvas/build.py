"""The former name of `python -m benchmarks.worlds.canvas`."""

import runpy
import sys

if __name__ == "__main__":
    print("canvas.build is now benchmarks.worlds.canvas", file=sys.stderr)
    runpy.run_module("benchmarks.worlds.canvas", run_name="__main__", alter_sys=True)
