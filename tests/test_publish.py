"""Publishing: the command line, pushes to the loopback Hub by the real client, and the Space that starts alone."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from huggingface_hub import HfApi, constants

from hub_cards import publish
from hub_cards.build import Project, Repository, build
from hub_cards.push import PushError, push

from .hub_project import ADAPTER, make_project
from .hub_server import HubServer

NAMES = ["synthetic-dicom", f"synthetic-dicom-lora-{ADAPTER}", "synthetic-dicom-samples", "synthetic-dicom-space"]
TYPES = ["model", "model", "dataset", "space"]


# ---- the client, in this process ----------------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def three(tmp_path) -> list[Repository]:
    """Three small repositories."""
    made = []
    for name, kind in (("one", "model"), ("two", "dataset"), ("three", "space")):
        folder = tmp_path / "hub" / name
        (folder / "data").mkdir(parents=True)
        (folder / "README.md").write_text(
            f"---\ntitle: {name}\nsdk: gradio\nsdk_version: 6.31.0\napp_file: app.py\n---\n"
        )
        (folder / "data" / "x.bin").write_bytes(b"\0" + name.encode())
        (folder / "data" / "empty.txt").touch()
        made.append(Repository(name, kind, folder))
    return made


def pushed(hub: HubServer, repositories: list[Repository], **options) -> list[str]:
    lines: list[str] = []
    push(repositories, "ORG", api=HfApi(endpoint=hub.url, token=hub.token), say=lines.append, **options)
    return lines


def contents(repository: Repository) -> dict[str, bytes]:
    return {path.relative_to(repository.folder).as_posix(): path.read_bytes() for path in repository.files()}


def test_the_same_content_makes_no_commit(online, three, tmp_path):
    with HubServer(tmp_path / "server") as hub:
        assert pushed(hub, three) == [f"ORG/{name}: 3 files pushed, 0 removed" for name in ("one", "two", "three")]
        before = {r.name: hub.commits(f"ORG/{r.name}", r.repo_type) for r in three}
        assert {name: len(commits) for name, commits in before.items()} == {"one": 2, "two": 2, "three": 2}
        assert [hub.files(f"ORG/{r.name}", r.repo_type) for r in three] == [contents(r) for r in three]
        uploads = hub.uploads
        assert pushed(hub, three) == [f"ORG/{name}: unchanged" for name in ("one", "two", "three")]
        assert {r.name: hub.commits(f"ORG/{r.name}", r.repo_type) for r in three} == before
        assert hub.uploads == uploads


def test_only_what_changed_is_pushed_and_what_is_gone_goes(online, three, tmp_path):
    with HubServer(tmp_path / "server") as hub:
        pushed(hub, three)
        (three[0].folder / "README.md").write_text("new")
        (three[0].folder / "data" / "x.bin").rename(three[0].folder / "data" / "y.bin")
        assert pushed(hub, three[:1]) == ["ORG/one: 2 files pushed, 1 removed"]
        assert hub.files("ORG/one") == contents(three[0])
        assert len(hub.commits("ORG/one")) == 3


def test_branches_tags_and_private_repositories(online, three, tmp_path):
    one = three[:1]
    with HubServer(tmp_path / "server") as hub:
        pushed(hub, one, private=True, tag="v1")
        first = contents(one[0])
        assert hub.files("ORG/one", revision="v1") == first
        assert HfApi(endpoint=hub.url, token=hub.token).repo_info("ORG/one").private
        assert pushed(hub, one, private=True, tag="v1") == ["ORG/one: unchanged, tag v1 is there"]
        (one[0].folder / "README.md").write_text("new")
        with pytest.raises(PushError, match="`tag` is 'v1', which names other content"):
            pushed(hub, one, tag="v1")
        assert hub.files("ORG/one") == first  # told before anything was pushed
        pushed(hub, one, revision="trial", tag="v2")
        assert hub.files("ORG/one") == first
        assert hub.files("ORG/one", revision="trial") == hub.files("ORG/one", revision="v2") == contents(one[0])
        pushed(hub, three[1:2])
        with pytest.raises(PushError, match="exists and is public"):
            pushed(hub, three[1:2], private=True)


def test_a_broken_push_says_what_went_and_is_completed(online, three, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    with HubServer(tmp_path / "server", fail_after=3) as hub, pytest.raises(PushError) as caught:
        pushed(hub, three)
    assert re.match(r"ORG/two failed: .*\. Pushed before it: one\. Not tried: three\. The same", str(caught.value))
    with HubServer(tmp_path / "server") as hub:
        assert len(hub.commits("ORG/one")) == 2
        assert pushed(hub, three)[0] == "ORG/one: unchanged"
        assert [hub.files(f"ORG/{r.name}", r.repo_type) for r in three] == [contents(r) for r in three]


def test_a_wrong_token_is_told(online, three, tmp_path):
    with HubServer(tmp_path / "server") as hub, pytest.raises(PushError, match="ORG/one failed: .*401"):
        push(three, "ORG", api=HfApi(endpoint=hub.url, token="hf_wrong"), say=print)


# ---- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--namespace", "a/b"], "`--namespace` is 'a/b'; allowed are"),
        (["--namespace", "ORG", "--tag", "a b"], "`--tag` is 'a b'"),
        (["--namespace", "ORG", "--only", "nonsense"], "`only` has 'nonsense'; allowed are synthetic-dicom"),
        (["--namespace", "ORG", "--samples", "0"], "`samples` is 0"),
        (["--namespace", "ORG", "--push"], "`--push` needs a token"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: None)
    assert publish.main([*arguments, "--out", str(tmp_path / "hub")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "hub").exists()


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    made = make_project(tmp_path_factory.mktemp("project"))
    build(made, "ORG", made.root / "build" / "hub", samples=1)
    return made


def run(project: Project, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, in a project that is not this repository."""
    kept = {key: os.environ[key] for key in ("PATH", "OMP_NUM_THREADS") if key in os.environ}
    command = [sys.executable, "-m", "hub_cards.publish", "--namespace", "ORG", "--samples", "1", *arguments]
    env = {**kept, "HOME": str(project.root), **env}
    return subprocess.run(command, cwd=project.root, env=env, capture_output=True, text=True)


def test_a_push_killed_midway_is_completed_by_the_next(project, tmp_path):
    binary = [
        p for p in (project.root / "build/hub/synthetic-dicom").rglob("*") if p.suffix in (".safetensors", ".png")
    ]
    with HubServer(tmp_path / "server", fail_after=len(binary) + 2) as hub:  # the commit too: dies in the adapter
        broken = run(project, hub.env(tmp_path / "cache"), "--push")
    assert broken.returncode == 1 and f"ORG/{NAMES[1]} failed" in broken.stderr, broken.stderr
    assert (
        "Pushed before it: synthetic-dicom. Not tried: synthetic-dicom-samples, synthetic-dicom-space" in broken.stderr
    )
    with HubServer(tmp_path / "server") as hub:
        done = run(project, hub.env(tmp_path / "cache"), "--push")
        assert done.returncode == 0, done.stderr
        repositories = [(f"ORG/{name}", kind) for name, kind in zip(NAMES, TYPES, strict=True)]
        commits = [hub.commits(*repository) for repository in repositories]
        assert [len(found) for found in commits] == [2, 2, 2, 2]
        for name, repository in zip(NAMES, repositories, strict=True):
            folder = project.root / "build" / "hub" / name
            assert hub.files(*repository) == contents(Repository(name, "", folder))
        again = run(project, hub.env(tmp_path / "cache"), "--push")
        assert again.returncode == 0 and again.stdout.count(": unchanged") == 4
        assert [hub.commits(*repository) for repository in repositories] == commits


def test_a_dry_run_uses_no_network(project, tmp_path):
    with HubServer(tmp_path / "server") as hub:
        done = run(project, hub.env(tmp_path / "cache"))
        assert hub.requests == []
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[-1] == "Nothing was uploaded: --push does that."
    for line, name, kind in zip(lines, NAMES, TYPES, strict=False):
        assert re.fullmatch(rf"\S*build/hub/{name}: {kind}, \d+ files, \d+\.\d MB", line)


# ---- the Space ----------------------------------------------------------------------------------------------------


def test_the_space_folder_alone_makes_a_dicom(project, tmp_path):
    gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")
    folder = Path(shutil.copytree(project.root / "build" / "hub" / "synthetic-dicom-space", tmp_path / "space"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {key: os.environ[key] for key in ("PATH", "OMP_NUM_THREADS") if key in os.environ}
    env = {**kept, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "GRADIO_SERVER_PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, "app.py"], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            lines = []
            while line := server.stdout.readline():
                lines.append(line)
                if f"Synthetic DICOM is at http://127.0.0.1:{port}" in line:
                    break
            assert line, "".join(lines)
            client = gradio_client.Client(f"http://127.0.0.1:{port}/", verbose=False)
            arguments = {"seed": 3, "steps": 2, "api_name": "/text_to_image"}
            files, recipes = client.predict("fluorescence microscopy of cell nuclei", **arguments)
            dataset = pydicom.dcmread(files[0])
            assert dataset.SyntheticData == "YES" and dataset.pixel_array.size
            assert [adapter[0] for adapter in recipes[0]["adapters"]] == [ADAPTER]
        finally:
            server.terminate()
