"""The loopback Hub against huggingface_hub's own client."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import (
    _CACHED_NO_EXIST,
    CommitOperationAdd,
    CommitOperationDelete,
    constants,
    hf_hub_download,
    model_info,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback import LoopbackHub
from loopback_store import Entry
from safetensors.numpy import save

REPO = "someone/adapter"
WEIGHTS = bytes(range(256)) * 8
CONTENTS = {"notes.txt": b"0123456789abcdef", "weights.safetensors": WEIGHTS}
"""A regular file and an LFS file."""

COMMIT = f"POST /api/models/{REPO}/commit/main"


def write_folder(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def push(hub: LoopbackHub, directory: Path, files: dict[str, bytes], **options: object) -> str:
    """Upload a folder of just these files to the repository, made if need be; returns the commit's id."""
    api = hub.api()
    api.create_repo(REPO, exist_ok=True)
    folder = write_folder(directory / f"folder_{len(hub.requests)}", files)
    return api.upload_folder(repo_id=REPO, folder_path=folder, **options).oid


def own_files(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    """All but what the Hub itself put there."""
    return {path: content for path, content in hub.files(REPO, revision).items() if path != ".gitattributes"}


def titles(hub: LoopbackHub, revision: str = "main") -> list[str]:
    return [commit.title for commit in hub.history(REPO, revision)]


def download(revision: str | None = None, name: str = "notes.txt", **options: object) -> bytes:
    return Path(hf_hub_download(REPO, name, revision=revision, **options)).read_bytes()


def status_of(caught: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return caught.value.response.status_code


def test_a_token_is_its_user_and_no_other_token_is_anybody(loopback_hub: LoopbackHub) -> None:
    assert loopback_hub.api("hf_read").whoami()["name"] == "someone"
    assert loopback_hub.api("hf_read").whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as caught:
        loopback_hub.api("hf_unknown").whoami()
    assert status_of(caught) == 401
    loopback_hub.api().create_repo(REPO)
    assert loopback_hub.api(False).model_info(REPO).id == REPO
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        loopback_hub.api("hf_unknown").model_info(REPO)
    assert status_of(caught) == 401 and not isinstance(caught.value, RepositoryNotFoundError)


def test_a_repository_is_made_once(loopback_hub: LoopbackHub) -> None:
    api = loopback_hub.api()
    assert not api.repo_exists(REPO)
    url = api.create_repo("adapter")
    assert (url, url.repo_id, url.repo_type) == (f"{loopback_hub.endpoint}/{REPO}", REPO, "model")
    assert api.repo_exists(REPO)
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError, match="already created this model repo") as caught:
        api.create_repo(REPO)
    assert status_of(caught) == 409
    assert [request.status for request in loopback_hub.sent("POST /api/repos/create")] == [200, 409, 409]
    assert titles(loopback_hub) == ["initial commit"]


def test_a_folder_is_one_commit_with_its_large_files_in_the_storage(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    files = {
        "README.md": b"# A card\n",
        "notes.txt": b"small",
        "sub/weights.safetensors": WEIGHTS,
        "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    }
    oid = push(loopback_hub, tmp_path, files, commit_message="Upload the adapter")
    assert own_files(loopback_hub) == files
    assert len(loopback_hub.sent("/commit/")) == 1
    assert len(loopback_hub.sent("PUT /lfs-storage/")) == 2
    info = loopback_hub.api().model_info(REPO, files_metadata=True)
    assert info.sha == oid and not info.private
    assert {file.rfilename: file.lfs is not None for file in info.siblings} == {
        ".gitattributes": False,
        "README.md": False,
        "notes.txt": False,
        "picture.png": True,
        "sub/weights.safetensors": True,
    }
    assert {file.rfilename: file.size for file in info.siblings}["sub/weights.safetensors"] == len(WEIGHTS)


def test_a_file_is_large_by_its_size_too(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    push(loopback_hub, tmp_path, {"long.txt": b"a" * 10_000_001, "short.txt": b"a"})
    assert {path: entry.lfs for path, entry in loopback_hub.history(REPO)[0].files.items()} == {
        ".gitattributes": False,
        "long.txt": True,
        "short.txt": False,
    }


def test_a_second_push_replaces_the_first_and_both_are_in_the_history(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    first = push(
        loopback_hub, tmp_path, {"notes.txt": b"old", "weights.safetensors": WEIGHTS}, commit_message="first"
    )
    second = push(
        loopback_hub,
        tmp_path,
        {"notes.txt": b"new", "weights.safetensors": WEIGHTS[::-1]},
        commit_message="second",
    )
    commits = loopback_hub.api().list_repo_commits(REPO)
    assert [(commit.commit_id, commit.title, commit.authors) for commit in commits[:2]] == [
        (second, "second", ["someone"]),
        (first, "first", ["someone"]),
    ]
    assert titles(loopback_hub) == ["second", "first", "initial commit"]
    assert own_files(loopback_hub) == {"notes.txt": b"new", "weights.safetensors": WEIGHTS[::-1]}
    assert own_files(loopback_hub, first) == {"notes.txt": b"old", "weights.safetensors": WEIGHTS}


def test_what_did_not_change_is_neither_uploaded_nor_committed_again(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    files = {"notes.txt": b"same", "weights.safetensors": WEIGHTS}
    first = push(loopback_hub, tmp_path, files)
    assert push(loopback_hub, tmp_path, files) == first
    assert len(loopback_hub.sent(COMMIT)) == len(loopback_hub.sent("PUT ")) == 1
    push(loopback_hub, tmp_path, {"copy.safetensors": WEIGHTS})
    assert len(loopback_hub.sent(COMMIT)) == 2 and len(loopback_hub.sent("PUT ")) == 1


def test_every_revision_can_be_downloaded(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    first = push(loopback_hub, tmp_path, {"notes.txt": b"old", "sub/weights.safetensors": WEIGHTS})
    push(loopback_hub, tmp_path, {"notes.txt": b"new", "sub/weights.safetensors": WEIGHTS[::-1]})
    assert download() == b"new" and download(first) == b"old"
    assert download(name="sub/weights.safetensors") == WEIGHTS[::-1]
    assert download(first, name="sub/weights.safetensors") == WEIGHTS


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_is_in_the_cache_is_not_sent_again(
    loopback_hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    push(loopback_hub, tmp_path, CONTENTS)
    bodies = re.compile(rf"GET (/lfs-storage/|/{REPO}/resolve/)")
    assert download(name=name) == CONTENTS[name]
    assert len(loopback_hub.sent(bodies)) == 1
    assert download(name=name) == CONTENTS[name]
    assert (
        len(loopback_hub.sent(bodies)) == 1
        and len(loopback_hub.sent(f"HEAD /{REPO}/resolve/main/{name}")) == 2
    )


def test_a_snapshot_is_what_its_patterns_allow(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    push(
        loopback_hub,
        tmp_path,
        {"config.json": b"{}", "sub/weights.safetensors": WEIGHTS, "sub/log.txt": b"", "log.txt": b"long"},
    )
    snapshot = Path(snapshot_download(REPO, allow_patterns=["*.json", "sub/*.safetensors"]))
    found = {
        path.relative_to(snapshot).as_posix(): path.read_bytes()
        for path in snapshot.rglob("*")
        if path.is_file()
    }
    assert found == {"config.json": b"{}", "sub/weights.safetensors": WEIGHTS}
    assert not loopback_hub.sent(re.compile(r"(GET|HEAD) .*log\.txt"))


def test_the_tree_lists_files_and_folders(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    push(loopback_hub, tmp_path, {"a/b/c.txt": b"c", "a/d.txt": b"d", "e.txt": b"e"})
    api = loopback_hub.api()
    assert {item.path for item in api.list_repo_tree(REPO)} == {".gitattributes", "a", "e.txt"}
    assert {item.path for item in api.list_repo_tree(REPO, "a")} == {"a/b", "a/d.txt"}
    assert {item.path for item in api.list_repo_tree(REPO, recursive=True)} == {
        ".gitattributes",
        "a",
        "a/b",
        "a/b/c.txt",
        "a/d.txt",
        "e.txt",
    }
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "absent"))


def test_what_is_missing_says_what_it_is(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    oid = push(loopback_hub, tmp_path, {"notes.txt": b"text"})
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "absent.txt")
    assert loopback_hub.sent("HEAD ")[-1].status == 404
    assert try_to_load_from_cache(REPO, "absent.txt", revision=oid) is _CACHED_NO_EXIST
    for revision in ("absent", "0" * 40, "refs/pr/1"):
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download(REPO, "notes.txt", revision=revision)
    with pytest.raises(RepositoryNotFoundError) as caught:
        hf_hub_download("someone/absent", "notes.txt")
    assert status_of(caught) == 404
    with pytest.raises(RepositoryNotFoundError):
        loopback_hub.api().model_info("without-namespace")
    api = loopback_hub.api()
    assert (api.file_exists(REPO, "notes.txt"), api.file_exists(REPO, "absent.txt")) == (True, False)
    assert (api.revision_exists(REPO, "main"), api.revision_exists(REPO, "absent")) == (True, False)


def test_a_private_repository_is_there_for_its_owner_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {
        "hf_write": ("someone", "write"),
        "hf_read": ("someone", "read"),
        "hf_other": ("other", "write"),
    }
    with LoopbackHub(tmp_path / "hub", tokens) as hub:
        hub.redirect_client(monkeypatch)
        hub.api().create_repo(REPO, private=True)
        push(hub, tmp_path, {"notes.txt": b"secret"})
        assert hub.api("hf_read").model_info(REPO).private
        assert download(token="hf_read") == b"secret"
        for token, status in ((False, 401), ("hf_other", 404)):
            with pytest.raises(RepositoryNotFoundError) as caught:
                hub.api(token).model_info(REPO)
            assert status_of(caught) == status
            with pytest.raises(RepositoryNotFoundError):
                hf_hub_download(REPO, "notes.txt", token=token, cache_dir=tmp_path / "cache")
            assert not hub.api(token).repo_exists(REPO)


def test_a_read_token_may_not_write(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    push(loopback_hub, tmp_path, {"notes.txt": b"text"}, commit_message="first")
    reader = loopback_hub.api("hf_read")
    for write in (
        lambda: reader.create_repo("someone/other"),
        lambda: reader.upload_file(path_or_fileobj=b"new", path_in_repo="notes.txt", repo_id=REPO),
        lambda: reader.create_commit(REPO, [CommitOperationDelete("notes.txt")], commit_message="delete"),
        lambda: reader.create_branch(REPO, branch="other"),
    ):
        with pytest.raises(HfHubHTTPError, match="403 Forbidden") as caught:
            write()
        assert status_of(caught) == 403
    assert titles(loopback_hub) == ["first", "initial commit"] and not loopback_hub.api().repo_exists(
        "someone/other"
    )
    with pytest.raises(RepositoryNotFoundError):
        loopback_hub.api(False).upload_file(path_or_fileobj=b"new", path_in_repo="notes.txt", repo_id=REPO)


def test_another_user_may_only_open_a_pull_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackHub(
        tmp_path / "hub", {"hf_write": ("someone", "write"), "hf_other": ("other", "write")}
    ) as hub:
        hub.redirect_client(monkeypatch)
        push(hub, tmp_path, {"notes.txt": b"mine"}, commit_message="first")
        other = hub.api("hf_other")
        with pytest.raises(HfHubHTTPError, match="create_pr=1"):
            other.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="weights.safetensors", repo_id=REPO)
        with pytest.raises(HfHubHTTPError, match="rights to create a model under the namespace"):
            other.create_repo("someone/theirs")
        opened = other.upload_file(
            path_or_fileobj=WEIGHTS, path_in_repo="weights.safetensors", repo_id=REPO, create_pr=True
        )
        assert own_files(hub) == {"notes.txt": b"mine"}
        assert own_files(hub, opened.pr_revision) == {"notes.txt": b"mine", "weights.safetensors": WEIGHTS}
        assert hub.history(REPO, opened.pr_revision)[0].author == "other"


def test_a_commit_on_an_outdated_parent_is_a_conflict(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    first = push(loopback_hub, tmp_path, {"notes.txt": b"1"}, commit_message="first")
    second = push(loopback_hub, tmp_path, {"notes.txt": b"2"}, commit_message="second", parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        push(loopback_hub, tmp_path, {"notes.txt": b"3"}, commit_message="third", parent_commit=first)
    assert status_of(caught) == 412
    push(loopback_hub, tmp_path, {"notes.txt": b"4"}, commit_message="fourth", parent_commit=second[:7])
    assert titles(loopback_hub) == ["fourth", "second", "first", "initial commit"]


def test_of_commits_on_the_same_parent_one_is_made(
    loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = push(loopback_hub, tmp_path, {"notes.txt": b"text"})
    blobs, together = loopback_hub.store.blobs, threading.Barrier(4)
    add = blobs.add

    def add_together(content: bytes) -> Entry:
        """What all four would get to at once if a commit did not keep the others out."""
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(timeout=0.3)
        return add(content)

    monkeypatch.setattr(blobs, "add", add_together)

    def try_to_commit(number: int) -> int:
        operation = CommitOperationAdd("notes.txt", f"by {number}".encode())
        try:
            loopback_hub.api().create_commit(
                REPO, [operation], commit_message=f"by {number}", parent_commit=parent
            )
            return 200
        except HfHubHTTPError as error:
            return error.response.status_code

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(try_to_commit, range(4))) == [200, 412, 412, 412]
    assert len(titles(loopback_hub)) == 3
    assert own_files(loopback_hub)["notes.txt"].decode() == titles(loopback_hub)[0]


def test_pull_requests_and_branches_leave_main_alone(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    api = loopback_hub.api()
    start = push(loopback_hub, tmp_path, {"notes.txt": b"start"})
    push(loopback_hub, tmp_path, {"notes.txt": b"main"})
    for number in (1, 2):
        made = api.upload_file(
            path_or_fileobj=b"request %d" % number, path_in_repo="notes.txt", repo_id=REPO, create_pr=True
        )
        assert (made.pr_num, made.pr_revision, made.pr_url) == (
            number,
            f"refs/pr/{number}",
            f"{loopback_hub.endpoint}/{REPO}/discussions/{number}",
        )
    older = api.create_commit(
        REPO,
        [CommitOperationDelete("notes.txt")],
        commit_message="delete",
        create_pr=True,
        parent_commit=start,
    )
    assert (
        own_files(loopback_hub, older.pr_revision) == {}
        and loopback_hub.history(REPO, "refs/pr/3")[0].parent == start
    )
    api.create_branch(REPO, branch="a/branch")
    api.upload_file(path_or_fileobj=b"branch", path_in_repo="notes.txt", repo_id=REPO, revision="a/branch")
    assert [download(revision) for revision in (None, "refs/pr/1", "refs/pr/2", "a/branch")] == [
        b"main",
        b"request 1",
        b"request 2",
        b"branch",
    ]
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert [ref.name for ref in refs.branches] == ["main", "a/branch"]
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1", "refs/pr/2", "refs/pr/3"]
    api.create_branch(REPO, branch="a/branch", exist_ok=True)
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_branch(REPO, branch="a/branch")
    assert status_of(caught) == 409
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"", path_in_repo="notes.txt", repo_id=REPO, revision="absent")


def test_an_upload_deletes_what_its_patterns_name(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    push(loopback_hub, tmp_path, {"old.safetensors": WEIGHTS, "sub/old.txt": b"old", "notes.txt": b"old"})
    push(
        loopback_hub,
        tmp_path,
        {"new.safetensors": WEIGHTS, "notes.txt": b"new"},
        delete_patterns=["*.safetensors", "sub/*", "notes.txt"],
    )
    assert own_files(loopback_hub) == {"new.safetensors": WEIGHTS, "notes.txt": b"new"}
    assert len(loopback_hub.sent(COMMIT)) == 2


def test_only_what_is_there_can_be_deleted(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    api = loopback_hub.api()
    push(
        loopback_hub,
        tmp_path,
        {"sub/a.txt": b"a", "sub/deep/b.txt": b"b", "subject.txt": b"c"},
        commit_message="first",
    )
    for path in ("absent.txt", "absent/"):
        with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
            api.create_commit(
                REPO,
                [CommitOperationDelete("subject.txt"), CommitOperationDelete(path)],
                commit_message="delete",
            )
    assert titles(loopback_hub) == ["first", "initial commit"]
    api.delete_folder("sub", REPO)
    assert own_files(loopback_hub) == {"subject.txt": b"c"}


def test_an_lfs_file_that_was_not_uploaded_cannot_be_committed(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    push(loopback_hub, tmp_path, {"weights.safetensors": WEIGHTS}, commit_message="first")
    oid = loopback_hub.history(REPO)[0].files["weights.safetensors"].oid
    for pointer in ({"oid": "0" * 64, "size": 1}, {"oid": oid, "size": len(WEIGHTS) + 1}):
        lines = [
            {"key": "header", "value": {"summary": "second"}},
            {"key": "lfsFile", "value": {"path": "other.bin", "algo": "sha256", **pointer}},
        ]
        body = "\n".join(json.dumps(line) for line in lines).encode()
        asked = urllib.request.Request(
            f"{loopback_hub.endpoint}/api/models/{REPO}/commit/main",
            body,
            {"Authorization": "Bearer hf_write"},
        )
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(asked)
    assert titles(loopback_hub) == ["first", "initial commit"]


def test_a_space_is_a_repository_of_its_own(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    api = loopback_hub.api()
    url = api.create_repo(REPO, repo_type="space", space_sdk="gradio")
    assert (url, url.repo_type) == (f"{loopback_hub.endpoint}/spaces/{REPO}", "space")
    folder = write_folder(tmp_path / "space", {"app.py": b"print()\n", "weights.safetensors": WEIGHTS})
    made = api.upload_folder(repo_id=REPO, repo_type="space", folder_path=folder)
    assert (made.repo_url.repo_type, made.commit_url) == (
        "space",
        f"{loopback_hub.endpoint}/spaces/{REPO}/commit/{made.oid}",
    )
    info = api.space_info(REPO)
    assert (info.sdk, info.sha) == ("gradio", made.oid)
    assert "sdk: gradio" in Path(hf_hub_download(REPO, "README.md", repo_type="space")).read_text(
        encoding="utf-8"
    )
    assert Path(hf_hub_download(REPO, "weights.safetensors", repo_type="space")).read_bytes() == WEIGHTS
    assert loopback_hub.files(REPO, repo_type="space")["app.py"] == b"print()\n"
    assert len(loopback_hub.sent(f"POST /spaces/{REPO}.git/info/lfs/objects/batch")) == 1
    assert api.repo_exists(REPO, repo_type="space") and not api.repo_exists(REPO)


def test_the_token_goes_to_the_hub_and_nowhere_else(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    loopback_hub.api().create_repo(REPO, private=True)
    push(loopback_hub, tmp_path, {"notes.txt": b"text", "weights.safetensors": WEIGHTS})
    assert download(name="weights.safetensors") == WEIGHTS
    to_storage = [
        request
        for request in loopback_hub.requests
        if request.headers["host"] in loopback_hub.storage_endpoint
    ]
    assert [request.method for request in to_storage] == ["PUT", "GET"]
    for request in loopback_hub.requests:
        assert (
            not any("hf_write" in text for name, text in request.headers.items() if name != "authorization")
            and "hf_write" not in request.path
        )
        if request not in to_storage and "agent-harnesses" not in request.path:
            assert request.headers["authorization"] == "Bearer hf_write"
    assert not any("authorization" in request.headers for request in to_storage)
    assert not any(
        b"hf_write" in path.read_bytes() for path in loopback_hub.directory.rglob("*") if path.is_file()
    )


def test_the_storage_is_open_to_signed_addresses_without_a_token_only(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    push(loopback_hub, tmp_path, {"weights.safetensors": WEIGHTS})
    address = loopback_hub.storage_endpoint + loopback_hub.sent("PUT ")[0].path
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == WEIGHTS
    for wrong in (
        address.partition("?")[0],
        urllib.request.Request(address, headers={"Authorization": "Bearer hf_write"}),
    ):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(wrong)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(address, data=b"other content", method="PUT"))
    assert own_files(loopback_hub) == {"weights.safetensors": WEIGHTS}


@pytest.mark.parametrize("status", [500, 401, 403])
def test_a_status_is_the_answer_as_often_as_it_was_asked_for(
    loopback_hub: LoopbackHub, tmp_path: Path, status: int
) -> None:
    push(loopback_hub, tmp_path, {"notes.txt": b"old"}, commit_message="first")
    fault = loopback_hub.fail(COMMIT, times=2, status=status)
    for left in (1, 0):
        with pytest.raises(HfHubHTTPError) as caught:
            push(loopback_hub, tmp_path, {"notes.txt": b"new"})
        assert status_of(caught) == status and fault.times == left
    assert titles(loopback_hub) == ["first", "initial commit"]
    push(loopback_hub, tmp_path, {"notes.txt": b"new"}, commit_message="second")
    assert titles(loopback_hub) == ["second", "first", "initial commit"]
    assert [request.status for request in loopback_hub.sent(COMMIT)] == [200, status, status, 200]


def test_a_fault_meets_what_its_pattern_finds(loopback_hub: LoopbackHub) -> None:
    loopback_hub.fail(re.compile(r"^GET /api/models/.*/revision/[^/]+$"), status=503)
    api = loopback_hub.api()
    api.create_repo(REPO)
    assert api.model_info(REPO).id == REPO
    with pytest.raises(HfHubHTTPError) as caught:
        api.model_info(REPO, revision="main")
    assert status_of(caught) == 503


def test_a_reset_carries_nothing_out_and_answers_nothing(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    push(loopback_hub, tmp_path, {"notes.txt": b"old"}, commit_message="first")
    loopback_hub.fail(COMMIT, status="reset")
    with pytest.raises(HTTPError) as caught:
        push(loopback_hub, tmp_path, {"notes.txt": b"new"})
    assert not isinstance(caught.value, HfHubHTTPError)
    assert loopback_hub.sent(COMMIT)[-1].status is None
    assert titles(loopback_hub) == ["first", "initial commit"]


def test_a_client_with_a_timeout_gives_up_on_a_hub_that_stalls(loopback_hub: LoopbackHub) -> None:
    loopback_hub.api().create_repo(REPO)
    loopback_hub.fail("GET /api/models/", status="timeout")
    with pytest.raises(HTTPError, match="timed out"):
        loopback_hub.api().model_info(REPO, timeout=0.2)
    assert loopback_hub.api().model_info(REPO, timeout=30).id == REPO


def test_a_stall_ends_for_a_client_without_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackHub(tmp_path, stall_seconds=0.05) as hub:
        hub.redirect_client(monkeypatch)
        hub.fail("POST /api/repos/create", status="timeout")
        with pytest.raises(HTTPError) as caught:
            hub.api().create_repo(REPO)
        assert not isinstance(caught.value, HfHubHTTPError)
        assert not hub.api().repo_exists(REPO)


def test_a_truncated_answer_is_lost_but_what_was_asked_is_done(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    push(loopback_hub, tmp_path, {"notes.txt": b"old"}, commit_message="first")
    loopback_hub.fail(COMMIT, status="truncate")
    with pytest.raises(HTTPError):
        push(loopback_hub, tmp_path, {"notes.txt": b"new"}, commit_message="second")
    assert titles(loopback_hub) == ["second", "first", "initial commit"]


@pytest.mark.parametrize(
    ("name", "body"), [("notes.txt", f"GET /{REPO}/resolve/"), ("weights.safetensors", "GET /lfs-storage/")]
)
def test_a_truncated_download_is_resumed(
    loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str
) -> None:
    push(loopback_hub, tmp_path, CONTENTS)
    half = len(CONTENTS[name]) // 2
    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", half // 2
    )  # of what is shorter than a chunk, the client keeps nothing
    loopback_hub.fail(body, status="truncate")
    assert download(name=name) == CONTENTS[name]
    assert [(request.status, request.headers.get("range")) for request in loopback_hub.sent(body)] == [
        (200, None),
        (206, f"bytes={half}-"),
    ]


def test_a_part_of_a_file_is_sent_by_its_range(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    tensors = {"weight": np.arange(100_000, dtype=np.float32)}
    push(loopback_hub, tmp_path, {"model.safetensors": save(tensors), "notes.txt": b"0123456789"})
    metadata = loopback_hub.api().get_safetensors_metadata(REPO)
    assert metadata.parameter_count == {"F32": 100_000}
    ranged = [request for request in loopback_hub.sent("GET /lfs-storage/") if "range" in request.headers]
    assert ranged and all(request.status == 206 for request in ranged)
    address = f"{loopback_hub.endpoint}/{REPO}/resolve/main/notes.txt"
    for asked, content in (("bytes=2-4", b"234"), ("bytes=8-99", b"89")):
        with urllib.request.urlopen(urllib.request.Request(address, headers={"Range": asked})) as answer:
            assert (answer.status, answer.read()) == (206, content)
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(urllib.request.Request(address, headers={"Range": "bytes=10-"}))


def test_what_another_hub_left_in_the_directory_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.redirect_client(monkeypatch)
        push(hub, tmp_path, {"weights.safetensors": WEIGHTS}, commit_message="first")
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.redirect_client(monkeypatch)
        assert download(name="weights.safetensors") == WEIGHTS
        assert [commit.title for commit in hub.api().list_repo_commits(REPO)] == ["first", "initial commit"]


def test_a_bug_of_the_loopback_hub_fails_the_test_that_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("broken")

    with pytest.raises(ExceptionGroup) as caught, LoopbackHub(tmp_path) as hub:
        hub.redirect_client(monkeypatch)
        monkeypatch.setattr(hub.store, "find", broken)
        with pytest.raises(HfHubHTTPError) as answer:
            hub.api().model_info(REPO)
        assert status_of(answer) == 500
    assert [str(error) for error in caught.value.exceptions] == ["broken"]


def test_a_client_that_goes_away_within_its_request_is_no_bug(tmp_path: Path) -> None:
    with (
        LoopbackHub(tmp_path) as hub,
        socket.create_connection(hub.endpoint.removeprefix("http://").split(":")) as connection,
    ):
        connection.sendall(
            b"POST /api/repos/create HTTP/1.1\r\nContent-Length: 100\r\nAuthorization: Bearer hf_write\r\n\r\n{"
        )
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert [(request.method, request.path, request.status) for request in hub.requests] == [
        ("POST", "/api/repos/create", None)
    ]


def test_functions_of_the_package_itself_meet_the_loopback_hub(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    oid = push(loopback_hub, tmp_path, {"notes.txt": b"text"})
    assert model_info(REPO).sha == oid
    assert loopback_hub.sent(f"GET /api/models/{REPO}")[-1].headers["authorization"] == "Bearer hf_write"


def test_a_fresh_process_knows_no_other_hub(
    loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    write_folder(tmp_path / "folder", {"notes.txt": b"text", "weights.safetensors": WEIGHTS})
    script = """
import json, sys
from huggingface_hub import HfApi, constants, hf_hub_download, whoami
repo_id = HfApi().create_repo("adapter").repo_id
made = HfApi().upload_folder(repo_id=repo_id, folder_path=sys.argv[1])
print(json.dumps([whoami()["name"], made.oid, hf_hub_download(repo_id, "weights.safetensors"), constants.HF_HUB_OFFLINE]))
"""
    environment = loopback_hub.environment()
    ran = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "folder"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    name, oid, path, offline = json.loads(ran.stdout)
    assert (name, offline) == ("someone", False) and loopback_hub.history(REPO)[0].id == oid
    assert Path(path).read_bytes() == WEIGHTS and Path(path).is_relative_to(loopback_hub.home)
    assert "HF_TOKEN" not in loopback_hub.environment(token=None)


def test_who_may_write_can_be_asked_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {
        "hf_write": ("someone", "write", {"makers": "contributor", "readers": "read"}),
        "hf_read": ("someone", "read", {"makers": "admin"}),
        "hf_other": ("other", "write"),
    }
    with LoopbackHub(tmp_path / "hub", tokens) as hub:
        hub.redirect_client(monkeypatch)
        assert [(org["name"], org["roleInOrg"]) for org in hub.api().whoami()["orgs"]] == [
            ("makers", "contributor"),
            ("readers", "read"),
        ]
        for repo_id in (REPO, "makers/adapter"):
            hub.api().create_repo(repo_id, private=True)
            hub.api().auth_check(repo_id, write=True)
            hub.api("hf_read").auth_check(repo_id)
            for token, error in (
                ("hf_read", "403 Forbidden"),
                ("hf_other", "Repository Not Found"),
                (False, "Repository Not Found"),
            ):
                with pytest.raises(HfHubHTTPError, match=error):
                    hub.api(token).auth_check(repo_id, write=True)
        with pytest.raises(HfHubHTTPError, match="rights to create a model under the namespace"):
            hub.api().create_repo("readers/adapter")
        with pytest.raises(RepositoryNotFoundError):
            hub.api().auth_check("someone/absent", write=True)


def test_a_request_is_kept_with_its_body(loopback_hub: LoopbackHub) -> None:
    loopback_hub.api().create_repo(REPO)
    assert json.loads(loopback_hub.sent("POST /api/repos/create")[0].body)["name"] == "adapter"
