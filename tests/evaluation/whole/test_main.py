"""The whole command on a tiny pipeline, and what it says to those who err."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import canvas
from common.errors import friendly_errors
from common.names import public_name
from evaluation.__main__ import main, parse_config
from evaluation.examination import JudgeExamination
from evaluation.judge import Judge
from evaluation.protocol import evaluate
from hub.adapter import UnfitAdapter, load_adapter
from pipelines.base import load_pipeline
from pipelines.generate import adapter_at, draw

QUICK = ["--num_inference_steps", "2", "--seeds", "0", "1"]


def run(adapter: Path, output: Path, *more: str) -> dict:
    main(parse_config(["--adapter", str(adapter), "--output_dir", str(output), *QUICK, *more]))
    return json.loads((output / "results.json").read_text())


@pytest.fixture
def base(tiny_pipeline_dir: Path, tiny_judge_dir: Path) -> list[str]:
    return [
        "--pretrained_model_name_or_path",
        str(tiny_pipeline_dir),
        "--judge_name_or_path",
        str(tiny_judge_dir),
    ]


def test_results_table_and_grid(
    adapter_dir: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(adapter_dir, tmp_path / "out", *base)
    assert results["concept"] == ["Van Gogh style"]  # from the adapter's header
    assert results["seeds"] == [0, 1]
    assert results["judge"] == "tiny-judge"
    assert results["targets"] == {"style": ["Van Gogh"]}
    assert results["images_per_side"] == 8
    assert results["changed_images"] > 0
    assert results["guidance_scale"] == 7.5
    for side in ("base", "adapter"):
        metrics = results[side]
        assert all(0 <= metrics[name] <= 100 for name in ("UA", "IRA", "CRA"))
        for name in ("UA", "IRA", "CRA"):
            low, high = metrics["ci95"][name]
            assert 0 <= low <= metrics[name] <= high <= 100 and low < high
        assert metrics["images"] == {
            "UA": 4,
            "IRA": 4,
            "CRA": 8,
            "CRA_retained": 4,
            "CRA_forgotten": 4,
            "NRA": 0,
        }
        assert set(metrics["per_class"]) == {"style", "object"}
    assert str(tmp_path.parent) not in json.dumps(results)
    printed = capsys.readouterr().out
    assert "adapter" in printed and "tiny-judge" in printed
    assert Image.open(tmp_path / "out" / "before_after.png").width > 400
    assert (tmp_path / "out" / "before_after.png").stat().st_size < 500_000


def test_in_memory_evaluation_finds_the_same(
    adapter_dir: Path, base: list[str], tiny_pipeline_dir: Path, tiny_judge: Judge, tmp_path: Path
) -> None:
    results = run(adapter_dir, tmp_path / "out", *base)
    pipe = load_pipeline(tiny_pipeline_dir)
    load_adapter(pipe, adapter_dir)
    found = evaluate(
        pipe,
        JudgeExamination(tiny_judge, ["Van Gogh"], "tiny-judge"),
        [0, 1],
        num_inference_steps=2,
        batch_size=3,
        progress=False,
    )
    for side in ("base", "adapter"):
        assert {**results[side], "measures": None} == {**found.results[side], "measures": None}
    for key in ("seeds", "judge", "targets", "changed_images", "guidance_scale"):
        assert found.results[key] == results[key]
    assert [pair.forget for pair in found.pairs] == [True, True, False, False]


def test_scale_zero_is_the_base(
    adapter_dir: Path, base: list[str], tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    results = run(adapter_dir, tmp_path / "out", *base, "--scales", "0")
    assert results["changed_images"] == 0 and results["lora_scale"] == 0
    assert results["adapter"] == results["base"]
    pipe = load_pipeline(tiny_pipeline_dir)
    jobs = [("a cat", 0), ("a car", 1)]
    before = draw(pipe, jobs, 2)
    pipe.set_adapters([load_adapter(pipe, adapter_dir)], [0.0])
    assert [image.tobytes() for image in draw(pipe, jobs, 2)] == [image.tobytes() for image in before]
    with adapter_at(pipe, 0):
        assert [image.tobytes() for image in draw(pipe, jobs, 2)] == [image.tobytes() for image in before]


def test_without_an_adapter_the_pipeline_is_judged_as_it_is(
    adapter_dir: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = run(adapter_dir, tmp_path / "with", *base)
    alone = ["--output_dir", str(tmp_path / "alone"), "--concept", *judged["concept"], *base, *QUICK]
    capsys.readouterr()
    main(parse_config(alone))
    results = json.loads((tmp_path / "alone" / "results.json").read_text())
    assert {**results["base"], "measures": None} == {**judged["base"], "measures": None}
    assert results["adapter"] == results["base"] and results["lora_scale"] == 0
    printed = capsys.readouterr().out
    assert "base" in printed and "\nadapter" not in printed
    with pytest.raises(ValueError, match="--scales are weights of an adapter"):
        main(parse_config([*alone, "--scales", "0.5"]))
    with pytest.raises(ValueError, match="name it with --concept"):
        main(parse_config(["--output_dir", str(tmp_path / "none"), *base, *QUICK]))


def test_words_beyond_the_text_window_are_said(
    adapter_dir: Path, base: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "a " * 90 + "cat"
    rows = [
        f"{long},forget,cat",
        "a cat,forget,cat",
        *(f"{'a ' * (80 + i)}car,in_domain,car" for i in range(4)),
    ]
    file = tmp_path / "prompts.csv"
    file.write_text("\n".join(["prompt,group,label", *rows]))
    results = run(adapter_dir, tmp_path / "out", *base, "--protocol", str(file))
    assert results["cut_prompts"].keys() == {row.partition(",")[0] for row in rows if len(row) > 80}
    assert all(end.endswith(("cat", "car")) for end in results["cut_prompts"].values())
    assert "cat' off the end of" in caplog.text and "2 more prompts are cut" in caplog.text


def test_a_sweep_draws_the_base_once_and_shows_the_price(
    adapter_dir: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(adapter_dir, tmp_path / "out", *base, "--scales", "1", "0", "0.5", "1.5")
    assert [side["scale"] for side in results["scales"]] == [0, 0.5, 1, 1.5]
    zero, half, one, more = ({k: v for k, v in side.items() if k != "scale"} for side in results["scales"])
    assert zero == results["base"] and one == results["adapter"] and results["lora_scale"] == 1
    drifts = [side["measures"]["pixel_drift"]["mean"] for side in (half, one, more)]
    assert 0 < drifts[0] < drifts[1] < drifts[2]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == [
        "base",
        "weight-0.5",
        "weight-1",
        "weight-1.5",
    ]
    with Image.open(tmp_path / "out" / "pareto.png") as picture:
        assert min(picture.size) > 300
    printed = capsys.readouterr().out
    assert "weight 0.5" in printed and "weight 1.5" in printed and "weight 0 " not in printed
    # One weight alone gives the same metrics as in the sweep.
    alone = run(adapter_dir, tmp_path / "alone", *base, "--scales", "0.5")
    assert alone["adapter"] == half and "scales" not in alone


def test_an_adapter_that_does_nothing_is_noticed(
    adapter_dir: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = adapter_dir / "pytorch_lora_weights.safetensors"
    save_file({name: 1e-9 * tensor for name, tensor in load_file(path).items()}, path)
    run(adapter_dir, tmp_path / "out", *base, "--concept", "cat")
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("warning: ")]) == 1
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UnfitAdapter, match="lora_B"):
        run(adapter_dir, tmp_path / "none", *base, "--concept", "cat")


def test_distances_to_real_images(adapter_dir: Path, base: list[str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.effect_noise((40, 24), 30.0 + i).save(tmp_path / "photos" / f"{i}.png")
    results = run(adapter_dir, tmp_path / "out", *base, "--reference_images", str(tmp_path / "photos"))
    assert results["measured_by"] == {"features": "tiny-judge, its features", "reference": "photos"}
    distances = {side: results[side]["measures"]["FID"]["mean"] for side in ("base", "adapter")}
    assert distances["base"] > 0 and distances["adapter"] > 0 and distances["base"] != distances["adapter"]


def test_the_same_command_goes_on_and_other_settings_are_refused(
    adapter_dir: Path, base: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = run(adapter_dir, out, *base)
    (out / "results.json").unlink()
    (out / "images" / "base" / "00000-seed1.png").unlink()
    again = run(adapter_dir, out, *base)
    assert {**first, "evaluation_seconds": 0} == {**again, "evaluation_seconds": 0}
    with pytest.raises(ValueError, match=r"guidance_scale\b.*\b7\.5\b.*\b3\.0\b"):
        run(adapter_dir, out, *base, "--guidance_scale", "3")
    assert (
        run(adapter_dir, out, *base, "--guidance_scale", "3", "--overwrite_output_dir")["guidance_scale"] == 3
    )
    tensors = load_file(adapter_dir / "pytorch_lora_weights.safetensors")
    save_file(
        {name: 2 * tensor for name, tensor in tensors.items()},
        adapter_dir / "pytorch_lora_weights.safetensors",
    )
    with pytest.raises(ValueError, match="adapter is"):
        run(adapter_dir, out, *base, "--guidance_scale", "3", "--concept", "cat")


def test_results_beside_the_adapter_go_before_its_header(
    adapter_dir: Path, base: list[str], tmp_path: Path
) -> None:
    (adapter_dir / "results.json").write_text(json.dumps({"concept": "cat"}))
    assert run(adapter_dir, tmp_path / "out", *base)["targets"] == {"object": ["cat"]}


def test_a_clip_judges_where_there_is_no_judge(
    adapter_dir: Path, tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "retain.txt"
    prompts.write_text(
        "# kept\na tree image in Neon style\na car image in Neon style\n\na boat image in Neon style\n"
    )
    clip = ["--clip_model", f"local-dir:{canvas.CLIP}", "--retain_prompts", str(prompts)]
    given = ["--pretrained_model_name_or_path", str(tiny_pipeline_dir), *clip, "--concept", "cat"]
    results = run(adapter_dir, tmp_path / "out", *given)
    assert "not independent" in results["judge"]
    assert results["adapter"]["CRA"] is None
    assert results["prompts"]["retain"] == 3
    assert (
        results["measured_by"]["clip_score"] == "open_clip clip"
        and "clip" in results["measured_by"]["features"]
    )
    assert "not independent" in capsys.readouterr().out
    # Without --seeds the prompts that ask for the concept have 24 images, the others three.
    main(
        parse_config(
            [
                "--adapter",
                str(adapter_dir),
                "--output_dir",
                str(tmp_path / "more"),
                "--num_inference_steps",
                "1",
                *given,
            ]
        )
    )
    more = json.loads((tmp_path / "more" / "results.json").read_text())
    assert more["adapter"]["images"]["UA"] >= 24 and more["adapter"]["images"]["IRA"] == 9
    (adapter_dir / "results.json").write_text(
        json.dumps({"concept": "cat", "settings": {"clip_model": None}})
    )
    assert (
        run(adapter_dir, tmp_path / "own", *given)["measured_by"]["clip_score"]
        == "open_clip clip (the reward's own)"
    )


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop, friendly_errors():
        main(parse_config(arguments))
    return stop.value.code, capsys.readouterr().err


def test_user_errors(
    adapter_dir: Path,
    base: list[str],
    tiny_pipeline_dir: Path,
    wide_pipeline_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full, empty = tmp_path / "full", tmp_path / "empty"
    for directory in (full, empty):
        directory.mkdir()
    (full / "precious.txt").write_text("keep me")
    adapter, output = ["--adapter", str(adapter_dir)], ["--output_dir", str(tmp_path / "new")]
    pipeline = ["--pretrained_model_name_or_path", str(tiny_pipeline_dir)]
    for arguments, message in [
        ([*adapter, *base, "--output_dir", str(full)], f"{full} "),
        ([*adapter, *base, "--output_dir", str(adapter_dir)], "--output_dir"),
        (["--adapter", str(tmp_path / "absent"), *base, *output], str(tmp_path / "absent")),
        (["--adapter", str(empty), *base, *output], "pytorch_lora_weights.safetensors"),
        ([*adapter, *base, *output, "--seeds", "1", "1"], "--seeds"),
        ([*adapter, *base, *output, "--num_inference_steps", "0"], "--num_inference_steps"),
        (
            [*adapter, *base, *output, "--concept", "dragons"],
            "style: Van Gogh, Mosaic; object: cat, car",
        ),
        ([*adapter, *pipeline, *output], "--judge_name_or_path"),
        ([*adapter, *pipeline, *output, "--judge_name_or_path", str(empty)], str(empty)),
        ([*adapter, *base, *output, "--scales", "1", "-11"], "--scales"),
        ([*adapter, *base, *output, "--scales", "1", "nan"], "--scales"),
        (
            [*adapter, *base, *output, "--neighbours", "dragons"],
            "style: Van Gogh, Mosaic; object: cat, car",
        ),
        (
            [*adapter, *base, *output, "--protocol", "absent.csv"],
            "grid, canvas, artwork, unlearncanvas",
        ),
        (
            [*adapter, *base, *output, "--protocol", "unlearncanvas"],
            "--style_classifier",
        ),
        ([*adapter, *base, *output, "--fid_features", "clip"], "--clip_model"),
        (
            [*adapter, *base, *output, "--fid_features", str(full / "precious.txt")],
            str(full / "precious.txt"),
        ),
        ([*adapter, *base, *output, "--reference_images", str(empty)], f"{empty} "),
        ([*adapter, *pipeline, *output, "--judge_name_or_path", "clip"], "--clip_model"),
        (
            [*adapter, *output, *base[2:], "--pretrained_model_name_or_path", str(wide_pipeline_dir)],
            str(adapter_dir),
        ),
        ([*adapter, *output, *base[2:]], "'tiny'"),
        (
            [*adapter, *output, *base[2:], "--pretrained_model_name_or_path", str(empty)],
            "model_index.json",
        ),
    ]:
        code, said = fails(arguments, capsys)
        assert code == 2, message
        assert message in said.splitlines()[-1]
        assert "Traceback" not in said
        if message == "--output_dir":  # what training wrote is not to be written over
            assert "--overwrite_output_dir" not in said
    assert not (tmp_path / "new").exists()
    assert [path.name for path in full.iterdir()] == ["precious.txt"]


def test_names() -> None:
    assert public_name(canvas.PIPELINE) == "bundled canvas"
    assert public_name(canvas.JUDGE) == "bundled canvas judge"
    assert public_name("owner/model") == "owner/model"
    assert public_name("/somewhere/else/judge") == "judge"
