"""The app with the tiny model, loaded and served for the tests that need it."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


def load_app(model: Path) -> ModuleType:
    """Import app.py with a model folder; the environment is as it was afterwards."""
    before = os.environ.get("SYNTHETIC_DICOM_MODEL")
    os.environ["SYNTHETIC_DICOM_MODEL"] = str(model)
    sys.modules.pop("app", None)
    try:
        return importlib.import_module("app")
    finally:
        del os.environ["SYNTHETIC_DICOM_MODEL"]
        if before is not None:
            os.environ["SYNTHETIC_DICOM_MODEL"] = before


@contextmanager
def served(app: ModuleType) -> Iterator[str]:
    """Serve the app on a free port; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app.demo.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, **app.LAUNCH)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        app.demo.close(verbose=False)
