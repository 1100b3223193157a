"""Who may import whom, and what the tree may hold."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers.utils.dynamic_modules_utils import get_relative_import_files

from pipeline.pipeline_saving import COMMAND_FILES

ROOT = Path(__file__).parents[1]
APP = {path.stem for path in ROOT.glob("app*.py")}
OURS = ("pipeline", "lora", "evaluation", "hub_cards", *sorted(APP), "tests")


def imported(path: Path) -> set[str]:
    """Absolute modules that a file imports, relative ones as `.name`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            found |= {dots + node.module} if node.module else {dots + alias.name for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path) if not name.startswith(".")}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.py"))


def test_pipeline_imports_nothing_of_the_others():
    for path in files("pipeline"):
        assert not roots(path) & set(OURS), path


def test_dicom_modules_import_no_torch():
    for path in (ROOT / "pipeline").glob("dicom_*.py"):
        assert not roots(path) & {"torch", "diffusers", "transformers"}, path
    code = "import sys, pipeline.dicom_output, pipeline.dicom_input; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_sibling_is_imported_directly_in_pipeline():
    """diffusers copies only these; and it finds them by a regular expression."""
    kinds = ("adapter", "dicom", "pipeline")
    siblings = {f".{p.stem}" for kind in kinds for p in (ROOT / "pipeline").glob(f"{kind}_*.py")}
    rest = {path.name for path in files("pipeline") if f".{path.stem}" not in siblings}
    assert rest == {"pipeline.py", *COMMAND_FILES}  # others would not be saved with the model
    assert siblings <= imported(ROOT / "pipeline" / "pipeline.py")


def test_diffusers_comes_to_every_sibling_on_one_path():
    """It asks the Hub once a path, not once a file; a sibling that imports another by its name makes new paths."""
    found = get_relative_import_files(ROOT / "pipeline" / "pipeline.py")
    own = {"pipeline.py", *COMMAND_FILES}
    assert sorted(Path(name).name for name in found) == sorted({p.name for p in files("pipeline")} - own)


def test_modules_of_the_pipeline_do_not_import_in_circles():
    graph = {f".{path.stem}": imported(path) for path in files("pipeline")}
    graphlib.TopologicalSorter(graph).prepare()  # raises


@pytest.mark.parametrize("folder", ["lora", "evaluation", "pipeline"])
def test_no_gradio_below_the_app(folder):
    for path in files(folder):
        assert not roots(path) & {"gradio", *APP}, path


def test_nothing_needs_torchvision():
    for folder in ("pipeline", "lora", "evaluation", "tests"):
        for path in files(folder):
            assert "torchvision" not in roots(path), path


def test_no_pickles_and_no_machine_paths():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        assert not name.endswith((".pt", ".pth", ".ckpt", ".bin", ".pkl")), name


def test_links_lead_to_files_of_the_tree():
    """The volume model's text encoder is the base's; a Hub folder gets a copy, see `copy_model`."""
    links = [path for path in (ROOT / "pipeline").rglob("*") if path.is_symlink()]
    assert [path.relative_to(ROOT / "pipeline").as_posix() for path in links] == [
        "volume/text_encoder/model.safetensors"
    ]
    for path in links:
        assert not path.readlink().is_absolute() and path.resolve().is_relative_to(ROOT / "pipeline") and path.is_file()
