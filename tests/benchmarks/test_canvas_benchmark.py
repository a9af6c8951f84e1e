from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.canvas import CONCEPTS, main, parse_config, summary, table, training, what_to_erase
from benchmarks.jobs import slug
from reward.concept import read_spec


def results(ua: float, ira: float, seconds: float) -> dict:
    side = {"UA": ua, "IRA": ira, "CRA": 99.0, "images": {"UA": 24, "IRA": 168, "CRA": 192}}
    training = {"iterations": 8, "images": 1000, "seconds": seconds, "stopped_by": "the target"}
    return {"base": {"UA": 0.0, "IRA": 98.0, "CRA": 100.0}, "adapter": side, "training": training}


def test_the_table_gives_means_and_intervals_over_seeds() -> None:
    text = table(
        {"cat": summary([results(96.0, 97.0, 90.0), results(100.0, 95.0, 110.0), results(98.0, 96.0, 100.0)])}
    )
    # t(0.975, 2 degrees) = 4.303; the standard deviation of 96, 98, 100 is 2: 98 -+ 4.303 * 2 / sqrt(3) = 98
    # -+ 5.0, but Wilson's interval for 98 % of 3 * 24 images begins at 91.6, and for 99 % of 3 * 192, where
    # all runs agree, it is [97.8, 99.5].
    row = "| cat | 98.0 [91.6, 100.0] | 96.0 [93.5, 98.5] (98.0) | 99.0 [97.8, 99.5] (100.0) |"
    assert text.splitlines()[-1] == f"{row} 8.0 | 1000 | 100 s |"


def test_runs_that_are_done_are_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        directory = tmp_path / f"van-gogh-style-{seed}"
        directory.mkdir()
        (directory / "results.json").write_text(json.dumps(results(100.0, 97.0, 90.0)))
    main(parse_config(["--concepts", "Van Gogh style", "--seeds", "0", "1", "--output_dir", str(tmp_path)]))
    assert "| Van Gogh style | 100.0 [92.6, 100.0] |" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["seeds"] == [0, 1]


@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_specs_written_by_hand_are_specs_of_their_concept(concept: str) -> None:
    spec = read_spec(Path("benchmarks/specs") / f"{slug(concept)}.yaml")
    assert spec.concepts == [concept] and len(spec.forget_prompts) == 8 and len(spec.retain_prompts) == 56
    assert all(len(row) == 1 and row[0] in spec.retain_prompts for row in spec.anchors)


def test_a_concept_is_named_written_or_drawn(tmp_path: Path) -> None:
    def said(*given: str) -> list[str]:
        return what_to_erase("Neon style + cat", parse_config(["--output_dir", str(tmp_path), *given]))

    assert said() == ["--concept", "Neon style", "cat"]
    assert said("--specs", "specs") == ["--reward_spec", "specs/neon-style-cat.yaml"]
    for concept in ("Neon style", "cat"):
        flag, folder = what_to_erase(
            concept, parse_config(["--output_dir", str(tmp_path), "--num_drawings", "3"])
        )
        assert flag == "--concept_images" and len(list(Path(folder).glob("*.png"))) == 3


def test_what_is_passed_on_reaches_the_training_script(tmp_path: Path) -> None:
    config = parse_config(["--output_dir", str(tmp_path)])
    job = training("cat", 1, config, ["--rank", "4"])
    assert job.arguments[0] == "train_unlearn_lora.py" and job.arguments[-2:] == ["--rank", "4"]
    assert job.output == tmp_path / "cat-1" / "results.json"
