"""The script from arguments to files, on random pipelines; what each part does is tested in its own
folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import canvas
import train_unlearn_lora as script
from critic.network import ValueNetwork
from evaluation.judge import Judge
from policy.lora import lora_state
from policy.update import UpdateStats
from training.run_state import AFTER_A_BRAKE

ADAPTER, KOHYA_NAME = "pytorch_lora_weights.safetensors", "pytorch_lora_weights_kohya.safetensors"


def adapter(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / ADAPTER)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def pictures(pipe: DiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    prompts, generator = ["a cat image in Van Gogh style", "a tree"], torch.Generator().manual_seed(0)
    return pipe(prompts, num_inference_steps=3, generator=generator, output_type="np").images


def stock_pipeline(base: Path) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(base)
    # As beneath an adapter: where a weight may need a gradient torch's Linear sums in another order.
    pipe.unet.requires_grad_(False)
    return pipe


def assert_works_in_a_stock_pipeline(base: Path, directory: Path, **file: str) -> None:
    """It loads, changes the pictures, and at scale 0 gives the base's back bit for bit."""
    expected = pictures(stock_pipeline(base))
    pipe = stock_pipeline(base)
    pipe.load_lora_weights(directory, **file)
    (name,) = pipe.get_active_adapters()
    changed = pictures(pipe)
    assert np.isfinite(changed).all() and np.abs(changed - expected).max() > 1e-3
    pipe.set_adapters(name, 0.0)
    assert np.array_equal(pictures(pipe), expected)


def test_the_shipped_canvas_knows_its_own_words_and_asks_for_others_in_general_ones(tmp_path: Path) -> None:
    """With nothing but a concept: the bundled base, reward, CLIP and judge; a concept no judge knows is
    judged by the teacher."""
    known = script.prepare(
        script.parse_args(
            ["--concept", "Van Gogh style", "--output_dir", str(tmp_path / "known"), "--report_to", "none"]
        )
    )
    assert (
        len(known.env.spec.forget_prompts) == 8
        and len(known.env.spec.retain_prompts) == 56
        and not known.env.spec.unnamed
    )
    assert known.examination.name == "bundled canvas judge"
    AcceleratorState._reset_state(reset_partial_state=True)
    unknown = script.prepare(
        script.parse_args(
            ["--concept", "dragon", "--output_dir", str(tmp_path / "unknown"), "--report_to", "none"]
        )
    )
    assert unknown.env.spec.unnamed == ["dragon"] and "a dragon" in unknown.env.spec.forget_prompts
    assert "not independent" in unknown.examination.name


@pytest.mark.parametrize(
    "flag", ["--train_batch_size", "--images_per_iteration", "--warmup_rollouts", "--patience"]
)
def test_counts_must_be_positive(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        script.parse_args(["--concept", "cat", flag, "0"])
    assert caught.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err


# --- a whole run ------------------------------------------------------------------------------------------


def test_a_whole_run_writes_all_that_is_promised(
    arguments: Callable[..., argparse.Namespace], tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    pictures = {"validation_steps": 1, "num_validation_images": 4, "evaluation_seeds": [0, 1]}
    kept = {"checkpointing_steps": 1, "checkpoints_total_limit": 1, "output_kohya_format": True}
    script.main(arguments(**pictures, **kept, gamma=0.5, lora_alpha=5, report_to="tensorboard"))
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} >= {
        ADAPTER,
        "results.json",
        "before_after.png",
        "README.md",
        "critic",
        "previews",
        "logs",
        "checkpoint-2",
    }
    assert not (out / "checkpoint-1").exists()  # --checkpoints_total_limit
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.bin")) and not list(out.rglob("*.pt"))

    results = json.loads((out / "results.json").read_text())
    assert results["concept"] == ["Van Gogh style"] and results["seeds"] == [0, 1]
    for side in ("base", "adapter"):
        assert 0 <= results[side]["UA"] <= 100 and 0 <= results[side]["IRA"] <= 100 and "CRA" in results[side]
    assert "not independent" in results["judge"]  # no judge was named: the teacher, marked as such
    assert (
        results["training"]["iterations"] == 2
        and results["training"]["first_ratio_deviation"] == 0
        and results["training"]["stopped_by"] == "--max_train_iterations"
    )
    assert results["settings"]["rank"] == 2
    for shared in ("results.json", "README.md"):
        text = (out / shared).read_text()
        assert (
            str(tmp_path.parent) not in text
            and str(tiny_pipeline_dir.parent) not in text
            and str(canvas.CLIP) not in text
        )

    with Image.open(out / "before_after.png") as picture:
        assert min(picture.size) > 50
    assert sorted(p.name for p in (out / "previews").iterdir()) == [
        "iteration-0001.png",
        "iteration-0002.png",
    ]
    ValueNetwork.from_pretrained(out / "critic")
    for name in (ADAPTER, KOHYA_NAME):
        with safe_open(out / name, "pt") as file:
            header = file.metadata()
        assert (
            json.loads(header["concept"]) == ["Van Gogh style"]
            and json.loads(header["settings"]) == results["settings"]
        )
        assert json.loads(header["results"])["adapter"] == {
            figure: results["adapter"][figure] for figure in ("UA", "IRA", "CRA", "NRA")
        }
        assert {
            "modelspec.architecture",
            "modelspec.title",
            "modelspec.resolution",
            "modelspec.hash_sha256",
            "versions",
        } <= header.keys()
        assert not any(
            str(tmp_path.parent) in text or str(tiny_pipeline_dir.parent) in text or str(canvas.CLIP) in text
            for text in header.values()
        )
    assert header["ss_network_alpha"] == "5.0"
    assert_works_in_a_stock_pipeline(tiny_pipeline_dir, out)

    events = EventAccumulator(str(next((out / "logs").rglob("events.out.tfevents.*")).parent)).Reload()
    of_rollouts = {"forget_reward", "retain_reward", "forgotten", "replaced"}
    of_updates = {"retain_kl", "explained_variance", "clip_fraction", "grad_norm", "approx_kl", "critic_loss"}
    assert of_rollouts | of_updates <= set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("first_ratio_deviation")] == [0.0, 0.0]
    assert "validation" in events.Tags()["images"]


def test_another_world_works_with_the_same_command(
    arguments: Callable[..., argparse.Namespace],
    wide_pipeline_dir: Path,
    wide_reward_dir: Path,
    tmp_path: Path,
) -> None:
    """4 x 16 x 16 latents and text of width 24; an object this time, and its prompts from files."""
    (tmp_path / "retain").write_text("a tree\na car\n")
    args = arguments(
        pretrained_model_name_or_path=wide_pipeline_dir,
        reward_model_name_or_path=wide_reward_dir,
        concept=["cat", "dragons"],
        retain_prompts=tmp_path / "retain",
        max_train_iterations=1,
        lora_alpha=4,
    )
    script.main(args)
    assert_works_in_a_stock_pipeline(wide_pipeline_dir, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["concept"] == ["cat", "dragons"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_backbone_is_trained_saved_and_loaded_into_its_stock_pipeline(
    precision: str, backbone_dir: Path, arguments: Callable[..., argparse.Namespace], tmp_path: Path
) -> None:
    """Two iterations with a critic, previews and figures, by the same command whatever the base; the file
    for other programs too."""
    args = arguments(
        pretrained_model_name_or_path=backbone_dir,
        mixed_precision=precision,
        gamma=0.5,
        output_kohya_format=True,
        evaluation_seeds=0 if precision == "no" else None,
        num_validation_images=2,
        lora_alpha=3,
    )
    parts = script.prepare(args)
    base = parts.env.pipe
    assert not any(p.requires_grad for name, p in base.unet.named_parameters() if "lora" not in name)
    assert not any(p.requires_grad for module in parts.env.backbone.modules[1:] for p in module.parameters())
    results = script.train(args, *parts)
    assert results["training"]["first_ratio_deviation"] == 0 and results["training"]["iterations"] == 2
    assert results.get("changed_images", 100) > 0 and results["pipeline_class"] == type(base).__name__
    assert {t.dtype for t in adapter(tmp_path / "out").values()} == {torch.float32}
    for name in (ADAPTER, KOHYA_NAME):
        assert_works_in_a_stock_pipeline(backbone_dir, tmp_path / "out", weight_name=name)
    with safe_open(tmp_path / "out" / ADAPTER, "pt") as file:
        header = file.metadata()
    predicted = {"v_prediction": "v"}.get(
        base.scheduler.config.prediction_type, base.scheduler.config.prediction_type
    )
    assert header["modelspec.prediction_type"] == predicted and header["modelspec.resolution"] == "16x16"
    assert (
        ValueNetwork.from_pretrained(tmp_path / "out" / "critic").config["pipeline_class"]
        == type(base).__name__
    )


def test_a_judge_that_is_named_gives_the_figures(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path
) -> None:
    domains = {"style": ["Van Gogh", "Mosaic"], "object": ["cat", "car"]}
    Judge(domains, "a {object} image in {style} style", 16, widths=(4, 8)).save_pretrained(tmp_path / "judge")
    script.main(
        arguments(judge_name_or_path=tmp_path / "judge", evaluation_seeds=False, max_train_iterations=1)
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "teacher" not in results["judge"]
    # Two of its four prompts ask for the concept: 12 images each by default, and three of the others.
    assert results["adapter"]["images"]["UA"] == 24 and results["adapter"]["images"]["IRA"] == 6
    assert all(
        isinstance(results[side][name], float)
        for side in ("base", "adapter")
        for name in ("UA", "IRA", "CRA", "NRA")
    )


def test_no_evaluation_seeds_skip_the_figures_but_not_the_files(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path
) -> None:
    script.main(arguments(max_train_iterations=1))
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        ADAPTER,
        "results.json",
        "before_after.png",
        "README.md",
    }
    assert "base" not in json.loads((tmp_path / "out" / "results.json").read_text())


def test_a_batch_size_that_is_not_given_goes_by_the_latents_and_is_on_record(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path
) -> None:
    script.main(arguments(train_batch_size=False, max_train_iterations=1, num_validation_images=1))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["train_batch_size"] == 64


@pytest.mark.parametrize(("count", "asked", "kept"), [(1, 1, 0), (2, 1, 1), (5, 3, 2)])
def test_a_preview_has_as_many_images_as_it_is_asked_for(
    count: int, asked: int, kept: int, arguments: Callable[..., argparse.Namespace]
) -> None:
    args = arguments(num_validation_images=count)
    shown = script.validation_prompts(args, script.prepare(args).env)
    assert [forget for _, forget in shown] == [True] * asked + [False] * kept


def test_a_run_is_a_function_of_its_seed(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path
) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        script.main(arguments(output_dir=tmp_path / name, seed=seed, max_train_iterations=1))
    assert same(adapter(tmp_path / "first"), adapter(tmp_path / "again"))
    assert not same(adapter(tmp_path / "first"), adapter(tmp_path / "other"))


def test_the_adapter_begins_the_same_whatever_the_critic(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path
) -> None:
    """So that variants of the critic can be compared."""
    critics = (
        {},
        {"critic_type": "timestep_blind"},
        {"critic_model_name_or_path": made_critic(tmp_path / "critic", 4, 8, 16)},
    )
    begun = [lora_state(script.prepare(arguments(gamma=0.5, **critic)).env.pipe.unet) for critic in critics]
    assert all(same(begun[0], other) for other in begun[1:])


OPTIONS = {
    "defaults": {},
    "half precision": {"mixed_precision": "bf16", "gradient_checkpointing": True},
    "pathwise, with a critic": {"gamma": 0.5, "replay_iterations": 1},
    "step": {"advantage": "step"},
    "gae": {"advantage": "gae"},
    "td, blind critic": {"advantage": "td", "critic_type": "timestep_blind"},
    "mc, clean critic": {"advantage": "mc", "critic_type": "clean_only", "reward_signal": "terminal"},
    "ddpo": {"advantage": "ddpo"},
    "replay": {"replay_iterations": 1, "inner_epochs": 2},
    "adaptive KL, no critic": {"retain_kl_target": 1e-3, "critic_type": "none"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_first_ratio_is_exactly_1_in_every_iteration(
    options: dict[str, Any],
    arguments: Callable[..., argparse.Namespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the script as a whole, whatever the objective; batches do not divide the images."""
    seen: list[UpdateStats] = []
    update = script.update_policy

    def recorded(*args: Any, **kwargs: Any) -> UpdateStats:
        seen.append(update(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(script, "update_policy", recorded)
    script.main(arguments(**options))
    assert [(s.first_ratio_deviation, s.first_clip_fraction) for s in seen] == [(0.0, 0.0)] * 2
    assert all(norm > 0 for s in seen for norm in s.grad_norm)
    assert {t.dtype for t in adapter(tmp_path / "out").values()} == {torch.float32}


@pytest.mark.parametrize(
    "options", [{}, {"advantage": "ddpo", "evaluation_seeds": [0, 1], "judge_name_or_path": canvas.JUDGE}]
)
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    options: dict[str, Any],
    arguments: Callable[..., argparse.Namespace],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script.main(arguments(dry_run=True, **options))
    said = capsys.readouterr().out
    assert re.search(r"^To forget +3: \"", said, re.MULTILINE) and re.search(
        r"^To keep +6: \"", said, re.MULTILINE
    )
    assert "12 before training, 9 an iteration" in said and re.search(
        r"^Time .* if it takes all 2 iterations$", said, re.MULTILINE
    )
    assert options == {} or re.search(r"[1-9][0-9]+ in the evaluation", said)
    assert not (tmp_path / "out").exists()


# --- stop and brake -----------------------------------------------------------------------------------------


def test_it_stops_once_the_target_was_held(arguments: Callable[..., argparse.Namespace]) -> None:
    args = arguments(target_unlearning_accuracy=0.0, patience=2, max_train_iterations=9)
    results = script.train(args, *script.prepare(args))
    assert results["training"]["iterations"] == 1 and "last 2 iterations" in results["training"]["stopped_by"]


@pytest.mark.parametrize(
    ("steps", "how"),
    [(1, "--resume_from_checkpoint latest --max_train_iterations 2"), (2, "take --max_train_iterations 2")],
)
def test_out_of_iterations_it_says_what_is_missing_and_how_to_go_on(
    steps: int, how: str, arguments: Callable[..., argparse.Namespace], caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments(target_unlearning_accuracy=1.01, max_train_iterations=1, checkpointing_steps=steps)
    last = script.train(args, *script.prepare(args))["training"]["last_iteration"]
    still, nameless = 100 * (1 - last["forgotten"]), 100 * (last["forgotten"] - last["replaced"])
    assert (
        f"{still:.0f} % of the last images still show the concept, and {nameless:.0f} % nothing that has a name"
        in caplog.text
    )
    assert how in caplog.text and "four times the --learning_rate" in caplog.text


def test_the_brake_returns_to_the_last_good_state(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No KL at all is allowed, so every update is taken back, the next one is smaller, and the adapter
    ends as the identity it began as."""
    args = arguments(max_retain_kl=0.0, max_brakes=1, max_train_iterations=9, cooldown_updates=1)
    results = script.train(args, *script.prepare(args))
    assert results["training"]["brakes"] == 2 and "brake" in results["training"]["stopped_by"]
    assert "the KL to the base on retain prompts rose" in caplog.text
    figures = [json.loads(line) for line in (tmp_path / "out" / "diagnostics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in figures if "learning_rate" in line]
    assert rates == [args.learning_rate, args.learning_rate * AFTER_A_BRAKE]
    assert all(
        t.abs().max() == 0
        for name, t in adapter(tmp_path / "out").items()
        if "lora_B" in name or "lora.up" in name
    )


def test_the_cool_down_settles_at_a_falling_rate_and_draws_nothing(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = script.train(
        args := arguments(output_dir=tmp_path / "warm", learning_rate=4e-3), *script.prepare(args)
    )["training"]
    rates: list[float] = []
    seen: list[UpdateStats] = []
    update = script.update_policy

    def recorded(*args: Any) -> UpdateStats:
        rates.append(args[5].param_groups[0]["lr"])
        seen.append(update(*args))
        return seen[-1]

    monkeypatch.setattr(script, "update_policy", recorded)
    cool = script.train(args := arguments(cooldown_updates=2, learning_rate=4e-3), *script.prepare(args))[
        "training"
    ]
    assert (
        rates == [4e-3, 4e-3, 2e-3, 1e-3] and seen[2].first_ratio_deviation == 0
    )  # its trajectories are the policy's own
    assert cool["images"] == warm["images"] and cool["iterations"] == warm["iterations"] == 2
    assert cool["unet_samples"] == warm["unet_samples"] + seen[2].unet_samples + seen[3].unet_samples
    assert cool["last_iteration"]["cooldown_retain_kl"] == seen[3].retain_kl[-1]
    assert not same(adapter(tmp_path / "warm"), adapter(tmp_path / "out"))


def test_a_cool_down_that_goes_too_far_is_taken_back(
    arguments: Callable[..., argparse.Namespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    script.train(args := arguments(output_dir=tmp_path / "warm"), *script.prepare(args))
    cool_down = script.cool_down

    def wild(*args: Any) -> list[UpdateStats]:
        return [dataclasses.replace(stats, retain_kl=[math.inf]) for stats in cool_down(*args)]

    monkeypatch.setattr(script, "cool_down", wild)
    script.train(args := arguments(cooldown_updates=1), *script.prepare(args))
    assert "The cool-down is taken back: the KL to the base on retain prompts rose to inf" in caplog.text
    assert same(adapter(tmp_path / "warm"), adapter(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_retain_drop": -10.0}, "the retain reward fell"),
        ({"max_step_kl": 0.0}, "moved the policy"),
    ],
)
def test_a_run_that_degenerates_ends_with_what_happened_and_the_flag_to_turn(
    changes: dict[str, float], says: str, arguments: Callable[..., argparse.Namespace], tmp_path: Path
) -> None:
    args = arguments(max_brakes=0, max_train_iterations=9, **changes)
    stopped_by = script.train(args, *script.prepare(args))["training"]["stopped_by"]
    assert "brake" in stopped_by and says in stopped_by and "--" in stopped_by
    assert all(torch.isfinite(t).all() for t in adapter(tmp_path / "out").values())


@pytest.mark.parametrize(("advantage", "drawn"), [("pathwise", 12), ("ddpo", 12), ("step", 12 + 9)])
def test_without_a_critic_the_first_iteration_draws_no_image(
    advantage: str, drawn: int, arguments: Callable[..., argparse.Namespace]
) -> None:
    args = arguments(advantage=advantage, max_train_iterations=1)
    training = script.train(args, *script.prepare(args))["training"]
    assert (
        training["images"] == drawn + 9 and training["first_ratio_deviation"] == 0
    )  # the last 9 are those that say how it came out


# --- checkpoints
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 0.5, "replay_iterations": 2},
        {"advantage": "step", "replay_iterations": 2, "retain_kl_target": 1e-9},
    ],
    ids=["defaults", "critic and replay", "likelihood ratio, replay, adaptive KL"],
)
def test_a_resumed_run_is_the_run_that_was_never_interrupted(
    options: dict[str, Any], arguments: Callable[..., argparse.Namespace], tmp_path: Path
) -> None:
    script.main(arguments(output_dir=tmp_path / "whole", **options))
    script.main(arguments(max_train_iterations=1, checkpointing_steps=1, **options))
    first = adapter(tmp_path / "out")
    script.main(arguments(resume_from_checkpoint="latest", **options))
    assert not same(adapter(tmp_path / "out"), first)
    assert same(adapter(tmp_path / "out"), adapter(tmp_path / "whole"))
    if options:
        assert same(
            load_file(tmp_path / "out" / "critic" / "model.safetensors"),
            load_file(tmp_path / "whole" / "critic" / "model.safetensors"),
        )
    resumed, whole = (
        json.loads((tmp_path / name / "results.json").read_text())["training"] for name in ("out", "whole")
    )
    assert all(
        resumed[key] == whole[key] for key in ("iterations", "images", "unet_samples", "last_iteration")
    )
    lines = [(tmp_path / name / "diagnostics.jsonl").read_text().splitlines() for name in ("out", "whole")]
    assert lines[0] == lines[1] and [json.loads(line)["iteration"] for line in lines[0]] == [0, 1, 2]


@pytest.mark.parametrize(
    "changes",
    [{"lr_scheduler": "linear"}, {"max_retain_kl": 0.0}],
    ids=["a learning rate that falls", "after a brake"],
)
def test_a_killed_run_goes_on_at_its_learning_rate(
    changes: dict[str, Any],
    arguments: Callable[..., argparse.Namespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = changes | {"max_train_iterations": 3}
    script.main(arguments(output_dir=tmp_path / "whole", checkpointing_steps=3, **settings))
    measure = script.measure_policy

    def killed(args: argparse.Namespace, env: Any, iteration: int, *rest: Any) -> Any:
        if iteration == 2:
            raise KeyboardInterrupt
        return measure(args, env, iteration, *rest)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(script, "measure_policy", killed)
        script.main(arguments(checkpointing_steps=1, **settings))
    script.main(arguments(checkpointing_steps=3, resume_from_checkpoint="latest", **settings))
    for name in ("whole", "out"):
        assert (tmp_path / name / "checkpoint-3").is_dir()
    assert same(
        *(load_file(tmp_path / name / "checkpoint-3" / "state.safetensors") for name in ("whole", "out"))
    )


def test_interrupted_while_it_cools_down_it_leaves_the_adapter_and_does_not_evaluate(
    arguments: Callable[..., argparse.Namespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script.main(arguments(output_dir=tmp_path / "whole", cooldown_updates=2))
    cool_down = script.cool_down

    def interrupted(*given: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return cool_down(*given)

    monkeypatch.setattr(script, "cool_down", interrupted)
    with pytest.raises(SystemExit) as caught:
        script.main(arguments(cooldown_updates=2))
    assert caught.value.code == 128 + signal.SIGTERM
    assert f"python -m evaluation --adapter {tmp_path / 'out'}" in capsys.readouterr().err
    assert same(adapter(tmp_path / "out"), adapter(tmp_path / "whole"))
    assert (tmp_path / "whole" / "results.json").exists() and not (tmp_path / "out" / "results.json").exists()


def test_overwriting_a_run_leaves_none_of_its_checkpoints(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path
) -> None:
    """A later --resume_from_checkpoint latest must not find the older run."""
    script.main(arguments(checkpointing_steps=1, checkpoints_total_limit=2))
    script.main(
        arguments(
            checkpointing_steps=1,
            checkpoints_total_limit=2,
            max_train_iterations=1,
            seed=5,
            overwrite_output_dir=True,
        )
    )
    assert [p.name for p in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_critic_that_is_given_is_used(arguments: Callable[..., argparse.Namespace], tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = ValueNetwork(4, 8, 16, width=16, condition_dim=32)
    network.save_pretrained(tmp_path / "critic")
    args = arguments(
        critic_model_name_or_path=tmp_path / "critic", gamma=0.5, max_train_iterations=1, critic_steps=0
    )
    script.main(args)
    used = ValueNetwork.from_pretrained(tmp_path / "out" / "critic")
    assert all(torch.equal(p, q) for p, q in zip(used.parameters(), network.parameters(), strict=True))


# --- bad input
# ------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def made_critic(path: Path, *shape: int, **config: Any) -> Path:
    ValueNetwork(*shape, width=8, condition_dim=16, **config).save_pretrained(path)
    return path


BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "a concept longer than the window": (lambda tmp: {"concept": "extraordinarily " * 40}, "use fewer words"),
    "an empty concept": (lambda tmp: {"concept": ""}, "The concept is empty"),
    "a concept of spaces": (lambda tmp: {"concept": ["cat", "  "]}, "The concept is empty"),
    "a concept of punctuation": (lambda tmp: {"concept": "?!"}, "The concept is empty"),
    "a base that is no pipeline": (lambda tmp: {"pretrained_model_name_or_path": tmp}, "no model_index.json"),
    "a base that is not there": (
        lambda tmp: {"pretrained_model_name_or_path": tmp / "absent" / "base"},
        "could not be loaded",
    ),
    "a base without a CLIP": (lambda tmp: {"clip_model": False}, "--clip_model"),
    "a base without a reward": (lambda tmp: {"reward_model_name_or_path": False}, "python -m reward.train"),
    "a CLIP that is not there": (
        lambda tmp: {"clip_model": f"local-dir:{tmp}/clip"},
        "holds no open_clip model",
    ),
    "a CLIP that is a pickle": (
        lambda tmp: {"clip_model": "ViT-B-32", "clip_pretrained": tmp / "clip.pt"},
        "pickle",
    ),
    "a reward that is not there": (
        lambda tmp: {"reward_model_name_or_path": tmp / "absent" / "reward"},
        "neither a local directory",
    ),
    "a critic for other latents": (
        lambda tmp: {"critic_model_name_or_path": made_critic(tmp / "critic", 4, 16, 16), "gamma": 0.5},
        "critic.train",
    ),
    "a critic for another text encoder": (
        lambda tmp: {"critic_model_name_or_path": made_critic(tmp / "critic", 4, 8, 24), "gamma": 0.5},
        "critic.train",
    ),
    "a critic for another class of base": (
        lambda tmp: {
            "critic_model_name_or_path": made_critic(
                tmp / "critic", 4, 8, 16, pipeline_class="StableDiffusionXLPipeline"
            ),
            "gamma": 0.5,
        },
        "of a StableDiffusionXLPipeline, the base has 4x8x8 latents and texts of width 16 of a StableDiffusionPipeline",
    ),
    "a base in a pickle": (
        lambda tmp: {"pretrained_model_name_or_path": write(tmp / "model.ckpt", "x")},
        "may be a pickle",
    ),
    "a VAE that is not there": (
        lambda tmp: {"pretrained_vae_model_name_or_path": tmp / "absent" / "vae"},
        "could not be loaded",
    ),
    "configs for a base that has its own": (
        lambda tmp: {"config_name_or_path": tmp},
        "--config_name_or_path is for a checkpoint in one file",
    ),
    "a critic that nobody would ask": (
        lambda tmp: {"critic_model_name_or_path": made_critic(tmp / "critic", 4, 8, 16)},
        "--gamma",
    ),
    "a reward without a slope": (lambda tmp: {"terminal_weight": 1.0}, "--terminal_weight"),
    "a prompt file that is not there": (lambda tmp: {"forget_prompts": tmp / "absent.txt"}, "absent.txt"),
    "a prompt file without prompts": (
        lambda tmp: {"retain_prompts": write(tmp / "none.txt", "# nothing\n")},
        "holds no prompt",
    ),
    "a prompt longer than the window": (
        lambda tmp: {"retain_prompts": write(tmp / "long.txt", "word " * 99)},
        "use fewer words",
    ),
    "nothing left to retain": (lambda tmp: {"concept": "image style"}, "--retain_prompts"),
    "a judge that does not know the concept": (
        lambda tmp: {"judge_name_or_path": canvas.JUDGE, "concept": "dragon", "evaluation_seeds": 0},
        "The judge knows no class",
    ),
    "modules that are not there": (
        lambda tmp: {"lora_target_modules": "no_such_module"},
        "--lora_target_modules",
    ),
    "a rank of 0": (lambda tmp: {"rank": 0}, "--rank"),
    "a deterministic sampler": (lambda tmp: {"eta": 0.0}, "eta must be positive"),
    "no step left to train": (lambda tmp: {"masked_steps": 4}, "--masked_steps"),
    "nothing to resume from": (lambda tmp: {"resume_from_checkpoint": "latest"}, "no checkpoint"),
    "an output directory that is a file": (
        lambda tmp: {"output_dir": write(tmp / "file", "mine")},
        "is a file",
    ),
}


@pytest.mark.parametrize(("case", "says"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_writes_nothing(
    case: Callable[[Path], dict[str, Any]],
    says: str,
    arguments: Callable[..., argparse.Namespace],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = arguments(**case(tmp_path))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as caught:
        script.main(args)
    assert caught.value.code in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_reward_for_other_latents_is_refused(
    arguments: Callable[..., argparse.Namespace], wide_reward_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        script.main(arguments(reward_model_name_or_path=wide_reward_dir))
    assert caught.value.code == 2
    assert "4x16x16 latents" in capsys.readouterr().err


def test_a_directory_that_is_not_empty_is_left_alone(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ADAPTER).write_text("an hour's work")
    with pytest.raises(SystemExit) as caught:
        script.main(arguments())
    assert caught.value.code == 2 and "--overwrite_output_dir" in capsys.readouterr().err
    assert (tmp_path / "out" / ADAPTER).read_text() == "an hour's work" and len(
        list((tmp_path / "out").iterdir())
    ) == 1
    script.main(arguments(overwrite_output_dir=True, max_train_iterations=1))
    assert adapter(tmp_path / "out")


def test_a_damaged_checkpoint_is_refused_before_anything_is_written(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(arguments(max_train_iterations=1, checkpointing_steps=1))
    before = (tmp_path / "out" / ADAPTER).read_bytes()
    (tmp_path / "out" / "checkpoint-1" / "state.safetensors").write_bytes(b"half a file")
    with pytest.raises(SystemExit) as caught:
        script.main(arguments(resume_from_checkpoint="latest"))
    assert caught.value.code == 2 and "There is no checkpoint in" in capsys.readouterr().err
    assert (tmp_path / "out" / ADAPTER).read_bytes() == before


def test_a_concept_that_the_base_does_not_draw_is_warned_of_with_the_figure(
    arguments: Callable[..., argparse.Namespace], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pictures of a random base look alike: the teacher cannot find three styles in them."""
    caplog.set_level("INFO")
    missing = 0
    for concept in ("Van Gogh style", "Mosaic style", "Neon style"):
        caplog.clear()
        args = arguments(concept=concept, max_train_iterations=1, output_dir=tmp_path / concept)
        script.train(args, *script.prepare(args))
        said = [r.getMessage() for r in caplog.records]
        (shown,) = (
            float(found[1])
            for message in said
            if (found := re.search(r"Base: ([\d.]+) % of its images of the concept", message))
        )
        warned = [m for m in said if "The base draws the concept in only" in m]
        assert len(warned) == (shown < 50)
        assert all(f"only {shown:.0f} %" in m for m in warned)
        missing += len(warned)
    assert missing >= 1
