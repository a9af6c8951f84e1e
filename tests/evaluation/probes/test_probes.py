"""Every probe keeps its budget, finds the same twice, and leaves the pipeline as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tiny_pipelines import BACKBONES, FLOWS
from torch import nn

from evaluation.examination import JudgeExamination
from evaluation.judge import Judge
from evaluation.probes.__main__ import PROBES, runnable
from evaluation.probes.rows import Budget, Return, metered
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject
from hub.adapter import load_adapter, save_adapter
from pipelines.backbone import Backbone
from pipelines.base import BaseConfig, load_base, load_pipeline

STEPS, BRANCHES, IMAGES = 2, 2, 4


def spent(rows: list) -> list[tuple[int, int, int]]:
    return [(row.budget.images, row.budget.steps, row.budget.unet_samples) for row in rows]


BUDGETS = {
    "plain": [(0, 0, 0)],
    "paraphrase": [(0, 0, 0)] * 2,
    "composition": [(0, 0, 0)] * 3,
    "noise": [(0, 0, 0)] * 2,
    "completion": [(0, 0, 0)],
    "image_to_image": [(4, 0, 0)] * 3,
    "inpainting": [(4, 0, 0)] * 6,
    "inversion": [(4, 3, 6)],
    "attack": [(2, 6, 12)],
    "relearning": [(4, 2, 4), (4, 3, 6)] * 2,
    "removal": [(0, 0, 0)] * 3,
}
"""Images, steps and UNet samples of each row, counted by hand."""


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_keeps_its_budget_and_the_pipeline(
    name: str, subject: Subject, few: Settings, state: Callable[[Subject], tuple]
) -> None:
    before = state(subject)
    rows = PROBES[name][1](subject, few)
    assert state(subject) == before
    assert spent(rows) == BUDGETS[name]
    for row in rows:
        for found in (row.adapter, row.base):
            assert found.images >= IMAGES and found.interval[0] <= found.percent <= found.interval[1]
        assert row.prompts and len(row.after) == min(8, row.adapter.images)
    again = PROBES[name][1](dataclasses.replace(subject, _drawn={}, _pictures={}), few)
    assert [(row.name, row.adapter, row.base, row.facts) for row in again] == [
        (row.name, row.adapter, row.base, row.facts) for row in rows
    ]
    assert [image.tobytes() for row in again for image in row.after] == [
        image.tobytes() for row in rows for image in row.after
    ]


@pytest.mark.parametrize(
    "name", [name for name in PROBES if name not in ("plain", "paraphrase", "composition")]
)
@pytest.mark.parametrize("kind", [*BACKBONES, *FLOWS])
def test_every_backbone(
    name: str,
    kind: str,
    pipeline_dirs: dict[str, Path],
    flow_dirs: dict[str, Path],
    tmp_path: Path,
    tiny_judge: Judge,
    few: Settings,
    state: Callable[[Subject], tuple],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = BaseConfig(str((pipeline_dirs | flow_dirs)[kind]), resolution=16)
    made = Backbone.of(load_base(config))
    targets = list(made.lora_targets[1:3])
    made.denoiser.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=targets))
    save_adapter(tmp_path / "adapter", made.denoiser)
    pipe = load_base(config)
    examination = JudgeExamination(tiny_judge, ["Van Gogh style"], "tiny-judge")
    name_of_adapter = load_adapter(pipe, tmp_path / "adapter")
    subject = Subject(
        pipe, name_of_adapter, ["Van Gogh style"], examination, num_inference_steps=2, progress=False
    )
    subject.backbone.denoiser.eval()
    subject.backbone.encode(
        ["a cat"]
    )  # transformers puts hooks of its own on an encoder that is asked for hidden states for the first time
    before = state(subject)
    if kind == "z-image" and name in ("inversion", "attack"):
        with pytest.raises(ValueError, match="no whole words"):
            runnable([name], subject.backbone)
        assert runnable(["noise", name], subject.backbone) == ("noise",)
        assert f"Not run: {name}" in caplog.text
        return
    assert runnable([name], subject.backbone) == (name,)
    rows = PROBES[name][1](subject, few)
    assert state(subject) == before
    assert spent(rows) == BUDGETS[name]


@pytest.mark.parametrize("name", ["inversion", "attack", "relearning", "removal"])
def test_an_adapter_of_the_text_encoder_alone(
    name: str,
    tiny_pipeline_dir: Path,
    tmp_path: Path,
    tiny_judge: Judge,
    few: Settings,
    state: Callable[[Subject], tuple],
) -> None:
    made = load_pipeline(tiny_pipeline_dir)
    made.text_encoder.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["fc1", "q_proj"]))
    save_adapter(tmp_path, made.unet, text_encoders={"text_encoder": made.text_encoder})
    pipe = load_pipeline(tiny_pipeline_dir)
    name_of_adapter = load_adapter(pipe, tmp_path)
    pipe.text_encoder.eval()
    examination = JudgeExamination(tiny_judge, ["Van Gogh style"], "tiny-judge")
    subject = Subject(
        pipe, name_of_adapter, ["Van Gogh style"], examination, num_inference_steps=2, progress=False
    )
    subject.backbone.encode(["a cat"])
    before = state(subject)
    rows = PROBES[name][1](subject, few)
    assert state(subject) == before
    if name == "removal":
        unloaded, half, fused = ([image.tobytes() for image in row.after] for row in rows)
        assert unloaded != half != fused != unloaded


def test_another_seed_learns_something_else(subject: Subject, few: Settings) -> None:
    rows, others = (PROBES["inversion"][1](subject, dataclasses.replace(few, seed=seed)) for seed in (0, 1))
    assert rows[0].facts != others[0].facts


def test_the_meter_counts_what_the_unet_is_asked() -> None:
    class Unet(nn.Module):
        def forward(self, sample: torch.Tensor, timestep: int) -> torch.Tensor:
            return sample

    unet, budget = Unet(), Budget(unet_samples=1)
    with metered(unet, budget):
        unet(torch.zeros(3, 1), 0)
        unet(sample=torch.zeros(2, 1), timestep=0)
    unet(torch.zeros(5, 1), 0)
    assert budget.unet_samples == 6 and budget.seconds > 0


def test_what_is_drawn_costs_what_it_says(subject: Subject, few: Settings) -> None:
    budget = Budget()
    with metered(subject.pipe.unet, budget):
        PROBES["plain"][1](subject, few)
    assert budget.unet_samples == 2 * IMAGES * STEPS * BRANCHES


def test_the_return_weighs_every_prompt_alike() -> None:
    found = Return.of([[1.0, 1.0, 1.0, 0.0], [0.0]])
    assert found.percent == 37.5 and found.images == 5
    with pytest.raises(ValueError, match="no images"):
        Return.of([])
