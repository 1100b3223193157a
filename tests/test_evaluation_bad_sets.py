"""Sets that are too small, of one class, of mixed sizes, broken or empty: a clear sentence each, from every measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.__main__ import main

from .test_evaluation import structured, write_pictures

LEARN = ["--size", "32", "--width", "0.125", "--epochs", "1", "--updates", "2"]
OPTIONS = {
    "fidelity": [],
    "utility": [*LEARN, "--seeds", "0", "--regimes", "real", "synthetic"],
    "privacy": [],
    "explain": [*LEARN, "--count", "1", "--segments", "9", "--samples", "20"],
}
SIDES = ("real", "synthetic")
KINDS = ("disc", "stripes")


def classes(folder: Path, each: int, *, seed: int = 0, kinds: tuple[str, ...] = KINDS, mixed: bool = False) -> Path:
    """One subfolder a class; mixed sizes where asked for."""
    folder.mkdir()
    for number, kind in enumerate(kinds):
        images = structured(each, seed + number, 48, kind)
        write_pictures(folder / kind, images)
        for index in range(each if mixed else 0):
            Image.fromarray(np.ascontiguousarray(images[index][: 24 + index])).save(folder / kind / f"{index:03d}.png")
    return folder


def run(what: str, real: Path, synthetic: Path, tmp_path: Path) -> int:
    more = ["--unseen", str(classes(tmp_path / "unseen", 15, seed=50))] if what == "privacy" else []
    two = ["--real", str(real), "--synthetic", str(synthetic)]
    return main([what, *two, *more, *OPTIONS[what], "--out", str(tmp_path / "out" / "out.json")])


def three(folder: Path) -> Path:
    return write_pictures(folder, structured(3, 0, 48))


def corrupt(folder: Path) -> Path:
    (classes(folder, 20) / "disc" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    return folder


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def one_class(folder: Path) -> Path:
    return classes(folder, 24, kinds=("disc",))


REFUSED = [
    *((what, side, corrupt, f"`{side}`: file ") for what in OPTIONS for side in SIDES),
    *((what, side, empty, f"`{side}` is ") for what in OPTIONS for side in SIDES),
    ("fidelity", "real", three, "`real` holds 3 images: 40 are needed, half of them for the floor"),
    ("fidelity", "synthetic", three, "`synthetic` holds 3 images: KID needs at least 20"),
    ("utility", "real", three, "`real` has 0 classes: at least 2 are needed"),
    ("utility", "synthetic", three, "`synthetic` has the classes (none): they must be those of `real`, disc"),
    ("utility", "real", one_class, "`real` has 1 classes: at least 2 are needed"),
    ("utility", "synthetic", one_class, "`synthetic` has the classes disc: they must be those of `real`, disc"),
    ("explain", "real", three, "`real` has 0 classes: at least 2 are needed"),
    ("explain", "synthetic", three, "`synthetic` has the classes (none): they must be those of `real`"),
    ("explain", "real", one_class, "`real` has 1 classes: at least 2 are needed"),
    ("explain", "synthetic", one_class, "`synthetic` has the classes disc: they must be those of `real`"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "side", "make", "words"), REFUSED)
def test_a_set_that_will_not_do_ends_in_one_clear_sentence(tmp_path, capsys, what, side, make, words):
    sides = {
        name: make(tmp_path / name) if name == side else classes(tmp_path / name, 20) for name in ("real", "synthetic")
    }
    assert run(what, sides["real"], sides["synthetic"], tmp_path) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]  # progress bars come before
    assert line.startswith(f"{what}: ") and words in line and "broken" not in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("privacy", one_class),
        ("privacy", three),
        *((what, lambda folder: classes(folder, 20, mixed=True)) for what in ("utility", "privacy", "explain")),
    ],
)
def test_a_set_that_will_do_is_measured(tmp_path, what, make):
    assert run(what, classes(tmp_path / "real", 20), make(tmp_path / "synthetic"), tmp_path) == 0
    assert (tmp_path / "out" / "out.json").is_file()


def test_three_unseen_images_are_too_few_for_a_threshold(tmp_path, capsys):
    real, made = classes(tmp_path / "real", 4), three(tmp_path / "made")
    two = ["--real", str(real), "--synthetic", str(made), "--unseen", str(made)]
    assert main(["privacy", *two, "--out", str(tmp_path / "out.json")]) == 2
    assert "`unseen` holds 3 images: at least 20 are needed" in capsys.readouterr().err


def test_sheets_of_real_people_may_not_lie_in_the_project(tmp_path, capsys):
    real, made = classes(tmp_path / "real", 4), classes(tmp_path / "made", 4)
    asked = ["explain", "--real", str(real), "--synthetic", str(made), *OPTIONS["explain"]]
    inside = Path(__file__).parents[1] / "evaluation" / "results"
    assert main([*asked, "--sheets", str(inside), "--out", str(tmp_path / "out.json")]) == 2
    assert "inside the project; it shows real people" in capsys.readouterr().err
