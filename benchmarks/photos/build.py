"""The former name of `python -m benchmarks.worlds.photos`."""

import runpy
import sys

if __name__ == "__main__":
    print("benchmarks.photos.build is now benchmarks.worlds.photos", file=sys.stderr)
    runpy.run_module("benchmarks.worlds.photos", run_name="__main__", alter_sys=True)
