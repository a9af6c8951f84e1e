"""Training with --push_to_hub: refused at once where it cannot end well, and whatever fails at its end
leaves the run complete."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard, constants
from loopback import LoopbackHub

import train_unlearn_lora as script
from common.flags import parse
from common.network import cached_revision
from critic.network import ValueNetwork
from hub.__main__ import main, parse_config
from hub.access import HubError
from hub.adapter import read_adapter_metadata
from reward.predictor import RewardPredictor
from training import setup
from training.checks import check
from training.config import RunConfig
from training.results import tracker_settings
from training.setup import prepare

Arguments = Callable[..., RunConfig]
PUSH = {"max_train_iterations": 1, "push_to_hub": True}


def error_of(run: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The only error that a run ends with."""
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code not in (0, None)
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return error


def test_a_run_ends_on_the_hub_and_its_token_stays_here(
    arguments: Arguments,
    loopback_hub: LoopbackHub,
    tiny_reward_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    RewardPredictor.from_pretrained(tiny_reward_dir).push_to_hub("someone/reward", token="hf_write")
    reward_commit = loopback_hub.history("someone/reward")[0].id
    config = arguments(
        **PUSH,
        hub_token="hf_write",
        hub_private_repo=True,
        report_to="tensorboard",
        reward_model_name_or_path="someone/reward",
        base_model_id="runwayml/stable-diffusion-v1-5",
        overwrite_output_dir=True,
    )
    ValueNetwork(4, 8, 16, width=8).save_pretrained(
        tmp_path / "out" / "critic"
    )  # of a run that had one, and is overwritten
    caplog.set_level(logging.DEBUG)
    script.main(config)

    uploaded = loopback_hub.files("someone/out")
    assert uploaded.keys() == {
        ".gitattributes",
        "README.md",
        "results.json",
        "config.yaml",
        "before_after.png",
        "pytorch_lora_weights.safetensors",
        "no-van-gogh-style.safetensors",
    }
    assert len(loopback_hub.history("someone/out")) == 2 and loopback_hub.repository("someone/out").private
    out = tmp_path / "out"
    assert str(tmp_path) in (out / "config.yaml").read_text()
    assert not any(str(tmp_path).encode() in content for content in uploaded.values())
    pulled = tmp_path / "pulled.yaml"
    pulled.write_bytes(uploaded["config.yaml"])
    assert parse(RunConfig, ["--config", str(pulled)], None).public_settings() == config.public_settings()
    assert all(
        uploaded[name] == (out / name).read_bytes()
        for name in ("results.json", "before_after.png", "pytorch_lora_weights.safetensors")
    )
    card = ModelCard(uploaded["README.md"].decode())
    assert (card.data.base_model, card.data.license) == (
        "runwayml/stable-diffusion-v1-5",
        "creativeml-openrail-m",
    )
    assert re.search(rf"\bsomeone/reward\b.*\b{reward_commit}\b", card.text)
    results = json.loads(uploaded["results.json"])
    assert (
        results["base_model_name_or_path"]
        == read_adapter_metadata(out)["base_model_name_or_path"]
        == "runwayml/stable-diffusion-v1-5"
    )
    assert not any("hub" in name for name in results["settings"])

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("logs" in path.parts and path.name.startswith("events.") for path in written)
    assert not any(b"hf_write" in path.read_bytes() for path in written)
    assert not any("hf_write" in str(value) for value in tracker_settings(config).values())
    assert not any(
        b"hf_write" in request.body or "hf_write" in request.path for request in loopback_hub.requests
    )
    said = capfd.readouterr()
    assert "hf_write" not in caplog.text + said.out + said.err
    assert f"{loopback_hub.endpoint}/someone/out/commit/" in caplog.text


@pytest.mark.parametrize(
    "more",
    [
        {"hub_token": "hf_read"},
        {"hub_token": "hf_unknown"},
        {"hub_model_id": "theirs/adapter"},
        {"hub_model_id": "no id/at all"},
    ],
    ids=str,
)
def test_a_push_that_would_be_refused_ends_the_run_before_it_begins(
    more: dict[str, str],
    arguments: Arguments,
    loopback_hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        setup,
        "build_environment",
        lambda *_, **__: pytest.fail("Something was loaded before the Hub was asked"),
    )
    with pytest.raises(HubError, match="--push_to_hub") as caught:
        prepare(arguments(**PUSH, **more))
    assert not any(token in str(caught.value) for token in ("hf_read", "hf_unknown"))
    assert not (tmp_path / "out").exists() and not loopback_hub.sent("POST ")


def test_without_a_token_or_offline_no_run_begins(
    arguments: Arguments,
    loopback_hub: LoopbackHub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in error_of(lambda: script.main(arguments(**PUSH)), capsys)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = error_of(lambda: script.main(arguments(**PUSH, hub_token="hf_write")), capsys)
    assert "HF_HUB_OFFLINE" in error and loopback_hub.requests == []


def test_a_push_that_fails_leaves_a_complete_run_and_the_command_that_completes_it(
    arguments: Arguments,
    loopback_hub: LoopbackHub,
    tiny_pipeline_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loopback_hub.fail("/commit/", status=503)
    error = error_of(
        lambda: script.main(arguments(**PUSH, hub_model_id="someone/mine", hub_private_repo=True)), capsys
    )
    assert "(503: " in error
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "pytorch_lora_weights.safetensors",
        "results.json",
        "README.md",
        "before_after.png",
    }
    StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir).load_lora_weights(tmp_path / "out")
    command = shlex.split(error.split("`")[-2])
    assert command == [
        "python",
        "-m",
        "hub",
        "push",
        str(tmp_path / "out"),
        "--hub_model_id",
        "someone/mine",
        "--private",
    ]
    main(parse_config(command[3:]))
    assert "pytorch_lora_weights.safetensors" in loopback_hub.files("someone/mine")
    assert len(loopback_hub.history("someone/mine")) == 2


def test_no_base_is_called_by_a_path(arguments: Arguments) -> None:
    with pytest.raises(ValueError, match="--base_model_id"):
        check(arguments(base_model_id="/models/sd"))


def test_the_revision_of_a_checkpoint_is_known_if_it_came_from_the_hub(
    loopback_hub: LoopbackHub, tiny_reward_dir: Path
) -> None:
    RewardPredictor.from_pretrained(tiny_reward_dir).push_to_hub("someone/reward")
    assert cached_revision("someone/reward") is None
    RewardPredictor.from_pretrained("someone/reward")
    assert cached_revision("someone/reward") == loopback_hub.history("someone/reward")[0].id
    assert cached_revision(None) is cached_revision(tiny_reward_dir) is None
