"""What the loopback Hub (`hub_server.py`) keeps: repositories on disk, and what the Hub refuses in a card.

Everything is in files, so that a server that was killed goes on when one is started on the same folder:

    folder/blobs/<sha256>                        content of files
    folder/models/<namespace>/<name>.json        commits, branches and tags; also under datasets/ and spaces/
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import yaml

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


class HubError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def write_whole(path: Path, data: bytes) -> None:
    """Write under a name of this thread's own, then rename: a killed server leaves nothing half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
    part.write_bytes(data)
    part.replace(path)


class Store:
    """Repositories on disk. A file is {"sha256", "size", "lfs", "oid"}; its oid is what git would call it."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.lock = threading.RLock()

    def blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    def add_blob(self, data: bytes, *, lfs: bool = False) -> dict[str, Any]:
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.blob(sha256).exists():
            write_whole(self.blob(sha256), data)
        return self.file_of(sha256, lfs=lfs)

    def file_of(self, sha256: str, *, lfs: bool) -> dict[str, Any]:
        data = self.blob(sha256).read_bytes()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        content = pointer if lfs else data
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"sha256": sha256, "size": len(data), "lfs": lfs, "oid": oid}

    def path(self, repo_type: str, repo_id: str) -> Path:
        if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repo_id) or ".." in repo_id:
            raise HubError(400, f"Invalid repo name: {repo_id}")
        return self.folder / KINDS[repo_type] / f"{repo_id}.json"

    def read(self, repo_type: str, repo_id: str) -> dict[str, Any]:
        path = self.path(repo_type, repo_id)
        if not path.is_file():
            raise HubError(404, "Repository not found", "RepoNotFound")
        return json.loads(path.read_text(encoding="utf-8"))

    def write(self, repo_type: str, repo_id: str, repo: dict[str, Any]) -> None:
        write_whole(self.path(repo_type, repo_id), json.dumps(repo, indent=1).encode())

    def create(self, repo_type: str, repo_id: str, *, private: bool, sdk: str | None) -> None:
        if self.path(repo_type, repo_id).exists():
            raise HubError(409, "You already created this repo")
        if repo_type == "space" and sdk not in ("gradio", "docker", "static", "streamlit"):
            raise HubError(400, f"Invalid Space sdk: {sdk}")
        repo: dict[str, Any] = {
            "private": private,
            "sdk": sdk,
            "created": now(),
            "commits": {},
            "branches": {},
            "tags": {},
        }
        attributes = self.add_blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        self.add_commit(repo, "main", "initial commit", {".gitattributes": attributes})
        self.write(repo_type, repo_id, repo)

    @staticmethod
    def add_commit(repo: dict[str, Any], branch: str, title: str, files: dict[str, Any]) -> str:
        parent = repo["branches"].get(branch)
        content = json.dumps([parent, title, files, len(repo["commits"]), time.time_ns()], sort_keys=True)
        sha = hashlib.sha1(content.encode()).hexdigest()
        repo["commits"][sha] = {"parent": parent, "title": title, "date": now(), "files": files}
        repo["branches"][branch] = sha
        return sha

    @staticmethod
    def sha_of(repo: dict[str, Any], revision: str) -> str:
        for known in (repo["branches"], repo["tags"], {sha: sha for sha in repo["commits"]}):
            for name in (revision, revision.removeprefix("refs/heads/")):
                if name in known:
                    return known[name]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, repo: dict[str, Any], revision: str) -> list[str]:
        """Commits of a revision, the newest first."""
        shas, sha = [], self.sha_of(repo, revision)
        while sha:
            shas.append(sha)
            sha = repo["commits"][sha]["parent"]
        return shas

    def commit(self, repo: dict[str, Any], branch: str, lines: list[dict[str, Any]]) -> str:
        """Apply the lines of a commit request; as on the real Hub, one that changes nothing is a commit too."""
        files = dict(repo["commits"][self.sha_of(repo, branch)]["files"])
        title = ""
        for key, value in ((line["key"], line["value"]) for line in lines):
            path = value.get("path", "").rstrip("/")
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, self.sha_of(repo, branch)):
                    raise HubError(412, "The expected parent commit is not the head of the branch")
            elif key == "file":
                files[path] = self.add_blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if not self.blob(value["oid"]).is_file():
                    raise HubError(400, f"LFS object of {path} was not uploaded")
                files[path] = self.file_of(value["oid"], lfs=True)
            elif key == "deletedFile" and path in files:
                del files[path]
            elif key == "deletedFolder" and any(name.startswith(f"{path}/") for name in files):
                files = {name: file for name, file in files.items() if not name.startswith(f"{path}/")}
            else:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        return self.add_commit(repo, branch, title, files)

    def move_mark(self, method: str, what: str, repo: dict[str, Any], name: str, asked: dict[str, Any]) -> None:
        """Set or take away a branch or a tag; the address names the branch, and the revision that is tagged."""
        marks = repo["branches" if what == "branch" else "tags"]
        if method == "DELETE":
            if marks.pop(name, None) is None:
                raise HubError(404, f"No {what} {name}", "RevisionNotFound")
            return
        start = asked.get("startingPoint") or "main" if what == "branch" else name
        name = name if what == "branch" else asked["tag"]
        if name in marks:
            raise HubError(409, f"The {what} {name} exists already")
        marks[name] = self.sha_of(repo, start)


def described(path: str, file: dict[str, Any]) -> dict[str, Any]:
    """A file as listings tell of it."""
    lfs = {"lfs": {"oid": file["sha256"], "size": file["size"], "pointerSize": 134}} if file["lfs"] else {}
    return {"type": "file", "oid": file["oid"], "size": file["size"], "path": path, **lfs}


def tree(files: dict[str, Any], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """List a folder of a revision's files, with the folders in it."""
    start = f"{folder.strip('/')}/" if folder.strip("/") else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in sorted(files.items()):
        if not path.startswith(start):
            continue
        steps = path[len(start) :].split("/")
        for depth in range(1, len(steps) if recursive else min(len(steps), 2)):
            parent = start + "/".join(steps[:depth])
            oid = hashlib.sha1(parent.encode()).hexdigest()
            entries.setdefault(parent, {"type": "directory", "oid": oid, "size": 0, "path": parent})
        if recursive or len(steps) == 1:
            entries[path] = described(path, file)
    if start and not entries:
        raise HubError(404, f"{folder} does not exist", "EntryNotFound")
    return list(entries.values())


def front_matter_errors(content: str, repo_type: str) -> list[str]:
    """What the Hub refuses in a card's YAML block."""
    found = re.match(r"---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", content, re.DOTALL)
    if found is None:
        return ['"sdk" is required'] if repo_type == "space" else []
    try:
        data = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"]
    if not isinstance(data, dict):
        return ["The metadata is no mapping"]
    errors = [] if _texts(data.get("tags", [])) else ['"tags" must be a list of strings']
    bases = data.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        errors += [] if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base)) else [f'"base_model" with value {base} is no id']
    if repo_type == "space":
        errors += ['"sdk" is required'] if "sdk" not in data else []
        errors += [
            f'"{k}" must be one of {COLORS}' for k in ("colorFrom", "colorTo") if data.get(k, "red") not in COLORS
        ]
        errors += ['"short_description" has over 60 letters'] if len(data.get("short_description", "")) > 60 else []
    for model in data.get("model-index") or []:
        for result in model.get("results", [{}]):
            for part, keys in (("task", ("type",)), ("dataset", ("name", "type"))):
                errors += [f'"model-index" lacks {part}.{k}' for k in keys if not result.get(part, {}).get(k)]
            metrics = result.get("metrics") or [{}]
            errors += ['"model-index" has a metric without type or value'] * any(
                not metric.get("type") or metric.get("value") is None for metric in metrics
            )
    return errors


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
