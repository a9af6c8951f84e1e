from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import canvas
from evaluation.predictor.__main__ import METRICS, bars, main, means, parse_config
from evaluation.predictor.scorers import (
    BLIND,
    CLEAN,
    NOISY_DECODE,
    OURS,
    X0_ALONE,
    X0_PROMPT,
    Process,
    noisy_decode_scorer,
    x0_scorer,
)
from hub.adapter import save_adapter
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from policy.kernel import ReverseKernel
from policy.lora import add_lora
from policy.policy import Policy
from reward.predictor import RewardPredictor
from reward.teacher import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")


def arguments(pipeline: Path, output_dir: Path, *more: str) -> list[str]:
    return [
        *(
            "--pretrained_model_name_or_path",
            str(pipeline),
            "--clip_model",
            f"local-dir:{canvas.CLIP}",
            "--output_dir",
            str(output_dir),
        ),
        *("--num_latents", "18", "--num_inference_steps", "2", "--eval_batch_size", "8", "--num_images", "8"),
        *("--max_train_steps", "2", "--train_batch_size", "4", "--width", "8", *more),
    ]


def run(*args: Any) -> dict[str, Any]:
    main(parse_config(arguments(*args)))
    return json.loads((args[1] / "reward_predictor.json").read_text())


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    kept = {
        name: {of: found for of, found in scorer.items() if of != "ms_per_latent"}
        for name, scorer in results["scorers"].items()
    }
    return results | {
        "scorers": kept,
        "bars": {bar: found for bar, found in results["bars"].items() if "time" not in bar},
    }


def test_a_predictor_is_proved_against_twins_and_decoders(
    tiny_pipeline_dir: Path, tiny_reward_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(
        tiny_pipeline_dir,
        tmp_path / "a",
        "--reward_model_name_or_path",
        str(tiny_reward_dir),
        "--train_twins",
    )
    assert list(first["scorers"]) == [OURS, BLIND, CLEAN, NOISY_DECODE, X0_PROMPT, X0_ALONE]
    assert first["sets"] == {"latents": 18, "rollouts": 18} and len(first["bars"]) == 10
    for scorer in first["scorers"].values():
        assert scorer["ms_per_latent"] > 0
        for of in first["sets"]:
            timesteps = [int(t) for t in scorer[of]["by_timestep"]]
            assert len(timesteps) == 2 and timesteps == sorted(timesteps, reverse=True)
            assert all(
                0 <= metrics["auc"] <= 1 and -1 <= metrics["spearman"] <= 1
                for metrics in scorer[of]["by_timestep"].values()
            )
    text = (tmp_path / "a" / "reward_predictor.md").read_text()
    assert text in capsys.readouterr().out
    assert all(f"| {name} |" in text for name in first["scorers"]) and re.search(
        r"\*\*rollouts\*\*.*\b18\b", text
    )
    with Image.open(tmp_path / "a" / "reward_predictor.png") as picture:
        assert picture.width > 600
    assert str(tmp_path) not in json.dumps(first)

    blind, clean = (tmp_path / "a" / name for name in ("timestep-blind-twin", "clean-only-twin"))
    assert not RewardPredictor.from_pretrained(blind).config["timestep_conditioning"]
    assert RewardPredictor.from_pretrained(clean).config["origin"]["training"]["noise_levels"] == "clean"
    twins = ["--blind_twin", str(blind), "--clean_twin", str(clean)]
    again = run(
        tiny_pipeline_dir, tmp_path / "b", "--reward_model_name_or_path", str(tiny_reward_dir), *twins
    )
    for name in (OURS, NOISY_DECODE, X0_PROMPT, X0_ALONE):
        assert without_times(again)["scorers"][name] == without_times(first)["scorers"][name]
    with pytest.raises(ValueError, match=f"{tmp_path / 'b'} .*--overwrite_output_dir"):
        run(tiny_pipeline_dir, tmp_path / "b", "--reward_model_name_or_path", str(tiny_reward_dir))


def test_rollouts_can_be_of_a_trained_policy_and_concepts_be_named(
    tiny_pipeline_dir: Path, tiny_reward_dir: Path, tmp_path: Path
) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    torch.manual_seed(0)
    parameters = add_lora(pipe.unet, 2, 2.0, ["to_k", "to_v"])
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_()
    save_adapter(tmp_path / "adapter", pipe.unet)
    given = ["--reward_model_name_or_path", str(tiny_reward_dir), "--concepts", "a cat", "a tree"]
    base, adapted = (
        run(tiny_pipeline_dir, tmp_path / "a", *given),
        run(tiny_pipeline_dir, tmp_path / "b", *given, "--adapter", str(tmp_path / "adapter")),
    )
    assert (
        adapted["adapter"] == "adapter"
        and base["adapter"] is None
        and base["concepts"] == ["a cat", "a tree"]
    )
    assert list(base["scorers"]) == [OURS, NOISY_DECODE, X0_PROMPT, X0_ALONE]
    for name in base["scorers"]:
        assert adapted["scorers"][name]["latents"] == base["scorers"][name]["latents"]
        assert adapted["scorers"][name]["rollouts"] != base["scorers"][name]["rollouts"]


def test_means_are_over_timesteps_and_bars_say_which_are_met() -> None:
    curve = {str(t): dict.fromkeys(METRICS, t / 1000) for t in (900, 600, 500, 100)}
    for pure_noise, everywhere, noisy in ((0, 0.525, 0.75), (1, 0.4, 0.6)):
        found = means(curve, pure_noise)
        assert found["all"] == pytest.approx(dict.fromkeys(METRICS, everywhere)) and found[
            "noisy"
        ] == pytest.approx(dict.fromkeys(METRICS, noisy))

    def scorer(value: float, time: float) -> dict[str, Any]:
        return {
            "latents": {"means": {half: {"auc": value} for half in ("all", "noisy")}},
            "ms_per_latent": time,
        }

    scorers = {
        OURS: scorer(0.9, 1.0),
        BLIND: scorer(0.9, 1.0),
        X0_PROMPT: scorer(0.93, 10.0),
        X0_ALONE: scorer(0.91, 9.0),
    }
    met = {bar: found["met"] for bar, found in bars(scorers, ["latents"]).items()}
    assert list(met.values()) == [False, False, True, True, False] and not any(CLEAN in bar for bar in met)


def test_x0_hat_is_where_the_last_step_goes(tiny_pipeline_dir: Path, teacher: Teacher) -> None:
    """At the last step, without noise, the reverse process ends at its own estimate of the finished
    latent."""
    pipe, prompts = load_pipeline(tiny_pipeline_dir), ["a cat", "a tree"]
    pipe.scheduler.register_to_config(set_alpha_to_one=True)
    kernel = ReverseKernel.from_scheduler(pipe.scheduler, 4, eta=1e-6, min_std=0.0)
    backbone = Backbone.of(pipe)
    table = backbone.prompt_table(prompts)
    policy = Policy(backbone, kernel, table, guidance_scale=3.0, batch_size=3)
    process, rows, x = Process(backbone, policy), torch.tensor([0, 1, 1]), torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        for know_prompt, known, guidance in (
            (True, table.conditioning[rows], 3.0),
            (False, table.negative.expand(3), 1.0),
        ):
            end = replace(policy, guidance_scale=guidance).mean(x, 3, known)
            expected = noisy_decode_scorer(process, teacher)(end, 3, rows)
            torch.testing.assert_close(
                x0_scorer(process, teacher, know_prompt)(x, 3, rows), expected, atol=1e-3, rtol=0
            )


BAD = {
    "no clip": (["--clip_model", ""], "--clip_model"),
    "no predictor": ([], "--reward_model_name_or_path"),
    "no prompts": (["--train_twins"], "--prompts"),
    "one prompt": (["--train_twins", "--prompts", "one.txt"], "--concepts"),
    "other predictor": (["--reward_model_name_or_path", "wide"], "4x16x16 latents, the base has 4x8x8"),
    "seeing twin": (
        ["--reward_model_name_or_path", "fits", "--blind_twin", "fits"],
        "--blind_twin",
    ),
    "noisy twin": (
        ["--reward_model_name_or_path", "fits", "--clean_twin", "fits"],
        "--clean_twin",
    ),
    "no twin": (
        ["--reward_model_name_or_path", "fits", "--blind_twin", "/nowhere/twin"],
        "/nowhere/twin",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(
    case: str,
    tiny_pipeline_dir: Path,
    tiny_reward_dir: Path,
    wide_reward_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "one.txt").write_text("a cat\n")
    known = {"one.txt": str(tmp_path / "one.txt"), "wide": str(wide_reward_dir), "fits": str(tiny_reward_dir)}
    given, says = BAD[case]
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "evaluation.predictor.__main__",
            *arguments(tiny_pipeline_dir, tmp_path / "out", *(known.get(a, a) for a in given)),
        ],
    )
    monkeypatch.delitem(sys.modules, "evaluation.predictor.__main__")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("evaluation.predictor.__main__", run_name="__main__", alter_sys=True)
    assert caught.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and says in error[0]
    assert not (tmp_path / "out" / "reward_predictor.json").exists()


def test_one_concept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--concepts"):
        main(parse_config(["--output_dir", str(tmp_path), "--concepts", "a cat"]))
