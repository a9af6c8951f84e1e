"""What processes would exchange in an iteration, beside what they compute: `python -m benchmarks.scaling`.

An estimate on paper, from the real configs of Stable Diffusion 1.5 and SDXL: operations of the UNet alone,
bytes in rings, and two rates that are assumed. The batch is the default one, or four images and two retain
states a process where that is more. Left out are waiting for the slowest process, and passes of the UNet too
small to keep a GPU busy.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

import train_unlearn_lora as script
from benchmarks.memory.computed import weigh
from benchmarks.memory.models import MODELS, PROMPTS, Model
from benchmarks.operations import forward_operations

BRANCHES = 2
"""Passes of a sample under classifier-free guidance."""
NUMBER = 4
"""Bytes of what is exchanged: float32."""


@dataclass(frozen=True)
class Iteration:
    """What an iteration takes in all.

    Attributes:
        images: that are drawn, those of retain prompts included.
        operations: of the UNet, forward and backward.
        gathered: bytes of trajectories and slopes that every process is to have in the end.
        reduced: bytes of gradients that are added up.
    """

    images: int
    operations: float
    gathered: int
    reduced: int

    def exchanged(self, processes: int) -> float:
        """Bytes that each of `processes` sends in rings: a gather goes round once, a sum twice."""
        return (self.gathered + 2 * self.reduced) * (processes - 1) / processes


def operations(model: Model) -> int:
    """Floating-point operations of a forward pass of one sample."""
    with torch.device("meta"):
        return forward_operations(model.build_unet())


def iteration(model: Model, args: argparse.Namespace) -> Iteration:
    """Of a run with the training script's arguments. Through a frozen UNet a backward pass costs what a
    forward pass does."""
    images, retain, steps = args.images_per_iteration, args.retain_batch_size, args.num_inference_steps
    terms = max(1, round(args.train_timestep_fraction * (steps - args.masked_steps)))
    rollouts = (images + retain) * steps
    learnt = terms * (images * (1 + (args.adversarial_radius > 0)) + retain)
    reference = terms * images  # has no backward pass
    latent = NUMBER * 4 * model.latent_size**2
    gathered = latent * ((images + retain) * (2 * steps + 1) + images * steps)
    adapter = weigh(model, args.rank, args.lora_target_modules).adapter
    return Iteration(
        images + retain,
        BRANCHES * (rollouts + reference + 2 * learnt) * operations(model),
        gathered,
        NUMBER * adapter * -(-terms // args.gradient_accumulation_steps),
    )


def table(found: dict[int, Iteration], rates: argparse.Namespace) -> str:
    """Markdown: a row for each number of processes."""
    lines = [
        "| processes | images | TFLOP each | seconds | sent by each | seconds | share of the time |",
        "|---|---|---|---|---|---|---|",
    ]
    for processes, work in found.items():
        computing = work.operations / processes / (rates.tflops * 1e12)
        sending = work.exchanged(processes) / (rates.gb_per_second * 1e9)
        cells = [
            str(work.images),
            f"{work.operations / processes / 1e12:,.0f}",
            f"{computing:.2f}",
            f"{work.exchanged(processes) / 1e6:,.0f} MB",
            f"{sending:.3f}",
        ]
        lines.append(f"| {processes} | {' | '.join(cells)} | {100 * sending / (computing + sending):.1f} % |")
    return "\n".join(lines)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64], help="How many there are.")
    parser.add_argument(
        "--tflops",
        type=float,
        default=200.0,
        help="Assumed: 10^12 operations that a GPU does in a second of the UNet.",
    )
    parser.add_argument(
        "--gb_per_second",
        type=float,
        default=25.0,
        help="Assumed: 10^9 bytes that a process sends in a second; 25 is 200 Gbit.",
    )
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    defaults = script.parse_args(["--concept", PROMPTS[0]])
    for model in MODELS.values():
        found = {}
        for processes in args.processes:
            images, retain = (
                max(defaults.images_per_iteration, 4 * processes),
                max(defaults.retain_batch_size, 2 * processes),
            )
            found[processes] = iteration(
                model,
                argparse.Namespace(
                    **vars(defaults) | {"images_per_iteration": images, "retain_batch_size": retain}
                ),
            )
        print(f"{model.title}\n\n{table(found, args)}\n")


if __name__ == "__main__":
    main(parse_args())
