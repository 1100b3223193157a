"""A Hugging Face Hub on the loopback interface, for tests that run the real clients without a network.

It answers as the real Hub does to what `huggingface_hub`, `diffusers`, `transformers` and `datasets` ask: models, data
sets and Spaces, branches, tags and pull requests, LFS uploads, downloads by revision and range. What it cannot tell is
how the real Hub's own policies (quotas, names that are taken, ...) would decide.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from .hub_store import KINDS, HubError, Store, front_matter_errors, tree

TOKEN = "hf_loopback"
TYPES = {kind: repo_type for repo_type, kind in KINDS.items()}
REGULAR_BYTES = 10 * 2**20  # larger files are stored by LFS, and so is everything that is no text


class HubServer:
    """The Hub in a thread of this process; a context manager.

    Parameters
    ----------
    folder
        Where everything is kept.
    fail_after
        Die, as by a kill, at the upload after so many; a file sent to LFS and a commit are an upload each.
    port
        By default a free one.

    Attributes
    ----------
    url, token
        Where it is, and the one token that it takes.
    requests
        What it was asked: "GET /api/models/org/name", ...
    """

    def __init__(self, folder: Path, *, fail_after: int | None = None, port: int = 0) -> None:
        self.store, self.token, self.fail_after = Store(Path(folder)), TOKEN, fail_after
        self.requests: list[str] = []
        self.uploads, self.dead = 0, False
        self._http = _Server(("127.0.0.1", port), _Handler)
        self._http.hub = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go down at once: no request is answered any more, not even one that is under way."""
        with self.store.lock:
            if self.dead:
                return
            self.dead = True
        self._http.shutdown()
        self._http.server_close()

    def env(self, cache: Path) -> dict[str, str]:
        """Variables that lead a process to this Hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[str]:
        """Hashes of a branch's commits, the newest first; the last one is the empty repository's."""
        return self.store.history(self.store.read(repo_type, repo_id), revision)

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Content of a revision's files, without the `.gitattributes` that the Hub adds itself."""
        repo = self.store.read(repo_type, repo_id)
        files = repo["commits"][self.store.sha_of(repo, revision)]["files"]
        return {p: self.store.blob(f["sha256"]).read_bytes() for p, f in files.items() if p != ".gitattributes"}

    def count_upload(self) -> None:
        """Called before each upload; where the Hub is to die there, it does, and the client gets no answer."""
        with self.store.lock:
            self.uploads += 1
            die = self.fail_after is not None and self.uploads > self.fail_after
        if die:
            self.stop()
            raise ConnectionAbortedError

    # ---- answers: (status, headers, body) -----------------------------------------------------------------------

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], Any]:
        """Answer a request; a dict or list as body is sent as JSON."""
        address = urlsplit(target)
        query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        if parts[0] == "_lfs" and method == "PUT":  # signed addresses on the real Hub: no token
            self.count_upload()
            if hashlib.sha256(body).hexdigest() != parts[1]:
                raise HubError(400, "The content does not have this hash")
            self.store.add_blob(body)
            return 200, {}, b""
        if parts[0] == "_blobs":
            return self._content(parts[1], parts[1], headers)
        token = (headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            raise HubError(401, "Invalid credentials in Authorization header")
        signed_in = token == TOKEN
        reads = method in ("GET", "HEAD") or parts[-2:-1] == ["paths-info"] or parts[1:2] == ["validate-yaml"]
        if not reads and not signed_in:
            raise HubError(401, "Invalid username or password.")
        if parts[:2] == ["api", "whoami-v2"]:
            if not signed_in:
                raise HubError(401, "Invalid username or password.")
            access = {"type": "access_token", "accessToken": {"role": "write", "displayName": "loopback"}}
            return 200, {}, {"type": "user", "id": "1", "name": "tester", "orgs": [], "auth": access}
        if parts[:2] == ["api", "validate-yaml"]:
            asked = json.loads(body)
            errors = front_matter_errors(asked["content"], asked.get("repoType", "model"))
            answer = {"errors": [{"message": error} for error in errors], "warnings": []}
            return (400 if errors else 200), {}, answer
        if parts[:2] == ["api", "repos"]:
            return self._make_or_delete(parts[2], json.loads(body))
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return 200, {}, self._lfs_batch(json.loads(body))
        if parts[0] == "api" and len(parts) == 2 and parts[1] in TYPES:
            return 200, {}, self._listing(TYPES[parts[1]], query)
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        repo_type = TYPES.get(parts[0], "model")
        parts = parts[1:] if parts[0] in TYPES else parts
        repo_id, rest = "/".join(parts[:2]), parts[2:]
        with self.store.lock:
            repo = self.store.read(repo_type, repo_id)
            if repo["private"] and not signed_in:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            if not api and rest[:1] in (["resolve"], ["raw"]) and len(rest) > 2:
                return self._resolve(repo, rest[1], "/".join(rest[2:]), headers)
            if api:
                return 200, {}, self._api(method, repo_type, repo_id, repo, rest, query, body)
        raise HubError(404, f"No page {target}")

    def _make_or_delete(self, what: str, asked: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        repo_type = asked.get("type") or "model"
        repo_id = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        url = f"{self.url}/{'' if repo_type == 'model' else KINDS[repo_type] + '/'}{repo_id}"
        with self.store.lock:
            if what == "delete":
                self.store.read(repo_type, repo_id)
                self.store.path(repo_type, repo_id).unlink()
                return 200, {}, {}
            if self.store.path(repo_type, repo_id).exists():
                return 409, {}, {"error": "You already created this repo", "url": url}
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.store.create(repo_type, repo_id, private=private, sdk=asked.get("sdk"))
        return 200, {}, {"url": url, "name": repo_id, "id": repo_id}

    def _lfs_batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        objects: list[dict[str, Any]] = []
        for item in asked["objects"]:
            known = self.store.blob(item["oid"]).exists()
            upload = {} if known else {"actions": {"upload": {"href": f"{self.url}/_lfs/{item['oid']}"}}}
            objects.append({"oid": item["oid"], "size": item["size"], **upload})
        return {"transfer": "basic", "objects": objects}

    def _listing(self, repo_type: str, query: dict[str, str]) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.store.folder / KINDS[repo_type]).glob("*/*.json")):
            repo_id = f"{path.parent.name}/{path.stem}"
            if query.get("author", path.parent.name) == path.parent.name and query.get("search", "") in repo_id:
                found.append(self._info(repo_type, repo_id, self.store.read(repo_type, repo_id), "main"))
        return found

    def _info(self, repo_type: str, repo_id: str, repo: dict[str, Any], revision: str) -> dict[str, Any]:
        sha = self.store.sha_of(repo, revision)
        commit = repo["commits"][sha]
        card: dict[str, Any] = {}
        if readme := commit["files"].get("README.md"):
            text = self.store.blob(readme["sha256"]).read_text(encoding="utf-8")
            card = (yaml.safe_load(text.split("---")[1]) or {}) if text.startswith("---") else {}
        siblings = []
        for path, file in sorted(commit["files"].items()):
            lfs = {"lfs": {"sha256": file["sha256"], "size": file["size"], "pointerSize": 134}} if file["lfs"] else {}
            siblings.append({"rfilename": path, "size": file["size"], "blobId": file["oid"], **lfs})
        return {
            "_id": repo_id, "id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": sha,
            "lastModified": commit["date"], "createdAt": repo["created"], "private": repo["private"], "gated": False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": card.get("tags", []), "cardData": card,
            "pipeline_tag": card.get("pipeline_tag"), "library_name": card.get("library_name"), "sdk": repo["sdk"],
            "siblings": siblings,
        }  # fmt: skip

    def _api(
        self,
        method: str,
        repo_type: str,
        repo_id: str,
        repo: dict[str, Any],
        rest: list[str],
        query: dict[str, str],
        body: bytes,
    ) -> Any:
        store, what = self.store, (rest or [""])[0]
        revision = rest[1] if len(rest) > 1 else "main"
        if what in ("", "revision"):
            return self._info(repo_type, repo_id, repo, revision)
        if what == "refs":
            kinds = {"branches": ("refs/heads/", repo["branches"]), "tags": ("refs/tags/", repo["tags"])}
            return {"converts": []} | {
                kind: [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in table.items()]
                for kind, (prefix, table) in kinds.items()
            }
        if what == "runtime":
            return {"stage": "RUNNING", "hardware": {"current": "cpu-basic", "requested": "cpu-basic"}}
        if what == "auth-check":
            return {}
        if what in ("branch", "tag"):
            store.move_mark(method, what, repo, revision, json.loads(body or b"{}"))
            store.write(repo_type, repo_id, repo)
            return {}
        if what == "settings":
            asked = json.loads(body)
            repo["private"] = asked.get("private", asked.get("visibility") == "private")
            store.write(repo_type, repo_id, repo)
            return {}
        files = repo["commits"][store.sha_of(repo, revision)]["files"]
        if what == "commits":
            kept = [(sha, repo["commits"][sha]) for sha in store.history(repo, revision)]
            return [{"id": s, "title": c["title"], "message": "", "date": c["date"], "authors": []} for s, c in kept]
        if what == "tree":
            return tree(files, "/".join(rest[2:]), query.get("recursive", "").lower() in ("true", "1"))
        if what == "paths-info":
            paths = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            known = {entry["path"]: entry for entry in tree(files, "", True)}
            return [known[path] for path in paths if path in known]
        if what == "preupload":
            return {"files": [_upload_mode(file, files.get(file["path"])) for file in json.loads(body)["files"]]}
        if what == "commit":
            self.count_upload()
            if query.get("create_pr"):
                start, revision = store.sha_of(repo, revision), f"refs/pr/{len(repo['branches'])}"
                repo["branches"][revision] = start
            if revision not in repo["branches"]:
                raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            sha = store.commit(repo, revision, [json.loads(line) for line in body.splitlines() if line])
            store.write(repo_type, repo_id, repo)
            url = f"{self.url}/{'' if repo_type == 'model' else KINDS[repo_type] + '/'}{repo_id}"
            pull = {"pullRequestUrl": f"{url}/discussions/{revision[8:]}"} if query.get("create_pr") else {}
            return {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}", **pull}
        raise HubError(404, f"No {method} {what} here")

    def _resolve(self, repo: dict[str, Any], revision: str, path: str, headers: Any) -> tuple[int, dict[str, str], Any]:
        sha = self.store.sha_of(repo, revision)
        file = repo["commits"][sha]["files"].get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
        if file["lfs"]:
            linked = {"X-Linked-ETag": f'"{file["sha256"]}"', "X-Linked-Size": str(file["size"]), "X-Repo-Commit": sha}
            storage = self.url.replace("127.0.0.1", "localhost")  # another host, so that the client sees the redirect
            return 302, {"Location": f"{storage}/_blobs/{file['sha256']}", **linked}, b""
        status, answer, data = self._content(file["sha256"], file["oid"], headers)
        return status, {"X-Repo-Commit": sha, **answer}, data

    def _content(self, sha256: str, etag: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        data = self.store.blob(sha256).read_bytes()
        answer = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or "")
        if asked is None or not any(asked.groups()):
            return 200, answer, data
        first = int(asked[1]) if asked[1] else max(len(data) - int(asked[2]), 0)
        last = min(int(asked[2]), len(data) - 1) if asked[1] and asked[2] else len(data) - 1
        if first >= len(data):
            raise HubError(416, "Range not satisfiable", **{"Content-Range": f"bytes */{len(data)}"})
        return 206, answer | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]


def _upload_mode(asked: dict[str, Any], known: dict[str, Any] | None) -> dict[str, Any]:
    """How a file is to be sent, and what the Hub has in its place now."""
    binary = b"\0" in base64.b64decode(asked["sample"]) or asked["path"].endswith((".safetensors", ".parquet", ".dcm"))
    lfs = bool(asked["size"]) and (binary or asked["size"] > REGULAR_BYTES)
    oid = (known["sha256"] if known["lfs"] else known["oid"]) if known else None
    return {"path": asked["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}


class _Server(ThreadingHTTPServer):
    hub: HubServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    wbufsize = -1  # headers and body in one packet: two small ones would wait for each other
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        hub, length = self.server.hub, int(self.headers.get("Content-Length") or 0)
        body = self._chunks() if "chunked" in (self.headers.get("Transfer-Encoding") or "") else self.rfile.read(length)
        hub.requests.append(f"{self.command} {self.path}")
        try:
            status, headers, answer = hub.answer(self.command, self.path, self.headers, body)
        except HubError as error:
            status, headers, answer = error.status, error.headers, {"error": str(error)}
        except ConnectionAbortedError:
            pass  # dead
        if hub.dead:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        """Say nothing: `requests` has it."""
