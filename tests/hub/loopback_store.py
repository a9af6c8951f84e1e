"""Repositories of the loopback Hub on disk: blobs by their hash, and one JSON file per commit and per
repository."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

LFS_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle "
    "*.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
)
"""What the Hub's own first .gitattributes sends to LFS."""

LARGEST_REGULAR_FILE = 10_000_000
"""Bytes; the Hub keeps anything larger in LFS."""


class Refusal(Exception):
    """A request is answered with an error: its HTTP status, a message and, where the Hub has one, its
    X-Error-Code."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})


@dataclass(frozen=True)
class Entry:
    """A file in a commit; `oid` is the sha256 of an LFS file and the git blob sha1 of any other."""

    oid: str
    size: int
    lfs: bool

    @property
    def pointer(self) -> bytes:
        """What git itself stores for an LFS file."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n".encode()
        )

    @property
    def git_oid(self) -> str:
        return git_blob_sha1(self.pointer) if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """One commit with all its files by path; the first of a repository has no parent."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


def git_blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Blobs:
    """Contents by hash, shared by all repositories."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, content: bytes, lfs: bool = False) -> Entry:
        oid = hashlib.sha256(content).hexdigest() if lfs else git_blob_sha1(content)
        write_atomically(self.directory / oid, content)
        return Entry(oid, len(content), lfs)

    def read(self, oid: str) -> bytes:
        return (self.directory / oid).read_bytes()

    def size(self, oid: str) -> int | None:
        """In bytes; None if there is no such blob."""
        path = self.directory / oid
        return path.stat().st_size if path.is_file() else None


class Repository:
    """A model, dataset or Space: its refs, and its commits newest first.

    `kind` is "model", "dataset" or "space"; refs are branch names and "refs/pr/N".
    """

    def __init__(self, kind: str, repo_id: str, directory: Path, blobs: Blobs) -> None:
        self.kind, self.id, self.directory, self.blobs = kind, repo_id, directory, blobs
        self.lock = threading.Lock()
        self.settings: dict[str, Any] = json.loads(
            (directory / "repository.json").read_text(encoding="utf-8")
        )

    @property
    def namespace(self) -> str:
        return self.id.rpartition("/")[0]

    @property
    def private(self) -> bool:
        return self.settings["private"]

    @property
    def refs(self) -> dict[str, str]:
        """Commit ids by ref."""
        return json.loads((self.directory / "refs.json").read_text(encoding="utf-8"))

    def at(self, revision: str) -> Commit:
        """The commit that a ref or a full commit id names.

        Raises:
            Refusal: there is none.
        """
        commit_id = self.refs.get(revision, revision)
        path = self.directory / "commits" / f"{commit_id}.json"
        if not re.fullmatch("[0-9a-f]{40}", commit_id) or not path.is_file():
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        commit = json.loads(path.read_text(encoding="utf-8"))
        return Commit(
            **{**commit, "files": {name: Entry(**entry) for name, entry in commit["files"].items()}}
        )

    def history(self, revision: str) -> Iterator[Commit]:
        """The commit and its ancestors."""
        commit = self.at(revision)
        yield commit
        while commit.parent is not None:
            commit = self.at(commit.parent)
            yield commit

    def entry(self, commit: Commit, path: str) -> Entry:
        """
        Raises:
            Refusal: the commit has no such file.
        """
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.id})
        return commit.files[path]

    def is_lfs(self, commit: Commit, path: str, size: int, sample: bytes) -> bool:
        """Whether a new file belongs in LFS: .gitattributes says so, or it is large or binary."""
        attributes = (
            self.blobs.read(commit.files[".gitattributes"].oid).decode()
            if ".gitattributes" in commit.files
            else ""
        )
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        named = any(
            fnmatch(path if "/" in pattern else path.rpartition("/")[2], pattern) for pattern in patterns
        )
        return named or size > LARGEST_REGULAR_FILE or b"\0" in sample

    def branch(self, name: str, start: str) -> None:
        """Make a branch at a revision.

        Raises:
            Refusal: it exists or is no branch's name, or there is no such revision.
        """
        if name.startswith("refs/"):
            raise Refusal(400, f"Invalid reference for a branch: {name}")
        with self.lock:
            if name in self.refs:
                raise Refusal(409, f"Reference already exists: refs/heads/{name}")
            self._point(name, self.at(start).id)

    def commit(
        self, revision: str, author: str, operations: Sequence[Mapping[str, Any]], pull_request: bool = False
    ) -> tuple[Commit, str]:
        """Apply the Hub's commit operations, the first being the header; returns the commit and the ref it
        moved.

        A pull request starts a new ref at `parentCommit`, or at `revision` if the header names no parent.

        Raises:
            Refusal: no such branch, its head is not `parentCommit`, or an operation names something that is
                not there.
        """
        header = operations[0]["value"]
        wanted = header.get("parentCommit")
        with self.lock:
            if revision not in self.refs:
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            parent = self.at(revision)
            if pull_request:
                parent = self.at(wanted) if wanted else parent
                revision = f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in self.refs)}"
            elif wanted and not parent.id.startswith(wanted):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(parent.files)
            for operation in operations[1:]:
                self._apply(files, operation["key"], operation["value"])
            commit = self._write(parent.id, header["summary"], header.get("description", ""), author, files)
            self._point(revision, commit.id)
        return commit, revision

    def begin(self) -> None:
        """The system's commit that every repository starts with."""
        attributes = "".join(
            f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS.split()
        )
        files = {".gitattributes": self.blobs.add(attributes.encode())}
        if self.kind == "space":
            files["README.md"] = self.blobs.add(
                f"---\ntitle: {self.id.rpartition('/')[2]}\nsdk: {self.settings['sdk']}\n---\n".encode()
            )
        self._point("main", self._write(None, "initial commit", "", "system", files).id)

    def _apply(self, files: dict[str, Entry], key: str, value: Mapping[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = self.blobs.add(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            size = self.blobs.size(value["oid"])
            if size is None or size != value.get("size", size):
                raise Refusal(
                    400,
                    f"Your push was rejected because an LFS pointer pointed to a file that does not exist. Offending file: {path}",
                )
            files[path] = Entry(value["oid"], size, lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [
                name
                for name in files
                if name == path or (key == "deletedFolder" and name.startswith(f"{path.rstrip('/')}/"))
            ]
            if not gone:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise Refusal(400, f"Unknown commit operation: {key}")

    def _write(
        self, parent: str | None, title: str, message: str, author: str, files: dict[str, Entry]
    ) -> Commit:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        content = {"parent": parent, "title": title, "message": message, "author": author, "date": date}
        content["files"] = {name: asdict(entry) for name, entry in sorted(files.items())}
        content["id"] = hashlib.sha1(json.dumps([self.kind, self.id, content]).encode()).hexdigest()
        write_atomically(
            self.directory / "commits" / f"{content['id']}.json", json.dumps(content, indent=1).encode()
        )
        return self.at(content["id"])

    def _point(self, ref: str, commit_id: str) -> None:
        write_atomically(
            self.directory / "refs.json", json.dumps({**self.refs, ref: commit_id}, indent=1).encode()
        )


class Store:
    """All repositories of a directory; what another process left there is found again."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.blobs = directory, Blobs(directory / "blobs")
        self.lock = threading.Lock()
        self.open: dict[Path, Repository] = {}

    def create(self, kind: str, repo_id: str, private: bool, sdk: str | None) -> Repository | None:
        """A new repository with its first commit; None if there is one of this name."""
        directory = self._directory(kind, repo_id)
        with self.lock:
            if directory.is_dir():
                return None
            (directory / "commits").mkdir(parents=True)
            write_atomically(
                directory / "repository.json", json.dumps({"private": private, "sdk": sdk}).encode()
            )
            write_atomically(directory / "refs.json", b"{}")
            repository = self.open[directory] = Repository(kind, repo_id, directory, self.blobs)
            repository.begin()
            return repository

    def find(self, kind: str, repo_id: str) -> Repository | None:
        directory = self._directory(kind, repo_id)
        with self.lock:
            if directory not in self.open and (directory / "repository.json").is_file():
                self.open[directory] = Repository(kind, repo_id, directory, self.blobs)
            return self.open.get(directory)

    def _directory(self, kind: str, repo_id: str) -> Path:
        return self.directory / "repositories" / kind / repo_id.replace("/", "--")


def write_atomically(path: Path, content: bytes) -> None:
    """Complete or not at all; parallel writers of one path do not meet."""
    aside = path.with_name(f".{path.name}.{threading.get_ident()}")
    aside.write_bytes(content)
    os.replace(aside, path)
