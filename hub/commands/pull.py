"""`python -m hub pull`: fetch what `python -m hub push` uploaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.flags import Command, flag
from hub.pull import pull


@dataclass(frozen=True)
class PullConfig:
    """Download."""

    repo_id: str = flag(positional=True, metavar="ID", help="Repository on the Hub, OWNER/NAME.")
    output_dir: Path = flag(metavar="DIR", help="Where it is written: a new or an empty directory.")
    revision: str | None = flag(None, help="Branch, tag or commit. Default: main.")
    hub_token: str | None = flag(
        None,
        help="Token for a private repository. Default: the one of `hf auth login` or of HF_TOKEN, if there is "
        "any.",
        secret=True,
    )


def run(config: PullConfig) -> None:
    """Fetch.

    Raises:
        ValueError: there is nothing to fetch, it cannot be fetched, or the output would replace something.
    """
    names = pull(config.repo_id, config.output_dir, revision=config.revision, token=config.hub_token)
    print(f"wrote {config.output_dir}: {', '.join(names)}.")


COMMAND = Command(
    PullConfig,
    run,
    help="Fetch an adapter, a reward predictor or a critic from the Hub.",
    description="Fetches an adapter with its card, results and picture, or a reward predictor or critic, from the "
    "Hub, and nothing else.",
)
