"""`python -m hub space`: the page of an adapter, on this machine."""

from __future__ import annotations

import argparse


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "space",
        help="Open a page that draws with an adapter and without it.",
        description="Opens a page, on this machine only, that draws a prompt with the base and with the adapter at any scale from the same noise. "
        "`python -m hub push DIR --space` puts the same page on the Hub.",
    )
    parser.add_argument(
        "--adapter",
        default="",
        metavar="DIR_OR_ID",
        help="Directory of the adapter, or its id on the Hub. It can also be named there.",
    )
    parser.add_argument(
        "--pretrained_model_name_or_path",
        metavar="BASE",
        help="Base pipeline: diffusers directory or Hub id. Default: what the adapter says; without an adapter, the bundled pipeline.",
    )
    parser.add_argument(
        "--revision", help="Revision of the base pipeline on the Hub. Default: what the adapter says."
    )
    parser.add_argument("--variant", help="Variant of the base pipeline's weight files, for example fp16.")
    parser.add_argument("--port", type=int, help="Port of the page. Default: the first free one from 7860.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Serve the page until it is interrupted.

    Raises:
        ValueError: Gradio is missing, adapter or base cannot be found or do not fit each other, or the port
            is taken.
    """
    try:
        from hub.space.page import launch, make_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("The page needs Gradio, which `pip install -e '.[space]'` installs.") from error
    page = make_page(
        args.adapter,
        base=args.pretrained_model_name_or_path,
        base_revision=args.revision,
        variant=args.variant,
    )
    try:
        launch(page, args.port)
    except OSError as error:
        raise ValueError("The page has no port that is free; name another with --port.") from error
