from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from PIL import Image

from benchmarks.baselines.__main__ import parse_config as parse_baseline
from benchmarks.compare import published
from benchmarks.compare.__main__ import main, parse_config
from benchmarks.compare.grid import draw_rows
from benchmarks.compare.methods import BASE, NAMES, command
from benchmarks.compare.probes import sections
from benchmarks.compare.tables import metrics, plot, table
from evaluation.judge import Judge
from hub.adapter import save_adapter
from pipelines.base import load_pipeline
from training.config import parse_config as parse_run


def run(method: str, concept: str, ua: float, ira: float, cra: float, **more: Any) -> dict[str, Any]:
    side = {
        "UA": ua,
        "IRA": ira,
        "CRA": cra,
        "CRA_retained": 1.0,
        "CRA_forgotten": 2.0,
        "ci95": {"UA": None},
        "per_seed": {},
        "per_class": {},
    }
    training = {
        "iterations": 9,
        "images": 500,
        "unet_samples": 9000,
        "seconds": 60.0,
        "peak_memory_mb": 1234.5,
    }
    return {
        "method": method,
        "concept": concept,
        "seed": 0,
        "adapter_mb": 0.25,
        "targets": {"style" if "style" in concept else "object": [concept]},
        "base": side | {"UA": 0.0, "IRA": 100.0, "CRA": 98.0},
        "adapter": side,
        "training": training,
    } | more


def cells(text: str, row: str) -> dict[str, str]:
    """A row of a Markdown table by its header."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return dict(zip(lines[0], next(line for line in lines if line[0] == row), strict=True))


def test_the_table_gives_means_and_intervals_and_marks_what_is_best() -> None:
    runs = [run("ours", "Neon style", ua, 99.0, 97.0) for ua in (96.0, 98.0, 100.0)] + [
        run("uce", "Neon style", 90.0, 99.0, 96.0)
    ]
    text = table([*runs, run("ours", "cat", 100.0, 90.0, 80.0), run("uce", "cat", 50.0, 100.0, 99.0)])
    ours, peer, base = cells(text, "ours"), cells(text, "UCE"), cells(text, "none (the base)")
    # t(0.975, 2 degrees) = 4.303; the standard deviation of 96, 98, 100 is 2: 98 ± 4.303 * 2 / sqrt(3), which
    # is 5.0, within 100
    assert (
        ours["style UA"] == "**98.0 [93.0, 100.0]**"
        and ours["style IRA"] == "**99.0 [99.0, 99.0]**"
        and peer["style IRA"] == "**99.0**"
    )
    assert ours["style mean"] == "**98.0 [96.3, 99.7]**" and peer["style mean"] == "95.0"
    assert (
        ours["object mean"] == "**90.0**"
        and peer["object mean"] == "83.0"
        and peer["object CRA"] == "**99.0**"
    )
    assert base["style UA"] == "0.0" and base["object CRA"] == "98.0" and base["seconds"] == "–"
    assert ours["seconds"] == "60" and ours["peak memory, MB"] == "1234" and ours["adapter, MB"] == "0.25"


def test_what_was_measured_gets_a_column_and_what_was_not_gets_none() -> None:
    known = run("ours", "cat", 100.0, 90.0, 80.0)
    known["adapter"] = known["adapter"] | {
        "measures": {"FID": {"mean": 12.34, "ci95": [1.0, 20.0]}},
        "NRA": 50.0,
        "changed_images": 3.0,
    }
    assert metrics(known, "adapter") == {
        "UA": 100.0,
        "IRA": 90.0,
        "CRA": 80.0,
        "mean": 90.0,
        "NRA": 50.0,
        "FID": 12.34,
    }
    without = run("uce", "cat", 100.0, 90.0, 80.0, training={"seconds": 1.0})
    text = table([known, without])
    assert (
        cells(text, "ours")["object FID"] == "12.34"
        and cells(text, "UCE")["object FID"] == "–"
        and cells(text, "UCE")["UNet samples"] == "–"
    )
    assert (
        cells(text, "ours")["object NRA"] == "**50.0**"
        and "style" not in text
        and "FID" not in table([run("ours", "cat", 1.0, 2.0, 3.0)])
    )


def test_runs_that_agree_are_no_surer_than_their_images() -> None:
    runs = [run("ours", "cat", 100.0, 90.0, 80.0), run("ours", "boat", 100.0, 90.0, 80.0)]
    for found in runs:
        found["adapter"] = found["adapter"] | {"images": {"UA": 24, "IRA": 168, "CRA": 192}}
    assert (
        cells(table(runs), "ours")["object UA"] == "**100.0 [92.6, 100.0]**"
    )  # Wilson: 48 of 48 images; 1 / (1 + 1.96^2 / 48)


def test_a_judge_of_one_domain_has_no_cross_domain_figure(tmp_path: Path) -> None:
    runs = [run("ours", "cat", 100.0, 90.0, 80.0), run("uce", "cat", 90.0, 90.0, 80.0)]
    for found in runs:
        for side in ("base", "adapter"):
            found[side] = found[side] | {"CRA": None}
    assert metrics(runs[0], "adapter") == {"UA": 100.0, "IRA": 90.0, "mean": 95.0} and "CRA" not in table(
        runs
    )
    plot(runs, tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").height > 300


def test_published_figures_stand_apart_and_name_their_source() -> None:
    text = published.table()
    assert (
        cells(text, "ESD")["object IRA"] == "55.78"
        and cells(text, "UCE")["style CRA"] == "47.71"
        and "https://" in text
    )
    assert all(len(row) == len(published.COLUMNS) for row in published.PUBLISHED.values())


OURS_AND_ABLATED = {
    "ours": ("pathwise", 1, 5),
    "reward": ("pathwise", 0, 5),
    "anchors": ("ddpo", 1, 0),
    "ddpo": ("ddpo", 0, 5),
}
"""Advantage, weight of the KL to the anchors, and the bound of the advantages: none are left at 0."""


@pytest.mark.parametrize("method", NAMES)
def test_every_method_has_a_command_that_its_program_understands(method: str) -> None:
    program, *given = command(method, "cat", 1, "somewhere")
    if program == "-m":
        baseline = parse_baseline(given[1:])
        assert given[0] == "benchmarks.baselines" and baseline.task.method.method == method
        concept, seed, output = baseline.task.concept.concept, baseline.task.method.seed, baseline.output
        seeds = output.evaluation_seeds
    else:
        config = parse_run(given)
        chosen = (config.credit.advantage, config.update.anchor_kl_coef, config.credit.advantage_clip)
        assert chosen == OURS_AND_ABLATED[method]
        concept, seed, output = config.concept.concept, config.output.seed, config.output
        seeds = config.validation.evaluation_seeds
    assert (concept, seed, output.output_dir) == (("cat",), 1, Path("somewhere"))
    assert seeds == () and output.overwrite_output_dir


@pytest.fixture
def finished(
    tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], Path]:
    """Finished runs on a random pipeline, with a random judge of four prompts, in place of the canvas."""
    torch.manual_seed(0)
    Judge(
        {"style": ["Van Gogh", "Neon"], "object": ["cat", "car"]}, "a {object} image in {style} style", 16
    ).save_pretrained(tmp_path / "judge")
    monkeypatch.setattr("canvas.PIPELINE", tiny_pipeline_dir)
    monkeypatch.setattr("canvas.JUDGE", tmp_path / "judge")

    def finish(method: str, name: str) -> Path:
        unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")
        torch.manual_seed(len(method))
        unet.add_adapter(
            LoraConfig(r=8, lora_alpha=40, init_lora_weights=False, target_modules=["to_q", "to_v"])
        )
        directory = tmp_path / "out" / "runs" / f"{method}-{name}-0"
        save_adapter(directory, unet)
        concept = {"cat": "cat", "neon-style": "Neon style"}[name]
        found = run(method, concept, 90.0 + len(method), 99.0, 98.0)
        (directory / "results.json").write_text(json.dumps({"training": found.pop("training")}))
        (directory / "evaluation").mkdir()
        (directory / "evaluation" / "results.json").write_text(json.dumps(found))
        return directory

    return finish


def test_finished_runs_are_compared_and_not_run_again(
    finished: Callable[[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("ours", "uce"):
        for name in ("cat", "neon-style"):
            finished(method, name)
    out = tmp_path / "out"
    given = ["--methods", "ours", "uce", "--concepts", "cat", "Neon style", "--seeds", "0", "--jobs", "1"]
    main(parse_config([*given, "--output_dir", str(out)]))
    assert {p.name for p in out.iterdir()} == {
        "runs",
        "table.md",
        "comparison.json",
        "comparison.png",
        "cat.png",
        "neon-style.png",
    }
    text = (out / "table.md").read_text()
    own, other = text.split("## Published for UnlearnCanvas")
    assert (
        text in capsys.readouterr().out
        and cells(own, "ours")["style UA"] == "**94.0**"
        and cells(own, "UCE")["object UA"] == "93.0"
    )
    assert "98.58" in other and "98.58" not in own
    assert [r["adapter_mb"] > 0 for r in json.loads((out / "comparison.json").read_text())["runs"]] == [
        True
    ] * 4
    assert Image.open(out / "cat.png").width > 300


def test_the_grid_draws_base_and_adapters_from_the_same_noise(
    finished: Callable[[str, str], Path], tiny_pipeline_dir: Path
) -> None:
    pipe, prompts = load_pipeline(tiny_pipeline_dir), ["a cat image in Neon style", "a car"]
    rows = draw_rows(pipe, {"base": None, "ours": finished("ours", "cat"), "again": None}, prompts, [0])
    assert [np.array_equal(a, b) for a, b in zip(rows["base"], rows["again"], strict=True)] == [True, True]
    assert not np.array_equal(rows["base"][0], rows["ours"][0])


def test_a_failed_run_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.compare.runs.command", lambda *_: ["-c", "import sys; print('why'); sys.exit(1 + 2)"]
    )
    given = ["--methods", "uce", "--concepts", "cat", "--seeds", "0", "--jobs", "1"]
    with pytest.raises(RuntimeError, match=r" 3\b.*uce-cat-0\.log"):
        main(parse_config([*given, "--output_dir", str(tmp_path)]))
    assert (tmp_path / "runs" / "uce-cat-0.log").read_text() == "why\n"


def attempt(name: str, adapter: float, base: float | None) -> dict[str, Any]:
    def side(percent: float) -> dict[str, Any]:
        return {"return": percent, "ci95": [0.0, 100.0], "images": 24}

    return {"name": name, "adapter": side(adapter), "base": None if base is None else side(base)}


def test_probes_are_told_concept_by_concept_and_method_by_method() -> None:
    ours = [attempt("reworded", 3.125, None), attempt("unloaded", 100.0, None)]
    peer = [attempt("reworded", 50.0, 96.0), attempt("unloaded", 90.0, None)]
    text = sections({"cat": {"uce": peer, "ours": ours}})
    assert text.startswith("\n\n## Probes: cat\n")
    reworded, unloaded = (
        {k: v.split(" [")[0] for k, v in cells(text, row).items()} for row in ("reworded", "unloaded")
    )
    assert reworded == {"attempt": "reworded", BASE: "96.0", "ours": "3.1", "UCE": "50.0"}
    assert (
        unloaded == {"attempt": "unloaded", BASE: "-", "ours": "100.0", "UCE": "90.0"} and sections({}) == ""
    )


def test_only_what_is_erased_can_be_probed() -> None:
    with pytest.raises(ValueError, match=r"--probe 'dog'.*--concepts\b.*\bcat\b"):
        main(parse_config(["--concepts", "cat", "--probe", "dog"]))


def test_erasures_that_were_probed_stand_in_the_table(
    finished: Callable[[str, str], Path], tmp_path: Path
) -> None:
    for name in ("cat", "neon-style"):
        directory = finished("uce", name) / "probes"
        directory.mkdir()
        report = {
            "probes": {
                "plain": {"rows": [attempt("plain prompts", 4.0, 100.0)]},
                "removal": {"rows": [attempt("fused", 0.0, 98.0)]},
            }
        }
        (directory / "probes.json").write_text(json.dumps(report))
    out = tmp_path / "out"
    given = ["--methods", "uce", "--concepts", "cat", "Neon style", "--probe", "cat", "--seeds", "0"]
    main(parse_config([*given, "--jobs", "1", "--output_dir", str(out)]))
    probed = (out / "table.md").read_text().split("## Probes: cat")[1].split("## Published")[0]
    assert [line.split(" | ")[0] for line in probed.splitlines() if line.startswith("| ")] == [
        "| attempt",
        "| plain prompts",
        "| fused",
    ]
    assert list(json.loads((out / "comparison.json").read_text())["probes"]) == ["cat"]
