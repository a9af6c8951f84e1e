"""What `push --space` makes of an adapter: a Space that runs from its own files alone, and of which
nothing stale is left."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from huggingface_hub import ModelCard, constants, snapshot_download
from loopback import LoopbackHub
from PIL import Image
from served import serve

import canvas
from critic.network import ValueNetwork
from hub.__main__ import main, parse_config
from hub.access import HubError
from hub.adapter import save_adapter
from hub.header import results_header
from hub.notes import read_notes, with_notes
from hub.space.bundle import CODE, GRADIO, PYTHON, ROOT
from hub.space.push import push_space
from hub.space.studio import Settings, Studio

REPO = "someone/no-van-gogh"
PAGE = {*CODE, "app.py", "requirements.txt", "space.json", "README.md"}
PIPELINE = {
    f"canvas/weights/pipeline/{path.relative_to(canvas.PIPELINE).as_posix()}"
    for path in canvas.PIPELINE.rglob("*")
    if path.is_file()
}


def push(directory: Path, *more: str) -> None:
    main(parse_config(["push", str(directory), "--hub_model_id", REPO, "--space", *more]))


def on_space(hub: LoopbackHub, space_id: str = REPO) -> dict[str, bytes]:
    return {
        name: content
        for name, content in hub.files(space_id, repo_type="space").items()
        if name != ".gitattributes"
    }


@pytest.fixture
def directory(canvas_adapter_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(canvas_adapter_dir, tmp_path / "adapter"))


@pytest.fixture
def hub_based_dir(trained: UNet2DConditionModel, tmp_path: Path) -> Path:
    """An adapter whose base is on the Hub."""
    results = {"concept": ["cat"], "base_model_name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
    return save_adapter(tmp_path / "hub-based", trained, metadata=results_header(results)).parent


def test_a_push_makes_the_adapter_and_a_space_in_one_commit_each(
    directory: Path, loopback_hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    push(directory)
    assert f"{loopback_hub.endpoint}/spaces/{REPO}\n" in capsys.readouterr().out
    assert "pytorch_lora_weights.safetensors" in loopback_hub.files(REPO)
    uploaded = on_space(loopback_hub)
    assert uploaded.keys() == PAGE | PIPELINE
    assert all(uploaded[name] == (ROOT / name).read_bytes() for name in CODE) and all(
        uploaded[name] == (ROOT / name).read_bytes() for name in PIPELINE
    )
    assert json.loads(uploaded["space.json"]) == {
        "adapter": REPO,
        "revision": loopback_hub.history(REPO)[0].id,
    }
    assert (
        loopback_hub.repository(REPO, "space").settings["sdk"] == "gradio"
        and not loopback_hub.repository(REPO, "space").private
    )
    assert [commit.title for commit in loopback_hub.history(REPO, repo_type="space")] == [
        f"Show {REPO}",
        "initial commit",
    ]
    card = ModelCard(uploaded["README.md"].decode())
    said = card.data.to_dict()
    assert (said["title"], said["sdk"], said["sdk_version"], said["app_file"]) == (
        "Van Gogh style, erased",
        "gradio",
        GRADIO,
        "app.py",
    )
    assert (said["license"], said["models"], str(said["python_version"])) == (
        "apache-2.0",
        [REPO],
        PYTHON,
    ) and "concept-erasure" in said["tags"]
    (validated,) = [
        json.loads(request.body)
        for request in loopback_hub.sent("/api/validate-yaml")
        if b'"space"' in request.body
    ]
    assert validated["repoType"] == "space" and "sdk: gradio" in validated["content"]


def test_a_base_on_the_hub_is_named_and_not_carried(hub_based_dir: Path, loopback_hub: LoopbackHub) -> None:
    push(hub_based_dir, "--space_id", "page", "--private")
    assert (
        on_space(loopback_hub, "someone/page").keys() == PAGE
        and loopback_hub.repository("someone/page", "space").private
    )
    said = ModelCard(on_space(loopback_hub, "someone/page")["README.md"].decode()).data.to_dict()
    assert (
        said["models"] == ["stable-diffusion-v1-5/stable-diffusion-v1-5", REPO]
        and said["license"] == "creativeml-openrail-m"
    )


def test_the_space_shows_the_branch_that_was_pushed(directory: Path, loopback_hub: LoopbackHub) -> None:
    push(directory, "--revision", "second")
    assert (
        json.loads(on_space(loopback_hub)["space.json"])["revision"]
        == loopback_hub.history(REPO, "second")[0].id
    )


def test_a_second_push_keeps_what_people_made_and_nothing_stale(
    directory: Path, hub_based_dir: Path, loopback_hub: LoopbackHub
) -> None:
    push(directory)
    push(directory)
    assert len(loopback_hub.history(REPO, repo_type="space")) == 2
    api, card = loopback_hub.api(), on_space(loopback_hub)["README.md"].decode()
    for name, content in [
        ("README.md", with_notes(card, "Mine.").encode()),
        ("mine.txt", b"mine"),
        ("hub/old.py", b"old"),
    ]:
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=REPO, repo_type="space")
    push(hub_based_dir)
    uploaded = on_space(loopback_hub)
    assert uploaded.keys() == PAGE | {"mine.txt"} and read_notes(uploaded["README.md"].decode()) == "Mine."
    assert json.loads(uploaded["space.json"])["revision"] == loopback_hub.history(REPO)[0].id
    assert len(loopback_hub.history(REPO, repo_type="space")) == 6


def test_a_space_of_something_else_is_left_alone(directory: Path, loopback_hub: LoopbackHub) -> None:
    loopback_hub.api().create_repo(REPO, repo_type="space", space_sdk="gradio")
    loopback_hub.api().upload_file(
        path_or_fileobj=b"theirs", path_in_repo="app.py", repo_id=REPO, repo_type="space"
    )
    with pytest.raises(HubError, match=f"{REPO}.*--space_id"):
        push(directory)
    assert on_space(loopback_hub)["app.py"] == b"theirs"
    push(directory, "--space_id", "someone/other")
    assert on_space(loopback_hub, "someone/other").keys() == PAGE | PIPELINE


def test_what_no_space_can_show_is_refused_before_anything_is_uploaded(
    trained: UNet2DConditionModel, directory: Path, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    local = save_adapter(
        tmp_path / "local",
        trained,
        metadata=results_header({"base_model_name_or_path": "/home/someone/tiny"}),
    ).parent
    nameless = save_adapter(tmp_path / "nameless", trained).parent
    ValueNetwork(4, 8, 16, width=8, condition_dim=16).save_pretrained(tmp_path / "critic")
    for arguments, message in [
        ([local, "--space"], "'tiny'.*--space"),
        ([nameless, "--space"], "--space.*base_model_name_or_path"),
        ([tmp_path / "critic", "--space"], "--revision.*--space"),
        ([directory, "--space", "--create_pr"], "--space.*--create_pr"),
        ([directory, "--space_id", "page"], r"--space_id.*--space\b"),
    ]:
        with pytest.raises(HubError, match=message):
            main(parse_config(["push", *map(str, arguments)]))
    assert not loopback_hub.sent("POST ")


@pytest.mark.parametrize(
    "where",
    [
        "POST /api/repos/create",
        "GET /api/spaces/someone/page",
        "/someone/page/preupload/",
        "/someone/page/commit/",
    ],
)
def test_a_failure_is_a_sentence_and_its_command_completes_the_push(
    where: str, hub_based_dir: Path, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    for kind in (401, 403, 404, 412, 500, "reset"):
        fault = loopback_hub.fail(where, times=20, status=kind)
        with pytest.raises(HubError, match=r"`python -m hub push .* --space --space_id page`") as caught:
            push(hub_based_dir, "--space_id", "page")
        sentence = str(caught.value)
        assert "\n" not in sentence and "hf_write" not in sentence
        assert fault.times < 20, f"{kind} was met"
        fault.times = 0
    main(parse_config(shlex.split(re.search("`(.*)`", sentence)[1])[3:]))
    assert on_space(loopback_hub, "someone/page").keys() == PAGE


def test_without_a_token_or_offline_nothing_is_asked(
    directory: Path, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as patch,
        pytest.raises(HubError, match=r"HF_HUB_OFFLINE.*--space`"),
    ):
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        push_space(directory, REPO)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"`hf auth login`.*--space`"):
        push_space(directory, REPO)
    assert not loopback_hub.requests


def test_the_token_is_in_no_file_and_no_request_but_its_own_header(
    directory: Path, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    push(directory, "--hub_token", "hf_write")
    assert not any(
        b"hf_write" in request.body or "hf_write" in request.path for request in loopback_hub.requests
    )
    assert not any(b"hf_write" in content for content in on_space(loopback_hub).values())


def test_requirements_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {*project["dependencies"], *project["optional-dependencies"]["space"]}
    asked = (ROOT / "hub/space/requirements.txt").read_text().split()
    assert set(asked) <= known and project["optional-dependencies"]["space"][0] in asked
    assert f"gradio=={GRADIO}" in (ROOT / "constraints.txt").read_text().split()
    assert project["requires-python"] == f">={PYTHON}"


# A Space, run from its own files


def test_the_space_of_the_bundled_base_draws_what_is_drawn_here(
    directory: Path, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    push(directory)
    folder = snapshot_download(REPO, repo_type="space", local_dir=tmp_path / "space")
    prompt = "a cat image in Van Gogh style"
    with serve(["app.py"], tmp_path / "server", loopback_hub.environment(token=None), Path(folder)) as server:
        *_, (before, after, status) = server.draw(prompt, 1.0, 7, 6, 7.5)
        said = server.log.read_text()
    assert (
        status == "Scale 1, seed 7. Two images drawn."
        and "ASKED OUTSIDE" not in said
        and "Traceback" not in said
    )
    studio = Studio(canvas.PIPELINE)
    for path, scale in ((before, 0.0), (after, 1.0)):
        here = studio.draw(Settings(prompt, 7, 6, 7.5), str(directory), scale).image
        assert np.array_equal(np.asarray(Image.open(path).convert("RGB")), np.asarray(here))


def test_a_space_loads_its_base_from_the_hub(
    trained: UNet2DConditionModel, tiny_pipeline_dir: Path, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    api = loopback_hub.api()
    api.create_repo("someone/tiny")
    api.upload_folder(repo_id="someone/tiny", folder_path=tiny_pipeline_dir)
    results = results_header({"concept": ["cat"], "base_model_name_or_path": "someone/tiny"})
    directory = save_adapter(tmp_path / "adapter", trained, metadata=results).parent
    push(directory)
    folder = Path(snapshot_download(REPO, repo_type="space", local_dir=tmp_path / "space"))
    with serve(["app.py"], tmp_path / "server", loopback_hub.environment(token=None), folder) as server:
        *_, (before, after, _) = server.draw("a cat", 1.0, 7, 3, 5.0)
        assert before != after and "ASKED OUTSIDE" not in server.log.read_text()


def test_a_space_that_may_not_see_its_adapter_says_so_and_with_a_token_shows_it(
    directory: Path, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    push(directory, "--private")
    folder = Path(snapshot_download(REPO, repo_type="space", local_dir=tmp_path / "space"))
    for token, expected in [
        (None, f"{REPO} is neither a local directory nor a Hub repository that can be reached"),
        ("hf_read", "erased"),
    ]:
        with serve(["app.py"], tmp_path / str(token), loopback_hub.environment(token), folder) as server:
            with urlopen(server.address, timeout=30) as page:
                said = page.read().decode()
            assert expected in said and ("secret HF" in said) == (token is None)
            assert (
                "hf_read" not in said + server.log.read_text() and "Traceback" not in server.log.read_text()
            )
