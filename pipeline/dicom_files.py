"""Write datasets as files: DICOM, zip, DICOMDIR and PNG; all of them or none."""

import copy
import hashlib
import os
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import Dataset, dcmread
from pydicom.fileset import FileSet

from . import dicom_pixels, dicom_profiles, dicom_provenance, dicom_seal

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # a fixed one: the same images give the same archive

_WRITING = f".writing-{platform.node()}-"  # what is not whole yet; the number of the process follows


def write_files(
    datasets: Sequence[Dataset],
    out: str | os.PathLike[str],
    *,
    compression: str | None = None,
    zip_archive: bool = False,
    dicomdir: bool = False,
    png_pixels: Sequence[np.ndarray] | None = None,
    key: bytes | None = None,
) -> list[Path]:
    """Write datasets into a folder: all of them, or on any failure none.

    Parameters
    ----------
    datasets : sequence of pydicom.Dataset
        From `to_dataset`, uncompressed.
    out : path
        Folder; made where it does not exist.
    compression : str, optional
        One of `COMPRESSIONS`, without loss.
    zip_archive : bool
        Write one zip archive that holds everything, and nothing beside it.
    dicomdir : bool
        Write a DICOM file set: a DICOMDIR, and the images in folders under the short names that it demands.
    png_pixels : sequence of numpy.ndarray, optional
        Float pixels of each dataset, for a PNG of each.
    key : bytes, optional
        Sign every image with it; see `dicom_seal`.

    Returns
    -------
    list of pathlib.Path
        What was written; a file set begins with its DICOMDIR.

    Raises
    ------
    FileExistsError
        If a file of that name with other content exists. An identical one is left as it is.
    """
    if not datasets:
        raise ValueError("`datasets` is empty; at least one is needed")
    if png_pixels is not None and len(png_pixels) != len(datasets):
        raise ValueError(f"`png_pixels` has {len(png_pixels)} images, but `datasets` has {len(datasets)}")
    uids = [dataset.SOPInstanceUID for dataset in datasets]
    if len(set(uids)) != len(uids):
        raise ValueError("`datasets` holds one SOP Instance UID twice: the same image was made twice")
    if key is not None:
        datasets = [_signed(dataset, key) for dataset in datasets]
    if compression is not None:
        datasets = [dicom_pixels.compress(dataset, compression) for dataset in datasets]
    name = f"synthetic-{_short(*uids)}.zip" if zip_archive else None
    return write_together(out, lambda folder: _write_parts(datasets, folder, dicomdir, png_pixels, key), name)


def write_together(
    out: str | os.PathLike[str], fill: Callable[[Path], list[Path]], archive: str | None = None
) -> list[Path]:
    """Write files into a folder: all of them, or on any failure none.

    Parameters
    ----------
    out : path
        Folder; made where it does not exist.
    fill : callable
        Writes the files, in folders too, into an empty folder that it is given, and gives their paths in order.
    archive : str, optional
        Name of one zip archive to write instead of the files.

    Raises
    ------
    FileExistsError
        If a file of that name with other content exists. An identical one is left as it is.
    """
    folder = Path(out)
    new_folders = _make(folder)
    try:
        _sweep(folder)
        with tempfile.TemporaryDirectory(prefix=f"{_WRITING}{os.getpid()}-", dir=folder) as temporary:
            parts = fill(Path(temporary))
            if archive is not None:
                parts = [_zip(parts, Path(temporary), archive)]
            return _move(parts, Path(temporary), folder)
    except BaseException:
        for made in new_folders:
            made.rmdir()
        raise


def file_stem(dataset: Dataset) -> str:
    """Give the file name, without its ending, of a dataset: profile, seed and a short digest."""
    return stem_of(_recipe(dataset), dataset.SOPInstanceUID)


def stem_of(recipe: dicom_provenance.Recipe, sop_instance_uid: str) -> str:
    """Give the file name, without its ending, of the image of a recipe."""
    return f"{recipe.modality}-{recipe.seed}-{_short(sop_instance_uid)}"


def png_notes(picture: Image.Image, recipe: dicom_provenance.Recipe, key: bytes | None = None) -> PngInfo:
    """Give the texts that a PNG carries: that it is synthetic, its recipe, and the digest over both."""
    notes = PngInfo()
    seal = dicom_seal.seal_of(np.asarray(picture), recipe)
    notes.add_text("Comment", dicom_provenance.NOT_FOR_DIAGNOSIS)
    notes.add_text("Recipe", recipe.to_json())
    notes.add_text("Digest", (seal.signed(key) if key is not None else seal).to_json())
    return notes


def _signed(dataset: Dataset, key: bytes) -> Dataset:
    dataset = copy.deepcopy(dataset)
    dicom_seal.sign(dataset, key)
    return dataset


def _short(*values: str) -> str:
    return hashlib.sha256(" ".join(values).encode()).hexdigest()[:8]


def _recipe(dataset: Dataset) -> dicom_provenance.Recipe:
    recipe = dicom_provenance.read_recipe(dataset)
    if recipe is None or recipe.modality not in dicom_profiles.PROFILES:
        raise ValueError("`datasets` holds one without a recipe; allowed are those of `to_dataset`")
    return recipe


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; give the new ones, deepest first."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"`out` is {str(folder)!r}, which is a file; allowed is a folder")
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"`out` is {str(folder)!r}, which cannot be written to")
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    made: list[Path] = []
    try:
        for path in reversed(new):
            path.mkdir(exist_ok=True)
            made.insert(0, path)
    except OSError:
        for path in made:
            path.rmdir()
        raise
    return made


def _write_parts(
    datasets: Sequence[Dataset],
    folder: Path,
    dicomdir: bool,
    png_pixels: Sequence[np.ndarray] | None,
    key: bytes | None,
) -> list[Path]:
    """Write every file under a temporary folder and give their paths."""
    written = []
    if dicomdir:
        written += _write_file_set(datasets, folder)
    else:
        for dataset in datasets:
            path = folder / f"{file_stem(dataset)}.dcm"
            dataset.save_as(path, enforce_file_format=True)
            written.append(path)
    for dataset, pixels in zip(datasets, png_pixels if png_pixels is not None else (), strict=False):
        path = folder / f"{file_stem(dataset)}.png"
        recipe = _recipe(dataset)
        picture = dicom_pixels.to_picture(pixels, dicom_profiles.PROFILES[recipe.modality])
        picture.save(path, pnginfo=png_notes(picture, recipe, key))
        written.append(path)
    return written


def _write_file_set(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    file_set = FileSet()
    file_set.ID = "SYNTHETIC"
    file_set.UID = dicom_provenance.uid_of("file set", *(dataset.SOPInstanceUID for dataset in datasets))
    for dataset in datasets:
        _recipe(dataset)
        file_set.add(dataset)
    file_set.write(folder)
    index = folder / "DICOMDIR"
    return [index, *sorted(path for path in folder.rglob("*") if path.is_file() and path != index)]


def _zip(parts: Sequence[Path], folder: Path, name: str) -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in parts:
            entry = zipfile.ZipInfo(part.relative_to(folder).as_posix(), _ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, part.read_bytes())
    return path


def _same(part: Path, target: Path) -> bool:
    """Whether a file is there already: the same bytes, or the same image of another call or of other versions."""
    if not target.is_file():
        return False
    if part.read_bytes() == target.read_bytes():
        return True
    if part.suffix not in (".dcm", ".png"):
        return False
    try:
        mine, other = (_essence(path) for path in (part, target))
    except Exception:  # what lies there may be anything
        return False
    # One that was made before there were signatures, or is signed, will do where none is asked for.
    return mine[0] == other[0] and mine[1] in (None, other[1])


def _essence(path: Path) -> tuple[object, str | None]:
    """What makes a file this image, without numbers of the call, versions and digests that follow; its signature."""
    if path.suffix == ".png":
        with Image.open(path, formats=["PNG"]) as picture:
            notes, pixels = dict(getattr(picture, "text", {})), np.asarray(picture)
        recipe = dicom_provenance.Recipe.from_json(notes.get("Recipe", ""))
        seal = dicom_seal.Seal.from_json(notes["Digest"]) if "Digest" in notes else None
        content: object = (dicom_seal.pixel_digest(pixels), notes.get("Comment"))
    else:
        dataset = dcmread(path, force=True)
        recipe, seal = _recipe(dataset), dicom_seal.read_seal(dataset)
        for keyword in ("SeriesNumber", "InstanceNumber"):
            if keyword in dataset:
                delattr(dataset, keyword)
        for item in dataset.get("ContributingEquipmentSequence") or []:
            item.pop("SoftwareVersions", None)
        for tag in [tag for tag in dataset if tag.tag.group == dicom_provenance.PRIVATE_GROUP]:
            del dataset[tag.tag]
        content = (dataset.file_meta, dataset)
    return (recipe.digest(), recipe.copy_check, content), seal.signature if seal else None


def _move(parts: Sequence[Path], temporary: Path, folder: Path) -> list[Path]:
    """Move files from the temporary folder to their places; on a failure take back what was moved."""
    targets = [folder / part.relative_to(temporary) for part in parts]
    for part, target in zip(parts, targets, strict=True):
        if target.exists() and not _same(part, target):
            raise FileExistsError(f"`out` already holds another {target.relative_to(folder)}; nothing was written")
    moved: list[Path] = []
    new_folders: list[Path] = []
    try:
        for part, target in zip(parts, targets, strict=True):
            top = part.relative_to(temporary).parts[0]
            if target.exists():  # also where its folder has been moved
                continue
            if target.parent != folder and not (folder / top).exists():  # whole, so that a kill leaves all or nothing
                os.replace(temporary / top, folder / top)
                moved.append(folder / top)
                continue
            new_folders = _make(target.parent) + new_folders
            os.replace(part, target)
            moved.append(target)
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in new_folders:
            path.rmdir()
        raise
    return targets


def _sweep(folder: Path) -> None:
    """Take away what a process of this machine left behind when it was killed while it wrote."""
    for path in folder.glob(f"{_WRITING}*") if os.name == "posix" else ():
        number = path.name.removeprefix(_WRITING).partition("-")[0]
        if not (number.isascii() and number.isdigit() and path.is_dir() and not path.is_symlink()):
            continue
        try:
            os.kill(int(number[:9]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except OSError:  # it lives, and is another user's
            continue
