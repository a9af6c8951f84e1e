"""What a run was given beside its settings: files count by content, models by their weights."""

from __future__ import annotations

from pipelines.identity import content_digest, identity
from training.config import RunConfig

FILES = ("forget_prompts", "retain_prompts", "anchor_prompts", "reward_spec", "concept_images")


def describe_inputs(config: RunConfig) -> dict[str, str | None]:
    """Digests of the files and models that settings name, by flag; None where a flag was left out."""
    found: dict[str, str | None] = {}
    for name in FILES:
        path = getattr(config.concept, name)
        found[name] = None if path is None else content_digest(path)
    found["pretrained_model_name_or_path"] = identity(config.base.name, config.base.revision)
    models = {
        "pretrained_vae_model_name_or_path": config.base.pretrained_vae_model_name_or_path,
        "reward_model_name_or_path": config.reward.reward_model_name_or_path,
        "critic_model_name_or_path": config.critic.critic_model_name_or_path,
    }
    return found | {name: None if model is None else identity(model) for name, model in models.items()}


def what_differs(then: dict[str, str | None], now: dict[str, str | None]) -> list[str]:
    """The flags whose files or weights are others than they were, in a sentence each."""
    changes = []
    for name, before in then.items():
        after = now.get(name)
        if before == after:
            continue
        if before is None or after is None:
            given = "was given" if after is None else "was not given"
            changes.append(f"--{name} {given} when the run began")
        else:
            changes.append(f"what --{name} names has changed ({before[:14]}..., now {after[:14]}...)")
    return changes
