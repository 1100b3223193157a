"""Coverage-guided fuzzing of what reads strangers' files: `python -m tests.fuzz_dicom DOOR [--seconds 180]`.

Not collected by pytest: it needs `pip install --group fuzz` (Linux alone) and minutes. Doors: image
(`dicom_input.read_image`), verify (`verification.verify`), recipe (the recipe in a file, checked), adapter
(`adapter_files.read_adapter`). Only a ValueError of one sentence may come out; anything else, and whatever takes more
than 30 seconds or 3 GiB, ends the run with another status than 0 and leaves the file in `--keep`.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pipeline", "pydicom", "pylibjpeg", "PIL"], enable_loader_override=False):
    from pipeline import adapter_files, dicom_input, replaying, verification

from evaluation import hostile_seeds  # noqa: E402
from evaluation.hostile_doors import LONGEST_MESSAGE  # noqa: E402

SEEDS = {"adapter": (hostile_seeds.adapter_seeds,)}
LONGEST = 1 << 16  # bytes of a file


def image(data: bytes) -> None:
    dicom_input.read_image(data)


def verify(data: bytes) -> None:
    verification.verify(data).in_words()


def recipe(data: bytes) -> None:
    found = verification.recipe_in(*verification.read(data))
    if found is not None:
        replaying.check_recipe(found)


def adapter(data: bytes) -> None:
    path = Path(tempfile.gettempdir(), f"fuzz-{os.getpid()}.safetensors")
    path.write_bytes(data)
    try:
        adapter_files.read_adapter(path, max_bytes=50 * 2**20)
    finally:
        path.unlink()


DOORS: dict[str, Callable[[bytes], None]] = {"image": image, "verify": verify, "recipe": recipe, "adapter": adapter}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz one door.")
    parser.add_argument("door", choices=DOORS)
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--seed", type=int, default=1, help="of the mutations, from 1")
    parser.add_argument("--corpus", help="folder that keeps what reached new code, to go on from (default: in --keep)")
    parser.add_argument("--keep", default="build/fuzz", help="folder for files that did harm (default: %(default)s)")
    options = parser.parse_args()
    door = DOORS[options.door]
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # pydicom tells of every oddity
    corpus = Path(options.corpus or Path(options.keep, f"{options.door}-corpus"))
    corpus.mkdir(parents=True, exist_ok=True)
    makers = SEEDS.get(options.door, (hostile_seeds.dicom_seeds, hostile_seeds.picture_seeds))
    for number, data in enumerate(data for maker in makers for data in maker()):
        if len(data) <= LONGEST:
            (corpus / f"seed-{number}").write_bytes(data)

    def one(data: bytes) -> None:
        try:
            door(data)
        except ValueError as error:
            if "\n" not in str(error) and len(str(error)) <= LONGEST_MESSAGE:
                return
            problem: Exception = AssertionError("not one sentence")
        except Exception as error:
            problem = error
        else:
            return
        Path(options.keep, f"{options.door}-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
        raise problem

    own = [f"-max_total_time={options.seconds}", f"-seed={options.seed}", f"-max_len={LONGEST}", "-timeout=30"]
    own += ["-rss_limit_mb=3072", "-print_final_stats=1", "-len_control=0", f"-artifact_prefix={options.keep}/"]
    atheris.Setup([sys.argv[0], *own, str(corpus)], one)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
