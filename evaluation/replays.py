"""Is every DICOM file that the README and the cards show made again with equal pixels.

What they show are commands, Python and samples. The commands are run as they stand there, in a folder of their own, the
samples are drawn as for publishing, and every DICOM file that comes of it is replayed from the recipe inside.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.__main__ import main as run_command
from pipeline.commands import quieten
from pipeline.replaying import Replayer

ROOT = Path(__file__).resolve().parents[1]
CARDS = Path("hub_cards")
# What the reader has and this project has not: another adapter, an image of ours, a list.
STANDS_IN = {"lora/mine": "covid-chest-xray", "ORG/my-adapter": "covid-chest-xray"}
UPLOAD, SERIES, LIST = "upload.dcm", "SERIES", "prompts.csv"
SOURCES = {UPLOAD: "*/*.dcm", SERIES: "**/enhanced.dcm"}  # and what of the earlier commands stands in for them
LISTED = "prompt,seed\nblood smear,1\nhead CT,2\n"
LOCAL = re.compile(r"from_pretrained\(\s*\"pipeline")  # of Python that needs no Hub


def replays(*, readme: str | Path = ROOT / "README.md", cards: bool = True) -> dict[str, Any]:
    """Make and replay all of it.

    Parameters
    ----------
    readme
        The README.
    cards
        Whether to take the cards too.

    Returns
    -------
    dict
        `files`, `equal` and, of each command, Python section and set of samples (`shown`): `what`, `files`, `equal`,
        `differing` (what differs, in words) and what `stood_in`.

    Raises
    ------
    ValueError
        There is no README, or something that it shows does not run.
    """
    if not Path(readme).is_file():
        raise ValueError(f"`readme` is {str(readme)!r}, which is no file")
    text = Path(readme).read_text(encoding="utf-8")
    lines = commands_in(text)
    if cards:
        texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / CARDS).glob("*.md"))]
        lines += [line.replace("--model .", "--model pipeline/volume") for card in texts for line in commands_in(card)]
    quieten()
    with tempfile.TemporaryDirectory(prefix="replays-") as temporary:
        place = made_place(Path(temporary))
        replayer = Replayer()
        shown = [replayed_command(line, place, replayer) for line in lines]
        shown += [_replayed_python(title, code, place, replayer) for title, code in python_in(text)]
        if cards:
            shown.append(_replayed_samples(place, replayer))
    return {
        "files": sum(each["files"] for each in shown),
        "equal": sum(each["equal"] for each in shown),
        "shown": shown,
    }


def commands_in(text: str) -> list[str]:
    """Give the commands in a text's code blocks that make images or volumes."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [
        line for block in blocks for line in block.splitlines() if re.match("python -m pipeline (generate|vol)", line)
    ]


def python_in(text: str) -> list[tuple[str, str]]:
    """Give the Python of each section that begins with a model of this repository: title and code."""
    sections = re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    found = [(title, "".join(re.findall(r"^```python\n(.*?)^```", body, re.M | re.S))) for title, body in sections]
    return [(title, code) for title, code in found if LOCAL.search(code)]


def made_place(folder: Path) -> Path:
    """Give a folder in which the commands run as in the project's, and write into nothing of it."""
    for name in ("pipeline", "lora"):
        (folder / name).symlink_to(ROOT / name)
    (folder / LIST).write_text(LISTED, encoding="utf-8")
    return folder


def replayed_command(line: str, place: Path, replayer: Replayer, *more: str) -> dict[str, Any]:
    """Run one command, `more` options behind it, and replay what it has written."""
    words = shlex.split(line, comments=True)[3:]
    stood_in = {}
    if "--zip" in words:  # archives are nowhere opened here: the same files without one
        words.remove("--zip")
        stood_in["--zip"] = ""
    for name, other in STANDS_IN.items():
        if any(word.partition(":")[0] == name for word in words):
            words = [word.replace(name, other) for word in words]
            stood_in[name] = other
    with contextlib.chdir(place):
        for source, pattern in SOURCES.items():
            if source in words and not Path(source).exists():
                earlier = sorted(Path().glob(pattern))
                if not earlier:
                    raise ValueError(f"`readme`: nothing is made before the command that needs {source}")
                Path(source).write_bytes(earlier[0].read_bytes())
        before, said = set(_written(place)), io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = run_command([*words, *more])
    if status != 0:
        raise ValueError(f"`readme`: this does not run: {line}: {said.getvalue().strip()[-300:]}")
    new = [path for path in _written(place) if path not in before]
    images = [place / source for source in SOURCES if source in words]
    return {"what": line} | ({"stood_in": stood_in} if stood_in else {}) | _replayed(new, replayer, images)


def _replayed_python(title: str, code: str, place: Path, replayer: Replayer) -> dict[str, Any]:
    before = set(_written(place))
    own = os.environ | {"HF_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1"}  # where its copy of the code goes
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=own, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"`readme`: the Python of {title!r} does not run: {done.stderr.strip()[-300:]}")
    new = [path for path in _written(place) if path not in before]
    images = [path for path in [place / UPLOAD] if path.exists()]
    return {"what": f"the Python of {title!r}"} | _replayed(new, replayer, images)


def _replayed_samples(place: Path, replayer: Replayer) -> dict[str, Any]:
    words = [sys.executable, "-m", "hub_cards.publish", "--namespace", "ORG", "--out", str(place / "hub")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise ValueError(f"the samples of the cards cannot be made: {done.stderr.strip()[-300:]}")
    samples = sorted((place / "hub" / ".samples").glob("*.dcm"))
    return {"what": "samples of cards and data set"} | _replayed(samples, replayer)


def _written(place: Path) -> list[Path]:
    """DICOM files, oldest name first."""
    return [*sorted(place.glob("*.dcm")), *sorted(place.glob("out/**/*.dcm"))]


def _replayed(paths: Sequence[Path], replayer: Replayer, images: Sequence[Path] = ()) -> dict[str, Any]:
    files = equal = 0
    differing: dict[str, None] = {}
    with tempfile.TemporaryDirectory(prefix="again-") as again:
        for path in paths:
            found = replayer.replay(path, again, images=images)
            files += 1
            equal += found.equal
            differing.update(dict.fromkeys(found.differences))
    return {"files": files, "equal": equal, "differing": list(differing)[:20]}
