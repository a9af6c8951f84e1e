"""The script from arguments to files, on random pipelines; what each part does is tested in its own
folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from finished_runs import Finished
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import canvas
import train_unlearn_lora as script
from common.checkpoints import list_checkpoints, save_checkpoint
from common.names import public_name
from common.network import CheckpointError
from critic.network import ValueNetwork
from evaluation.examination import TeacherExamination
from evaluation.judge import Judge
from pipelines.supported import Unsupported
from policy.lora import lora_state
from policy.update import UpdateStats
from reward.concept import SpecError
from training import cooldown, iteration
from training.baseline import measure_base
from training.config import RunConfig, parse_config
from training.plan import SHOWN
from training.previews import validation_prompts
from training.progress import Progress
from training.reporter import log_start
from training.run_state import AFTER_A_ROLLBACK, OUT_OF_ITERATIONS, RunState
from training.setup import Run, prepare

ADAPTER, TWIN = "pytorch_lora_weights.safetensors", "no-van-gogh-style.safetensors"
Arguments = Callable[..., RunConfig]
Finish = Callable[..., Finished]


def adapter(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / ADAPTER)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def results_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "results.json").read_text())


def diagnostics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "diagnostics.jsonl").read_text().splitlines()]


def header_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


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


@pytest.mark.parametrize(
    ("concept", "known"), [("Van Gogh style", True), ("dragon", False)], ids=["known", "unknown"]
)
def test_the_shipped_canvas_knows_its_own_words_and_asks_for_others_in_general_ones(
    concept: str, known: bool, tmp_path: Path
) -> None:
    """With nothing but a concept: the bundled base, reward, CLIP and judge; a concept no judge knows is
    judged by the teacher."""
    run = prepare(
        parse_config(["--concept", concept, "--output_dir", str(tmp_path / "out"), "--report_to", "none"])
    )
    spec = run.env.spec
    if known:
        assert len(spec.forget_prompts) == 8 and len(spec.retain_prompts) == 56 and not spec.unnamed
        assert run.examination is not None and run.examination.name == public_name(canvas.JUDGE)
    else:
        assert spec.unnamed == [concept] and f"a {concept}" in spec.forget_prompts
        assert isinstance(run.examination, TeacherExamination)


# --- a whole run ------------------------------------------------------------------------------------------


@pytest.fixture
def whole(finished: Finish) -> Finished:
    """A run that has everything: critic, previews, checkpoints, tracker, metrics, both formats."""
    pictures = {"validation_steps": 1, "num_validation_images": 4, "evaluation_seeds": [0, 1]}
    kept = {"checkpointing_steps": 1, "checkpoints_total_limit": 1}
    return finished(**pictures, **kept, gamma=0.5, lora_alpha=5, report_to="tensorboard")


def test_a_whole_run_writes_all_that_is_promised(whole: Finished) -> None:
    out = whole.directory
    assert {p.name for p in out.iterdir()} >= {
        ADAPTER,
        TWIN,
        "results.json",
        "config.yaml",
        "before_after.png",
        "README.md",
        "critic",
        "previews",
        "logs",
        "checkpoint-2",
    }
    assert not (out / "checkpoint-1").exists()  # --checkpoints_total_limit
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.bin")) and not list(out.rglob("*.pt"))
    with Image.open(out / "before_after.png") as picture:
        assert min(picture.size) > 50
    previews = sorted(p.name for p in (out / "previews").iterdir())
    assert previews == ["iteration-0001.png", "iteration-0002.png"]
    ValueNetwork.from_pretrained(out / "critic")


def test_its_results_say_what_it_has_come_to(whole: Finished) -> None:
    results = whole.results
    assert results["concept"] == ["Van Gogh style"] and results["seeds"] == [0, 1]
    for side in ("base", "adapter"):
        assert 0 <= results[side]["UA"] <= 100 and 0 <= results[side]["IRA"] <= 100 and "CRA" in results[side]
    assert "not independent" in results["judge"]  # no judge was named: the teacher, marked as such
    assert (
        results["training"]["iterations"] == 2
        and results["training"]["first_ratio_deviation"] == 0
        and results["training"]["stopped_by"] == OUT_OF_ITERATIONS
    )
    assert results["settings"]["rank"] == 2


def test_what_it_shares_names_no_place_on_this_machine(whole: Finished, tiny_pipeline_dir: Path) -> None:
    texts = [(whole.directory / name).read_text() for name in ("results.json", "README.md")]
    texts += [text for name in (ADAPTER, TWIN) for text in header_of(whole.directory / name).values()]
    for place in (whole.directory.parent, tiny_pipeline_dir.parent, canvas.CLIP):
        assert not [text for text in texts if str(place) in text]


def test_its_headers_say_what_the_adapter_is(whole: Finished) -> None:
    results = whole.results
    for name in (ADAPTER, TWIN):
        header = header_of(whole.directory / name)
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
    assert header_of(whole.directory / TWIN)["ss_network_alpha"] == "5.0"


def test_its_adapter_works_in_a_stock_pipeline(whole: Finished, tiny_pipeline_dir: Path) -> None:
    assert_works_in_a_stock_pipeline(tiny_pipeline_dir, whole.directory)


def test_its_tracker_has_every_figure_of_every_iteration(whole: Finished) -> None:
    logs = next((whole.directory / "logs").rglob("events.out.tfevents.*")).parent
    events = EventAccumulator(str(logs)).Reload()
    of_rollouts = {"forget_reward", "retain_reward", "forgotten", "replaced"}
    of_updates = {"retain_kl", "explained_variance", "clip_fraction", "grad_norm", "approx_kl", "critic_loss"}
    assert of_rollouts | of_updates <= set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("first_ratio_deviation")] == [0.0, 0.0]
    assert "validation" in events.Tags()["images"]


def test_the_settings_that_a_run_writes_repeat_it(
    command_line: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Whatever kind they are of; no token is among them."""
    line = command_line(
        max_train_iterations=1,
        gamma=0.5,
        lora_alpha=3,
        lora_target_modules=["attn2.to_k", "attn2.to_v"],
        critic_type="timestep_blind",
        hub_token="hf_notwritten",
        seed=7,
    )
    config = parse_config([*line, "--no-output_kohya_format"])
    script.main(config)
    out, file = tmp_path / "out", tmp_path / "out" / "config.yaml"
    first, critic = adapter(out), load_file(out / "critic" / "model.safetensors")
    assert "hf_notwritten" not in file.read_text()
    assert parse_config(["--config", str(file), "--hub_token", "hf_notwritten"]) == config
    again = parse_config(["--config", str(file), "--overwrite_output_dir"])
    written = (out / ADAPTER).stat().st_mtime_ns
    script.main(again)
    assert (out / ADAPTER).stat().st_mtime_ns > written
    assert not (out / TWIN).exists()
    assert same(adapter(out), first) and same(load_file(out / "critic" / "model.safetensors"), critic)


def test_another_world_works_with_the_same_command(
    arguments: Arguments, wide_pipeline_dir: Path, wide_reward_dir: Path, tmp_path: Path
) -> None:
    """4 x 16 x 16 latents and text of width 24; an object this time, and its prompts from files."""
    (tmp_path / "retain").write_text("a tree\na car\n")
    script.main(
        arguments(
            pretrained_model_name_or_path=wide_pipeline_dir,
            reward_model_name_or_path=wide_reward_dir,
            concept=["cat", "dragons"],
            retain_prompts=tmp_path / "retain",
            max_train_iterations=1,
            lora_alpha=4,
        )
    )
    assert_works_in_a_stock_pipeline(wide_pipeline_dir, tmp_path / "out")
    assert results_of(tmp_path / "out")["concept"] == ["cat", "dragons"]


def test_every_backbone_is_trained_saved_and_loaded_into_its_stock_pipeline(
    backbone_dir: Path, arguments: Arguments, tmp_path: Path
) -> None:
    """Two iterations with a critic, previews and metrics, by the same command whatever the base; the file
    for other programs too. SDXL in half precision, as it is used."""
    precision = "bf16" if (backbone_dir / "text_encoder_2").is_dir() else "no"
    config = arguments(
        pretrained_model_name_or_path=backbone_dir,
        mixed_precision=precision,
        gamma=0.5,
        evaluation_seeds=0 if precision == "no" else None,
        lora_alpha=3,
    )
    run = prepare(config)
    base = run.env.pipe
    assert not any(p.requires_grad for name, p in base.unet.named_parameters() if "lora" not in name)
    assert not any(p.requires_grad for module in run.env.backbone.modules[1:] for p in module.parameters())
    script.train(run, config)
    results = results_of(tmp_path / "out")
    assert results["training"]["first_ratio_deviation"] == 0 and results["training"]["iterations"] == 2
    assert results.get("changed_images", 100) > 0 and results["pipeline_class"] == type(base).__name__
    assert {t.dtype for t in adapter(tmp_path / "out").values()} == {torch.float32}
    for name in (ADAPTER, TWIN):
        assert_works_in_a_stock_pipeline(backbone_dir, tmp_path / "out", weight_name=name)
    header = header_of(tmp_path / "out" / ADAPTER)
    predicted = {"v_prediction": "v"}.get(
        base.scheduler.config.prediction_type, base.scheduler.config.prediction_type
    )
    assert header["modelspec.prediction_type"] == predicted and header["modelspec.resolution"] == "16x16"
    assert (
        ValueNetwork.from_pretrained(tmp_path / "out" / "critic").config["pipeline_class"]
        == type(base).__name__
    )


def test_a_judge_that_is_named_gives_the_figures(finished: Finish, tmp_path: Path) -> None:
    domains = {"style": ["Van Gogh", "Mosaic"], "object": ["cat", "car"]}
    Judge(domains, "a {object} image in {style} style", 16, widths=(4, 8)).save_pretrained(tmp_path / "judge")
    results = finished(
        judge_name_or_path=tmp_path / "judge", evaluation_seeds=False, max_train_iterations=1
    ).results
    assert results["judge"] == public_name(tmp_path / "judge")
    # Two of its four prompts ask for the concept: 12 images each by default, and three of the others.
    assert results["adapter"]["images"]["UA"] == 24 and results["adapter"]["images"]["IRA"] == 6
    assert all(
        isinstance(results[side][name], float)
        for side in ("base", "adapter")
        for name in ("UA", "IRA", "CRA", "NRA")
    )


def test_no_evaluation_seeds_skip_the_figures_but_not_the_files(finished: Finish) -> None:
    run = finished(max_train_iterations=1)
    assert {p.name for p in run.directory.iterdir()} >= {
        ADAPTER,
        "results.json",
        "before_after.png",
        "README.md",
    }
    assert "base" not in run.results


def test_a_batch_size_that_is_not_given_goes_by_the_latents_and_is_on_record(finished: Finish) -> None:
    run = finished(train_batch_size=False, max_train_iterations=1)
    assert run.results["settings"]["train_batch_size"] == 64


@pytest.fixture(scope="module")
def prepared(tiny_pipeline_dir: Path, tiny_reward_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that is ready to begin, for reading."""
    line = ["--concept", "Van Gogh style", "--clip_model", f"local-dir:{canvas.CLIP}", "--report_to", "none"]
    line += ["--pretrained_model_name_or_path", str(tiny_pipeline_dir)]
    line += ["--reward_model_name_or_path", str(tiny_reward_dir), "--evaluation_seeds"]
    return prepare(parse_config([*line, "--output_dir", str(tmp_path_factory.mktemp("prepared"))]))


@pytest.mark.parametrize(("count", "asked", "kept"), [(1, 1, 0), (2, 1, 1), (5, 3, 2)])
def test_a_preview_has_as_many_images_as_it_is_asked_for(
    count: int, asked: int, kept: int, arguments: Arguments, prepared: Run
) -> None:
    shown = validation_prompts(arguments(num_validation_images=count).validation, prepared.env)
    assert [forget for _, forget in shown] == [True] * asked + [False] * kept


def test_a_run_is_a_function_of_its_seed(finished: Finish, arguments: Arguments, tmp_path: Path) -> None:
    first, other = (finished(seed=seed, max_train_iterations=1) for seed in (0, 1))
    script.main(arguments(seed=0, max_train_iterations=1))
    assert same(adapter(first.directory), adapter(tmp_path / "out"))
    assert not same(adapter(first.directory), adapter(other.directory))


def test_the_adapter_begins_the_same_whatever_the_critic(arguments: Arguments, tmp_path: Path) -> None:
    """So that variants of the critic can be compared."""
    critics = (
        {},
        {"critic_type": "timestep_blind"},
        {"critic_model_name_or_path": made_critic(tmp_path / "critic", 4, 8, 16)},
    )
    begun = [lora_state(prepare(arguments(gamma=0.5, **critic)).denoiser) for critic in critics]
    assert all(same(begun[0], other) for other in begun[1:])


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "half precision": {"mixed_precision": "bf16", "gradient_checkpointing": True},
    "pathwise, with a critic": {"gamma": 0.5, "replay_iterations": 2},
    "step": {"advantage": "step"},
    "td, blind critic": {"advantage": "td", "critic_type": "timestep_blind"},
    "mc, clean critic": {"advantage": "mc", "critic_type": "clean_only", "reward_signal": "terminal"},
    "ddpo": {"advantage": "ddpo"},
    "adaptive KL": {"retain_kl_target": 1e-3, "inner_epochs": 2},
    "gae, baselines alone": {"advantage": "gae", "critic_type": "none"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_first_ratio_is_exactly_1_in_every_iteration(options: dict[str, Any], finished: Finish) -> None:
    """Through the script as a whole, whatever the objective; batches do not divide the images."""
    run = finished(**options)
    assert [(s.first_ratio_deviation, s.first_clip_fraction) for s in run.updates] == [(0.0, 0.0)] * 2
    assert all(norm > 0 for s in run.updates for norm in s.grad_norm)
    assert {t.dtype for t in adapter(run.directory).values()} == {torch.float32}


@pytest.mark.parametrize(
    "options", [{}, {"advantage": "ddpo", "evaluation_seeds": [0, 1], "judge_name_or_path": canvas.JUDGE}]
)
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    options: dict[str, Any],
    arguments: Arguments,
    prepared: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script.main(arguments(dry_run=True, **options))
    said, spec = capsys.readouterr().out, prepared.env.spec
    for prompts in (spec.forget_prompts, spec.retain_prompts):
        assert all(f'"{prompt}"' in said for prompt in prompts[:SHOWN])
    assert str(tmp_path / "out") in said and (options == {} or public_name(canvas.JUDGE) in said)
    assert not (tmp_path / "out").exists()


# --- stop and rollback ------------------------------------------------------------------------------------


def test_it_stops_once_the_target_was_held(finished: Finish) -> None:
    training = finished(target_unlearning_accuracy=0.0, patience=2, max_train_iterations=9).training
    assert training["iterations"] == 1 and training["stopped_by"] not in ("", OUT_OF_ITERATIONS)


def test_out_of_iterations_it_says_what_is_missing(
    arguments: Arguments, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script.main(arguments(max_train_iterations=1, checkpointing_steps=1))
    last = results_of(tmp_path / "out")["training"]["last_iteration"]
    (said,) = [r.getMessage() for r in caplog.records if "--resume_from_checkpoint latest" in r.getMessage()]
    assert f"{100 * (1 - last['forgotten']):.0f} %" in said
    assert f"{100 * (last['forgotten'] - last['replaced']):.0f} %" in said
    assert "--max_train_iterations 2" in said and "--learning_rate" in said


@pytest.mark.parametrize("saved", [True, False])
def test_it_resumes_to_go_on_if_there_is_a_checkpoint(
    saved: bool, arguments: Arguments, tmp_path: Path
) -> None:
    if saved:
        save_checkpoint(tmp_path / "out", 1, {"lora": {"a": torch.ones(1)}}, {}, None)
    nothing: Any = None
    state = RunState(
        arguments(max_train_iterations=1),
        *[nothing] * 4,
        rollback=nothing,
        replay=deque(),
        progress=Progress(),
        good={},
        stop=nothing,
    )
    said = state.what_is_missing({"forgotten": 0.75, "replaced": 0.5})
    assert "25 %" in said and "--max_train_iterations 2" in said
    assert ("--resume_from_checkpoint latest" in said) == saved


def test_a_rollback_returns_to_the_last_good_state(finished: Finish, arguments: Arguments) -> None:
    """No KL at all is allowed, so every update is taken back, the next one is smaller, and the adapter
    ends as the identity it began as."""
    changes = {"max_retain_kl": 0.0, "max_brakes": 1, "max_train_iterations": 9, "cooldown_updates": 1}
    changes["lr_scheduler"] = "constant"
    run, rate = finished(**changes), arguments().optimizer.learning_rate
    assert run.training["brakes"] == 2 and run.training["stopped_by"] not in ("", OUT_OF_ITERATIONS)
    rates = [line["learning_rate"] for line in diagnostics(run.directory) if "learning_rate" in line]
    assert rates == run.rates == [rate, rate * AFTER_A_ROLLBACK]
    assert all(
        t.abs().max() == 0
        for name, t in adapter(run.directory).items()
        if "lora_B" in name or "lora.up" in name
    )


def test_the_cool_down_settles_at_a_falling_rate_and_draws_nothing(finished: Finish) -> None:
    at_a_rate = {"learning_rate": 4e-3, "lr_scheduler": "constant"}
    warm, cool = finished(**at_a_rate), finished(**at_a_rate, cooldown_updates=2)
    assert cool.rates == [4e-3, 4e-3, 2e-3, 1e-3]
    last = cool.updates[2:]
    assert last[0].first_ratio_deviation == 0  # its trajectories are the policy's own
    assert cool.training["images"] == warm.training["images"]
    assert cool.training["iterations"] == warm.training["iterations"] == 2
    cooled = last[0].unet_samples + last[1].unet_samples
    assert cool.training["unet_samples"] == warm.training["unet_samples"] + cooled
    assert cool.training["last_iteration"]["cooldown_retain_kl"] == last[1].retain_kl[-1]
    assert not same(adapter(warm.directory), adapter(cool.directory))


def test_a_step_is_as_long_as_the_way_that_is_left(finished: Finish) -> None:
    run = finished(learning_rate=4e-3, cooldown_updates=1)
    lines = [line for line in diagnostics(run.directory) if "learning_rate" in line]
    left = [line["shortfall"] for line in lines] + [run.training["last_iteration"]["shortfall"] / 2]
    assert run.rates == pytest.approx([4e-3 * share for share in left])
    assert [line["learning_rate"] for line in lines] == run.rates[:-1] and 0 < min(left) < 1


def test_a_cool_down_that_goes_too_far_is_taken_back(
    finished: Finish, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = finished()
    cool_down = cooldown.cool_down

    def wild(*given: Any) -> list[UpdateStats]:
        return [dataclasses.replace(stats, retain_kl=[math.inf]) for stats in cool_down(*given)]

    monkeypatch.setattr(cooldown, "cool_down", wild)
    script.main(arguments(cooldown_updates=1))
    assert same(adapter(warm.directory), adapter(tmp_path / "out"))
    assert "cooldown_retain_kl" not in results_of(tmp_path / "out")["training"]["last_iteration"]


def test_a_run_that_degenerates_ends_with_the_flag_to_turn(finished: Finish) -> None:
    run = finished(max_step_kl=0.0, max_brakes=0, max_train_iterations=9)
    assert run.training["brakes"] == 1 and "--learning_rate" in run.training["stopped_by"]
    assert all(torch.isfinite(t).all() for t in adapter(run.directory).values())


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("defaults", 12), ("ddpo", 12), ("step", 12 + 9), ("gae, baselines alone", 12 + 9)],
)
def test_the_first_iteration_draws_no_image_if_no_value_is_asked_for(
    name: str, drawn: int, finished: Finish
) -> None:
    """A critic, or a prompt's baseline, knows by heart what it has been shown of the base."""
    training = finished(**OPTIONS[name]).training
    # Those of the second iteration, and the last that say how it came out.
    assert training["images"] == drawn + 2 * 9 and training["first_ratio_deviation"] == 0


# --- checkpoints
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"advantage": "step", "replay_iterations": 2, "retain_kl_target": 1e-9},
    ],
    ids=["defaults", "likelihood ratio, replay, adaptive KL"],
)
def test_a_resumed_run_is_the_run_that_was_never_interrupted(
    options: dict[str, Any], finished: Finish, arguments: Arguments, tmp_path: Path
) -> None:
    whole = finished(**options).directory
    first = finished(max_train_iterations=1, checkpointing_steps=1, **options).directory
    shutil.copytree(first, tmp_path / "out")
    script.main(arguments(resume_from_checkpoint="latest", **options))
    assert not same(adapter(tmp_path / "out"), adapter(first))
    assert same(adapter(tmp_path / "out"), adapter(whole))
    if options:
        assert same(
            load_file(tmp_path / "out" / "critic" / "model.safetensors"),
            load_file(whole / "critic" / "model.safetensors"),
        )
    resumed, unbroken = (results_of(directory)["training"] for directory in (tmp_path / "out", whole))
    assert all(
        resumed[key] == unbroken[key] for key in ("iterations", "images", "unet_samples", "last_iteration")
    )
    lines = [diagnostics(directory) for directory in (tmp_path / "out", whole)]
    assert lines[0] == lines[1] and [line["iteration"] for line in lines[0]] == [0, 1, 2]


@pytest.mark.parametrize(
    "changes",
    [{"lr_scheduler": "linear"}, {"max_retain_kl": 0.0}],
    ids=["a learning rate that falls", "after a rollback"],
)
def test_a_killed_run_goes_on_at_its_learning_rate(
    changes: dict[str, Any],
    finished: Finish,
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = changes | {"max_train_iterations": 3}
    whole = finished(checkpointing_steps=3, **settings)
    collect = iteration.collect

    def killed(run: Run, iteration: int, recognisable: float) -> Any:
        if iteration == 2:
            raise KeyboardInterrupt
        return collect(run, iteration, recognisable)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(iteration, "collect", killed)
        script.main(arguments(checkpointing_steps=1, **settings))
    assert caught.value.code == 130
    script.main(arguments(checkpointing_steps=3, resume_from_checkpoint="latest", **settings))
    saved = (
        load_file(directory / "checkpoint-3" / "state.safetensors")
        for directory in (whole.directory, tmp_path / "out")
    )
    assert same(*saved)


def test_interrupted_while_it_cools_down_it_leaves_the_adapter_and_does_not_evaluate(
    finished: Finish,
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = finished(cooldown_updates=2, learning_rate=4e-3)
    cool_down = cooldown.cool_down

    def interrupted(*given: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return cool_down(*given)

    monkeypatch.setattr(cooldown, "cool_down", interrupted)
    with pytest.raises(SystemExit) as caught:
        script.main(arguments(cooldown_updates=2, learning_rate=4e-3))
    assert caught.value.code == 128 + signal.SIGTERM
    assert f"python -m evaluation --adapter {tmp_path / 'out'}" in capsys.readouterr().err
    assert same(adapter(tmp_path / "out"), adapter(whole.directory))
    assert not (tmp_path / "out" / "results.json").exists()


def test_overwriting_a_run_leaves_none_of_its_checkpoints(
    finished: Finish, arguments: Arguments, tmp_path: Path
) -> None:
    """A later --resume_from_checkpoint latest must not find the older run."""
    shutil.copytree(finished(max_train_iterations=1, checkpointing_steps=1).directory, tmp_path / "out")
    older = (tmp_path / "out" / "checkpoint-1").rename(tmp_path / "out" / "checkpoint-2")
    assert list_checkpoints(tmp_path / "out") == [older]
    script.main(arguments(checkpointing_steps=1, max_train_iterations=1, seed=5, overwrite_output_dir=True))
    assert [p.name for p in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_critic_that_is_given_is_used(finished: Finish, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = ValueNetwork(4, 8, 16, width=16, condition_dim=32)
    network.save_pretrained(tmp_path / "critic")
    run = finished(
        critic_model_name_or_path=tmp_path / "critic", gamma=0.5, max_train_iterations=1, critic_steps=0
    )
    used = ValueNetwork.from_pretrained(run.directory / "critic")
    assert all(torch.equal(p, q) for p, q in zip(used.parameters(), network.parameters(), strict=True))


# --- bad input
# ------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def made_critic(path: Path, *shape: int, **config: Any) -> Path:
    ValueNetwork(*shape, width=8, condition_dim=16, **config).save_pretrained(path)
    return path


BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], type[ValueError], str]] = {
    "a concept longer than the window": (
        lambda tmp: {"concept": "extraordinarily " * 40},
        ValueError,
        "extraordinarily",
    ),
    "an empty concept": (lambda tmp: {"concept": ""}, SpecError, "--concept"),
    "a concept of spaces": (lambda tmp: {"concept": ["cat", "  "]}, SpecError, "--concept"),
    "a concept of punctuation": (lambda tmp: {"concept": "?!"}, SpecError, "--concept"),
    "a base that is no pipeline": (
        lambda tmp: {"pretrained_model_name_or_path": tmp},
        ValueError,
        "model_index.json",
    ),
    "a base that is not there": (
        lambda tmp: {"pretrained_model_name_or_path": tmp / "absent" / "base"},
        ValueError,
        "absent/base",
    ),
    "a base without a CLIP": (lambda tmp: {"clip_model": False}, ValueError, "--clip_model"),
    "a base without a reward": (
        lambda tmp: {"reward_model_name_or_path": False},
        ValueError,
        "--reward_model_name_or_path",
    ),
    "a CLIP that is not there": (
        lambda tmp: {"clip_model": f"local-dir:{tmp}/no-clip"},
        ValueError,
        "no-clip",
    ),
    "a CLIP that is a pickle": (
        lambda tmp: {"clip_model": "ViT-B-32", "clip_pretrained": tmp / "clip.pt"},
        ValueError,
        "--clip_pretrained",
    ),
    "a reward that is not there": (
        lambda tmp: {"reward_model_name_or_path": tmp / "absent" / "reward"},
        CheckpointError,
        "absent/reward",
    ),
    "a critic for another text encoder": (
        lambda tmp: {"critic_model_name_or_path": made_critic(tmp / "critic", 4, 8, 24), "gamma": 0.5},
        CheckpointError,
        "critic.train",
    ),
    "a critic for another class of base": (
        lambda tmp: {
            "critic_model_name_or_path": made_critic(
                tmp / "critic", 4, 8, 16, pipeline_class="StableDiffusionXLPipeline"
            ),
            "gamma": 0.5,
        },
        CheckpointError,
        "StableDiffusionXLPipeline",
    ),
    "a base in a pickle": (
        lambda tmp: {"pretrained_model_name_or_path": write(tmp / "model.ckpt", "x")},
        Unsupported,
        "model.ckpt",
    ),
    "a VAE that is not there": (
        lambda tmp: {"pretrained_vae_model_name_or_path": tmp / "absent" / "vae"},
        ValueError,
        "absent/vae",
    ),
    "configs for a base that has its own": (
        lambda tmp: {"config_name_or_path": tmp},
        ValueError,
        "--config_name_or_path",
    ),
    "a prompt file that is not there": (
        lambda tmp: {"forget_prompts": tmp / "absent.txt"},
        ValueError,
        "absent.txt",
    ),
    "a prompt file without prompts": (
        lambda tmp: {"retain_prompts": write(tmp / "none.txt", "# nothing\n")},
        SpecError,
        "none.txt",
    ),
    "a prompt longer than the window": (
        lambda tmp: {"retain_prompts": write(tmp / "long.txt", "word " * 99)},
        ValueError,
        "word word",
    ),
    "nothing left to retain": (lambda tmp: {"concept": "image style"}, SpecError, "--retain_prompts"),
    "a judge that does not know the concept": (
        lambda tmp: {"judge_name_or_path": canvas.JUDGE, "concept": "dragon", "evaluation_seeds": 0},
        ValueError,
        "dragon",
    ),
    "modules that are not there": (
        lambda tmp: {"lora_target_modules": "no_such_module"},
        ValueError,
        "--lora_target_modules",
    ),
    "nothing to resume from": (
        lambda tmp: {"resume_from_checkpoint": "latest"},
        ValueError,
        "--resume_from_checkpoint",
    ),
}


def files_under(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("case", "error", "named"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_writes_nothing(
    case: Callable[[Path], dict[str, Any]],
    error: type[ValueError],
    named: str,
    command_line: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    """It says the flag, or what was given. `training/test_checks.py` has what is found without a model."""
    line = command_line(**case(tmp_path))
    before = files_under(tmp_path)
    with pytest.raises(error) as caught:
        prepare(parse_config(line))
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert files_under(tmp_path) == before


END_TO_END: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "a value out of its range": (lambda tmp: {"rank": 0}, "--rank"),
    "settings that do not fit": (lambda tmp: {"output_dir": write(tmp / "file", "mine")}, "--output_dir"),
    "a network that does not fit": (
        lambda tmp: {"critic_model_name_or_path": made_critic(tmp / "critic", 4, 16, 16), "gamma": 0.5},
        "critic.train",
    ),
}


@pytest.mark.parametrize(("case", "named"), END_TO_END.values(), ids=END_TO_END.keys())
def test_bad_input_ends_the_script_with_code_2(
    case: Callable[[Path], dict[str, Any]],
    named: str,
    command_line: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = command_line(**case(tmp_path))
    before = files_under(tmp_path)
    with pytest.raises(SystemExit) as caught:
        script.main(parse_config(line))
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "Traceback" not in said
    (error,) = [line for line in said.splitlines() if "error: " in line]
    assert named in error and files_under(tmp_path) == before


def test_a_reward_for_other_latents_is_refused(arguments: Arguments, wide_reward_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"reward\.train"):
        prepare(arguments(reward_model_name_or_path=wide_reward_dir))


def test_a_directory_that_is_not_empty_is_left_alone(arguments: Arguments, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ADAPTER).write_text("an hour's work")
    with pytest.raises(ValueError, match="--overwrite_output_dir"):
        prepare(arguments())
    assert files_under(tmp_path) == {tmp_path / "out" / ADAPTER: b"an hour's work"}
    script.main(arguments(overwrite_output_dir=True, max_train_iterations=1))
    assert adapter(tmp_path / "out")


def test_a_damaged_checkpoint_is_refused_before_anything_is_written(
    finished: Finish, arguments: Arguments, tmp_path: Path
) -> None:
    whole = finished(max_train_iterations=1, checkpointing_steps=1)
    shutil.copytree(whole.directory, tmp_path / "out")
    (tmp_path / "out" / "checkpoint-1" / "state.safetensors").write_bytes(b"half a file")
    before = files_under(tmp_path)
    with pytest.raises(ValueError, match="--resume_from_checkpoint"):
        prepare(arguments(resume_from_checkpoint="latest"))
    assert files_under(tmp_path) == before


def test_a_concept_that_the_base_does_not_draw_is_warned_of_with_the_figure(
    arguments: Arguments, caplog: pytest.LogCaptureFixture
) -> None:
    """The pictures of a random base look alike: the teacher cannot find every style in them."""
    run = prepare(arguments())
    acted = measure_base(run).acted
    for shown in (100 * (1 - acted.metrics["forgotten"]), 49.0, 51.0):
        caplog.clear()
        metrics = acted.metrics | {"forgotten": 1 - shown / 100}
        log_start(run, dataclasses.replace(acted, metrics=metrics))
        warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warned) == (shown < 50) and all(f"{shown:.0f} %" in text for text in warned)
