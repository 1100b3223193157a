"""Fixtures that several test files share."""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from pipeline.pipeline import SyntheticDicomPipeline  # noqa: E402

from .tiny import tiny_pipeline  # noqa: E402


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
