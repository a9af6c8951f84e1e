"""One run of our trainer beside the peer's; one JSON file."""

from __future__ import annotations

import argparse
import json

import train_unlearn_lora as script
from benchmarks.ablation.run import add_run_arguments, train_and_judge
from benchmarks.peers.settings import MATCHED
from benchmarks.stopwatch import Stopwatch
from common.files import write_aside
from environment.environment import Environment


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.ours", description=__doc__)
    parser.add_argument(
        "--matched", action="store_true", help="With the algorithm of the peer in place of the defaults."
    )
    add_run_arguments(parser)
    args = parser.parse_args()
    watch = Stopwatch()
    Environment.collect = watch.timed("rollout", Environment.collect)  # type: ignore[method-assign]
    script.update_policy = watch.timed("update", script.update_policy)
    flags = MATCHED if args.matched else []
    found = train_and_judge(
        args.concept, args.seed, args.learning_rate, flags, args.budget, args.every, args.judge_seeds
    )
    images, seconds = (found["training"][name] for name in ("images", "seconds"))
    kept = {
        "base": found["base"],
        "curve": found["curve"],
        "images": images,
        "seconds": seconds,
        "parts": dict(watch.seconds),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_aside(args.output, lambda path: path.write_text(json.dumps(kept) + "\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
