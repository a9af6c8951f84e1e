"""`python -m hub space`: the page of an adapter, on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from common.flags import Command, flag


@dataclass(frozen=True)
class SpaceConfig:
    """Page."""

    adapter: str = flag(
        "",
        metavar="DIR_OR_ID",
        help="Directory of the adapter, or its id on the Hub. Default: none; it can be named on the page.",
    )
    pretrained_model_name_or_path: str | None = flag(
        None,
        metavar="BASE",
        help="Base pipeline: diffusers directory or Hub id. Default: what the adapter says; without an adapter, "
        "the bundled pipeline.",
    )
    revision: str | None = flag(
        None, help="Revision of the base pipeline on the Hub. Default: what the adapter says."
    )
    variant: str | None = flag(None, help="Variant of the base pipeline's weight files, for example fp16.")
    allowed_hosts: tuple[str, ...] = flag(
        (),
        metavar="NAME",
        help="Further names by which the page is reached, as behind a proxy; it answers to no others. Default: those "
        "of this machine's loopback, with GRADIO_SERVER_NAME addresses in numbers too, on the Hub those of Spaces.",
    )
    port: int | None = flag(
        None, at_least=1, at_most=65535, help="Port of the page. Default: the first free one from 7860."
    )


def run(config: SpaceConfig) -> None:
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
        config.adapter,
        base=config.pretrained_model_name_or_path,
        base_revision=config.revision,
        variant=config.variant,
    )
    try:
        launch(page, config.port, config.allowed_hosts)
    except OSError as error:
        raise ValueError("The page found no free port; name another with --port.") from error


COMMAND = Command(
    SpaceConfig,
    run,
    help="Open a page that draws with an adapter and without it.",
    description="Opens a page, on this machine only, that draws a prompt with the base and with the adapter at any "
    "scale from the same noise. `python -m hub push DIR --space` puts the same page on the Hub.",
)
