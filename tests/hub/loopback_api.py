"""The Hub's routes as huggingface_hub's client calls them, and the storage that LFS files go to and come
from."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_http import Handler, Server, Traffic
from loopback_store import Commit, Entry, Refusal, Repository, Store

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
"""What stands before a repository's id in its address."""

REPO = r"(?P<repo>[\w.-]+(?:/[\w.-]+)??)"
API = rf"/api/(?P<kinds>models|datasets|spaces)/{REPO}"
GIT = rf"/(?:(?P<kinds>datasets|spaces)/)?{REPO}"
REVISION = r"(?P<revision>[^/]+)"

ANONYMOUS = "Invalid username or password."


@dataclass(frozen=True)
class Account:
    """Whose token came with a request, and what it may do.

    Attributes:
        role: of the token, "read" or "write".
        organizations: the user's own role, "admin", "write", "contributor" or "read", in each organization.
    """

    user: str
    role: str
    organizations: Mapping[str, str] = field(default_factory=dict)

    def may_see(self, namespace: str) -> bool:
        return namespace == self.user or namespace in self.organizations

    def may_write(self, namespace: str) -> bool:
        return self.role == "write" and (
            namespace == self.user or self.organizations.get(namespace, "read") != "read"
        )


class StorageServer(Server):
    """Where LFS files lie: another origin than the Hub's, open to whoever has a signed address and closed
    to tokens."""

    def __init__(self, traffic: Traffic, store: Store) -> None:
        super().__init__(StorageHandler, traffic)
        self.store, self.signature = store, secrets.token_hex(16)

    def address_of(self, oid: str) -> str:
        return f"{self.address}/lfs-storage/{oid}?signature={self.signature}"


class StorageHandler(Handler):
    """PUT and GET of LFS files."""

    server: StorageServer

    def route(self) -> None:
        oid = urlsplit(self.path).path.rpartition("/")[2]
        if f"{self.server.address}{self.path}" != self.server.address_of(oid):
            raise Refusal(403, "SignatureDoesNotMatch")
        if "Authorization" in self.headers:
            raise Refusal(400, "Only one auth mechanism allowed")
        blobs = self.server.store.blobs
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise Refusal(400, "The content is not what its hash says")
            blobs.add(self.body, lfs=True)
            self.answer(b"", 200, {})
        elif blobs.size(oid) is None:
            raise Refusal(404, "NoSuchKey")
        else:
            self.answer_content(blobs.read(oid), {"ETag": f'"{oid}"'})


class HubServer(Server):
    """The Hub itself."""

    def __init__(
        self, traffic: Traffic, store: Store, storage: StorageServer, accounts: Mapping[str, Account]
    ) -> None:
        super().__init__(HubHandler, traffic)
        self.store, self.storage, self.accounts = store, storage, accounts


Route = Callable[["HubHandler"], None]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def on(methods: str, path: str) -> Callable[[Route], Route]:
    """The function answers these methods ("GET HEAD") of a path; the path's named groups become
    `handler.named`, unquoted."""

    def register(function: Route) -> Route:
        ROUTES.extend((method, re.compile(path), function) for method in methods.split())
        return function

    return register


class HubHandler(Handler):
    """Finds the route of a request, and what several of them ask for: the account, the repository, the
    revision."""

    server: HubServer
    named: dict[str, str]
    query: dict[str, list[str]]
    account: Account | None

    def route(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.account = self.read_account()
        for method, pattern, function in ROUTES:
            if method == self.command and (found := pattern.fullmatch(url.path)):
                self.named = {
                    name: unquote(value) for name, value in found.groupdict().items() if value is not None
                }
                return function(self)
        raise Refusal(404, f"The loopback Hub has no {self.command} {url.path}")

    def read_account(self) -> Account | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        account = self.server.accounts.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    @property
    def revision(self) -> str:
        return self.named.get("revision", "main")

    def json_body(self) -> Any:
        return json.loads(self.body)

    def repository(self) -> Repository:
        """
        Raises:
            Refusal: there is none, or it is private to another user.
        """
        repository = self.server.store.find(KINDS[self.named.get("kinds", "models")], self.named["repo"])
        if repository is None or (
            repository.private and not (self.account and self.account.may_see(repository.namespace))
        ):
            raise (
                Refusal(401, ANONYMOUS, "RepoNotFound")
                if self.account is None
                else Refusal(404, "Repository not found", "RepoNotFound")
            )
        return repository

    def writable_repository(self, pull_request: bool) -> Repository:
        """The repository, which anybody with a write token may propose a change to but only those of its
        namespace may change.

        Raises:
            Refusal: it cannot be seen, or this account may not write to it.
        """
        repository = self.repository()
        if self.account is None:
            raise Refusal(401, ANONYMOUS, "RepoNotFound")
        if self.account.role != "write":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if not pull_request and not self.account.may_write(repository.namespace):
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    def address_of(self, kind: str, repo_id: str) -> str:
        return f"{self.server.address}/{PREFIXES[kind]}{repo_id}"


@on("GET", "/api/agent-harnesses")
def agent_harnesses(hub: HubHandler) -> None:
    """The client asks once, for its user agent."""
    hub.answer_json({"standardEnvVars": [], "harnesses": {}})


@on("GET", "/api/whoami-v2")
def whoami(hub: HubHandler) -> None:
    if hub.account is None:
        raise Refusal(401, ANONYMOUS)
    user, role = hub.account.user, hub.account.role
    token = {"type": "access_token", "accessToken": {"displayName": role, "role": role}}
    member_of = hub.account.organizations.items()
    organizations = [
        {"type": "org", "id": name, "name": name, "fullname": name, "roleInOrg": its_role}
        for name, its_role in member_of
    ]
    hub.answer_json(
        {"type": "user", "id": user, "name": user, "fullname": user, "orgs": organizations, "auth": token}
    )


@on("POST", "/api/validate-yaml")
def validate_yaml(hub: HubHandler) -> None:
    hub.answer_json({"errors": [], "warnings": []})


@on("POST", "/api/repos/create")
def create_repository(hub: HubHandler) -> None:
    asked = hub.json_body()
    kind = asked.get("type") or "model"
    if hub.account is None:
        raise Refusal(401, ANONYMOUS)
    namespace = asked.get("organization") or hub.account.user
    if not hub.account.may_write(namespace):
        raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    repo_id = f"{namespace}/{asked['name']}"
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    address = {"url": hub.address_of(kind, repo_id)}
    if hub.server.store.create(kind, repo_id, private, asked.get("sdk")) is None:
        hub.answer_json({"error": f"You already created this {kind} repo", **address}, 409)
    else:
        hub.answer_json({"name": repo_id, **address})


@on("GET", f"{API}/auth-check")
def check_access(hub: HubHandler) -> None:
    hub.repository()
    hub.answer_json({})


@on("GET", f"{API}/auth-check/write")
def check_write_access(hub: HubHandler) -> None:
    hub.writable_repository(pull_request=False)
    hub.answer_json({})


@on("GET", API)
@on("GET", f"{API}/revision/{REVISION}")
def repository_info(hub: HubHandler) -> None:
    repository = hub.repository()
    commit, first = repository.at(hub.revision), list(repository.history("main"))[-1]
    info = {
        "id": repository.id,
        "author": repository.namespace,
        "sha": commit.id,
        "lastModified": commit.date,
        "createdAt": first.date,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "tags": [],
        "siblings": [sibling(path, entry, "blobs" in hub.query) for path, entry in commit.files.items()],
    }
    if repository.kind == "space":
        info["sdk"] = repository.settings["sdk"]
    hub.answer_json(info)


def sibling(path: str, entry: Entry, with_blobs: bool) -> dict[str, Any]:
    named: dict[str, Any] = {"rfilename": path}
    if with_blobs:
        named |= {"size": entry.size, "blobId": entry.git_oid}
        if entry.lfs:
            named["lfs"] = {"sha256": entry.oid, "size": entry.size, "pointerSize": len(entry.pointer)}
    return named


@on("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?")
def show_tree(hub: HubHandler) -> None:
    commit = hub.repository().at(hub.revision)
    path = hub.named.get("path", "").rstrip("/")
    entries = list_tree(commit, path, recursive=hub.query.get("recursive") == ["true"])
    if path and not entries:
        raise Refusal(404, f"{path} does not exist on {hub.revision!r}", "EntryNotFound")
    hub.answer_json(entries)


def list_tree(commit: Commit, directory: str, recursive: bool) -> list[dict[str, Any]]:
    """The files and folders directly in a directory ("" is the root), or below it at any depth."""
    start = f"{directory}/" if directory else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, entry in commit.files.items():
        if not path.startswith(start):
            continue
        parts = path[len(start) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = start + "/".join(parts[:depth])
            below = sorted(f"{p} {e.oid}" for p, e in commit.files.items() if p.startswith(f"{folder}/"))
            entries[folder] = {
                "type": "directory",
                "path": folder,
                "size": 0,
                "oid": hashlib.sha1("\n".join(below).encode()).hexdigest(),
            }
        if recursive or len(parts) == 1:
            entries[path] = {"type": "file", "path": path, "size": entry.size, "oid": entry.git_oid}
            if entry.lfs:
                entries[path]["lfs"] = {
                    "oid": entry.oid,
                    "size": entry.size,
                    "pointerSize": len(entry.pointer),
                }
    return list(entries.values())


@on("GET", f"{API}/commits/{REVISION}")
def list_commits(hub: HubHandler) -> None:
    history = hub.repository().history(hub.revision)
    hub.answer_json(
        [
            {
                "id": c.id,
                "title": c.title,
                "message": c.message,
                "date": c.date,
                "authors": [{"user": c.author}],
            }
            for c in history
        ]
    )


@on("GET", f"{API}/refs")
def list_refs(hub: HubHandler) -> None:
    found = hub.repository().refs
    branches = [
        {"name": n, "ref": f"refs/heads/{n}", "targetCommit": c}
        for n, c in found.items()
        if not n.startswith("refs/")
    ]
    pulls = [
        {"name": n.removeprefix("refs/"), "ref": n, "targetCommit": c}
        for n, c in found.items()
        if n.startswith("refs/pr/")
    ]
    hub.answer_json({"branches": branches, "converts": [], "tags": [], "pullRequests": pulls})


@on("POST", f"{API}/branch/{REVISION}")
def create_branch(hub: HubHandler) -> None:
    hub.writable_repository(pull_request=False).branch(
        hub.revision, hub.json_body().get("startingPoint") or "main"
    )
    hub.answer_json({})


@on("POST", f"{API}/preupload/{REVISION}")
def preupload(hub: HubHandler) -> None:
    """Which files go to LFS, and the hash of what already stands at their paths."""
    repository = hub.writable_repository(pull_request="create_pr" in hub.query)
    commit = repository.at(hub.revision)
    files = []
    for asked in hub.json_body()["files"]:
        path, size, sample = asked["path"], asked["size"], base64.b64decode(asked["sample"])
        mode = "lfs" if repository.is_lfs(commit, path, size, sample) else "regular"
        standing = commit.files.get(path)
        files.append(
            {
                "path": path,
                "uploadMode": mode,
                "shouldIgnore": False,
                "oid": standing.oid if standing else None,
            }
        )
    hub.answer_json({"files": files})


@on("POST", rf"{GIT}\.git/info/lfs/objects/batch")
def lfs_batch(hub: HubHandler) -> None:
    """Where each file is to be put; nowhere if it is in the storage. Without a ref the files are for a
    pull request."""
    asked = hub.json_body()
    repository = hub.writable_repository(pull_request="ref" not in asked)
    verify = f"{hub.address_of(repository.kind, repository.id)}.git/info/lfs/objects/verify"
    objects = []
    for wanted in asked["objects"]:
        found = {"oid": wanted["oid"], "size": wanted["size"]}
        if repository.blobs.size(wanted["oid"]) is None:
            found["actions"] = {
                "upload": {"href": hub.server.storage.address_of(wanted["oid"])},
                "verify": {"href": verify},
            }
        objects.append(found)
    hub.answer_json(
        {"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"}
    )


@on("POST", rf"{GIT}\.git/info/lfs/objects/verify")
def lfs_verify(hub: HubHandler) -> None:
    wanted = hub.json_body()
    if hub.repository().blobs.size(wanted["oid"]) != wanted["size"]:
        raise Refusal(404, "The object was not uploaded")
    hub.answer_json({})


@on("POST", f"{API}/commit/{REVISION}")
def make_commit(hub: HubHandler) -> None:
    pull_request = "create_pr" in hub.query
    repository = hub.writable_repository(pull_request)
    operations = [json.loads(line) for line in hub.body.splitlines()]
    made, ref = repository.commit(hub.revision, hub.account.user, operations, pull_request)
    address = hub.address_of(repository.kind, repository.id)
    answer = {
        "success": True,
        "commitOid": made.id,
        "commitUrl": f"{address}/commit/{made.id}",
        "hookOutput": "",
    }
    if pull_request:
        answer["pullRequestUrl"] = f"{address}/discussions/{ref.rpartition('/')[2]}"
    hub.answer_json(answer)


@on("GET HEAD", rf"{GIT}/resolve/{REVISION}/(?P<path>.+)")
def resolve_file(hub: HubHandler) -> None:
    """A file's content, or for an LFS file the signed address where it is."""
    repository = hub.repository()
    commit = repository.at(hub.revision)
    entry = repository.entry(commit, hub.named["path"])
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{entry.oid}"'}
    if not entry.lfs:
        return hub.answer_content(repository.blobs.read(entry.oid), headers)
    headers |= {
        "X-Linked-Etag": f'"{entry.oid}"',
        "X-Linked-Size": str(entry.size),
        "Location": hub.server.storage.address_of(entry.oid),
    }
    hub.answer(b"Found. Redirecting to the storage.", 302, headers)
