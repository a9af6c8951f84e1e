"""The former name of `python -m reward.concept`."""

import runpy
import sys

if __name__ == "__main__":
    print("reward.spec is now reward.concept", file=sys.stderr)
    runpy.run_module("reward.concept", run_name="__main__", alter_sys=True)
