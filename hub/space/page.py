"""The page itself, in Gradio: its inputs, and the studio's images they show. It loads nothing external."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio would send analytics, from its import on

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

import canvas
from common.markup import Html, Markdown
from common.names import BUNDLED_PIPELINE, without_path
from hub.provenance import NOTHING_SAID, find_base, what_adapter_says
from hub.space.about import About, introduction, metrics, read_about, sampling, spread, title
from hub.space.guard import Guard, own_hosts
from hub.space.studio import (
    MAX_GUIDANCE,
    MAX_SCALE,
    MAX_SEED,
    MAX_STEPS,
    Studio,
    fetch_adapter,
    read_name,
    read_scale,
    read_settings,
)

WAITING = 32
"""Number of requests that may wait; further ones are asked to come again."""
DRAWN = ("Both images were cached.", "One image drawn, the other was cached.", "Two images drawn.")
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "studio", "concurrency_limit": 1}
STYLE = """
.gradio-container { max-width: 1040px !important; margin: 0 auto; }
#status { min-height: 1.6em; }
#before img, #after img { width: 100%; height: 100%; object-fit: contain; }
"""
"""A small image is enlarged, smoothly, by the browser; its file stays as it was drawn."""
THEME = gr.themes.Soft(
    primary_hue="emerald",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_label_text_color="*primary_800",
    block_label_background_fill_dark="*primary_800",
    block_title_text_color="*primary_800",
    block_title_background_fill_dark="*primary_800",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    button_secondary_background_fill_hover_dark="*primary_800",
    input_placeholder_color="*neutral_600",
    input_placeholder_color_dark="*neutral_300",
    link_text_color_dark="*secondary_300",
    link_text_color_active_dark="*secondary_300",
    link_text_color_hover_dark="*secondary_200",
    link_text_color_visited="*secondary_700",
    link_text_color_visited_dark="*secondary_300",
)
"""The theme's own colours, where its text would have less contrast than 4.5:1 (WCAG 2.2, 1.4.3)."""


def make_page(
    adapter: str = "",
    revision: str | None = None,
    *,
    base: str | None = None,
    base_revision: str | None = None,
    variant: str | None = None,
    fixed: bool = False,
) -> gr.Blocks:
    """The page of an adapter on its base, with both loaded.

    Args:
        adapter: a directory or an id on the Hub; without one the page draws the base until it is given one.
        revision: of the adapter on the Hub.
        base: a diffusers directory or an id on the Hub. Default: what the adapter says; without an adapter,
            the bundled pipeline.
        fixed: whether visitors see only this adapter.

    Raises:
        ValueError: there is no such adapter or base, or they do not fit each other.
    """
    said = (
        what_adapter_says(fetch_adapter(adapter, revision).parent)
        if adapter
        else NOTHING_SAID | {"base": BUNDLED_PIPELINE}
    )
    source = find_base(base, said["base"])
    base_revision = base_revision or (None if base else said["revision"])
    studio = Studio(source, base_revision, variant, said["without_t5"])
    about = read_about(studio.load(adapter, revision).parent) if adapter else None
    return build_page(
        studio,
        BUNDLED_PIPELINE if source == canvas.PIPELINE else without_path(str(source)),
        adapter,
        about,
        fixed,
    )


def make_notice(text: str) -> gr.Blocks:
    """A page that says why nothing can be shown."""
    with gr.Blocks(title="Before and after", analytics_enabled=False) as page:
        gr.Markdown(Markdown.fill("# Nothing to see yet\n\n{text}", text=text))
    return page


def as_sent(component: gr.components.Component) -> gr.components.Component:
    """One that hands over whatever was sent: `read_settings` judges it, in sentences. Gradio would end in a
    traceback at many a value."""
    component.preprocess = lambda payload: payload
    return component


def sampled(dataset: gr.Dataset) -> gr.Dataset:
    """One that hands over None for a sample that it does not have."""
    usual = dataset.preprocess
    known = range(len(dataset.raw_samples))
    dataset.preprocess = lambda at: usual(at) if type(at) is int and at in known else None
    return dataset


def launch(page: gr.Blocks, port: int | None = None, allowed_hosts: Sequence[str] = ()) -> None:
    """Serve a page, by `serve`, until it is interrupted."""
    serve(page, port, allowed_hosts)
    print(f"Open {page.local_url} in a browser; Ctrl-C ends it.", flush=True)
    page.block_thread()


def serve(page: gr.Blocks, port: int | None = None, allowed_hosts: Sequence[str] = ()) -> None:
    """Serve a page in a thread: to this machine only, or as GRADIO_SERVER_NAME says, as in a Space.

    Args:
        allowed_hosts: names that it answers to besides those of `hub.space.guard.own_hosts`.
    """
    guard = {"middleware": [Middleware(Guard, own_hosts(allowed_hosts))]}
    look = {"theme": THEME, "css": STYLE, "footer_links": ["api"]}
    page.launch(
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        app_kwargs=guard,
        **look,
    )


def build_page(studio: Studio, base: str, adapter: str, about: About | None, fixed: bool) -> gr.Blocks:
    """The page of a studio that has loaded the adapter.

    Args:
        base: the name of the studio's pipeline.
    """

    noted = gr.Progress()  # Gradio knows it as a parameter's default

    def choose(adapter: object) -> list[Any]:
        with sentences():
            name = read_name(adapter)
            about = read_about(studio.load(name).parent) if name else None
        asking, others = examples(about)
        return [
            heading_of(about),
            introduction(about, base),
            gr.update(**asking),
            gr.update(**others),
            metrics(about),
        ]

    def draw(  # noqa: PLR0917 (Gradio passes its inputs by position)
        adapter: object,
        prompt: object,
        scale: object,
        seed: object,
        steps: object,
        guidance: object,
        progress: gr.Progress = noted,
    ) -> Iterator[tuple[Any, Any, str]]:
        with sentences(), TemporaryDirectory() as folder:
            settings, name, weight = (
                read_settings(prompt, seed, steps, guidance),
                read_name(adapter),
                read_scale(scale),
            )
            drawn = studio.drawn
            before = studio.draw(
                settings, on_step=lambda done: progress((done, settings.steps), "base", unit="steps")
            )
            base_shown = saved(before.image, folder, "base")
            if not name:
                yield base_shown, None, "This is the base alone."
                return
            yield base_shown, None if studio.drawn > drawn else gr.skip(), ""
            after = studio.draw(
                settings,
                name,
                weight,
                lambda done: progress((done, settings.steps), "with the adapter", unit="steps"),
            )
            withheld = (
                " The base's safety checker has blackened an image."
                if before.withheld or after.withheld
                else ""
            )
            status = f"Scale {weight:g}, seed {settings.seed}. {DRAWN[studio.drawn - drawn]}{withheld}"
            yield base_shown, saved(after.image, folder, "with_the_adapter"), status

    of_concept, of_rest = examples(about)
    with gr.Blocks(title=title(about), analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        heading, text = gr.Markdown(heading_of(about)), gr.Markdown(introduction(about, base))
        with gr.Row(equal_height=True):
            chosen = (
                gr.State(adapter)
                if fixed
                else as_sent(
                    gr.Textbox(
                        adapter,
                        label="Adapter",
                        placeholder="DIR, or OWNER/NAME on the Hub",
                        scale=3,
                        elem_id="adapter",
                    )
                )
            )
            first = of_concept["samples"][0][0] if of_concept["samples"] else ""
            prompt = as_sent(
                gr.Textbox(
                    first,
                    label="Prompt",
                    placeholder="What is to be drawn?",
                    max_lines=3,
                    scale=5,
                    elem_id="prompt",
                )
            )
            button = gr.Button("Draw", variant="primary", scale=1, min_width=110, elem_id="draw")
        with gr.Row():
            asking = sampled(gr.Dataset(components=[prompt], label="Prompts that ask for it", **of_concept))
            others = sampled(gr.Dataset(components=[prompt], label="Prompts for the rest", **of_rest))
        with gr.Row():
            before = gr.Image(
                label="Base",
                format="png",
                interactive=False,
                buttons=["download"],
                height=450,
                elem_id="before",
            )
            after = gr.Image(
                label="With the adapter",
                format="png",
                interactive=False,
                buttons=["download"],
                height=450,
                elem_id="after",
            )
        scale = as_sent(
            gr.Slider(0, MAX_SCALE, 1.0, step=0.05, label="Scale of the adapter", buttons=[], elem_id="scale")
        )
        status = gr.Markdown(elem_id="status")
        usual_steps, usual_guidance = sampling(about)
        with gr.Accordion("Noise and sampler", open=False), gr.Row():
            seed = as_sent(gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED))
            steps = as_sent(gr.Slider(1, MAX_STEPS, usual_steps, step=1, label="Steps", buttons=[]))
            guidance = as_sent(
                gr.Slider(0, MAX_GUIDANCE, usual_guidance, step=0.5, label="Guidance", buttons=[])
            )
        judged = gr.Markdown(metrics(about))

        drawn = {
            "fn": draw,
            "inputs": [chosen, prompt, scale, seed, steps, guidance],
            "outputs": [before, after, status],
            "show_progress_on": [after],
            **ONE_AT_A_TIME,
        }
        asked = [button.click, prompt.submit, scale.release, *([page.load] if first else [])]
        gr.on(asked, api_name="draw", trigger_mode="always_last", **drawn)
        for samples in (asking, others):
            picked = samples.click(
                lambda sample: sample[0] if sample else gr.skip(),
                samples,
                prompt,
                queue=False,
                api_visibility="private",
            )
            picked.then(api_visibility="private", **drawn)
        if not fixed:
            described = [heading, text, asking, others, judged]
            gr.on(
                [chosen.submit, chosen.blur],
                choose,
                chosen,
                described,
                show_progress="hidden",
                api_visibility="private",
                **ONE_AT_A_TIME,
            )
    return page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)


def heading_of(about: About | None) -> Markdown:
    return Markdown.fill("# {title}", title=title(about))


def saved(image: Image.Image, folder: str, name: str) -> Path:
    """Write an image; its file.

    Gradio copies a file unless it has the same one, but rewrites an image even while someone is fetching it.
    """
    path = Path(folder, f"{name}.png")
    image.save(path)
    return path


def examples(about: About | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prompts to choose from, as Gradio takes them: those that ask for the concept, and the others."""
    lists = (spread(about.asking), spread(about.others)) if about else ([], [])
    asking, others = (
        {"samples": [[prompt] for prompt in prompts], "visible": bool(prompts)} for prompts in lists
    )
    return asking, others


@contextmanager
def sentences() -> Iterator[None]:
    """A visitor's mistake ends in a sentence on the page, not in a traceback in the log."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(Html.of(str(error)), duration=None, print_exception=False) from error
