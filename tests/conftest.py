"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

from pipeline.pipeline import SyntheticDicomPipeline  # noqa: E402
from pipeline.volume_files import Volume, write_volumes  # noqa: E402

from .adapter_samples import ALL, ATTENTION, TEXT, WEIGHTS, save_adapter  # noqa: E402
from .dicom_judges import orthanc  # noqa: E402, F401  a fixture
from .tiny import tiny_pipeline  # noqa: E402
from .volume_samples import ALL as ALL_FILES  # noqa: E402
from .volume_samples import KINDS, made_up  # noqa: E402


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate holds to the first precision in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny() -> SyntheticDicomPipeline:
    """The tiny pipeline; tests that change it make their own."""
    return tiny_pipeline()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the tiny pipeline, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters: every kind of layer, attention alone, attention and text encoder."""
    root = tmp_path_factory.mktemp("adapters")
    save_adapter(root / "chest-xray", ALL, seed=1)
    save_adapter(root / "brain-mri", ATTENTION, seed=2, alpha=4)
    save_adapter(root / "style", ATTENTION, seed=3, text_targets=TEXT)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture()
def copied(saved: dict[str, Path], tmp_path: Path) -> Path:
    """An adapter's file to spoil."""
    return Path(shutil.copytree(saved["style"], tmp_path / "spoilt")) / WEIGHTS


@pytest.fixture(scope="module", params=KINDS)
def volume(request: pytest.FixtureRequest) -> Volume:
    """A made-up volume of every kind."""
    return made_up(KINDS[request.param])


@pytest.fixture(scope="module")
def files(volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All files of that volume by name."""
    return {path.name: path for path in write_volumes([volume], tmp_path_factory.mktemp("volume"), ALL_FILES)}
