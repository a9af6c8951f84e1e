"""One run of TRL's DDPOTrainer, in the environment that `benchmarks.peers` makes for it; one JSON file."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
import time
from typing import Any

import torch
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

import canvas
import train_unlearn_lora as script
from benchmarks.ablation.run import add_run_arguments, judged
from benchmarks.peers.settings import ADVANTAGE_CLIP, CLIP_RANGE, GUIDANCE_SCALE, IMAGES, STEPS
from benchmarks.stopwatch import Stopwatch
from common.files import write_aside


def train_and_judge(
    concept: str, seed: int, learning_rate: float, budget: int, every: int, seeds: list[int], directory: str
) -> dict[str, Any]:
    """Until `budget` images are drawn, judging every so many epochs; the clock stands still meanwhile."""
    given = [
        "--concept",
        concept,
        "--seed",
        str(seed),
        "--report_to",
        "none",
        "--evaluation_seeds",
        "0",
        "--output_dir",
        f"{directory}/none",
    ]
    args = script.parse_args(given)
    parts = script.prepare(args)
    env, examination = parts.env, parts.examination
    assert examination is not None
    script.measure_base(args, env, parts.critic)  # calibrates the reward
    names = {prompt: row for row, prompt in enumerate(env.spec.forget_prompts)}
    in_turn = itertools.cycle(env.spec.forget_prompts)

    @torch.no_grad()
    def reward(
        images: torch.Tensor, prompts: tuple[str], metadata: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        rows = torch.tensor([names[prompt] for prompt in prompts])
        return env.reward.margin(env.teacher.encode_images(2 * images.float() - 1)[:, None], rows).squeeze(
            1
        ), {}

    dim = math.prod(env.backbone.latent_shape)  # ours is in units that do not depend on it
    config = DDPOConfig(
        seed=seed,
        num_epochs=1,
        save_freq=10**9,
        mixed_precision="no",
        project_kwargs={"project_dir": directory, "logging_dir": "logs"},
        sample_num_steps=STEPS,
        sample_eta=1.0,
        sample_guidance_scale=GUIDANCE_SCALE,
        sample_batch_size=IMAGES,
        sample_num_batches_per_epoch=1,
        per_prompt_stat_tracking=True,
        train_batch_size=IMAGES,
        train_learning_rate=learning_rate,
        train_adv_clip_max=ADVANTAGE_CLIP,
        train_clip_range=CLIP_RANGE / dim**0.5,
        train_timestep_fraction=1.0,
        train_cfg=True,
    )
    trainer = DDPOTrainer(
        config, reward, lambda: (next(in_turn), {}), DefaultDDPOStableDiffusionPipeline(str(canvas.PIPELINE))
    )
    watch = Stopwatch()
    trainer._generate_samples = watch.timed("rollout", trainer._generate_samples)
    trainer._train_batched_samples = watch.timed("update", trainer._train_batched_samples)
    pipe = trainer.sd_pipeline.sd_pipeline
    base = judged(env.pipe, examination, seeds)
    seconds, curve = 0.0, []
    for epoch in range(1, budget // IMAGES + 1):
        started = time.perf_counter()
        trainer.step(epoch, epoch)
        seconds += time.perf_counter() - started
        if epoch % every == 0:
            curve.append({"images": epoch * IMAGES, "seconds": seconds, **judged(pipe, examination, seeds)})
    return {
        "base": base,
        "curve": curve,
        "images": epoch * IMAGES,
        "seconds": seconds,
        "parts": dict(watch.seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.trl_ddpo", description=__doc__)
    add_run_arguments(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = train_and_judge(
            args.concept, args.seed, args.learning_rate, args.budget, args.every, args.judge_seeds, directory
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_aside(args.output, lambda path: path.write_text(json.dumps(found) + "\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
