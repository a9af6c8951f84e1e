"""`python -m hub push`: upload an adapter, a reward predictor or a critic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file

from common.flags import Command, flag
from common.network import CONFIG_NAME, WEIGHTS_NAME, Checkpoint, CheckpointError
from hub.access import HubError
from hub.files import refuse_links_out
from hub.pull import checkpoint_kind
from hub.push import push_adapter, push_command
from hub.space.about import read_about
from hub.space.bundle import check_base
from hub.space.push import push_space


@dataclass(frozen=True)
class PushConfig:
    """Upload."""

    directory: Path = flag(
        positional=True,
        metavar="DIR",
        help="Directory of the adapter, the reward predictor or the critic.",
    )
    hub_model_id: str | None = flag(
        None,
        metavar="ID",
        help="Repository, NAME or OWNER/NAME, made if there is none. Default: the last part of DIR.",
    )
    private: bool = flag(False, help="Make a new repository private.")
    hub_token: str | None = flag(
        None,
        help="Token to upload with. Default: the one of `hf auth login` or of the environment variable HF_TOKEN.",
        secret=True,
    )
    revision: str | None = flag(
        None, help="For an adapter: the branch to upload to, made if there is none. Default: main."
    )
    create_pr: bool = flag(False, help="For an adapter: open a pull request instead of writing to main.")
    commit_message: str | None = flag(None, help="Message of the commit. Default: it says what is uploaded.")
    space: bool = flag(
        False, help="For an adapter: also upload a Space, a page that draws with it and without it."
    )
    space_id: str | None = flag(
        None,
        metavar="ID",
        help="The Space, NAME or OWNER/NAME, made if there is none. Default: the adapter's ID.",
    )

    @property
    def repo_id(self) -> str:
        """The repository to upload to."""
        return self.hub_model_id or self.directory.resolve().name

    @property
    def visibility(self) -> bool | None:
        """Whether a new repository is private; None is the Hub's default."""
        return self.private or None


def run(config: PushConfig) -> None:
    """Upload.

    Raises:
        ValueError: there is nothing to upload, or the Hub cannot be reached or refuses.
    """
    directory = config.directory
    if config.space_id and not config.space:
        raise HubError("--space_id is where a Space is uploaded to; add --space.")
    if config.space and config.create_pr:
        raise HubError(
            "A Space shows what has been uploaded, not what is proposed; leave --space or --create_pr out."
        )
    if (directory / LORA_WEIGHT_NAME_SAFE).is_file():
        address = upload_adapter(config)
    elif (directory / WEIGHTS_NAME).is_file():
        address = upload_checkpoint(config)
    else:
        raise HubError(
            f"{directory} holds neither {LORA_WEIGHT_NAME_SAFE} nor the {WEIGHTS_NAME} of a reward predictor or "
            "critic."
        )
    print(f"uploaded {directory} to {address}")
    if config.space:
        page = push_space(
            directory,
            config.repo_id,
            config.space_id,
            token=config.hub_token,
            private=config.visibility,
            revision=config.revision,
        )
        print(f"uploaded its Space to {page}")


def upload_adapter(config: PushConfig) -> str:
    """Upload an adapter; the address of the commit or of the pull request.

    Raises:
        ValueError: it cannot be uploaded, or no Space can show it.
    """
    if config.space:
        check_base(read_about(config.directory))
    again = push_command(
        config.directory,
        config.repo_id,
        config.visibility,
        revision=config.revision,
        create_pr=config.create_pr,
        commit_message=config.commit_message,
        space=config.space,
        space_id=config.space_id,
    )
    return push_adapter(
        config.directory,
        config.repo_id,
        token=config.hub_token,
        private=config.visibility,
        revision=config.revision,
        create_pr=config.create_pr,
        commit_message=config.commit_message,
        again=again,
    )


def upload_checkpoint(config: PushConfig) -> str:
    """Upload a reward predictor or a critic; the address of the commit.

    Raises:
        ValueError: it cannot be uploaded.
    """
    if config.revision or config.create_pr or config.space:
        raise HubError("--revision, --create_pr and --space are for adapters; leave them out.")
    refuse_links_out(config.directory, (CONFIG_NAME, WEIGHTS_NAME))
    network = load_checkpoint(config.directory)
    try:
        return network.push_to_hub(
            config.repo_id,
            private=config.visibility,
            token=config.hub_token,
            commit_message=config.commit_message,
            dtype=stored_dtype(config.directory),
        )
    except CheckpointError as error:
        again = push_command(
            config.directory, config.repo_id, config.visibility, commit_message=config.commit_message
        )
        raise HubError(
            f"{str(error).rstrip('.')}; it is complete in {config.directory} and `{again}` uploads it."
        ) from error


def load_checkpoint(directory: Path) -> Checkpoint:
    """The network of a checkpoint directory, by the kind that its config names.

    Raises:
        ValueError: it is of no known kind, or damaged.
    """
    from critic.network import ValueNetwork
    from reward.predictor import RewardPredictor

    classes = {network.kind: network for network in (RewardPredictor, ValueNetwork)}
    kind = checkpoint_kind(directory)
    if kind not in classes:
        raise HubError(
            f"{directory} holds a {kind}; only an adapter, a {' or a '.join(classes)} can be uploaded."
        )
    return classes[kind].from_pretrained(directory)


def stored_dtype(directory: Path) -> torch.dtype | None:
    """The precision of a checkpoint's weights, if all of them have the same."""
    found = {
        tensor.dtype for tensor in load_file(directory / WEIGHTS_NAME).values() if tensor.is_floating_point()
    }
    return found.pop() if len(found) == 1 else None


COMMAND = Command(
    PushConfig,
    run,
    help="Upload an adapter, a reward predictor or a critic to the Hub.",
    description="Uploads an adapter with its card, results and picture, or a reward predictor or critic, to the "
    "Hub in one commit. Checkpoints, logs and previews stay here. With --space a page that shows the adapter is "
    "uploaded too.",
)
