"""What a run has its text encoders read otherwise, and what as before."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch

from common.processes import keep_in_step
from policy.text_start import text_start
from reward.concept.together import asked_together, partners
from training.baseline import Baseline
from training.seeds import Purpose, generator_for
from training.setup import Run

logger = logging.getLogger(__name__)

TOGETHER = 2
"""Other things that each forget prompt is asked for with, in turn."""


def start_in_text(run: Run, base: Baseline) -> None:
    """Begin where the texts alone can bring the adapter, and leave those of all that is kept; the base stays
    the state to roll back to.

    Kept are the empty prompt, the retain prompts, and what `measure_base` keeps.
    """
    env, spec = run.env, run.env.spec
    generator = generator_for(run.config.output.seed, Purpose.TEXT)
    anchor_of = {prompt: row[0] for prompt, row in zip(spec.forget_prompts, spec.anchors, strict=True)}
    rows = torch.cat([env.retain_ids, base.retain.prompt_ids]).unique().tolist()
    kept = [env.table.prompts[row] for row in rows]
    found = text_start(
        run.policy,
        anchor_of | with_others(anchor_of, kept, TOGETHER, generator),
        ["", *kept, *with_others({text: text for text in kept}, (), 1, generator)],
        generator,
    )
    for encoder in run.policy.encoders.values():
        keep_in_step(torch.nn.ParameterList(p for p in encoder.parameters() if p.requires_grad))
    logger.info(
        f"  Text encoder = the concept's texts are {100 * found.forget:.0f} % of the way from their anchors, what "
        f"is kept has moved by {100 * found.kept:.0f} % of it"
    )


def with_others(
    becomes: Mapping[str, str], kept: Sequence[str], times: int, generator: torch.Generator
) -> dict[str, str]:
    """What the texts become, each asked for together with others, so that of two things the concept alone
    goes.

    Args:
        becomes: from each text what it is to be read as.
        kept: texts that stay, and may be asked for beside them.
        times: how many others each text is asked for with, before and after it.
        generator: what they are chosen with.
    """
    after = dict(becomes) | {text: text for text in kept}
    others, found = list(after), {}
    for text, goal in becomes.items():
        near = partners(text, others)
        for _ in range(times if near else 0):
            other = others[near[int(torch.randint(len(near), (), generator=generator))]]
            found[asked_together(text, other)] = asked_together(goal, after[other])
            found[asked_together(other, text)] = asked_together(after[other], goal)
    return found
