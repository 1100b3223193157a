"""From float pixels to stored values, to a picture for people, and to lossless compression."""

import copy

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless, RLELossless

from . import dicom_profiles, dicom_prompt

DicomProfile = dicom_profiles.DicomProfile

COMPRESSIONS: dict[str, UID] = {"jpeg2000": JPEG2000Lossless, "jpegls": JPEGLSLossless, "rle": RLELossless}

MAXIMUM_SIDE = 65535  # Rows and Columns are 16-bit

# OpenJPEG halves the picture five times; CharLS reserves too little room for the header of a tiny one.
_SMALLEST_SIDE = {"jpeg2000": 32, "jpegls": 8}
# A decoder may overshoot by rounding; more than this is not a float picture.
_OVERSHOOT = 1e-3
# Mean difference between channels above which a picture counts as coloured: a model's grey is never quite grey.
_COLOURED = 0.02


def quantise(pixels: np.ndarray, profile: DicomProfile, facts: dicom_prompt.PromptFacts | None = None) -> np.ndarray:
    """Turn float pixels into the values that the profile stores.

    Parameters
    ----------
    pixels : numpy.ndarray
        Floats of [0, 1], shape (rows, columns) or (rows, columns, 3). Of colour, a grey profile keeps the mean of
        the three channels; a colour profile repeats grey three times.
    profile : DicomProfile
        Decides bits, colour and Hounsfield units.
    facts : PromptFacts, optional
        Facts of the prompt; its window decides the Hounsfield units.

    Returns
    -------
    numpy.ndarray
        uint16 (of an 8-bit profile uint8) of shape (rows, columns), or uint8 of shape (rows, columns, 3).
    """
    values = _for_profile(pixels, profile)
    if values.ndim == 3:
        return np.rint(values * 255.0).astype(np.uint8)
    window = profile.window(facts.window if facts else None)
    if window is None:
        stored_type = np.uint8 if profile.bits_stored == 8 else np.uint16
        return np.rint(values * (2**profile.bits_stored - 1)).astype(stored_type)
    stored = np.rint((window.to_hounsfield(values) - window.rescale_intercept) / window.rescale_slope)
    return np.clip(stored, 0, 2**profile.bits_stored - 1).astype(np.uint16)


def to_picture(pixels: np.ndarray, profile: DicomProfile) -> Image.Image:
    """Turn float pixels into an 8-bit picture, grey ("L") or colour ("RGB") as the profile stores them."""
    return Image.fromarray(np.rint(_for_profile(pixels, profile) * 255.0).astype(np.uint8))


def compress(dataset: Dataset, name: str) -> Dataset:
    """Give a copy of a dataset with its pixels compressed without loss.

    Parameters
    ----------
    dataset : pydicom.Dataset
        Uncompressed.
    name : str
        One of `COMPRESSIONS`.

    Returns
    -------
    pydicom.Dataset
        The same object (and SOP Instance UID) in another transfer syntax.
    """
    if name not in COMPRESSIONS:
        raise ValueError(f"`compression` is {name!r}; allowed are {', '.join(repr(key) for key in COMPRESSIONS)}")
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        raise ValueError(f"`dataset` is compressed already: {dataset.file_meta.TransferSyntaxUID.name}")
    smallest = _SMALLEST_SIDE.get(name, 1)
    if min(dataset.Rows, dataset.Columns) < smallest:
        raise ValueError(
            f"`compression` {name!r} needs at least {smallest} rows and columns, not {dataset.Rows} x {dataset.Columns}"
        )
    compressed = copy.deepcopy(dataset)
    if name == "jpeg2000" and compressed.PhotometricInterpretation == "RGB":
        # The standard wants the reversible colour transform to be used, and to be named.
        compressed.PhotometricInterpretation = "YBR_RCT"
    compressed.compress(COMPRESSIONS[name], generate_instance_uid=False)
    return compressed


def _for_profile(pixels: np.ndarray, profile: DicomProfile) -> np.ndarray:
    """Check float pixels and bring them to the channels of the profile, as float64 of [0, 1]."""
    array = np.asarray(pixels)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise ValueError(f"`pixels` has shape {array.shape}; allowed are (rows, columns) and (rows, columns, 3)")
    if max(array.shape[:2]) > MAXIMUM_SIDE:
        raise ValueError(f"`pixels` has shape {array.shape}; at most {MAXIMUM_SIDE} rows and columns are allowed")
    if array.dtype.kind != "f":
        raise ValueError(f"`pixels` has type {array.dtype}; allowed are floats of 0 to 1")
    if not np.isfinite(array).all():
        raise ValueError("`pixels` holds values that are not finite; allowed are floats of 0 to 1")
    low, high = float(array.min()), float(array.max())
    if low < -_OVERSHOOT or high > 1.0 + _OVERSHOOT:
        raise ValueError(f"`pixels` reaches from {low:.4g} to {high:.4g}; allowed are floats of 0 to 1")
    values = np.clip(array.astype(np.float64), 0.0, 1.0)
    if profile.photometric_interpretation == "RGB":
        return values if values.ndim == 3 else np.repeat(values[:, :, None], 3, axis=2)
    if values.ndim == 3 and not (profile.colour_where_seen and np.ptp(values, axis=2).mean() > _COLOURED):
        return values.mean(axis=2)
    return values
