"""What is uploaded of an adapter's directory, what of the repository survives, and what is said when it
fails."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import ModelCard, constants
from loopback import LoopbackHub
from PIL import Image

from common.hub_reasons import UnreadableAnswer
from critic.network import ValueNetwork
from hub.__main__ import main, parse_config
from hub.access import HubError
from hub.adapter import KOHYA_NAME, save_adapter
from hub.card import save_model_card
from hub.files import UnreadableAdapter
from hub.header import results_header
from hub.kohya import save_kohya
from hub.licences import with_licence
from hub.notes import BEGIN, END, read_notes, with_notes
from hub.push import push_adapter
from reward.predictor import RewardPredictor

REPO = "someone/adapter"
TWIN = "no-van-gogh-style.safetensors"
PUBLISHED = {
    "pytorch_lora_weights.safetensors",
    TWIN,
    "README.md",
    "results.json",
    "before_after.png",
    "critic/config.json",
    "critic/model.safetensors",
}
PRIVATE = {
    "checkpoint-10/state.safetensors": b"checkpoint",
    "logs/train/events.out.tfevents.1": b"log",
    "previews/iteration-0001.png": b"preview",
    "diagnostics.jsonl": b"{}",
    "critic/optimizer.safetensors": b"optimizer",
    ".env": b"HF_TOKEN=hf_write",
}


def write(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def read(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def on_hub(hub: LoopbackHub, revision: str = "main", repo_id: str = REPO) -> dict[str, bytes]:
    return {
        name: content for name, content in hub.files(repo_id, revision).items() if name != ".gitattributes"
    }


def commits(hub: LoopbackHub, revision: str = "main") -> int:
    """How many there are beside the Hub's own first."""
    return len(hub.history(REPO, revision)) - 1


@pytest.fixture
def bare_dir(trained: UNet2DConditionModel, tmp_path: Path) -> Path:
    """An adapter that nobody has evaluated."""
    save_adapter(
        tmp_path / "bare",
        trained,
        metadata=results_header({"concept": ["cat"], "base_model_name_or_path": "owner/model"}),
    )
    return tmp_path / "bare"


@pytest.fixture
def adapter_dir(trained: UNet2DConditionModel, results: dict[str, Any], tmp_path: Path) -> Path:
    """All that training leaves behind."""
    directory = tmp_path / "adapter"
    save_adapter(directory, trained, metadata=results_header(results))
    save_kohya(directory)
    ValueNetwork(4, 8, 16, width=8, condition_dim=16).save_pretrained(directory / "critic")
    (directory / "results.json").write_text(json.dumps(results | {"settings": {"rank": 8}}))
    Image.new("RGB", (64, 64)).save(directory / "before_after.png")
    save_model_card(results, directory)
    write(directory, PRIVATE)
    return directory


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits between its attempts."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def test_a_push_is_one_commit_of_what_others_need(adapter_dir: Path, loopback_hub: LoopbackHub) -> None:
    before = read(adapter_dir)
    address = push_adapter(adapter_dir, REPO)
    uploaded = on_hub(loopback_hub)
    assert uploaded.keys() == PUBLISHED
    assert all(uploaded[name] == before[name] for name in PUBLISHED - {"README.md"})
    assert commits(loopback_hub) == 1
    assert address == f"{loopback_hub.endpoint}/{REPO}/commit/{loopback_hub.history(REPO)[0].id}"
    assert f'load_lora_weights("{REPO}")' in uploaded["README.md"].decode()
    assert uploaded["README.md"].decode().replace(f'"{REPO}")', '"adapter")') == before["README.md"].decode()
    assert read(adapter_dir) == before


def test_a_push_of_the_same_again_commits_nothing(adapter_dir: Path, loopback_hub: LoopbackHub) -> None:
    assert push_adapter(adapter_dir, REPO) == push_adapter(adapter_dir, REPO)
    assert commits(loopback_hub) == 1


def test_a_second_push_keeps_what_people_wrote_and_replaces_the_rest(
    adapter_dir: Path, results: dict[str, Any], loopback_hub: LoopbackHub
) -> None:
    push_adapter(adapter_dir, REPO)
    card = on_hub(loopback_hub)["README.md"].decode()
    edited = with_notes(card, "## Mine\n\nBy hand: \\1 <b>x</b>").replace(
        "# LoRA that erases", "# Something else that erases"
    )
    loopback_hub.api().upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id=REPO)
    loopback_hub.api().upload_file(path_or_fileobj=b"theirs", path_in_repo="prompts.txt", repo_id=REPO)
    changed = results | {"judge": "another judge"}
    save_model_card(changed, adapter_dir)
    push_adapter(adapter_dir, REPO)
    again = on_hub(loopback_hub)["README.md"].decode()
    assert (
        read_notes(again) == "## Mine\n\nBy hand: \\1 <b>x</b>"
        and again.count(BEGIN) == again.count(END) == 1
    )
    assert "another judge" in again and "Something else" not in again
    assert on_hub(loopback_hub)["prompts.txt"] == b"theirs"
    assert commits(loopback_hub) == 4


def test_notes_of_both_sides_are_kept(adapter_dir: Path, loopback_hub: LoopbackHub) -> None:
    path = adapter_dir / "README.md"
    path.write_text(with_notes(path.read_text(), "Mine."))
    push_adapter(adapter_dir, REPO)
    theirs = with_notes(on_hub(loopback_hub)["README.md"].decode(), "Theirs.")
    loopback_hub.api().upload_file(path_or_fileobj=theirs.encode(), path_in_repo="README.md", repo_id=REPO)
    for _ in range(2):
        push_adapter(adapter_dir, REPO)
        assert read_notes(on_hub(loopback_hub)["README.md"].decode()) == "Theirs.\n\nMine."


def test_a_licence_that_a_person_put_in_on_the_hub_is_kept_unless_the_directory_has_another(
    adapter_dir: Path, loopback_hub: LoopbackHub
) -> None:
    push_adapter(adapter_dir, REPO)
    theirs = with_licence(on_hub(loopback_hub)["README.md"].decode(), {"license": "mit"})
    loopback_hub.api().upload_file(path_or_fileobj=theirs.encode(), path_in_repo="README.md", repo_id=REPO)
    for _ in range(2):
        push_adapter(adapter_dir, REPO)
        assert ModelCard(on_hub(loopback_hub)["README.md"].decode()).data.license == "mit"
    assert commits(loopback_hub) == 2
    path = adapter_dir / "README.md"
    path.write_text(with_licence(path.read_text(), {"license": "cc0-1.0"}))
    push_adapter(adapter_dir, REPO)
    assert ModelCard(on_hub(loopback_hub)["README.md"].decode()).data.license == "cc0-1.0"


def test_what_is_no_longer_there_is_deleted_in_the_same_commit(
    adapter_dir: Path, loopback_hub: LoopbackHub
) -> None:
    push_adapter(adapter_dir, REPO)
    (adapter_dir / TWIN).unlink()
    (adapter_dir / "critic" / "model.safetensors").unlink()
    push_adapter(adapter_dir, REPO)
    assert on_hub(loopback_hub).keys() == PUBLISHED - {
        TWIN,
        "critic/config.json",
        "critic/model.safetensors",
    }
    assert commits(loopback_hub) == 2


def test_the_file_of_the_concept_before_goes_and_those_of_others_stay(
    adapter_dir: Path, bare_dir: Path, loopback_hub: LoopbackHub
) -> None:
    push_adapter(adapter_dir, REPO)
    loopback_hub.api().upload_file(path_or_fileobj=b"theirs", path_in_repo="no-dog.safetensors", repo_id=REPO)
    save_kohya(bare_dir)
    push_adapter(bare_dir, REPO)
    assert {name for name in on_hub(loopback_hub) if name.endswith(".safetensors")} == {
        "pytorch_lora_weights.safetensors",
        "no-cat.safetensors",
        "no-dog.safetensors",
    }


def test_an_adapter_without_figures_or_picture_gets_a_card_from_its_header(
    bare_dir: Path, loopback_hub: LoopbackHub
) -> None:
    push_adapter(bare_dir, "adapter", private=True)
    assert on_hub(loopback_hub).keys() == {"pytorch_lora_weights.safetensors", "README.md"}
    card = ModelCard(on_hub(loopback_hub)["README.md"].decode())
    assert card.data.base_model == "owner/model" and re.search(r"^# .*\bcat$", card.text, re.MULTILINE)
    assert read(bare_dir).keys() == {"pytorch_lora_weights.safetensors"}
    assert loopback_hub.repository(REPO).private


def test_a_branch_is_made_where_it_is_missing(bare_dir: Path, loopback_hub: LoopbackHub) -> None:
    for _ in range(2):
        push_adapter(bare_dir, REPO, revision="a/branch", commit_message="Mine")
    assert commits(loopback_hub) == 0 and commits(loopback_hub, "a/branch") == 1
    assert loopback_hub.history(REPO, "a/branch")[0].title == "Mine"
    assert (
        f'load_lora_weights("{REPO}", revision="a/branch")'
        in on_hub(loopback_hub, "a/branch")["README.md"].decode()
    )


def test_a_pull_request_leaves_main_alone_and_needs_no_right_to_write(
    bare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackHub(
        tmp_path / "hub", {"hf_write": ("someone", "write"), "hf_other": ("other", "write")}
    ) as hub:
        hub.redirect_client(monkeypatch)
        hub.api().create_repo(REPO)
        with pytest.raises(HubError, match=r"403.*--create_pr`"):
            hub.fail("/commit/", status=403)
            push_adapter(bare_dir, REPO, token="hf_other", create_pr=True)
        assert (
            push_adapter(bare_dir, REPO, token="hf_other", create_pr=True)
            == f"{hub.endpoint}/{REPO}/discussions/1"
        )
        assert on_hub(hub) == {} and on_hub(hub, "refs/pr/1").keys() == {
            "pytorch_lora_weights.safetensors",
            "README.md",
        }
        with pytest.raises(HubError, match="--create_pr"):
            push_adapter(bare_dir, REPO, create_pr=True, revision="branch")


WHERE = {
    "making the repository": "POST /api/repos/create",
    "reading the branch": re.compile(rf"GET /api/models/{REPO}($|/revision)"),
    "asking how to upload": "/preupload/",
    "asking where to": "/info/lfs/objects/batch",
    "uploading": "PUT /lfs-storage/",
    "committing": "/commit/main",
}
KINDS = [401, 403, 404, 412, 429, 500, 503, "timeout", "reset", "truncate"]


@pytest.fixture
def impatient_hub(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoopbackHub]:
    """A Hub that soon hangs up where it gives no answer."""
    with LoopbackHub(tmp_path_factory.mktemp("impatient_hub"), stall_seconds=0.02) as hub:
        hub.redirect_client(monkeypatch)
        yield hub


@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE.keys())
def test_every_failure_is_a_sentence_that_leaves_all_as_it_was_and_its_command_completes_the_push(
    where: str | re.Pattern[str],
    bare_dir: Path,
    impatient_hub: LoopbackHub,
    no_pauses: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = read(bare_dir)
    command = ["python", "-m", "hub", "push", str(bare_dir), "--hub_model_id", REPO]
    failed = 0
    for kind in KINDS:
        fault = impatient_hub.fail(where, times=20, status=kind)
        try:
            push_adapter(bare_dir, REPO, token="hf_write")
        except HubError as error:
            failed += 1
            sentence = str(error)
            assert REPO in sentence.split("`")[0] and f"`{shlex.join(command)}`" in sentence, sentence
            assert "\n" not in sentence and "hf_write" not in sentence
            if isinstance(kind, int):
                assert f"({kind}" in sentence
        assert fault.times < 20, f"{kind} was met"
        fault.times = 0
        assert read(bare_dir) == before
    assert failed == len(KINDS)
    main(parse_config(command[3:]))
    assert on_hub(impatient_hub).keys() == {"pytorch_lora_weights.safetensors", "README.md"}
    assert commits(impatient_hub) == 1


def test_notes_that_were_written_during_a_push_are_not_lost(
    bare_dir: Path, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_adapter(bare_dir, REPO)
    card = on_hub(loopback_hub)["README.md"].decode()

    def write_meanwhile(*args: object) -> str:
        edited = with_notes(card, "Just now.").encode()
        loopback_hub.api().upload_file(path_or_fileobj=edited, path_in_repo="README.md", repo_id=REPO)
        return card

    with monkeypatch.context() as patch, pytest.raises(HubError, match=r"\(412\)"):
        patch.setattr("hub.push.fetch_card", write_meanwhile)
        (bare_dir / "README.md").write_text("# Another card\n")
        push_adapter(bare_dir, REPO)
    push_adapter(bare_dir, REPO)
    assert on_hub(loopback_hub)["README.md"].decode().startswith("# Another card\n")
    assert read_notes(on_hub(loopback_hub)["README.md"].decode()) == "Just now."


def test_without_a_token_or_offline_or_with_no_token_at_all_nothing_is_asked(
    bare_dir: Path, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match="hf auth login") as caught:
        push_adapter(bare_dir, REPO, token="hf_write\nX-Other: header")
    assert "hf_write" not in str(caught.value)
    with (
        monkeypatch.context() as patch,
        pytest.raises(HubError, match=r"HF_HUB_OFFLINE.*hub push"),
    ):
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        push_adapter(bare_dir, REPO)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"`hf auth login`.*hub push"):
        push_adapter(bare_dir, REPO)
    assert not loopback_hub.sent("/api/models/") and not loopback_hub.sent("POST ")


def test_a_card_that_the_hub_refuses_and_an_answer_of_something_else_are_named(
    bare_dir: Path, loopback_hub: LoopbackHub
) -> None:
    loopback_hub.fail("/api/validate-yaml", status=400)
    with pytest.raises(HubError, match=r"someone/adapter.*README\.md"):
        push_adapter(bare_dir, REPO)
    loopback_hub.fail(
        "/api/repos/create", status=409
    )  # as of a repository that is there, but without its address
    with pytest.raises(HubError, match=REPO) as caught:
        push_adapter(bare_dir, REPO)
    assert isinstance(caught.value.__cause__, UnreadableAnswer)
    loopback_hub.fail("/api/repos/create", status=418)
    with pytest.raises(HubError, match=r"\(418: I'm a Teapot\)"):
        push_adapter(bare_dir, REPO)


def test_what_is_no_adapter_makes_no_repository(
    bare_dir: Path, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    (bare_dir / KOHYA_NAME).write_bytes(b"half a file")
    with pytest.raises(UnreadableAdapter, match=KOHYA_NAME):
        push_adapter(bare_dir, REPO)
    with pytest.raises(UnreadableAdapter, match=str(tmp_path / "absent")):
        push_adapter(tmp_path / "absent", REPO)
    with pytest.raises(HubError, match="OWNER/NAME"):
        (bare_dir / KOHYA_NAME).unlink()
        push_adapter(bare_dir, "a b/c")
    assert not loopback_hub.sent("POST ")


def test_the_token_is_in_no_request_but_its_own_header(
    adapter_dir: Path, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    push_adapter(adapter_dir, REPO, token="hf_write")
    assert len(loopback_hub.requests) > 5
    for request in loopback_hub.requests:
        others = {name: value for name, value in request.headers.items() if name != "authorization"}
        assert b"hf_write" not in request.body and "hf_write" not in f"{request.path} {others}"
    assert not any(b"hf_write" in content for name, content in read(adapter_dir).items() if name != ".env")
    assert not any(b"hf_write" in content for content in read(loopback_hub.home).values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_reward_predictor_and_a_critic_are_pushed_as_they_are(
    dtype: torch.dtype, loopback_hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = RewardPredictor(4, 8, 12, width=8, condition_dim=16, prompts=["a tree"])
    for network in (reward, ValueNetwork(4, 8, 16, width=8, condition_dim=16)):
        directory = tmp_path / network.kind
        network.save_pretrained(directory, dtype=dtype)
        write(directory, {"checkpoint-1/state.safetensors": b"private"})
        repo_id = f"someone/{network.kind.replace(' ', '-')}"
        main(
            parse_config(
                ["push", str(directory), "--hub_model_id", repo_id, "--private", "--commit_message", "Mine"]
            )
        )
        assert f"/{repo_id}/commit/" in capsys.readouterr().out
        uploaded = on_hub(loopback_hub, repo_id=repo_id)
        assert uploaded.keys() == {"config.json", "model.safetensors", "README.md"}
        assert all(
            uploaded[name] == (directory / name).read_bytes() for name in ("config.json", "model.safetensors")
        )
        assert loopback_hub.repository(repo_id).private and loopback_hub.history(repo_id)[0].title == "Mine"


def test_user_errors_of_the_push_command(bare_dir: Path, loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    write(tmp_path / "judge", {"config.json": b'{"kind": "judge"}', "model.safetensors": b""})
    ValueNetwork(4, 8, 16, width=8, condition_dim=16).save_pretrained(tmp_path / "critic")
    loopback_hub.fail("/api/repos/create", status=500)
    for arguments, message in [
        ([tmp_path], "holds neither"),
        ([tmp_path / "judge"], "holds a judge"),
        ([tmp_path / "critic", "--create_pr"], "are for adapters"),
        (
            [tmp_path / "critic", "--private"],
            r"critic could not be uploaded to critic: .*`python -m hub push .*critic --hub_model_id critic --private`",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            main(parse_config(["push", *map(str, arguments)]))
    assert len(loopback_hub.sent("POST ")) == 1


def test_anybody_loads_it_from_the_hub_and_draws_what_the_local_adapter_draws(
    bare_dir: Path, loopback_hub: LoopbackHub, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    push_adapter(bare_dir, REPO)
    script = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline

def draw():
    return pipe(["a cat", "a tree"], num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images

base, output, *adapters = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(base)
drawn = [draw()]
for adapter in adapters:
    pipe.load_lora_weights(adapter)
    drawn.append(draw())
    pipe.unload_lora_weights()
np.save(output, drawn)
"""
    command = [sys.executable, "-c", script, tiny_pipeline_dir, tmp_path / "drawn.npy", REPO, bare_dir]
    ran = subprocess.run(
        command, env=loopback_hub.environment(token=None), capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    base, of_hub, of_directory = np.load(tmp_path / "drawn.npy")
    assert np.array_equal(of_hub, of_directory) and np.abs(of_hub - base).max() > 1e-2
    assert len(loopback_hub.sent("GET /lfs-storage/")) == 1
