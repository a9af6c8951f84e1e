"""The page of an adapter: what it says, what it draws and does not draw again, and what a visitor sees who
errs."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import PROGRAM, Chromium
from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from gradio_client.exceptions import AppError
from matplotlib.colors import to_rgb
from PIL import Image
from served import Server, serve
from transformers import CLIPConfig, CLIPImageProcessor

import canvas
from common.network import CheckpointError
from hub.__main__ import main, parse_config
from hub.adapter import NoAdapter, UnfitAdapter, save_adapter
from hub.card import UNLOADABLE
from hub.header import results_header
from hub.space import studio as studio_module
from hub.space.about import (
    About,
    base_name,
    introduction,
    metrics,
    read_about,
    sampling,
    spread,
    title,
)
from hub.space.studio import Settings, Studio, read_settings
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from pipelines.generate import image_seed

SETTINGS = Settings("a cat", 3, 4, 5.0)


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="session")
def adapter_dir(
    train: Callable[..., UNet2DConditionModel],
    lora_settings: dict[str, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An adapter for the tiny pipeline that has nothing beside it."""
    directory = tmp_path_factory.mktemp("tiny") / "adapter"
    return save_adapter(
        directory, train(**lora_settings["attention"]), metadata=results_header({"concept": ["cat"]})
    ).parent


@pytest.fixture
def studio(tiny_pipeline_dir: Path) -> Studio:
    return Studio(tiny_pipeline_dir)


# What it says


def test_what_is_typed_is_read_or_refused_in_a_sentence() -> None:
    assert read_settings("  a\n cat ", 3.0, 4, 5) == Settings("a cat", 3, 4, 5.0)
    for given, message in [
        ((" \n", 0, 1, 1), "prompt"),
        ((None, 0, 1, 1), "prompt"),
        (("a", -1, 1, 1), r"seed.*\b0\b.*\b4294967295\b"),
        (("a", None, 1, 1), "seed"),
        (("a", 0, 101, 1), r"steps.*\b1\b.*\b100\b"),
        (("a", 0, "many", 1), "steps"),
        (("a", 0, 1, float("nan")), r"guidance.*\b0\b.*\b20\b"),
        (("a", 0, 1, True), "guidance"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_settings(*given)


def test_a_page_says_what_results_json_says(canvas_adapter_dir: Path) -> None:
    about = read_about(canvas_adapter_dir)
    assert title(about) == "Van Gogh style, erased" and sampling(about) == (6, 7.5)
    on_its_own, elsewhere = (introduction(about, base) for base in ("bundled canvas", "another"))
    assert base_name("bundled canvas") in on_its_own
    assert on_its_own == introduction(replace(about, base=""), "bundled canvas")
    assert "another" in elsewhere and base_name("bundled canvas") in elsewhere
    said = metrics(about)
    assert (
        "bundled canvas judge" in said
        and "**UA 100.0 %** (base 0.0 %)" in said
        and "CRA" not in said
        and UNLOADABLE in said
    )
    assert (
        about.asking[0] == "a house image in Van Gogh style"
        and about.others[-1] == "a cat image in Neon style"
    )


def test_an_adapter_that_is_alone_speaks_by_its_header(
    adapter_dir: Path, trained: UNet2DConditionModel, results: dict[str, Any], tmp_path: Path
) -> None:
    about = read_about(adapter_dir)
    assert (about.concepts, about.asking, about.others, about.base) == (
        ["cat"],
        ["cat"],
        [],
        "",
    ) and sampling(about) == (30, 7.5)
    assert metrics(about).startswith("**Limits.**")
    judged = read_about(save_adapter(tmp_path, trained, metadata=results_header(results)).parent)
    assert "**UA 97.9 %** (base 0.5 %)" in metrics(judged) and judged.revision == "451f4fe"


def test_without_an_adapter_it_says_how_to_come_by_one() -> None:
    assert title(None) == "Before and after" and "train_unlearn_lora.py --concept" in introduction(
        None, "bundled canvas"
    )
    assert metrics(None) == "" and sampling(None) == (30, 7.5)


def test_no_concept_judge_or_figure_of_others_is_markup_or_breaks_the_page() -> None:
    evil = "<script>alert(1)</script> [x](http://example.org)"
    results = {
        "judge": evil,
        "base": {"UA": 1.0, "IRA": "x"},
        "adapter": {"UA": 2.0, "IRA": "y"},
        "num_inference_steps": "many",
        "guidance_scale": 1e9,
    }
    about = About([evil], evil, None, [], [], results)
    said = introduction(about, "base") + metrics(about)
    assert (
        "<script>" not in said and "[x](" not in said and "IRA" not in said and sampling(about) == (30, 7.5)
    )


def test_prompts_are_taken_from_all_parts_of_a_list() -> None:
    assert spread(["a", "b", "c", "d", "e", "f"], 3) == ["a", "c", "e"]
    assert spread(["a", "b"], 3) == ["a", "b"] and spread([], 3) == []


COLOURS = [
    ("body_text_color", "body_background_fill"),
    ("body_text_color", "block_background_fill"),
    ("body_text_color", "input_background_fill"),
    ("body_text_color_subdued", "body_background_fill"),
    ("body_text_color_subdued", "block_background_fill"),
    ("block_info_text_color", "block_background_fill"),
    ("block_label_text_color", "block_label_background_fill"),
    ("block_label_text_color", "body_background_fill"),
    ("block_title_text_color", "block_title_background_fill"),
    ("input_placeholder_color", "input_background_fill"),
    *(
        (f"button_{kind}_text_color{state}", f"button_{kind}_background_fill{state}")
        for kind in ("primary", "secondary")
        for state in ("", "_hover")
    ),
    *((f"link_text_color{state}", "body_background_fill") for state in ("", "_active", "_hover", "_visited")),
    ("error_text_color", "error_background_fill"),
]
"""What the theme calls a text's colour and that of the ground it is on."""


def colour(theme: Any, name: str, dark: bool) -> tuple[float, ...]:
    """Red, green and blue in [0, 1] of one of a theme's colours."""
    value = (getattr(theme, f"{name}_dark", None) if dark else None) or getattr(theme, name)
    return colour(theme, value[1:], dark) if value.startswith("*") else to_rgb(value)


def luminance(rgb: tuple[float, ...]) -> float:
    """Relative luminance (WCAG 2.2)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("text", "ground"), COLOURS)
def test_texts_can_be_read_on_their_ground(text: str, ground: str, dark: bool) -> None:
    from hub.space.page import THEME

    low, high = sorted(luminance(colour(THEME, name, dark)) for name in (text, ground))
    assert (high + 0.05) / (low + 0.05) >= 4.5


# What it draws


@pytest.fixture(scope="session")
def plain(tiny_pipeline_dir: Path, adapter_dir: Path) -> Callable[[float | None], np.ndarray]:
    """What a stock pipeline draws by SETTINGS without an adapter (None) or with it at a scale."""

    def draw(scale: float | None) -> np.ndarray:
        pipe = DiffusionPipeline.from_pretrained(tiny_pipeline_dir)
        pipe.scheduler = Backbone.of(pipe).deterministic_sampler()
        pipe.set_progress_bar_config(disable=True)
        if scale is not None:
            pipe.load_lora_weights(adapter_dir, adapter_name="it")
            pipe.set_adapters("it", scale)
        generator = torch.Generator().manual_seed(image_seed(SETTINGS.prompt, SETTINGS.seed))
        return np.asarray(
            pipe(
                SETTINGS.prompt,
                num_inference_steps=SETTINGS.steps,
                guidance_scale=SETTINGS.guidance,
                generator=generator,
            ).images[0]
        )

    return draw


def test_both_images_are_those_of_a_stock_pipeline_bit_for_bit(
    studio: Studio, adapter_dir: Path, plain: Callable[[float | None], np.ndarray]
) -> None:
    studio.load(str(adapter_dir))
    for scale in (1.0, 0.5, 1.5, 0.0):
        drawn = np.asarray(studio.draw(SETTINGS, str(adapter_dir), scale).image)
        assert np.array_equal(drawn, plain(scale)) and np.array_equal(drawn, plain(None)) == (scale == 0), (
            scale
        )
    assert np.array_equal(np.asarray(studio.draw(SETTINGS).image), plain(None))


def test_the_sampler_is_that_of_the_evaluation_whatever_the_base_brings(
    tiny_pipeline_dir: Path, tmp_path: Path, plain: Callable[[float | None], np.ndarray]
) -> None:
    base = load_pipeline(tiny_pipeline_dir)
    base.scheduler = EulerAncestralDiscreteScheduler.from_config(base.scheduler.config)
    base.save_pretrained(tmp_path)
    assert np.array_equal(np.asarray(Studio(tmp_path).draw(SETTINGS).image), plain(None))


def test_no_image_is_drawn_twice(studio: Studio, adapter_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[object] = []
    studio.pipe.unet.register_forward_hook(lambda *given: passes.append(given[0]))
    adapter = str(adapter_dir)
    for scale, expected in [(0.0, 1), (1.0, 2), (1.0, 2), (0.0, 2), (0.3, 3), (1.0, 3)]:
        studio.draw(SETTINGS, adapter, scale)
        assert (studio.drawn, len(passes)) == (expected, expected * SETTINGS.steps)
    studio.draw(Settings("a cat", 4, 4, 5.0))
    assert studio.drawn == 4
    monkeypatch.setattr(studio_module, "KEPT_IMAGES", 2)
    studio.draw(Settings("a cat", 5, 4, 5.0))
    studio.draw(Settings("a cat", 4, 4, 5.0))
    assert studio.drawn == 5
    studio.draw(SETTINGS)
    assert studio.drawn == 6


def test_steps_are_told_as_they_are_done(studio: Studio, adapter_dir: Path) -> None:
    told: list[int] = []
    studio.draw(SETTINGS, str(adapter_dir), 1.0, told.append)
    assert told == [1, 2, 3, 4]


def test_another_adapter_takes_the_place_of_the_first_and_the_base_stays_itself(
    studio: Studio,
    adapter_dir: Path,
    train: Callable[..., UNet2DConditionModel],
    tmp_path: Path,
    plain: Callable[[float | None], np.ndarray],
) -> None:
    other = str(save_adapter(tmp_path, train(r=2, lora_alpha=2, target_modules=["conv1", "to_q"])).parent)
    first = studio.draw(SETTINGS, str(adapter_dir), 1.0).image
    second = studio.draw(SETTINGS, other, 1.0).image
    assert np.array_equal(np.asarray(first), plain(1.0)) and not np.array_equal(
        np.asarray(second), plain(1.0)
    )
    assert np.array_equal(np.asarray(studio.draw(SETTINGS).image), plain(None))
    assert np.array_equal(np.asarray(studio.draw(SETTINGS, str(adapter_dir), 1.0).image), plain(1.0))
    assert {name for names in studio.pipe.get_list_adapters().values() for name in names} == {
        studio.loaded.name
    }


def test_an_adapter_that_has_been_trained_again_is_loaded_again(
    studio: Studio, adapter_dir: Path, train: Callable[..., UNet2DConditionModel], tmp_path: Path
) -> None:
    unet = train(r=2, lora_alpha=2, target_modules=["to_q"])
    path = save_adapter(tmp_path, unet)
    before = studio.load(str(tmp_path)), studio.loaded, studio.draw(SETTINGS, str(tmp_path), 1.0).image
    assert studio.load(str(tmp_path)) == path and studio.loaded == before[1]
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data *= -2
    save_adapter(tmp_path, unet)
    studio.load(str(tmp_path))
    assert not np.array_equal(
        np.asarray(studio.draw(SETTINGS, str(tmp_path), 1.0).image), np.asarray(before[2])
    )


def test_what_cannot_be_drawn_is_a_sentence_and_leaves_the_adapter_before(
    studio: Studio, adapter_dir: Path, wide_pipeline_dir: Path, canvas_adapter_dir: Path, tmp_path: Path
) -> None:
    studio.load(str(adapter_dir))
    loaded = studio.loaded
    for adapter, fault, named in [
        (str(canvas_adapter_dir), UnfitAdapter, "bundled canvas"),
        (str(tmp_path), NoAdapter, str(tmp_path)),
        (str(tmp_path / "absent"), CheckpointError, str(tmp_path / "absent")),
    ]:
        with pytest.raises(fault, match=named):
            studio.draw(SETTINGS, adapter, 1.0)
        assert studio.loaded == loaded and len(studio.pipe.get_list_adapters()["unet"]) == 1
    with pytest.raises(ValueError, match=r"\b202\b.*\b32\b"):
        studio.draw(Settings("cat " * 100, 0, 1, 1.0))


def test_an_image_that_the_safety_checker_takes_away_is_named(
    tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=small, vision_config=small, projection_dim=8)
    )
    base = load_pipeline(tiny_pipeline_dir)
    for weight, withheld in [(2.0, False), (-2.0, True)]:
        checker.concept_embeds_weights.data.fill_(weight)
        checker.special_care_embeds_weights.data.fill_(weight)
        base.register_modules(safety_checker=checker, feature_extractor=CLIPImageProcessor())
        base.save_pretrained(tmp_path / str(weight))
        drawing = Studio(tmp_path / str(weight)).draw(SETTINGS)
        assert drawing.withheld == withheld == (not np.asarray(drawing.image).any())


# The page, served


@pytest.fixture(scope="module")
def page(canvas_adapter_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page of an adapter of the bundled pipeline, as `python -m hub space` opens it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
        "HF_HUB_OFFLINE": "1"
    }
    with serve(
        ["hub", "space", "--adapter", str(canvas_adapter_dir)],
        tmp_path_factory.mktemp("page") / "server",
        environment,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def drawn(page: Server) -> tuple[str, ...]:
    """What the page says when it has drawn no image, one or two. It is asked once the page is served, which
    must not inherit what an import of Gradio sets."""
    from hub.space.page import DRAWN

    return DRAWN


def test_a_generation_and_a_slider_move_over_http(
    page: Server, drawn: tuple[str, ...], canvas_adapter_dir: Path
) -> None:
    prompt, adapter = "a cat image in Van Gogh style", str(canvas_adapter_dir)
    base_alone, both = page.draw(adapter, prompt, 1.0, 7, 6, 7.5)
    assert both[2] == f"Scale 1, seed 7. {drawn[2]}"
    moved = page.draw(adapter, prompt, 0.4, 7, 6, 7.5)[-1]
    assert moved[2] == f"Scale 0.4, seed 7. {drawn[1]}"
    none = page.draw(adapter, prompt, 0.0, 7, 6, 7.5)[-1]
    assert none[2] == f"Scale 0, seed 7. {drawn[0]}"
    base = pixels(both[0])
    assert all(np.array_equal(base, pixels(path)) for path in (base_alone[0], moved[0], none[0], none[1]))
    assert not np.array_equal(base, pixels(both[1])) and not np.array_equal(pixels(both[1]), pixels(moved[1]))
    studio = Studio(canvas.PIPELINE)
    assert np.array_equal(base, np.asarray(studio.draw(Settings(prompt, 7, 6, 7.5)).image))
    nothing, status = page.draw("", prompt, 1.0, 7, 6, 7.5)[-1][1:]
    assert nothing is None and status and not any(text in status for text in drawn)


def test_an_image_that_is_at_hand_is_not_written_again_while_it_may_be_fetched(
    page: Server, drawn: tuple[str, ...], canvas_adapter_dir: Path
) -> None:
    asked = (str(canvas_adapter_dir), "a cat image in Van Gogh style", 1.0, 3, 2, 7.5)
    fetched = {Path(image).read_bytes() for image in page.draw(*asked)[-1][:2]}
    served = [path for path in page.log.parent.rglob("gradio/*/*.png") if path.read_bytes() in fetched]
    assert len(served) == len(fetched) == 2
    for path in served:
        path.write_bytes(path.read_bytes() + b"untouched")
    again = page.draw(*asked)[-1]
    assert drawn[0] in again[2] and all(
        Path(image).read_bytes().endswith(b"untouched") for image in again[:2]
    )


def test_a_visitor_who_errs_reads_a_sentence_and_the_log_has_no_traceback(
    page: Server, canvas_adapter_dir: Path, adapter_dir: Path
) -> None:
    adapter = str(canvas_adapter_dir)
    for given, message in [
        ((adapter, " ", 1.0, 0, 2, 1.0), "prompt"),
        ((adapter, "cat " * 100, 1.0, 0, 2, 1.0), r"\b202\b.*\b32\b"),
        (("/<b>absent</b>", "a cat", 1.0, 0, 2, 1.0), "/&lt;b&gt;absent&lt;/b&gt;"),
        ((str(adapter_dir), "a cat", 1.0, 0, 2, 1.0), str(adapter_dir)),
        ((adapter, "a cat", 1.0, None, 2, 1.0), r"seed.*\b0\b.*\b4294967295\b"),
    ]:
        with pytest.raises(AppError, match=message):
            page.draw(*given)
    assert "Traceback" not in page.log.read_text() and "Error" not in page.log.read_text()


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here (on Debian: apt-get install chromium)")
def test_a_generation_and_a_slider_move_in_a_browser(
    page: Server, drawn: tuple[str, ...], tmp_path: Path
) -> None:
    images = "[...document.querySelectorAll('#before img, #after img')].map(image => image.src)"
    status = "document.querySelector('#status').innerText"
    with Chromium(tmp_path / "profile") as browser:
        browser.open(page.address)
        browser.wait_for("document.querySelector('#draw')")
        assert browser.evaluate("document.querySelector('h1').innerText") == "Van Gogh style, erased"
        assert (
            browser.evaluate("document.querySelector('#prompt textarea').value")
            == "a house image in Van Gogh style"
        )
        browser.wait_for(f"{status}.startsWith('Scale 1, seed 0. {drawn[2]}') && {images}.length == 2")
        base, erased = browser.evaluate(images)  # drawn without being asked

        browser.click("#draw")
        browser.wait_for(f"{status}.includes('{drawn[0]}')")

        left, top, width, height = browser.rectangle("#scale input[type=range]")
        browser.drag((left + width * 2 / 3, top + height / 2), (left + width / 3, top + height / 2))
        browser.wait_for(f"{status}.includes('{drawn[1]}')")
        assert browser.evaluate(status).startswith("Scale 0.5, seed 0.")
        browser.wait_for(f"{images}[1] != {erased!r}")
        same_base, half_erased = browser.evaluate(images)
        assert same_base == base and len({base, erased, half_erased}) == 3

        browser.evaluate(
            "[...document.querySelectorAll('button')].find(it => it.innerText == 'a tree image in Neon style').click()"
        )
        browser.wait_for(f"{status}.includes('{drawn[2]}') && {images}[0] != {base!r}")
        assert (
            browser.evaluate("document.querySelector('#prompt textarea').value")
            == "a tree image in Neon style"
        )

        left, top, width, height = browser.rectangle("#before img")
        browser.wait_for(
            "[...document.querySelectorAll('#before img, #after img')].every(image => image.complete)"
        )
        browser.screenshot(tmp_path / "page.png")
        shown = browser.evaluate(images)[0]
        requested, complaints = browser.requested(), browser.complaints()
    assert complaints == []
    assert len(requested) > 20 and all(address.startswith(page.address) for address in requested)
    with Image.open(tmp_path / "page.png") as screen:
        assert screen.size == (1280, 1000)
        column, row = round(left + width / 2), round(top + height / 2)
        seen = np.asarray(
            screen.convert("RGB").crop((column - 100, row - 100, column + 100, row + 100)), dtype=float
        )
    drawn = pixels(next(page.log.parent.glob(f"gradio/{shown.split('/')[-2]}/*.png")))
    smooth = Image.fromarray(drawn).resize((round(width), round(height)), Image.Resampling.BILINEAR)
    middle = np.asarray(smooth)[round(height) // 2 - 100 :, round(width) // 2 - 100 :][:200, :200]
    assert drawn.shape == (32, 32, 3) and width == height > 384
    assert np.abs(seen - middle).mean() < 4 and np.abs(np.diff(seen, axis=0)).max() < 64


def test_a_page_asks_nobody_outside(page: Server) -> None:
    assert page.address.rstrip("/") in page.log.read_text() and "ASKED OUTSIDE" not in page.log.read_text()


# The command


def test_without_gradio_the_command_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hub.space.page", raising=False)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[space\]'"):
        main(parse_config(["space"]))


def test_what_cannot_be_opened_is_a_sentence(
    adapter_dir: Path, wide_pipeline_dir: Path, tmp_path: Path
) -> None:
    for arguments, fault, named in [
        (["--adapter", tmp_path], NoAdapter, str(tmp_path)),
        (["--adapter", tmp_path / "absent"], CheckpointError, str(tmp_path / "absent")),
        (["--adapter", adapter_dir], ValueError, "--pretrained_model_name_or_path"),
        (
            ["--adapter", adapter_dir, "--pretrained_model_name_or_path", wide_pipeline_dir],
            UnfitAdapter,
            str(adapter_dir),
        ),
        (["--pretrained_model_name_or_path", tmp_path], ValueError, r"model_index\.json"),
    ]:
        with pytest.raises(fault, match=named):
            main(parse_config(["space", *map(str, arguments)]))


def test_a_port_that_is_taken_is_a_sentence(tiny_pipeline_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(ValueError, match="--port"):
            main(
                parse_config(
                    ["space", "--pretrained_model_name_or_path", str(tiny_pipeline_dir), "--port", port]
                )
            )
