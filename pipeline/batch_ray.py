"""A list of prompts on several machines, by Ray: `generate --from-csv ... --ray ADDRESS`.

Ray is an extra: `pip install ray`. Each worker has a pipeline of its own and writes into the same folder: that folder,
the model and this package must be reachable under the same paths on all machines. The manifest is written here.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import batch_csv, batch_maker

Row = batch_csv.Row
Entry = batch_csv.Entry
Settings = batch_maker.Settings
OutputError = batch_maker.OutputError

ATTEMPTS = 3
LOCAL = "local"


class Worker:
    """What runs on another machine; each answer is a kind and what belongs to it, so that no exception must travel."""

    def __init__(self, settings: Settings, folder: str, mark: str) -> None:
        self._settings, self._folder, self._mark = settings, folder, mark
        self._maker: batch_maker.Maker | None = None

    def make(self, row: Row, known: list[str]) -> tuple[str, Any]:
        """Make one row: ("row", its entries), ("full", why nothing can be written) or ("error", why not to go on)."""
        try:
            if self._maker is None:
                if not os.path.exists(self._mark):
                    return "error", "a worker does not see the folder of `--out`; it must be the same on all machines"
                if os.path.isdir(self._folder):  # where paths of adapters start
                    os.chdir(self._folder)
                batch_maker.quieten()
                self._maker = batch_maker.Maker(self._settings)
            return "row", list(self._maker.make(row, known))
        except OutputError as error:
            return "full", str(error)
        except (ValueError, OSError) as error:  # of loading the model: rows tell their own
            return "error", str(error)


def share(
    rows: deque[Row],
    settings: Settings,
    workers: int,
    manifest: batch_csv.Manifest,
    took: Callable[[Entry, bool], None],
    address: str,
) -> None:
    """Hand rows to workers on a Ray cluster; a dead worker's row is taken up again, by a new worker.

    Parameters
    ----------
    rows, settings, workers, manifest, took
        As of `batch.run`.
    address
        Of the cluster, such as `head:6379` or `ray://head:10001`; "local" starts one on this machine.

    Raises
    ------
    ValueError
        Ray is not installed, the cluster does not answer, or the model cannot be loaded.
    OutputError
        Nothing more can be written.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports its use to its makers
    try:
        import ray
    except ImportError as error:
        raise ValueError("`--ray` needs Ray, which is not installed: pip install ray") from error
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise ValueError(f"`--ray` is {address!r}, where no Ray cluster answers") from error
    model = str(Path(settings.model).resolve()) if Path(settings.model).is_dir() else settings.model
    settings = replace(settings, out=settings.out.resolve(), model=model)
    staging = settings.out / batch_maker.STAGING
    staging.mkdir(exist_ok=True)
    remote = ray.remote(num_cpus=1, max_restarts=0)(Worker)
    busy: dict[Any, tuple[Any, Row]] = {}
    attempts: Counter[int] = Counter()

    def give(worker: Any) -> None:
        if rows:
            row = rows.popleft()
            attempts[row.number] += 1
            busy[worker.make.remote(row, manifest.of_row(row))] = worker, row

    try:
        with tempfile.NamedTemporaryFile(dir=staging) as mark:
            for _ in range(min(workers, len(rows))):
                give(remote.remote(settings, os.getcwd(), mark.name))
            while busy:
                (ready,), _ = ray.wait(list(busy), num_returns=1)
                worker, row = busy.pop(ready)
                try:
                    kind, what = ray.get(ready)
                except ray.exceptions.RayError:  # it is dead, or its machine is
                    if attempts[row.number] < ATTEMPTS:
                        rows.appendleft(row)
                    else:
                        words = f"the worker died {ATTEMPTS} times at this row"
                        for seed in range(row.seed, row.seed + row.count):
                            took(Entry(row.number, "failed", "", "", seed, words), True)
                    give(remote.remote(settings, os.getcwd(), mark.name))
                    continue
                if kind != "row":
                    raise OutputError(what) if kind == "full" else ValueError(what)
                for entry, new in what:
                    took(entry, new)
                give(worker)
                del worker  # one that got no row is let go, so that a pending one may have its processor
    finally:
        ray.shutdown()
