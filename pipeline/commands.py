"""The commands `verify`, `replay` and `generate --from-csv`: their options, what they print, their exit status."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from . import batch_csv, batch_maker, dicom_seal

quieten = batch_maker.quieten

# Of `generate`: what a list of prompts says itself, or what cannot be with one.
NOT_WITH_CSV = ("prompt", "image", "strength", "frame", "seed", "steps", "guidance", "negative_prompt", "modality") + (
    "adapter", "zip", "dicomdir",
)  # fmt: skip


def add_verify(commands: Any) -> None:
    """Add the options of `verify`."""
    verify = commands.add_parser("verify", help="say whether files were made here, are marked, and were altered")
    verify.add_argument("files", metavar="FILE", nargs="+", help="DICOM, PNG or JPEG files")
    verify.add_argument("--key", metavar="FILE", type=Path, help="check signatures with the key in this file")


def add_replay(commands: Any, patient: str, study: str) -> None:
    """Add the options of `replay`."""
    replay = commands.add_parser("replay", help="make images again from the recipe in their files, and compare")
    replay.add_argument("files", metavar="FILE", nargs="+", help="DICOM files, or PNGs that were made here")
    replay.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder to write into")
    replay.add_argument("--model", metavar="DIR", action="append", default=[], help="folder of a model; repeatable")
    replay.add_argument("--adapter", metavar="PATH", action="append", default=[], help="of an adapter; repeatable")
    replay.add_argument("--allow-hub", action="store_true", help="fetch a model that the recipe calls by a Hub id")
    replay.add_argument("--image", metavar="FILE", action="append", default=[], help="what it was made of; repeatable")
    replay.add_argument("--frame", metavar="N", type=int, help="frame of a multi-frame image, from 1")
    replay.add_argument("--patient", metavar="KEY=VALUE", action="append", default=[], help=patient)
    replay.add_argument("--study", metavar="KEY=VALUE", action="append", default=[], help=study)
    replay.add_argument("--device", metavar="D", help="cpu, cuda or mps; by default the best there is")


def run_verify(options: argparse.Namespace) -> int:
    """Carry out `verify`: 0 all made here and whole, 1 some not, 2 some cannot be read."""
    from . import verification

    key = None if options.key is None else dicom_seal.read_key(options.key)
    status = 0
    for path in options.files:
        try:
            found = verification.verify(path, key=key)
        except ValueError as error:
            _report(path, error)
            status = 2
            continue
        print(f"{shown(path)}: {'ok' if found.ok else 'NOT OK'}", *found.in_words(), sep="\n  ")
        status = max(status, int(not found.ok))
    return status


def run_replay(options: argparse.Namespace, patient: Any, study: Any) -> int:
    """Carry out `replay`: 0 all equal, 1 some differ or cannot be made here, 2 some cannot be read or written."""
    quieten()
    from . import replaying

    replayer = replaying.Replayer(options.model, options.adapter, allow_hub=options.allow_hub, device=options.device)
    status = 0
    for path in options.files:
        try:
            found = replayer.replay(
                path, options.out, images=options.image, frame=options.frame, patient=patient, study=study
            )
        except replaying.CannotReplay as error:
            _report(path, error)
            status = max(status, 1)
        except (ValueError, OSError) as error:
            _report(path, error)
            status = 2
        else:
            print(f"{shown(path)}: {', '.join(map(shown, found.paths))}", *found.in_words(), sep="\n  ")
            status = max(status, int(not found.equal))
    return status


def run_batch(options: argparse.Namespace, patient: Any, study: Any, key: bytes | None) -> int:
    """Carry out `generate --from-csv`: 0 all images are there, 1 some failed, 2 it could not go on."""
    for name in NOT_WITH_CSV:
        value = getattr(options, name)
        if value is not None and value is not False and value != []:  # 0 is an answer too
            option = "a prompt" if name == "prompt" else f"`--{name.replace('_', '-')}`"
            raise ValueError(
                f"`--from-csv` and {option} are both given; the list has columns {', '.join(batch_csv.COLUMNS)}"
            )
    if options.count != 1:
        raise ValueError("`--from-csv` and `--count` are both given; the list has a column count")
    rows = batch_csv.read_rows(options.from_csv)
    quieten()
    from . import batch

    def say(entry: batch_csv.Entry, new: bool) -> None:
        if entry.status == "failed":
            print(f"error: row {entry.row}: {entry.error}", file=sys.stderr, flush=True)
        elif new:
            print(options.out / entry.file, flush=True)

    settings = batch.Settings(
        options.out,
        str(options.model or Path(__file__).parent),
        options.device,
        options.compress,
        options.png,
        key,
        patient,
        study,
        options.check_memorisation,
        options.watermark,
    )
    try:
        counts = batch.run(rows, settings, options.workers, say, options.ray)
    except batch.OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{counts.made} made, {counts.kept} there already, {counts.failed} failed: {options.out / batch_csv.MANIFEST}",
        file=sys.stderr,
    )
    return int(counts.failed > 0)


def shown(text: object) -> str:
    """A name on one line: no file's name begins a line that looks like ours, or steers the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _report(path: str, error: Exception) -> None:
    print(f"error: {shown(path)}: {shown(' '.join(str(error).split()))}", file=sys.stderr)
