"""The former name of `python -m evaluation.predictor`."""

import runpy
import sys

if __name__ == "__main__":
    print("reward.evaluate is now evaluation.predictor", file=sys.stderr)
    runpy.run_module("evaluation.predictor", run_name="__main__", alter_sys=True)
