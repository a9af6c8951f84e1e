"""An adapter leads back to its concept and its base: by results.json first, then by its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel

import canvas
from hub.adapter import find_adapter, save_adapter
from hub.header import results_header
from hub.provenance import AdapterBase, find_base, resolve_base, was_without_t5, what_adapter_says


def said(**more: Any) -> dict[str, Any]:
    return {"concept": None, "base": None, "revision": None, "without_t5": False} | more


def test_an_adapter_that_was_trained_without_t5_is_used_without_it(
    trained: UNet2DConditionModel, tmp_path: Path
) -> None:
    results = {"base_model_name_or_path": "owner/model", "settings": {"without_t5": True}}
    save_adapter(tmp_path, trained, metadata=results_header(results))
    found = what_adapter_says(tmp_path)
    assert found == said(base="owner/model", without_t5=True)
    assert resolve_base(AdapterBase(), found).without_t5
    assert resolve_base(AdapterBase(pretrained_model_name_or_path="a/b"), found).without_t5
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert what_adapter_says(tmp_path)["without_t5"]
    for damaged in ("{", "[]", '{"without_t5": "yes"}', "[" * 100_000):
        assert not was_without_t5({"settings": damaged})


def test_results_go_before_the_header(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained)
    assert what_adapter_says(tmp_path) == said()
    save_adapter(
        tmp_path,
        trained,
        metadata=results_header(
            {"concept": ["cat"], "base_model_name_or_path": "owner/model", "revision": "v1"}
        ),
    )
    assert what_adapter_says(tmp_path) == said(concept=["cat"], base="owner/model", revision="v1")
    (tmp_path / "results.json").write_text(
        json.dumps({"concept": "dog", "base_model_name_or_path": "owner/other", "revision": None})
    )
    assert what_adapter_says(tmp_path) == said(concept=["dog"], base="owner/other")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json"):
        what_adapter_says(tmp_path)


def test_an_adapter_of_another_name_says_what_it_is(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    path = save_adapter(tmp_path, trained, metadata=results_header({"concept": ["cat"]}))
    path.rename(tmp_path / "no-cat.safetensors")
    assert what_adapter_says(tmp_path)["concept"] == ["cat"]
    assert find_adapter(tmp_path / "no-cat.safetensors") == find_adapter(tmp_path)
    save_adapter(tmp_path, trained, metadata=results_header({"concept": ["dog"]}))
    assert what_adapter_says(tmp_path, "no-cat.safetensors")["concept"] == ["cat"]
    assert what_adapter_says(tmp_path)["concept"] == ["dog"]


def test_find_base() -> None:
    assert find_base(None, "bundled canvas") == canvas.PIPELINE
    assert find_base("owner/other", "owner/model") == "owner/other"
    with pytest.raises(ValueError, match="--pretrained_model_name_or_path"):
        find_base(None, None)
    with pytest.raises(ValueError, match=r"'mine'.*--pretrained_model_name_or_path"):
        find_base(None, "mine")
