"""The loopback Hub does what the other tests lean on, as the real `huggingface_hub` sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fresh_process import run_fresh
from .hub_server import HubServer

PREPARE = """
import os
from pathlib import Path
from huggingface_hub import CommitOperationDelete, HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import *

def raises(error, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error as caught:
        return str(caught)
    raise AssertionError(f"{call.__name__} raised no {error.__name__}")

api, folder = HfApi(), Path("files")
(folder / "a").mkdir(parents=True, exist_ok=True)
(folder / "a" / "b.txt").write_text("one")
(folder / "README.md").write_text("---\\nlicense: mit\\nsdk: gradio\\n---\\n# Thing")
(folder / "w.safetensors").write_bytes(bytes(range(256)) * 4)
"""

USE = """
where = {"repo_id": "ORG/thing", "repo_type": TYPE}
for _ in range(2):
    api.create_repo(**where, exist_ok=True, private=True, space_sdk="gradio" if TYPE == "space" else None)
    api.upload_folder(**where, folder_path=folder)
api.create_tag(**where, tag="v1")
api.create_branch(**where, branch="try/this")
(folder / "a" / "b.txt").write_text("two")
api.upload_folder(**where, folder_path=folder)
api.upload_file(**where, path_or_fileobj=b"x", path_in_repo="c d.txt", revision="try/this")
api.create_commit(**where, operations=[CommitOperationDelete("w.safetensors")], commit_message="-", create_pr=True)

names = {".gitattributes", "README.md", "a/b.txt", "w.safetensors"}
assert set(api.list_repo_files(**where)) == names
assert set(api.list_repo_files(**where, revision="try/this")) == names | {"c d.txt"}
assert {ref.name for ref in api.list_repo_refs(**where).tags} == {"v1"}
old, new = (Path(snapshot_download(**where, revision=revision)) for revision in ("v1", "main"))
assert [(path / "a" / "b.txt").read_text() for path in (old, new)] == ["one", "two"]
assert (new / "w.safetensors").read_bytes() == (folder / "w.safetensors").read_bytes()
prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[TYPE]
with HfFileSystem().open(f"{prefix}ORG/thing/w.safetensors") as handle:
    handle.seek(300)
    assert handle.read(3) == bytes([44, 45, 46])

raises(RemoteEntryNotFoundError, hf_hub_download, **where, filename="none")
raises(RevisionNotFoundError, hf_hub_download, **where, filename="README.md", revision="none")
raises(RepositoryNotFoundError, api.repo_info, "ORG/none", repo_type=TYPE)
raises(RepositoryNotFoundError, api.repo_info, **where, token=False)  # private
assert "401" in raises(HfHubHTTPError, api.repo_info, **where, token="hf_wrong")
assert "401" in raises(HfHubHTTPError, api.create_tag, **where, tag="v2", token=False)
raises(ValueError, api.upload_file, **where, path_or_fileobj=b"---\\ntags: 3\\n---", path_in_repo="README.md")
api.update_repo_settings(**where, private=False)
assert api.repo_info(**where, token=False).sha == api.list_repo_commits(**where)[0].commit_id
"""


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_repositories_revisions_and_refusals(tmp_path, repo_type):
    with HubServer(tmp_path / "hub") as hub:
        run_fresh(f"TYPE = {repo_type!r}\n{PREPARE}{USE}", tmp_path / "work", hub.env(tmp_path / "cache"))
        assert len(hub.commits("ORG/thing", repo_type)) == 3  # empty, first, second: the one with nothing new is none
        files = {p.relative_to(tmp_path / "work" / "files").as_posix(): p for p in (tmp_path / "work").rglob("*.*")}
        assert hub.files("ORG/thing", repo_type).items() >= {("README.md", files["README.md"].read_bytes())}
        assert hub.files("ORG/thing", repo_type, "v1")["a/b.txt"] == b"one"
        assert f"POST /api/{repo_type}s/ORG/thing/commit/main" in hub.requests


def test_killed_midway_and_started_again(tmp_path: Path):
    push = 'api.create_repo("ORG/thing", exist_ok=True)\n'
    broken = push + 'raises(Exception, api.upload_folder, repo_id="ORG/thing", folder_path=folder)'
    whole = push + 'api.upload_folder(repo_id="ORG/thing", folder_path=folder)'
    with HubServer(tmp_path / "hub", fail_after=1) as hub:  # the weights arrive, the commit does not
        run_fresh(PREPARE + broken, tmp_path / "work", hub.env(tmp_path / "cache"))
        assert hub.dead and len(hub.commits("ORG/thing")) == 1
        assert not list((tmp_path / "hub").rglob("*.part"))
    with HubServer(tmp_path / "hub") as hub:
        run_fresh(PREPARE + whole, tmp_path / "work", hub.env(tmp_path / "cache"))
        assert len(hub.commits("ORG/thing")) == 2 and hub.files("ORG/thing")["a/b.txt"] == b"one"
        assert not any(request.startswith("PUT") for request in hub.requests)  # what had arrived is kept
