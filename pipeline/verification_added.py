"""What was added to a file after it was made here: what changes what a viewer shows, and what does not.

The digest covers pixels and recipe. An overlay, a curve, an annotation, a lookup table or a second picture lies beside
them, and a viewer draws it: an image with one is not the image that was made. What archives add of their own (where it
was stored, who sent it, private notes) changes nothing, and is only named. Names are given and never values.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.tag import BaseTag

from . import dicom_provenance, given_values

MAX_NAMES = 40  # a file may hold a million
# None of these is ever written here. Of groups, all attributes; curves and overlays have up to 128 groups.
_GROUPS = {0x0070: "graphic annotation", 0x5400: "waveform", 0x5600: "spectrum"}
_REPEATING = {0x5000: "curve", 0x6000: "overlay"}
_SHOWN = frozenset((
    "IconImageSequence", "ShutterShape", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction",
    "PresentationLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelDataProviderURL",
    "PixelAspectRatio", "FloatPixelData", "DoubleFloatPixelData", "EncapsulatedDocument",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "AlphaPaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData", "ICCProfile",
))  # fmt: skip
_OF_PICTURES = ("transparency", "gamma", "chromaticity", "icc_profile")  # as Pillow calls them


def added_to(dataset: Dataset, reference: Dataset | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name what a dataset has that ours never have: what a viewer shows, and the rest.

    Parameters
    ----------
    dataset
        As it was read.
    reference
        What this version would write for its recipe: nothing of it was added. Without one, the rest is not known.
    """
    ours = set() if reference is None else {element.tag for element in reference}
    known = reference is not None and "PixelData" in reference  # of a label map, only what all parts have is made
    shown: dict[str, None] = {}
    rest: dict[str, None] = {}
    if any(getattr(dataset, "preamble", None) or b""):  # a picture of another format may begin there
        shown["preamble"] = None
    for tag in dataset.keys():  # noqa: SIM118 - the items may not be parsed yet, and need not be
        tag = BaseTag(tag)
        if tag in ours or tag.element == 0:  # a group's length
            continue
        if name := _shown(tag):
            shown[name] = None
        elif tag.is_private:
            if _is_foreign(dataset, tag):
                rest[f"private group {tag.group:04X}"] = None
        elif known and tag.group != 0x0028 and tag != 0xFFFCFFFC:  # 0028: of compression; padding
            rest[keyword_for_tag(tag) or f"({tag.group:04X},{tag.element:04X})"] = None
    if "INVERSE" in given_values.values(dataset, "PresentationLUTShape"):
        shown["PresentationLUTShape"] = None
    return tuple(_few(shown)), tuple(_few(rest))


def added_to_picture(picture: Image.Image) -> tuple[str, ...]:
    """Name what changes how a PNG is shown, and is in none of ours."""
    names = [name for name in _OF_PICTURES if name in picture.info]
    return (*names, *(["more frames"] if getattr(picture, "n_frames", 1) > 1 else []))


def _shown(tag: BaseTag) -> str:
    for first, name in _REPEATING.items():
        if first <= tag.group <= first + 0xFF and tag.group % 2 == 0:
            return f"{name} (group {tag.group:04X})"
    if tag.group in _GROUPS and not 0x00700080 <= tag <= 0x00700087:  # these are names of the content
        return f"{_GROUPS[tag.group]} (group {tag.group:04X})"
    keyword = "" if tag.is_private else keyword_for_tag(tag)
    return keyword if keyword in _SHOWN else ""


def _is_foreign(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether a private attribute is none of ours."""
    if tag.group != dicom_provenance.PRIVATE_GROUP:
        return True
    block = tag.element if tag.element < 0x100 else tag.element >> 8
    if tag.element >= 0x100 and tag.element & 0xFF not in (1, 2):  # recipe and digest are all that we write there
        return True
    element = dataset.get((tag.group, block))
    return element is None or str(element.value) != dicom_provenance.PRIVATE_CREATOR


def _few(names: dict[str, None]) -> Iterator[str]:
    yield from list(names)[:MAX_NAMES]
    if len(names) > MAX_NAMES:
        yield f"and {len(names) - MAX_NAMES} more"
