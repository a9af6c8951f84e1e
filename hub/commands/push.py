"""`python -m hub push`: an adapter, a reward predictor or a critic for others."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file

from common.network import WEIGHTS_NAME, Checkpoint, CheckpointError
from hub.access import HubError
from hub.pull import checkpoint_kind
from hub.push import push_adapter, push_command
from hub.space.about import read_about
from hub.space.bundle import check_base
from hub.space.push import push_space


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "push",
        help="Upload an adapter, a reward predictor or a critic to the Hub.",
        description="Uploads an adapter with its card, figures and picture, or a reward predictor or critic, to the Hub in one commit. Checkpoints, "
        "logs and previews stay here. With --space a page that shows the adapter is uploaded too.",
    )
    parser.add_argument(
        "directory",
        type=Path,
        metavar="DIR",
        help="Directory of the adapter, the reward predictor or the critic.",
    )
    parser.add_argument(
        "--hub_model_id",
        metavar="ID",
        help="Repository, NAME or OWNER/NAME, made if there is none. Default: the last part of DIR.",
    )
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument(
        "--hub_token",
        help="Token to upload with. Default: the one of `hf auth login` or of the environment variable HF_TOKEN.",
    )
    parser.add_argument(
        "--revision", help="For an adapter: the branch to upload to, made if there is none. Default: main."
    )
    parser.add_argument(
        "--create_pr",
        action="store_true",
        help="For an adapter: open a pull request instead of writing to main.",
    )
    parser.add_argument("--commit_message", help="Message of the commit. Default: it says what is uploaded.")
    parser.add_argument(
        "--space",
        action="store_true",
        help="For an adapter: upload also a Space, a page that draws with it and without it.",
    )
    parser.add_argument(
        "--space_id",
        metavar="ID",
        help="The Space, NAME or OWNER/NAME, made if there is none. Default: the adapter's ID.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Upload.

    Raises:
        ValueError: there is nothing to upload, or the Hub cannot be reached or refuses.
    """
    repo_id = args.hub_model_id or args.directory.resolve().name
    private = args.private or None
    if args.space_id and not args.space:
        raise HubError("--space_id is where a Space is uploaded to; add --space.")
    if args.space and args.create_pr:
        raise HubError(
            "A Space shows what has been uploaded, not what is proposed; leave --space or --create_pr out."
        )
    if (args.directory / LORA_WEIGHT_NAME_SAFE).is_file():
        if args.space:
            check_base(read_about(args.directory))
        address = push_adapter(
            args.directory,
            repo_id,
            token=args.hub_token,
            private=private,
            revision=args.revision,
            create_pr=args.create_pr,
            commit_message=args.commit_message,
            again=push_command(
                args.directory,
                repo_id,
                private,
                args.revision,
                args.create_pr,
                args.commit_message,
                space=args.space,
                space_id=args.space_id,
            ),
        )
    elif (args.directory / WEIGHTS_NAME).is_file():
        if args.revision or args.create_pr or args.space:
            raise HubError("--revision, --create_pr and --space are for adapters; leave them out.")
        network = load_checkpoint(args.directory)
        try:
            address = network.push_to_hub(
                repo_id,
                private=private,
                token=args.hub_token,
                commit_message=args.commit_message,
                dtype=stored_dtype(args.directory),
            )
        except CheckpointError as error:
            again = push_command(args.directory, repo_id, private, commit_message=args.commit_message)
            raise HubError(
                f"{str(error).rstrip('.')}; it is complete in {args.directory} and `{again}` uploads it."
            ) from error
    else:
        raise HubError(
            f"{args.directory} holds neither {LORA_WEIGHT_NAME_SAFE} nor the {WEIGHTS_NAME} of a reward predictor or critic."
        )
    print(f"uploaded {args.directory} to {address}")
    if args.space:
        page = push_space(
            args.directory,
            repo_id,
            args.space_id,
            token=args.hub_token,
            private=private,
            revision=args.revision,
        )
        print(f"uploaded its Space to {page}")


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
            f"{directory} holds a {kind}; what can be uploaded is an adapter, a {' or a '.join(classes)}."
        )
    return classes[kind].from_pretrained(directory)


def stored_dtype(directory: Path) -> torch.dtype | None:
    """The precision of a checkpoint's weights, if it is one for all of them."""
    found = {
        tensor.dtype for tensor in load_file(directory / WEIGHTS_NAME).values() if tensor.is_floating_point()
    }
    return found.pop() if len(found) == 1 else None
