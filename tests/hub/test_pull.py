"""What comes back from the Hub is what was uploaded, or nothing at all."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import constants
from loopback import LoopbackHub
from PIL import Image

from critic.network import ValueNetwork
from hub.__main__ import main, parse_config
from hub.access import HubError
from hub.adapter import read_adapter_metadata, save_adapter
from hub.card import save_model_card
from hub.kohya import save_kohya
from hub.pull import pull
from hub.push import push_adapter
from reward.predictor import RewardPredictor

REPO = "someone/adapter"
WEIGHTS = "pytorch_lora_weights.safetensors"


def read(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def adapter_dir(trained: UNet2DConditionModel, results: dict[str, Any], tmp_path: Path) -> Path:
    directory = tmp_path / "adapter"
    save_adapter(directory, trained)
    save_kohya(directory)
    ValueNetwork(4, 8, 16, width=8, condition_dim=16).save_pretrained(directory / "critic")
    (directory / "results.json").write_text(json.dumps(results))
    Image.new("RGB", (64, 64)).save(directory / "before_after.png")
    save_model_card(results, directory)
    return directory


def test_a_pull_gives_back_what_a_push_took_byte_for_byte(
    adapter_dir: Path, loopback_hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push_adapter(adapter_dir, REPO)
    loopback_hub.api().upload_file(path_or_fileobj=b"import os", path_in_repo="handler.py", repo_id=REPO)
    main(parse_config(["pull", REPO, "--output_dir", str(tmp_path / "new" / "pulled")]))
    assert f"wrote {tmp_path / 'new' / 'pulled'}: {WEIGHTS}, " in capsys.readouterr().out
    pulled, kept = read(tmp_path / "new" / "pulled"), read(adapter_dir)
    assert pulled.pop("README.md") == loopback_hub.files(REPO)["README.md"]
    kept.pop("README.md")
    assert pulled == kept and len(pulled) == 6
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pulled"]


def test_no_name_in_a_repository_leads_out_of_the_directory(
    adapter_dir: Path, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    push_adapter(adapter_dir, REPO)
    names = [
        "../../outside.safetensors",
        "critic/../../outside.json",
        str(tmp_path / "outside.txt"),
        f"{WEIGHTS}/../../outside",
        "..\\outside",
    ]
    files = [
        {"key": "file", "value": {"path": name, "content": base64.b64encode(b"planted").decode()}}
        for name in names
    ]
    loopback_hub.repository(REPO).commit(
        "main", "somebody", [{"key": "header", "value": {"summary": "a gift"}}, *files]
    )
    before = read(tmp_path)
    assert set(names) < set(loopback_hub.files(REPO))
    pull(REPO, tmp_path / "a" / "b" / "pulled")
    written = {
        name: content
        for name, content in read(tmp_path).items()
        if name not in before and not name.startswith(("hub", "home"))
    }
    assert b"planted" not in written.values()
    assert all(name.startswith("a/b/pulled/") for name in written), written
    assert f"a/b/pulled/{WEIGHTS}" in written


def test_a_pull_takes_the_revision_it_is_told(
    adapter_dir: Path, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    push_adapter(adapter_dir, REPO)
    (adapter_dir / "results.json").write_text("{}")
    push_adapter(adapter_dir, REPO, revision="other")
    (tmp_path / "empty").mkdir()
    pull(REPO, tmp_path / "main")
    pull(REPO, tmp_path / "empty", revision="other")
    assert (
        (tmp_path / "main" / "results.json").read_text()
        != (tmp_path / "empty" / "results.json").read_text()
        == "{}"
    )


@pytest.mark.parametrize(
    "network",
    [lambda: RewardPredictor(4, 8, 12, width=8, condition_dim=16), lambda: ValueNetwork(4, 8, 16, width=8)],
)
def test_reward_predictors_and_critics_come_back_too(
    network: Callable[[], RewardPredictor | ValueNetwork], loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    pushed = network()
    pushed.push_to_hub("someone/network", private=True)
    assert pull("someone/network", tmp_path / "pulled", token="hf_read") == [
        "config.json",
        "model.safetensors",
        "README.md",
    ]
    loaded = type(pushed).from_pretrained(tmp_path / "pulled")
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), pushed.parameters(), strict=True))


LIST, METADATA, CONTENT = f"GET /api/models/{REPO}", f"HEAD /{REPO}/resolve/", "GET /lfs-storage/"


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        *product((LIST, METADATA, CONTENT), (401, 403, 500, "timeout", "reset")),
        (LIST, "truncate"),
        (CONTENT, "truncate"),
    ],
)
def test_a_pull_that_is_cut_off_leaves_nothing_and_its_command_completes_it(
    where: str, kind: int | str, adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with LoopbackHub(tmp_path / "hub", stall_seconds=0.02) as hub:
        hub.redirect_client(monkeypatch)
        push_adapter(adapter_dir, REPO)
        (tmp_path / "work").mkdir()
        fault = hub.fail(where, times=200, status=kind)
        with pytest.raises(HubError) as caught:
            pull(REPO, tmp_path / "work" / "pulled")
        sentence = str(caught.value)
        assert REPO in sentence.split("`")[0] and "\n" not in sentence
        assert list((tmp_path / "work").iterdir()) == []
        fault.times = 0
        main(parse_config(shlex.split(sentence.split("`")[-2])[3:]))
        assert read_adapter_metadata(tmp_path / "work" / "pulled")


def test_what_cannot_be_read_is_refused_and_leaves_nothing(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    api = loopback_hub.api()
    for name, files, message in [
        ("damaged", {WEIGHTS: b"half a file"}, WEIGHTS),
        ("pickle", {"pytorch_lora_weights.bin": b"pickle"}, rf"{WEIGHTS}.*model\.safetensors"),
        (
            "strange",
            {"config.json": b"{}", "model.safetensors": b"\x02\0\0\0\0\0\0\0{}"},
            r"config\.json",
        ),
        ("absent", {}, r"\(404\)"),
    ]:
        if files:
            api.create_repo(name)
        for path, content in files.items():
            api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=f"someone/{name}")
        with pytest.raises(HubError, match=message):
            pull(f"someone/{name}", tmp_path / "work" / "pulled")
    assert not (tmp_path / "work").exists() or list((tmp_path / "work").iterdir()) == []


def test_user_errors_of_a_pull(
    loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("keep me")
    with pytest.raises(ValueError, match=f"--output_dir {tmp_path / 'full'}"):
        pull(REPO, tmp_path / "full")
    with pytest.raises(HubError, match="OWNER/NAME"):
        pull("a b", tmp_path / "new")
    with pytest.raises(HubError, match="hf auth login") as caught:
        pull(REPO, tmp_path / "new", token="hf_write x")
    assert "hf_write" not in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        pull(REPO, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and not loopback_hub.sent("GET /api/models")
