"""The README's examples on the Hub, run as they stand, against the loopback Hub."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from pipeline import read_recipe

from .fresh_process import run_fresh
from .hub_project import ROOT, make_images, make_project
from .hub_server import HubServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = ["--steps", "2", "--batch", "2", "--validate-every", "2", "--sample-count", "2", "--verdict-count", "0", "--cpu"]


def blocks(title: str, language: str) -> list[str]:
    """The code blocks of a section."""
    sections = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert len(sections) == 1, title
    return re.findall(rf"^```{language}\n(.*?)^```", sections[0], re.MULTILINE | re.DOTALL)


@dataclass
class Place:
    """Somebody's machine: the project, the Hub, and an environment that leads there."""

    project: Path
    hub: HubServer
    env: dict[str, str]

    def shell(self, script: str) -> str:
        """Run a block as it stands in the project's folder; `python` and `pip` are those that run the tests."""
        done = subprocess.run(
            ["bash", "-euc", script], cwd=self.project, env=self.env, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, (script + done.stdout + done.stderr)[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    """The project is published as the README says, before anything is loaded."""
    folder = tmp_path_factory.mktemp("place")
    made = make_project(folder / "project")
    with HubServer(folder / "server") as hub:
        env = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",  # all is installed: nothing may be fetched
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **hub.env(folder / "cache"),
        }
        yield Place(made.root, hub, env)


@pytest.fixture(scope="module")
def published(place) -> Place:
    publish, _ = blocks("Put it on a Space", "bash")
    assert "Nothing was uploaded" in place.shell(publish)
    return place


def test_publishing(published):
    for name, kind in (("", "model"), ("-lora-nuclei", "model"), ("-samples", "dataset"), ("-space", "space")):
        repo_id = f"ORG/synthetic-dicom{name}"
        assert len(published.hub.commits(repo_id, kind)) == 2
        assert published.hub.files(repo_id, kind, "v0.1.0") == published.hub.files(repo_id, kind)


def test_use_it_in_your_code(published, tmp_path):
    codes = blocks("Use it in your code", "python")
    *loading, own, offline = codes
    assert len(codes) == 5 and "push_to_hub" in own and "snapshot_download" in offline
    cache = published.hub.env(tmp_path / "cache")
    run_fresh("\n".join([*loading, own]), tmp_path / "empty", cache)
    for name, modality in (("mr.dcm", "MR"), ("nuclei.dcm", "GM"), ("sample.dcm", "DX")):
        dataset = pydicom.dcmread(tmp_path / "empty" / name)
        assert dataset.Modality == modality and dataset.SyntheticData == "YES"
    files = published.hub.files("ORG/my-pipeline")
    assert b"UniPCMultistepScheduler" in files["scheduler/scheduler_config.json"] and "pipeline.py" in files
    before = len(published.hub.requests)
    run_fresh(offline, tmp_path / "empty", cache)  # fills the cache
    assert len(published.hub.requests) > before
    before = len(published.hub.requests)
    run_fresh(offline, tmp_path / "empty", cache | {"HF_HUB_OFFLINE": "1"})
    assert len(published.hub.requests) == before


def test_share_your_adapter(place):
    push, generate = blocks("Share your adapter", "bash")
    make_images(place.project / "my-images")
    try:
        # Hours of training are none of a test's: the command finds the adapter finished and pushes it.
        place.shell(f"python -m lora.train --data my-images --out lora/mine {' '.join(FEW)}")
        assert "pushed as it is" in place.shell(push)
        files = place.hub.files("ORG/my-adapter")
        assert {"pytorch_lora_weights.safetensors", "training.json", "README.md"} <= set(files)
        written = place.shell(generate).split()
        recipe = read_recipe(pydicom.dcmread(place.project / written[0]))
        assert recipe is not None and [adapter[0] for adapter in recipe.adapters] == ["mine"]
    finally:
        shutil.rmtree(place.project / "lora" / "mine")  # publishing would take it for one of its own


def test_put_it_on_a_space(published):
    _, serve = blocks("Put it on a Space", "bash")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = published.env | {"GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        ["bash", "-euc", serve.replace("python app.py", "exec python app.py")],  # so that it can be ended
        cwd=published.project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            lines = []
            while (line := server.stdout.readline()) and "Synthetic DICOM is at" not in line:
                lines.append(line)
            assert line, "".join(lines)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
                assert b"Synthetic DICOM" in page.read()
        finally:
            server.terminate()
