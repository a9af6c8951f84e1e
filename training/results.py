"""What a run leaves: adapter, results, picture, card."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from accelerate.utils import gather_object

from common.files import write_json, write_text
from common.flags import to_yaml
from common.names import public_name
from common.network import cached_revision
from common.processes import processes
from common.versions import versions
from evaluation.grid import before_after
from evaluation.protocol import evaluate, grid_title, table
from hub.adapter import save_adapter, update_adapter_metadata
from hub.card import GRID_NAME, save_model_card
from hub.header import base_header, results_header
from hub.kohya import save_twin
from hub.push import CRITIC_FILES, SETTINGS_NAME
from hub.results import RESULTS_NAME
from policy.lora import ADAPTER
from training.config import RunConfig
from training.previews import preview_pairs
from training.progress import Progress
from training.setup import Run


def save_config(config: RunConfig) -> None:
    """Write the file by which `--config` repeats the run from its beginning: settings as they were given, no
    token."""
    config = replace(config, output=replace(config.output, resume_from_checkpoint=None))
    text = "# Repeats this run: --config config.yaml\n" + to_yaml(config)
    write_text(config.output.output_dir / SETTINGS_NAME, text)


def tracker_settings(config: RunConfig) -> dict[str, int | float | str]:
    """The settings as a tracker shows them, which may be in public."""
    settings = config.public_settings()
    return {name: value for name, value in settings.items() if isinstance(value, int | float | str)}


def save(run: Run) -> None:
    """Write the adapter, in its formats, and the critic if one has learnt; before anything is evaluated."""
    if not run.is_main:
        return
    directory = run.config.output.output_dir
    known = {
        "concept": run.env.spec.concepts,
        "base_model_name_or_path": run.config.base_name,
        "revision": run.config.base.revision,
        "settings": run.config.public_settings(),
        "versions": versions(),
    }
    header = base_header(run.env.pipe) | results_header(known)
    encoders = run.env.backbone.adaptable_encoders
    save_adapter(directory, run.denoiser, ADAPTER, header, text_encoders=encoders)
    if run.config.output.output_kohya_format:
        save_twin(directory)
    if run.critic.kind != "none":
        run.critic.network.save_pretrained(directory / "critic")
    else:
        for stale in CRITIC_FILES:  # of a run that is being overwritten
            (directory / stale).unlink(missing_ok=True)


def evaluate_run(run: Run, progress: Progress, last: dict[str, float]) -> dict[str, Any]:
    """Evaluate base and adapter, which the processes share; the first writes `results.json`, the before/after
    grid and the model card and returns results.

    Args:
        last: metrics of the last iteration.
    """
    found = {
        "concept": run.env.spec.concepts,
        "base_model_name_or_path": run.config.base_name,
        "revision": run.config.base.revision,
        "pipeline_class": run.env.backbone.pipeline_class,
    }
    state, seeds = processes(), run.config.validation.evaluation_seeds
    if run.examination is not None:
        with run.env.on_device():
            evaluation = evaluate(
                run.env.pipe,
                run.examination,
                None if seeds is None else list(seeds),
                guidance_scale=run.config.validation.validation_guidance_scale,
                batch_size=run.env.batch_size,
                progress=state.is_local_main_process,
                processes=(state.process_index, state.num_processes),
                gather=gather_object,
            )
        if evaluation is None:
            return {}
        results, pairs = found | evaluation.results, evaluation.pairs
        title = grid_title(results)
        print(table(results))
    elif state.is_main_process:
        results, pairs = found, preview_pairs(run)
        title = f"Erasing {', '.join(run.env.spec.concepts)}"
    else:
        return {}
    results |= described(run) | {"training": summary(progress) | {"last_iteration": last}}
    directory = run.config.output.output_dir
    write_json(directory / RESULTS_NAME, results)
    before_after(pairs, directory / GRID_NAME, title)
    save_model_card(results, directory)
    update_adapter_metadata(directory, results_header(results))
    return results


def described(run: Run) -> dict[str, Any]:
    """What the run was made with: date, command, models, prompts, settings."""
    config = run.config
    reward, critic = config.reward.reward_model_name_or_path, config.critic.critic_model_name_or_path
    own = "bundled" if config.base.is_bundled else "trained in the run"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"accelerate launch train_unlearn_lora.py --config {SETTINGS_NAME}",
        "reward_model": public_name(reward) if reward else own,
        "reward_model_revision": cached_revision(reward),
        "critic_model": public_name(critic) if critic else None,
        "critic_model_revision": cached_revision(critic),
        "forget_prompts": run.env.spec.forget_prompts,
        "retain_prompts": run.env.spec.retain_prompts,
        "settings": config.public_settings(),
    }


def summary(progress: Progress) -> dict[str, Any]:
    """What the training came to."""
    return {
        "iterations": progress.iteration,
        "images": progress.images,
        "unet_samples": progress.unet_samples,
        "seconds": round(progress.seconds, 1),
        "peak_memory_mb": progress.peak_memory_mb,
        "stopped_by": progress.stopped_by,
        "brakes": progress.brakes,
        "first_ratio_deviation": progress.first_ratio_deviation,
    }
