"""One run of TRL's DDPOTrainer, in the environment that `benchmarks.peers` makes for it; one JSON file."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

import canvas
from benchmarks.ablation.run import TrialConfig, judged
from benchmarks.peers.settings import ADVANTAGE_CLIP, CLIP_RANGE, GUIDANCE_SCALE, IMAGES, STEPS
from benchmarks.profile import Stopwatch
from benchmarks.report import write_json
from common.errors import friendly_errors
from common.flags import parse
from training.baseline import measure_base
from training.config import parse_config
from training.setup import Run, prepare


def prepare_ours(trial: TrialConfig, directory: Path) -> Run:
    """Our environment with its reward calibrated, and the judge; nothing is trained in it."""
    given = ["--concept", trial.concept, "--seed", str(trial.seed), "--report_to", "none"]
    given += ["--output_dir", str(directory / "none"), "--evaluation_seeds", "0"]
    run = prepare(parse_config(given))
    measure_base(run)
    return run


def create_trainer(run: Run, trial: TrialConfig, directory: Path) -> DDPOTrainer:
    """TRL's trainer on our prompts and finished-image reward."""
    env = run.env
    names = {prompt: row for row, prompt in enumerate(env.spec.forget_prompts)}
    in_turn = itertools.cycle(env.spec.forget_prompts)

    @torch.no_grad()
    def reward(
        images: torch.Tensor, prompts: tuple[str], metadata: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        rows = torch.tensor([names[prompt] for prompt in prompts], device=images.device)
        embeddings = env.teacher.encode_images(2 * images.float() - 1)
        return env.reward.margin(embeddings[:, None], rows).squeeze(1), {}

    dim = math.prod(env.backbone.latent_shape)  # ours is in units that do not depend on it
    config = DDPOConfig(
        seed=trial.seed,
        num_epochs=1,
        save_freq=10**9,
        mixed_precision="no",
        project_kwargs={"project_dir": str(directory), "logging_dir": "logs"},
        sample_num_steps=STEPS,
        sample_eta=1.0,
        sample_guidance_scale=GUIDANCE_SCALE,
        sample_batch_size=IMAGES,
        sample_num_batches_per_epoch=1,
        per_prompt_stat_tracking=True,
        train_batch_size=IMAGES,
        train_learning_rate=trial.learning_rate,
        train_adv_clip_max=ADVANTAGE_CLIP,
        train_clip_range=CLIP_RANGE / dim**0.5,
        train_timestep_fraction=1.0,
        train_cfg=True,
    )
    pipeline = DefaultDDPOStableDiffusionPipeline(str(canvas.PIPELINE))
    return DDPOTrainer(config, reward, lambda: (next(in_turn), {}), pipeline)


def watched_trainer(run: Run, trial: TrialConfig, directory: Path) -> tuple[DDPOTrainer, Stopwatch]:
    """The trainer, with a watch on "rollout" and "update"."""
    trainer, watch = create_trainer(run, trial, directory), Stopwatch()
    # TRL has no other place from which its parts could be timed.
    trainer._generate_samples = watch.timed("rollout", trainer._generate_samples)
    trainer._train_batched_samples = watch.timed("update", trainer._train_batched_samples)
    return trainer, watch


def train_and_judge(trial: TrialConfig, directory: Path) -> dict[str, Any]:
    """Train until the budget of images is drawn; the clock stands still while the judge looks."""
    run = prepare_ours(trial, directory)
    assert run.examination is not None
    trainer, watch = watched_trainer(run, trial, directory)
    pipe = trainer.sd_pipeline.sd_pipeline
    base = judged(run.env.pipe, run.examination, trial.judge_seeds)
    seconds, curve = 0.0, []
    for epoch in range(1, trial.budget // IMAGES + 1):
        started = time.perf_counter()
        trainer.step(epoch, epoch)
        seconds += time.perf_counter() - started
        if epoch % trial.every == 0:
            found = judged(pipe, run.examination, trial.judge_seeds)
            curve.append({"images": epoch * IMAGES, "seconds": seconds, **found})
    return {
        "base": base,
        "curve": curve,
        "images": epoch * IMAGES,
        "seconds": seconds,
        "parts": dict(watch.seconds),
    }


def main() -> None:
    config = parse(TrialConfig, None, __doc__, prog="python -m benchmarks.peers.trl_ddpo")
    with tempfile.TemporaryDirectory() as directory:
        write_json(config.output, train_and_judge(config, Path(directory)))


if __name__ == "__main__":
    with friendly_errors():
        main()
