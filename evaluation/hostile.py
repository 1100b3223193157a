"""What do damaged and malicious files do? Nothing, it must be: files tried, crashes, leaks, memory and time.

Sound files of every kind are damaged by chance (`hostile_mutations`), bombs are made (`hostile_bombs`), and files of
the user's own are tried as they are. The same seed makes the same files.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from . import hostile_bombs, hostile_mutations, hostile_seeds
from .hostile_doors import DOORS, SUFFIXES, Outcome, serve

MAX_MEMORY = 2 * 2**30
MAX_OWN_BYTES = 32 * 2**20  # of files of `data`: larger ones are left out
UPLOAD_SHARE = 0.15  # each upload starts a process
_TABLES, _IMAGES = ("captions", "prompts"), ("image", "verify", "recipe", "training")


@dataclass(frozen=True)
class Case:
    """One file for one door."""

    door: str
    kind: str
    data: bytes


def hostile(
    count: int = 2000,
    seed: int = 0,
    doors: Sequence[str] | None = None,
    data: Sequence[str | Path] = (),
    seconds: float = 30,
    keep: str | Path | None = None,
) -> dict[str, Any]:
    """Try files at the doors.

    Parameters
    ----------
    count
        Damaged files; bombs, and files of `data` as they are, come on top.
    seed
        Of all draws.
    doors
        Names in `DOORS`; all by default.
    data
        Folders of files to try as they are and to damage.
    seconds
        A door that takes longer hangs.
    keep
        Folder for the files that did harm.

    Returns
    -------
    dict
        `files`, `crashes`, `hangs`, `leaks`, `over_memory`, `peak_memory_mib` (beyond what the process had),
        `slowest_seconds`, `by_door`, `by_kind`, and `harm`: door, kind, what it was and the SHA-256 of the file.

    Raises
    ------
    ValueError
        A door or folder is not known, or `count` is negative.
    """
    if count < 0:
        raise ValueError(f"`count` is {count}: numbers from 0 are allowed")
    names = list(doors or DOORS)
    if unknown := [name for name in names if name not in DOORS]:
        raise ValueError(f"`doors` names {unknown[0]!r}: allowed are {', '.join(DOORS)}")
    if absent := [folder for folder in data if not Path(folder).is_dir()]:
        raise ValueError(f"`data` names {str(absent[0])!r}, which is no folder")
    own = [path.read_bytes() for path in _own_files(data)]
    outcomes: list[tuple[Case, Outcome]] = []
    with _Tester(names, seconds) as tester:
        for case in tqdm(_cases(names, own, count, seed), desc="hostile", mininterval=5):
            outcomes.append((Case(case.door, case.kind, b""), tester.tried(case)))
            if keep and _harm(outcomes[-1][1]):
                Path(keep).mkdir(parents=True, exist_ok=True)
                Path(keep, f"{case.door}-{_hash(case)[:16]}{SUFFIXES.get(case.door, '.dcm')}").write_bytes(case.data)
            if _harm(outcomes[-1][1]):
                outcomes[-1] = (Case(case.door, case.kind, bytes.fromhex(_hash(case))), outcomes[-1][1])
    return {"count": count, "seed": seed, "seconds": seconds, "own_files": len(own), **summary(outcomes)}


def summary(outcomes: Sequence[tuple[Case, Outcome]]) -> dict[str, Any]:
    """Count what happened."""
    by_door: dict[str, Counter[str]] = {}
    by_kind: dict[str, Counter[str]] = {}
    for case, outcome in outcomes:
        by_door.setdefault(case.door, Counter())[outcome.how] += 1
        by_kind.setdefault(case.kind, Counter())[outcome.how] += 1
    memory = {door: max(o.memory for c, o in outcomes if c.door == door) for door in by_door}
    return {
        "files": len(outcomes),
        "crashes": sum(outcome.how == "crashed" for _, outcome in outcomes),
        "hangs": sum(outcome.how == "hung" for _, outcome in outcomes),
        "leaks": sum(bool(outcome.leaks) for _, outcome in outcomes),
        "over_memory": sum(outcome.memory > MAX_MEMORY for _, outcome in outcomes),
        "peak_memory_mib": round(max(memory.values(), default=0) / 2**20),
        "slowest_seconds": round(max((outcome.seconds for _, outcome in outcomes), default=0.0), 1),
        "by_door": {
            door: dict(sorted(counts.items())) | {"peak_memory_mib": round(memory[door] / 2**20)}
            for door, counts in sorted(by_door.items())
        },
        "by_kind": {kind: dict(sorted(counts.items())) for kind, counts in sorted(by_kind.items())},
        "harm": [
            {
                "door": case.door,
                "kind": case.kind,
                "how": outcome.how,
                "detail": outcome.detail,
                "leaks": list(outcome.leaks),
                "memory_mib": round(outcome.memory / 2**20),
                "sha256": case.data.hex(),
            }
            for case, outcome in outcomes
            if _harm(outcome)
        ],
    }


def _harm(outcome: Outcome) -> bool:
    return outcome.how in ("crashed", "hung") or bool(outcome.leaks) or outcome.memory > MAX_MEMORY


def _hash(case: Case) -> str:
    return hashlib.sha256(case.data).hexdigest()


def _own_files(folders: Sequence[str | Path]) -> list[Path]:
    found = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return [path for path in found if path.stat().st_size <= MAX_OWN_BYTES]


@cache
def _sound(kind: str) -> list[bytes]:
    return list(getattr(hostile_seeds, f"{kind}_seeds")())


def _cases(doors: Sequence[str], own: Sequence[bytes], count: int, seed: int) -> Iterator[Case]:
    """Bombs and own files as they are, then `count` damaged ones."""
    for name, make in hostile_bombs.bombs():
        wanted = ["adapter"] if name.startswith("adapter") else _TABLES if name.startswith("table") else _IMAGES
        data = make()
        for door in (*wanted, *(("upload",) if wanted is _IMAGES else ())):
            if door in doors:
                yield Case(door, "bomb", data)
    for data in own:
        for door in _IMAGES:
            if door in doors:
                yield Case(door, "as it is", data)
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        door = rng.choice([door for door in doors if door != "upload" or rng.random() < UPLOAD_SHARE] or list(doors))
        yield _damaged(door, own, rng)


def _damaged(door: str, own: Sequence[bytes], rng: random.Random) -> Case:
    ways: Sequence[Any] = hostile_mutations.BYTES
    if door == "adapter":
        data, ways = rng.choice(_sound("adapter")), (*ways, *[hostile_mutations.lying_tensors] * 8)
    elif door in _TABLES:
        data, ways = rng.choice(_sound("table")), (*ways, *[hostile_mutations.lying_table] * 8)
    elif own and rng.random() < 0.3:
        data, ways = rng.choice(own), (*ways, *hostile_mutations.DICOM)
    elif rng.random() < 0.75 or door in ("verify", "recipe"):
        data, ways = rng.choice(_sound("dicom")), (*ways, *hostile_mutations.DICOM)
        if door in ("verify", "recipe"):
            ways = (*ways, *[hostile_mutations.lying_recipe] * 10)
    else:
        data = rng.choice(_sound("picture"))
    chosen = [rng.choice(ways) for _ in range(rng.choice((1, 1, 2, 3)))]
    for way in chosen:
        if 0 < len(data) <= hostile_mutations.MAX_BYTES:
            data = way(data, rng)
    return Case(door, chosen[0].__name__.replace("_", " "), data)


class _Tester:
    """A process that tries files; another one is started where a file has ended or stopped it."""

    def __init__(self, doors: Sequence[str], seconds: float) -> None:
        self._doors, self._seconds = list(doors), seconds
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None

    def __enter__(self) -> _Tester:
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end()
        self._folder.cleanup()

    def tried(self, case: Case) -> Outcome:
        """Try one file."""
        if self._process is None:
            self._connection, theirs = self._context.Pipe()
            self._process = self._context.Process(target=serve, args=(theirs, self._folder.name), daemon=False)
            self._process.start()
            theirs.close()
            self._connection.send(self._doors)  # so that no file has to wait for a start
            self._connection.recv()
        try:
            self._connection.send((case.door, case.data))
            if not self._connection.poll(self._seconds):
                self._end()
                return Outcome("hung", seconds=self._seconds)
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            detail = f"the process ended with {self._process.exitcode}"
            self._end()
            return Outcome("crashed", detail)

    def _end(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process = None
