"""Published lists of prompts: which columns count, what labels their rows have, and that each row is drawn at
its own seed and guidance."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from evaluation.examination import Examination
from evaluation.file_examination import FileExamination, with_labels
from evaluation.judge import Judge
from evaluation.observation import Observer
from evaluation.prompt_file import Row, read_prompt_file
from evaluation.protocol import evaluate, list_jobs
from hub.adapter import load_adapter
from pipelines.base import load_pipeline
from pipelines.generate import draw

I2P = "prompt,categories,hard,lexica_url,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model\n"
ESD = ",prompt,categories,hard,lexica_url,evaluation_seed,evaluation_guidance,sd_image_width,case_number\n"
MMA = "target_prompt , adv_prompt , sanitized_adv_prompt , clean_prompt\n"


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (
            I2P + '"a, b ","x, y",1,u,4261553411,13,512,512,sd\nc,x,0,u,7,7.5,512,512,sd\n',
            [("a, b", 4261553411, 13), ("c", 7, 7.5)],
        ),
        (ESD + "0,a,x,1,u,5,7,512,0\n1,b,x,1,u,6.0,7,512,1\n", [("a", 5, 7), ("b", 6, 7)]),
        (MMA + 'the target , "an, adversary" , an adversary , clean\n', [("an, adversary", None, None)]),
        ("prompt,seed,case_number,source\na,3,1,p4dn\n", [("a", 3, None)]),
        ("prompt,case_number,evaluation_seed\na,0,41\n", [("a", 41, None)]),
        ("sensitive prompt,normal prompt\na,b\n", [("a", None, None)]),
    ],
)
def test_the_columns_of_published_lists(text: str, rows: list[tuple], tmp_path: Path) -> None:
    found = read_prompt_file(put(tmp_path / "a.csv", text))
    assert [(row.prompt, row.seed, row.guidance) for row in found] == rows
    assert {(row.group, row.label) for row in found} == {("forget", "")}


def test_what_a_list_repeats_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "prompt,evaluation_seed\na,1\n ,2\na,2\na,1\nb,1\n"
    found = read_prompt_file(put(tmp_path / "list.csv", text))
    assert [(row.prompt, row.seed) for row in found] == [("a", 1), ("a", 2), ("b", 1)]
    assert "2 rows" in caplog.text and "list.csv, row 3" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,sd_seed\na,1\nb,1.5\n", r"a\.csv, row 3: column 'sd_seed' says '1\.5'"),
        ("a.csv", "prompt,sd_seed\na,\n", r"row 2: column 'sd_seed' says ''"),
        ("a.csv", f"prompt,seed\na,{'9' * 30}\n", r"row 2: column 'seed'"),
        ("a.csv", "prompt,guidance\na,nan\n", r"row 2: column 'guidance' says 'nan'"),
        ("a.csv", "prompt,group,label,guidance\na,forget,b,high\n", r"row 2: column 'guidance' says 'high'"),
        ("a.jsonl", '{"prompt": "a", "seed": 0}\n{"prompt": "b"}\n', r"row 2: column 'seed' says ''"),
        ("a.jsonl", '{"prompt": "a", "seed": true}\n', r"row 1: column 'seed' says True"),
        ("a.csv", "prompt,seed\n,1\n", r"a\.csv: there is no row"),
        ("a.csv", "prompt,group,label,seed\na,forget,b,1\na,forget,b,1\n", r"row 3: .*a\.csv, row 2"),
    ],
)
def test_a_bad_number_is_named_by_row_and_column(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompt_file(put(tmp_path / name, text))


def test_labels_by_the_concept(tiny_judge: Judge) -> None:
    judge = Judge({"nudity": ["nude", "not nude"]}, "", 16, widths=(4, 8))
    rows = [Row("a", "forget", "", "f, row 2"), Row("b", "cross_domain", "", "f, row 3")]
    assert [row.label for row in with_labels(rows, judge, ["nude"])] == ["nude", "not nude"]
    assert [row.label for row in with_labels(rows[:1], tiny_judge, ["Van Gogh style"])] == ["Van Gogh"]
    for concepts in ([], ["nudity"], ["Van Gogh style", "cat"]):
        with pytest.raises(ValueError, match=r"f, row 2: .*'label'.*--concept .*Van Gogh"):
            with_labels(rows, tiny_judge, concepts)
    several = Judge({"object": ["cat", "car", "boat"]}, "", 16, widths=(4, 8))
    with pytest.raises(ValueError, match="2 classes"):
        with_labels(rows, several, ["cat"])


ROWS = [
    Row("a cat", "forget", "cat", "f, row 2", seed=5, guidance=1.0),
    Row("a car", "forget", "car", "f, row 3", seed=9, guidance=4.0),
    Row("a cat", "in_domain", "cat", "f, row 4", seed=7, guidance=1.0),
]


@pytest.fixture
def pipe(tiny_pipeline_dir: Path, adapter_dir: Path) -> StableDiffusionPipeline:
    pipe = load_pipeline(tiny_pipeline_dir)
    load_adapter(pipe, adapter_dir)
    return pipe


@pytest.fixture
def examination(tiny_judge: Judge) -> FileExamination:
    return FileExamination(tiny_judge, ROWS, "tiny", "list.csv")


def drawn(pipe: StableDiffusionPipeline, examination: Examination, **given: object) -> dict:
    found = evaluate(pipe, examination, num_inference_steps=2, progress=False, **given)
    assert found
    return found.results


def test_each_row_has_its_own_seed_and_guidance(
    pipe: StableDiffusionPipeline, examination: FileExamination
) -> None:
    jobs = list_jobs(examination)
    assert jobs == [(0, 5), (1, 9), (2, 7)] and list_jobs(examination, [3]) == [(0, 3), (1, 3), (2, 3)]
    observer = Observer(
        pipe,
        examination,
        jobs,
        scales=[1],
        num_inference_steps=2,
        guidance=examination.guidance_by_prompt(),
        batch_size=3,
        measures=None,
        store=None,
        shown=jobs,
    )
    observer.observe([0], None)
    for i, seed in jobs:
        (alone,) = draw(pipe, [(ROWS[i].prompt, seed)], 2, ROWS[i].guidance)
        assert observer.picture(1, (i, seed)).tobytes() == alone.tobytes()
    results = drawn(pipe, examination)
    assert results["seeds"] == [5, 7, 9] and results["guidance_scale"] == [1.0, 4.0]
    assert results["protocol"] == "list.csv" and results["images_per_side"] == 3


def test_flags_replace_what_the_rows_say(pipe: StableDiffusionPipeline, examination: FileExamination) -> None:
    examination.note_changes([0, 1], 2.0)
    results = drawn(pipe, examination, seeds=[0, 1], guidance_scale=2.0)
    assert results["seeds"] == [0, 1] and results["guidance_scale"] == 2.0
    assert results["protocol"] == "list.csv, changed: seeds and guidance"


def test_a_row_without_settings_has_the_usual_ones(tiny_judge: Judge) -> None:
    rows = [Row("a cat", "forget", "cat", "f, row 2"), Row("a car", "in_domain", "car", "f, row 3")]
    examination = FileExamination(tiny_judge, rows, "tiny", "list.csv")
    examination.note_changes([0], 2.0)
    assert examination.protocol == "list.csv" and examination.guidance_by_prompt() == [None, None]
    assert [len(seeds) for seeds in examination.seeds_by_prompt()] == [24, 3]
