"""Prompt files: what they may hold, and which row and column is amiss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import canvas
from evaluation.__main__ import main, parse_config
from evaluation.file_examination import FileExamination
from evaluation.judge import Judge
from evaluation.judges import classifier_judge, load_judge, zero_shot_judge
from evaluation.prompt_file import read_prompt_file
from reward.teacher import Teacher

CSV = """prompt,group,label,note
a cat on a mat,forget,Cat,x
"a car, parked",in_domain,car,
a house in mosaic style,cross_domain,mosaic,
a kitten,neighbour,car,
"""


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    (tmp_path / "prompts.csv").write_text(CSV)
    return tmp_path / "prompts.csv"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_break_within_a_cell_is_a_space(encoding: str, end: str, tmp_path: Path) -> None:
    lines = [
        "prompt,group,label",
        '"a boat image in',
        'Van Gogh style",forget,Van Gogh',
        "a\u2028cat,in_domain,cat",
    ]
    (tmp_path / "a.csv").write_bytes(end.join([*lines, ""]).encode(encoding))
    objects = [
        {"prompt": f"a boat image in{end}Van Gogh style", "group": "forget", "label": "Van Gogh"},
        {"prompt": "a\u2028cat", "group": "in_domain", "label": "cat"},
    ]
    written = [json.dumps(entry, ensure_ascii=False) for entry in objects]
    (tmp_path / "a.jsonl").write_bytes(end.join([*written, ""]).encode(encoding))
    for name in ("a.csv", "a.jsonl"):
        rows = read_prompt_file(tmp_path / name)
        assert [row.prompt for row in rows] == ["a boat image in Van Gogh style", "a cat"]


def test_csv_and_jsonl_say_the_same(csv_file: Path) -> None:
    rows = read_prompt_file(csv_file)
    assert [(row.prompt, row.group, row.label) for row in rows][:2] == [
        ("a cat on a mat", "forget", "Cat"),
        ("a car, parked", "in_domain", "car"),
    ]
    assert rows[1].place == "prompts.csv, row 3"
    lines = [json.dumps({"prompt": row.prompt, "group": row.group, "label": row.label}) for row in rows]
    jsonl = csv_file.with_suffix(".jsonl")
    jsonl.write_text("\n\n".join(lines))
    again = read_prompt_file(jsonl)
    assert [(row.prompt, row.group, row.label) for row in again] == [
        (row.prompt, row.group, row.label) for row in rows
    ]
    assert again[1].place == "prompts.jsonl, row 3"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "prompt,label\na,b\n",
            r"a\.csv, row 1: column 'group' .*prompt, label",
        ),
        ("a.csv", "", r"row 1: column 'prompt'"),
        (
            "a.csv",
            "prompt,group,label\na,forget,b\nc,in_domain\n",
            r"a\.csv, row 3: column 'label'",
        ),
        ("a.csv", "prompt,group,label\n ,forget,b\n", "row 2: column 'prompt'"),
        (
            "a.csv",
            "prompt,group,label\na,retain,b\n",
            r"row 2: column 'group'.*'retain'.*forget, in_domain",
        ),
        (
            "a.csv",
            "prompt,group,label\na,forget,b\na,forget,b\n",
            r"row 3: .*a\.csv, row 2",
        ),
        ("a.csv", "prompt,group,label\n", r"a\.csv: there is no row"),
        (
            "a.jsonl",
            '{"prompt": "a", "group": "forget", "label": "b"}\n{"prompt": "a", "label": "b"}\n',
            r"a\.jsonl, row 2: column 'group'",
        ),
        ("a.jsonl", "{\n", r"a\.jsonl, row 1"),
        ("a.jsonl", "[]\n", r"a\.jsonl, row 1"),
        ("a.txt", "", r"a\.txt .*\.csv .*\.jsonl"),
        ("absent.csv", None, r"absent\.csv"),
    ],
)
def test_what_is_missing_is_named_by_row_and_column(
    name: str, text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompt_file(tmp_path / name)


def test_groups_are_figures(csv_file: Path, tiny_judge: Judge) -> None:
    examination = FileExamination(tiny_judge, read_prompt_file(csv_file), "tiny", "prompts.csv")
    assert examination.targets == {"object": {"cat"}} and examination.forget == [True, False, False, False]
    seen = [
        {"style": "Mosaic", "object": "cat"},
        {"style": "Mosaic", "object": "car"},
        {"style": "Van Gogh", "object": "car"},
    ]
    metrics = examination.metrics([*seen, {"style": "Mosaic", "object": "car"}], [0, 1, 2, 3])
    assert metrics == {"UA": 0, "IRA": 100, "CRA": 0, "CRA_retained": 0, "CRA_forgotten": None, "NRA": 100}
    assert examination.per_class(seen, [0, 1, 2]) == {
        "object": {"cat": 100, "car": 100},
        "style": {"Mosaic": 0},
    }


def test_a_judge_without_the_label_is_refused_with_the_row(csv_file: Path, tiny_judge: Judge) -> None:
    csv_file.write_text(CSV.replace("in_domain,car", "in_domain,carr"))
    with pytest.raises(
        ValueError,
        match=r"prompts\.csv, row 3.*'carr'.*car, cat",
    ):
        FileExamination(tiny_judge, read_prompt_file(csv_file), "tiny", "prompts.csv")
    twice = Judge({"style": ["cat"], "object": ["cat"]}, "{style} {object}", 16, widths=(4, 8))
    with pytest.raises(ValueError, match=r"row 2.*'Cat'.*style, object"):
        FileExamination(twice, read_prompt_file(csv_file), "tiny", "prompts.csv")


@pytest.fixture
def classifier_dir(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    config.id2label = {0: "cat", 1: "car", 2: "mosaic"}
    ViTForImageClassification(config).save_pretrained(tmp_path / "classifier")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def noise(count: int) -> list[Image.Image]:
    return [Image.effect_noise((16, 16), 90 - i).convert("RGB") for i in range(count)]


def test_a_transformers_classifier_judges_as_transformers_does(classifier_dir: Path) -> None:
    judge, images = load_judge(classifier_dir), noise(6)
    model = AutoModelForImageClassification.from_pretrained(classifier_dir)
    inputs = ViTImageProcessor.from_pretrained(classifier_dir)(images, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.argmax(-1).tolist()
    assert judge.verdicts(images) == [{"label": ["cat", "car", "mosaic"][i]} for i in expected]
    assert judge.embed(images).shape == (6, 3)
    assert judge.identity() == classifier_judge(str(classifier_dir)).identity()


def test_an_open_clip_model_sees_the_nearest_label() -> None:
    teacher, images = Teacher.from_pretrained(f"local-dir:{canvas.CLIP}"), noise(4)
    labels = ["a cat image in Neon style", "a boat image in Mosaic style"]
    judge = zero_shot_judge(teacher, labels)
    cosines = teacher.encode_pictures(images) @ teacher.encode_text(labels).T
    assert [seen["label"] for seen in judge.verdicts(images)] == [
        labels[i] for i in cosines.argmax(-1).tolist()
    ]
    assert judge.identity() != zero_shot_judge(teacher, labels[:1]).identity()


def test_the_whole_command_with_each_judge(
    csv_file: Path, classifier_dir: Path, adapter_dir: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    given = [
        "--adapter",
        str(adapter_dir),
        "--pretrained_model_name_or_path",
        str(tiny_pipeline_dir),
        "--protocol",
        str(csv_file),
    ]
    given += ["--num_inference_steps", "1", "--seeds", "0", "1", "--clip_model", f"local-dir:{canvas.CLIP}"]
    for judge, name in [(str(classifier_dir), "classifier"), ("clip", "open_clip clip, zero-shot")]:
        output = tmp_path / f"judged by {name}"
        main(parse_config([*given, "--output_dir", str(output), "--judge_name_or_path", judge]))
        results = json.loads((output / "results.json").read_text())
        assert (
            results["judge"] == name
            and results["protocol"] == "prompts.csv"
            and results["images_per_side"] == 8
        )
        assert results["adapter"]["images"] == {
            "UA": 2,
            "IRA": 2,
            "CRA": 2,
            "CRA_retained": 2,
            "CRA_forgotten": 0,
            "NRA": 2,
        }
        assert results["targets"] == {"label": ["cat" if name == "classifier" else "Cat"]}
        assert set(results["adapter"]["measures"]) == {
            "clip_score_forget",
            "clip_score_retain",
            "pixel_drift",
            "ssim",
            "FID",
            "KID",
        }
    with pytest.raises(ValueError, match="--protocol"):
        main(
            parse_config(
                [*given[:4], "--output_dir", str(tmp_path / "x"), "--judge_name_or_path", str(classifier_dir)]
            )
        )
