"""A subject to probe: a random pipeline, a random adapter and a random judge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evaluation.examination import JudgeExamination
from evaluation.judge import Judge
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject
from hub.adapter import load_adapter
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline

FEW = Settings(
    num_images=4,
    num_concept_images=4,
    train_batch_size=2,
    inversion_tokens=(2,),
    inversion_steps=3,
    attack_tokens=2,
    attack_steps=3,
    attack_prompts=2,
    relearning_steps=(2, 3),
    relearning_rank=2,
    completion_shares=(0.5,),
    image_to_image_strengths=(0.5, 1.0),
)


@pytest.fixture
def subject(tiny_pipeline_dir: Path, adapter_dir: Path, tiny_judge: Judge) -> Subject:
    return make_subject(tiny_pipeline_dir, adapter_dir, tiny_judge)


def make_subject(pipeline_dir: Path, adapter_dir: Path, judge: Judge) -> Subject:
    pipe = load_pipeline(pipeline_dir)
    name = load_adapter(pipe, adapter_dir)
    pipe.unet.eval()  # the LoRA's layers too, which peft leaves in training
    examination = JudgeExamination(judge, ["Van Gogh style"], "tiny-judge")
    return Subject(
        pipe,
        name,
        ["Van Gogh style"],
        examination,
        num_inference_steps=2,
        adapter_dir=adapter_dir,
        progress=False,
    )


@pytest.fixture
def few() -> Settings:
    return FEW


@pytest.fixture
def state() -> Callable[[Subject], tuple]:
    """Everything about a pipeline that a probe might leave changed."""

    def of(subject: Subject) -> tuple:
        pipe = subject.pipe
        digest, layers = hashlib.sha256(), []
        for module in Backbone.of(pipe).modules:
            for name, tensor in module.state_dict().items():
                digest.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
            layers.append(
                [
                    (name, type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
                    for name, m in module.named_modules()
                ]
            )
            layers.append([(name, p.requires_grad, p.grad is None) for name, p in module.named_parameters()])
        tokens = [sorted(tokenizer.get_vocab().items()) for tokenizer in Backbone.of(pipe).tokenizers]
        return (
            digest.hexdigest(),
            layers,
            tokens,
            pipe.scheduler,
            pipe.get_active_adapters(),
            pipe.get_list_adapters(),
            str(pipe.config),
        )

    return of
