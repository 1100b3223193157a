"""Deletes what Gradio forgets: results that nobody fetched, and an empty file that each upload leaves behind."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

PREFIX = "synthetic-dicom-"  # of the folder of each run's results


def sweep(cache: str | Path, seconds: float) -> None:
    """Delete our folders of results, and Gradio's empty files, that are older than `seconds`."""
    limit = time.time() - seconds
    for path in [*Path(cache).glob(f"{PREFIX}*"), *Path(cache).glob("tmp*")]:
        with suppress(OSError):  # another may have been quicker
            ours, state = path.name.startswith(PREFIX), path.stat()
            if state.st_mtime > limit:
                continue
            if ours and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not ours and path.is_file() and state.st_size == 0:
                path.unlink()


def keep_swept(cache: str | Path, seconds: float, every: float) -> None:
    """Sweep now and then, in a thread of its own, as long as this process lives."""

    def work() -> None:
        while True:
            time.sleep(every)
            sweep(cache, seconds)

    threading.Thread(target=work, daemon=True, name="sweep").start()
