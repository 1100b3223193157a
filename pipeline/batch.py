"""Thousands of images of a list of prompts: `python -m pipeline generate --from-csv prompts.csv --out DIR`.

What an image is to be follows from its row alone, so that a run that was killed goes on: an image whose file is there
and whole is not made again. Each image is drawn alone and with one thread, since both decide its last digits: any
number of workers makes the same bytes. For more speed give more workers.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from . import batch_csv, batch_maker, batch_ray

Row = batch_csv.Row
Entry = batch_csv.Entry
Settings = batch_maker.Settings
OutputError = batch_maker.OutputError

MAX_WORKERS, ATTEMPTS = 256, 2


@dataclass
class Counts:
    """What came of a batch, in images."""

    made: int = 0
    kept: int = 0
    failed: int = 0

    def in_words(self) -> str:
        """Say how things stand when it breaks off."""
        return f"; {self.made + self.kept} images are whole, and the same command goes on"


def run(
    rows: Sequence[Row],
    settings: Settings,
    workers: int = 1,
    say: Callable[[Entry, bool], None] | None = None,
    ray: str | None = None,
) -> Counts:
    """Make the images of all rows that are not there yet, and write `manifest.csv`.

    Parameters
    ----------
    rows
        From `read_rows`.
    settings
        What all rows share.
    workers
        Processes, each with a pipeline of its own.
    say
        Told of every image: its entry, and whether it was made just now.
    ray
        Address of a Ray cluster that the workers run on; None for this machine's own processes.

    Raises
    ------
    OutputError
        The disk is full, or the folder cannot be written to.
    ValueError
        The model cannot be loaded, or another batch writes into the folder.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise ValueError(f"`--workers` is {workers}; allowed are 1 to {MAX_WORKERS}")
    if settings.out.exists() and not settings.out.is_dir():
        raise ValueError(f"`--out` is {str(settings.out)!r}, which is no folder")
    counts = Counts()
    with batch_maker.writing(counts.in_words):
        settings.out.mkdir(parents=True, exist_ok=True)
        with _locked(settings.out):
            shutil.rmtree(settings.out / batch_maker.STAGING, ignore_errors=True)  # of a run that was killed
            manifest = batch_csv.Manifest(settings.out)
            manifest.open(rows)

            def took(entry: Entry, new: bool) -> None:
                manifest.add(entry)
                name = "failed" if entry.status == "failed" else "made" if new else "kept"
                setattr(counts, name, getattr(counts, name) + 1)
                if say is not None:
                    say(entry, new)

            try:
                if ray is not None:
                    batch_ray.share(deque(rows), settings, workers, manifest, took, ray)
                elif workers == 1:
                    maker = batch_maker.Maker(settings)
                    for row in rows:
                        for entry, new in maker.make(row, manifest.of_row(row)):
                            took(entry, new)
                else:
                    _share(deque(rows), settings, workers, manifest, took)
                manifest.open(rows)  # in the order of the list
            finally:
                shutil.rmtree(settings.out / batch_maker.STAGING, ignore_errors=True)
    return counts


# ---- several processes ----------------------------------------------------------------------------------------------


def _share(
    rows: deque[Row],
    settings: Settings,
    workers: int,
    manifest: batch_csv.Manifest,
    took: Callable[[Entry, bool], None],
) -> None:
    """Hand rows to workers, each taking the next one when it is done; a dead worker's row is taken up again."""
    context = multiprocessing.get_context("spawn")
    busy: dict[Connection, tuple[Any, Row, set[int]]] = {}
    attempts: Counter[int] = Counter()

    def give(connection: Connection, process: Any) -> None:
        if not rows:
            connection.close()
            process.join()
            return
        row = rows.popleft()
        attempts[row.number] += 1
        busy[connection] = process, row, set()
        with suppress(OSError):  # it has just died: that shows when its answer is read
            connection.send((row, manifest.of_row(row)))

    def start() -> None:
        mine, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, settings), daemon=True)
        process.start()
        theirs.close()
        give(mine, process)

    try:
        for _ in range(min(workers, len(rows))):
            start()
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                process, row, done = busy[connection]
                try:
                    kind, what = connection.recv()
                except (EOFError, OSError):
                    del busy[connection]
                    connection.close()
                    process.join()
                    if attempts[row.number] < ATTEMPTS:
                        rows.appendleft(row)
                    else:
                        for seed in set(range(row.seed, row.seed + row.count)) - done:
                            took(Entry(row.number, "failed", "", "", seed, "the worker died twice at this row"), True)
                    if rows:
                        start()
                    continue
                if kind == "image":
                    entry, new = what
                    done.add(entry.seed)
                    took(entry, new)
                elif kind == "row":
                    del busy[connection]
                    give(connection, process)
                else:
                    raise OutputError(what) if kind == "full" else ValueError(what)
    finally:
        for connection, (process, _, _) in busy.items():
            connection.close()
            process.terminate()
            process.join()


def _work(connection: Connection, settings: Settings) -> None:
    """Make rows until the other side hangs up, which it also does by being killed."""
    batch_maker.quieten()
    try:
        maker = batch_maker.Maker(settings)
        while True:
            row, known = connection.recv()
            for image in maker.make(row, known):
                connection.send(("image", image))
            connection.send(("row", row.number))
    except OutputError as error:
        _hang_up(connection, "full", str(error))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass
    except (ValueError, OSError) as error:  # of loading the model: rows tell their own
        _hang_up(connection, "error", str(error))


def _hang_up(connection: Connection, kind: str, text: str) -> None:
    with suppress(OSError):
        connection.send((kind, text))


# ---- the folder -----------------------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second batch out of a folder; the lock goes with the process, however that ends."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError("`--out` is in use by another batch") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)
