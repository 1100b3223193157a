"""Other people's code: a Python process that knows the installed packages and nothing of this repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def run_fresh(code: str, folder: Path, env: Mapping[str, str]) -> str:
    """Run code in a folder, isolated: neither the repository nor the user's settings reach it; gives what it printed.

    Parameters
    ----------
    code
        Python source.
    folder
        Where it runs; made where it does not exist.
    env
        Variables beside the path and the number of threads: `HubServer.env(cache)`.

    Raises
    ------
    AssertionError
        It ended with an error; the message has the end of what it wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: os.environ[key] for key in ("PATH", "OMP_NUM_THREADS", "SYSTEMROOT") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=folder,
        env={**kept, "HOME": str(folder), **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout
