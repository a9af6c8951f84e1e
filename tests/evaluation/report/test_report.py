"""The report of a real run: its metrics can be read, it asks nobody for anything, and what users wrote
stays text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import PROGRAM, Chromium
from PIL import Image

import train_unlearn_lora as script
from common.schema import unknown_keys
from evaluation.__main__ import main as evaluate
from evaluation.__main__ import parse_config as parse_evaluation
from evaluation.probes.__main__ import main as probe
from evaluation.probes.__main__ import parse_config as parse_probes
from evaluation.report.__main__ import main, parse_config
from evaluation.report.run import Run
from evaluation.report.sections import provenance
from evaluation.report.svg import Bar, bars, lines
from hub.card import model_card
from hub.results import Probes, Results, read_probes, read_results
from training.config import RunConfig

ATTACK = "<script>alert(1)</script>"


@pytest.fixture
def evaluated(adapter_dir: Path, tiny_pipeline_dir: Path, tiny_judge_dir: Path, tmp_path: Path) -> Path:
    """An evaluation at two weights, and one probe of the same adapter beside it."""
    base = [
        "--pretrained_model_name_or_path",
        str(tiny_pipeline_dir),
        "--judge_name_or_path",
        str(tiny_judge_dir),
        "--num_inference_steps",
        "2",
    ]
    run = tmp_path / "run"
    evaluate(
        parse_evaluation(
            [
                "--adapter",
                str(adapter_dir),
                "--output_dir",
                str(run),
                "--scales",
                "0.5",
                "1",
                "--seeds",
                "0",
                "1",
                *base,
            ]
        )
    )
    probe(
        parse_probes(
            [
                "--adapter",
                str(adapter_dir),
                "--output_dir",
                str(run / "probes"),
                "--probes",
                "removal",
                "--num_images",
                "2",
                *base,
            ]
        )
    )
    return run


def report(run: Path) -> str:
    main(parse_config([str(run)]))
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")
def test_a_browser_reads_it_and_asks_nobody(evaluated: Path, tmp_path: Path) -> None:
    results = json.loads((evaluated / "results.json").read_text())
    results["concept"] = [f"Van Gogh {ATTACK}"]
    results["forget_prompts"] = [f'"><img src="https://example.org/x.png" onerror="alert(1)"> {ATTACK}']
    results["settings"] = {"note": f"</td>{ATTACK}", "hub_token": "hf_secret"}
    results["shown"][0]["prompt"] = ATTACK
    (evaluated / "results.json").write_text(json.dumps(results))
    for read, wanted in ((read_results(evaluated), Results), (read_probes(evaluated / "probes"), Probes)):
        assert read and list(unknown_keys(read, wanted)) == []
    content = report(evaluated)
    assert "<script" not in content and "hf_secret" not in content and str(tmp_path) not in content
    address = (evaluated / "report.html").as_uri()
    with Chromium(tmp_path / "profile") as browser:
        browser.open(address)
        browser.wait_for("document.readyState == 'complete' && document.getElementById('UA')")
        assert (
            browser.evaluate("document.getElementById('UA').textContent")
            == f"{results['adapter']['UA']:.1f} %"
        )
        assert browser.evaluate("document.querySelector('h1').textContent") == f"Erased: Van Gogh {ATTACK}"
        assert browser.evaluate("document.scripts.length") == 0
        assert ATTACK in browser.evaluate("document.querySelector('.grid figcaption').textContent")
        assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        # Eight images of four prompts on either side, and a sample for each attempt.
        assert browser.evaluate("document.querySelectorAll('.grid img').length") == 2 * len(results["shown"])
        assert browser.evaluate("document.querySelectorAll('h2').length") == 8
        cells = browser.evaluate("[...document.querySelectorAll('td')].map(c => c.textContent)")
        assert "unloaded" in cells and "fused into the weights" in cells
        assert browser.complaints() == []
        assert browser.requested() == [address]


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")
def test_on_a_phone_intervals_and_labels_are_whole_and_pictures_are_scrolled(tmp_path: Path) -> None:
    side = {"UA": 97.92, "IRA": 98.81, "ci95": {"UA": [93.5, 99.4], "IRA": [98.6, 100.0]}}
    attempt = {"return": 12.5, "ci95": [3.0, 30.0], "images": 24}
    budget = dict.fromkeys(("images", "steps", "unet_samples", "seconds"), 1000)
    row = {"name": "tried", "adapter": attempt, "base": None, "budget": budget, "prompts": ["a cat"]}
    found = {"concept": "cat", "base": side, "adapter": side, "probes": {"probes": {"try": {"rows": [row]}}}}
    (tmp_path / "results.json").write_text(json.dumps(found))
    Image.new("RGB", (1185, 800)).save(tmp_path / "before_after.png")
    steps = [{"iteration": i, "grad_norm": -1.23456e-5 * (i + 1)} for i in range(3)]
    (tmp_path / "diagnostics.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    report(tmp_path)
    cut = "[...document.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().left < e.ownerSVGElement.getBoundingClientRect().left)"
    lines_of = "[...document.querySelectorAll('.n')].map(e => (r => (r.selectNodeContents(e), new Set([...r.getClientRects()].map(b => b.top)).size))(document.createRange()))"
    with Chromium(tmp_path / "profile", (390, 844)) as browser:
        browser.open((tmp_path / "report.html").as_uri())
        browser.wait_for("document.readyState == 'complete' && document.images.length")
        assert set(browser.evaluate(lines_of)) <= {0, 1}
        assert browser.evaluate(f"{cut}.map(e => e.textContent)") == []
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        shown = "(e => [e.clientWidth, e.parentElement.scrollWidth > e.parentElement.clientWidth])"
        assert browser.evaluate(f"{shown}(document.images[0])") == [960, True]
        assert browser.evaluate(f"{shown}(document.querySelector('svg'))") == [640, True]


def test_pictures_that_the_card_uses_are_made_again(evaluated: Path) -> None:
    for name in ("before_after.png", "pareto.png"):
        (evaluated / name).rename(evaluated / f"old-{name}")
    report(evaluated)
    with (
        Image.open(evaluated / "before_after.png") as made,
        Image.open(evaluated / "old-before_after.png") as old,
    ):
        assert made.tobytes() == old.tobytes()
    assert (evaluated / "pareto.png").is_file()


def test_a_training_run(arguments: Callable[..., RunConfig]) -> None:
    config = arguments()
    script.main(config)
    content = report(config.output.output_dir)
    assert "<h2>Training</h2>" in content and "By timestep" in content and "<h2>Cost</h2>" in content
    run = Run.read(config.output.output_dir)
    assert list(unknown_keys(run.results, Results)) == [] and run.diagnostics
    assert provenance(run) in content and provenance(run).count("<li>") == 3
    assert provenance(replace(run, probes={"judge": "somebody"})).count("<li>") == 2


def test_whatever_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"results\.json.*diagnostics\.jsonl.*probes\.json"):
        Run.read(tmp_path)
    (tmp_path / "diagnostics.jsonl").write_text(
        '{"iteration": 0, "forgotten": 0.5, "grad_norm": null}\n{"iteration": 1, "forgotten": 1.0}\n{"iter'
    )
    assert "<h2>Training</h2>" in report(tmp_path)
    (tmp_path / "diagnostics.jsonl").unlink()
    (tmp_path / "results.json").write_text('{"concept": "cat", "adapter": {"UA": 97.5, "ci95": {"UA": 1.2}}}')
    content = report(tmp_path)
    assert "97.5 %" in content and "<h2>Training</h2>" not in content
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=str(tmp_path / "results.json")):
        Run.read(tmp_path)


def test_a_picture_that_is_none_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"concept": "cat"}')
    (tmp_path / "before_after.png").write_bytes(b"<html>")
    assert "<img" not in report(tmp_path)


def test_charts_say_what_they_show() -> None:
    chart = lines("a <title>", {"one": [(0.0, 1.0), (1.0, 2.0)], "none": []}, "iteration")
    assert "a &lt;title&gt;" in chart and chart.count("<polyline") == 1 and "none" not in chart
    assert lines("nothing", {"none": []}, "iteration") == ""
    assert "<svg" in lines("flat", {"one": [(3.0, 0.0)]}, "iteration")
    chart = bars("t", [Bar("here", 50.0, [40.0, 60.0], 100.0)], ("a", "b"))
    assert "here" in chart and chart.count('class="h"') == 2


def test_the_card_shows_the_probes(tmp_path: Path) -> None:
    found = {"return": 12.5, "ci95": [3.0, 30.0], "images": 24}
    row: dict[str, Any] = {
        "name": f"tried | {ATTACK}",
        "adapter": found,
        "base": None,
        "budget": {"steps": 50, "images": 24},
    }
    redrawn = row | {"name": "redrawn", "budget": {"steps": 0, "images": 24}}
    plain = row | {"name": "plain", "budget": {"steps": 0, "images": 0}}
    probes = {"relearning": {"rows": [row]}, "inpainting": {"rows": [redrawn]}, "plain": {"rows": [plain]}}
    card = str(model_card({"concept": "cat", "probes": {"judge": "somebody", "probes": probes}}, tmp_path))
    assert "12.5 [3.0, 30.0]" in card and "50 steps, 24 images" in card
    said = {line.split(" | ")[0]: line.split(" | ")[-1] for line in card.splitlines() if " | " in line}
    assert said["| redrawn"] == "24 images |" and said["| plain"] == "nothing |"
    assert "<script>" not in card and "tried \\|" in card
    unprobed = str(model_card({"concept": "cat"}, tmp_path))
    assert unprobed.count("\n## ") == card.count("\n## ") - 1
