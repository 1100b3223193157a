"""The folders that are pushed, one a repository, under `build/hub/`. No network; each is whole or as it was before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.adapter_names import WEIGHT_NAME, shipped_adapters

from . import cards
from .facts import Facts
from .samples import Request, Sampler, adapter_requests, base_requests, write_dataset, write_pictures
from .volume_samples import write_volume_pictures

ROOT = Path(__file__).resolve().parents[1]
MODEL = "synthetic-dicom"
VOLUME = f"{MODEL}-volume"
ADAPTER, SPACE, SAMPLES = f"{MODEL}-lora-", f"{MODEL}-space", f"{MODEL}-samples"
# The kinds of files that a model folder consists of: anything else there (caches, backups) is a stray.
MODEL_FILES = (".py", ".json", ".txt", ".safetensors", ".png")
VOLUME_FOLDER = "volume"  # in the pipeline's folder: the volume model, which is a repository of its own
INDEX = "memorisation_index.safetensors"  # of the training images, beside the weights; adapters of before have none
PICTURES = 2  # a modality or adapter, on its card


@dataclass(frozen=True)
class Project:
    """Where everything is taken from.

    Attributes
    ----------
    root
        The project's folder, with `pipeline/`, `evaluation/results/`, the app and `README.md`.
    adapters
        Names of the adapters to publish, folders in `lora/`.
    """

    root: Path = ROOT
    adapters: tuple[str, ...] = field(default_factory=lambda: tuple(shipped_adapters()))

    @property
    def model(self) -> Path:
        """Folder of the pipeline."""
        return self.root / "pipeline"

    @property
    def volume(self) -> Path:
        """Folder of the volume model, a repository of its own; there may be none yet."""
        return self.model / VOLUME_FOLDER

    @property
    def has_volume(self) -> bool:
        """Whether there is a volume model to publish."""
        return (self.volume / "model_index.json").is_file()

    def adapter(self, name: str) -> Path:
        """Folder of an adapter."""
        return self.root / "lora" / name


@dataclass(frozen=True)
class Repository:
    """One repository: name without the namespace, `repo_type` as the Hub's client takes it, folder."""

    name: str
    repo_type: str
    folder: Path

    def files(self) -> list[Path]:
        """All files, in order."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files())


def repositories(project: Project, out: Path, only: Sequence[str] = ()) -> list[Repository]:
    """The repositories in the order in which they are pushed: what a card refers to comes first.

    Raises
    ------
    ValueError
        `only` names one that there is not.
    """
    types = {
        MODEL: "model",
        **{ADAPTER + name: "model" for name in project.adapters},
        **({VOLUME: "model"} if project.has_volume else {}),
        SAMPLES: "dataset",
        SPACE: "space",
    }
    for name in only:
        if name not in types:
            raise ValueError(f"`only` has {name!r}; allowed are {', '.join(types)}")
    return [Repository(name, kind, out / name) for name, kind in types.items() if not only or name in only]


def build(
    project: Project, namespace: str, out: Path, *, only: Sequence[str] = (), samples: int = 4
) -> list[Repository]:
    """Build the folders, and `numbers.json` beside them: each number of each card with the file and key it is from.

    Parameters
    ----------
    project
        What to publish.
    namespace
        User or organisation on the Hub.
    out
        Folder to build in.
    only
        Names of repositories; all if empty.
    samples
        Images a modality in the data set.

    Raises
    ------
    ValueError
        An argument is out of range, or a number is missing that a card needs.
    """
    if samples < 1:
        raise ValueError(f"`samples` is {samples}; allowed are whole numbers from 1")
    wanted = repositories(project, out, only)
    sampler = Sampler(project.model, {name: project.adapter(name) for name in project.adapters}, out / ".samples")
    builder = _Builder(project, namespace, sampler, samples)
    numbers = {}
    for repository in wanted:
        numbers[f"{repository.name}/README.md"] = builder.build(repository).taken
    _write_numbers(out, numbers)
    return wanted


class _Builder:
    """Builds one repository after another."""

    def __init__(self, project: Project, namespace: str, sampler: Sampler, samples: int) -> None:
        self.project, self.sampler, self.samples = project, sampler, samples
        adapters = {name: ADAPTER + name for name in project.adapters}
        volume = VOLUME if project.has_volume else None
        self.hub = cards.Names(namespace, MODEL, adapters, SPACE, SAMPLES, volume)

    def build(self, repository: Repository) -> Facts:
        """Build a folder under a temporary name, then put it in place of the former one."""
        kinds = {MODEL: self._model, VOLUME: self._volume, SAMPLES: self._dataset, SPACE: self._space}
        fill = kinds.get(repository.name, self._adapter)
        part = repository.folder.with_name(repository.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            facts = Facts(self.project.root, part)
            (part / "README.md").write_text(fill(facts), encoding="utf-8")
            _swap(part, repository.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return facts

    # Each fills `facts.folder` with all but the card, which it returns.

    def _model(self, facts: Facts) -> str:
        copy_model(self.project.model, facts.folder, without=(VOLUME_FOLDER,))
        write_pictures(self.sampler.draw(base_requests(PICTURES)), facts.folder / "samples")
        return cards.model_card(facts, self.hub)

    def _volume(self, facts: Facts) -> str:
        copy_model(self.project.volume, facts.folder)
        # The package with the command that writes DICOM; its folder `volume` holds the code alone.
        copy_model(self.project.model, facts.folder / "pipeline", kinds=(".py",))
        write_volume_pictures(self.project.volume, facts.folder / "samples", self.sampler.cache)
        return cards.volume_card(facts, self.hub)

    def _adapter(self, facts: Facts) -> str:
        folder, name = facts.folder, facts.name.removeprefix(ADAPTER)
        source = self.project.adapter(name)
        write_pictures(self.sampler.draw(self._requests(name, PICTURES)), folder / "samples")
        for file in _adapter_files(source):
            shutil.copyfile(source / file, folder / file)
        for picture in ("before.jpg", "after.jpg"):  # of its training: same prompts and seeds, without and with it
            if (source / "samples" / picture).is_file():
                shutil.copyfile(source / "samples" / picture, folder / "samples" / picture)
        return cards.adapter_card(facts, self.hub, name)

    def _dataset(self, facts: Facts) -> str:
        requests = base_requests(self.samples, self.project.adapters)
        for name in self.project.adapters:
            requests += [request for request in self._requests(name, self.samples) if request not in requests]
        write_dataset(self.sampler.draw(requests), facts.folder)
        return cards.samples_card(facts, self.hub)

    def _space(self, facts: Facts) -> str:
        folder = facts.folder
        for path in sorted(self.project.root.glob("app*.py")):
            shutil.copyfile(path, folder / path.name)
        for file in ("requirements.txt", "LICENSE"):
            shutil.copyfile(self.project.root / file, folder / file)
        copy_model(self.project.model, folder / "pipeline")
        for name in self.project.adapters:
            (folder / "lora" / name).mkdir(parents=True)
            for file in _adapter_files(self.project.adapter(name)):
                shutil.copyfile(self.project.adapter(name) / file, folder / "lora" / name / file)
        return cards.space_card(facts, self.hub)

    def _requests(self, name: str, count: int) -> list[Request]:
        facts, record = Facts(self.project.root, self.project.root), f"lora/{name}/training.json"
        modality, prompts = facts.value(record, "modality"), facts.value(record, "samples.prompts")
        return adapter_requests(name, modality, prompts, count)


def _adapter_files(source: Path) -> list[str]:
    return [WEIGHT_NAME, "training.json", *([INDEX] if (source / INDEX).is_file() else [])]


def copy_model(source: Path, target: Path, *, without: Sequence[str] = (), kinds: Sequence[str] = MODEL_FILES) -> None:
    """Copy a pipeline's folder byte for byte, without some folders and what Python and editors leave in it."""
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts) or inside.parts[0] in without
        if path.is_file() and path.suffix in kinds and not hidden:
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / inside)


def _swap(part: Path, folder: Path) -> None:
    """Put a folder in place of another one, which stays until then."""
    former = folder.with_name(folder.name + ".former")
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        folder.rename(former)
    part.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def _write_numbers(out: Path, numbers: dict[str, list[dict[str, object]]]) -> None:
    """Write the record of the cards that lie in `out`; that of cards that were not built now stays."""
    path = out / "numbers.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        numbers = {card: taken for card, taken in before.items() if (out / card).is_file()} | numbers
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
