from __future__ import annotations

from pathlib import Path

import pytest

import canvas
from critic.network import ValueNetwork
from critic.train import main, parse_config


def arguments(pipeline: Path, reward: Path, output_dir: Path, **changes: object) -> list[str]:
    named = {
        "concept": "Van Gogh style",
        "pretrained_model_name_or_path": pipeline,
        "reward_model_name_or_path": reward,
        "clip_model": f"local-dir:{canvas.CLIP}",
        "output_dir": output_dir,
        "num_inference_steps": 3,
        "num_rollouts": 12,
        "max_train_steps": 3,
        "train_states": 8,
    }
    return [part for name, value in (named | changes).items() for part in (f"--{name}", str(value))]


def test_from_a_concept_to_a_checkpoint(
    tiny_pipeline_dir: Path, tiny_reward_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(parse_config(arguments(tiny_pipeline_dir, tiny_reward_dir, tmp_path / "critic")))
    network = ValueNetwork.from_pretrained(tmp_path / "critic")
    assert [network.config[name] for name in ("in_channels", "sample_size", "text_dim", "concepts")] == [
        4,
        8,
        16,
        ["Van Gogh style"],
    ]
    assert network.head[-1].weight.abs().max() > 0  # it was trained: an untrained head is zero
    assert capsys.readouterr().out.count("t=") == 3  # the explained variance of every step


@pytest.mark.parametrize(
    ("changes", "flag"),
    [({"num_rollouts": 5}, "--num_rollouts"), ({"concept": " "}, "--concept"), ({"eta": 0}, "--eta")],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    changes: dict[str, object],
    flag: str,
    tiny_pipeline_dir: Path,
    tiny_reward_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(parse_config(arguments(tiny_pipeline_dir, tiny_reward_dir, tmp_path / "critic", **changes)))
    assert caught.value.code == 2
    assert flag in capsys.readouterr().err
    assert not (tmp_path / "critic").exists()
