"""Read any DICOM, picture, array or tensor to float pixels, and keep nothing that could identify anyone.

Of the input only the pixels, the modality, the pixel spacing and a hash of the pixels go on. Text that is burned into
the pixels stays there: `dicom_burned_in` finds what looks like it.
"""

import hashlib
import io
import operator
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pydicom.dataset import Dataset

from . import dicom_decode, dicom_limits

ImageInputError = dicom_limits.ImageInputError
attempt = dicom_limits.attempt

__all__ = ["ImageInputError", "InputImage", "read_file", "read_image", "square"]

DARK_BORDER = 0.06  # mean below which a border counts as background
BORDER_WIDTH = 0.02  # of the side, at least one pixel
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000")
_TOLERANCE = 1e-3  # float arrays may overshoot [0, 1] by the rounding of half precision


@dataclass(frozen=True, eq=False)
class InputImage:
    """All that survives of an input image.

    Attributes
    ----------
    pixels : numpy.ndarray
        float32, (H, W) or (H, W, 3), in [0, 1], 0 is the darkest; pixels are square.
    modality : str or None
        The DICOM Modality if the input was a DICOM object with one of the standard's values.
    pixel_spacing : tuple of float or None
        (row, column) in mm, of ``pixels`` as they are here.
    sha256 : str
        Of the pixels at 16 bits and their shape: the same picture in another file has the same hash.
    burned_in_annotation : bool
        The DICOM header says that text that identifies someone is burned into the pixels.
    """

    pixels: np.ndarray
    modality: str | None
    pixel_spacing: tuple[float, float] | None
    sha256: str
    burned_in_annotation: bool = False


def read_image(image: Any, *, frame: int | None = None) -> InputImage:
    """Read an image as a screen would show it.

    Parameters
    ----------
    image
        A path to, the bytes of, or an open binary file with a DICOM object or a picture (told apart by content); a
        pydicom Dataset; a PIL image; a numpy array (bool, uint8, uint16, or float in [0, 1]; (H, W), (H, W, C) or
        (C, H, W), C one of 1, 3, 4); a torch tensor (the same, channels first if in doubt). A batch of one is accepted.
    frame : int, optional
        Which frame, counted from 1 as in DICOM. Default: the middle one of a DICOM object, the first one of a picture.

    Notes
    -----
    Grey DICOM pixels go through the modality LUT or rescale, then the first VOI LUT or else the first window or else
    their smallest and largest value. Padding pixels and transparent parts of a picture become black.

    Raises
    ------
    ImageInputError
        With one sentence that says why; it never repeats text of the input.
    """
    if isinstance(image, (str, os.PathLike)):
        image = read_file(image)
    elif not isinstance(image, Dataset) and callable(getattr(image, "read", None)):
        image = read_stream(image)
    with dicom_limits.quiet():
        if isinstance(image, (bytes, bytearray, memoryview)):
            image = _opened(bytes(image))
        if isinstance(image, Dataset):
            pixels, modality, spacing, aspect = attempt(
                lambda: dicom_decode.decode_dicom(image, frame),
                "`image`: this DICOM object cannot be read as an image.",
            )
            pixels, spacing = _with_square_pixels(pixels, spacing, aspect)
            burned_in = dicom_limits.text(image, "BurnedInAnnotation") == "YES"
            return InputImage(pixels, modality, spacing, _hash(pixels), burned_in)
        if isinstance(image, Image.Image):
            pixels = attempt(
                lambda: _picture(image, frame), "`image`: this picture is damaged or of a kind that cannot be read."
            )
        else:
            pixels = _array(image)
            dicom_limits.chosen_frame(frame, 1, 1)
    return InputImage(pixels, None, None, _hash(pixels))


def square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Make an image ``size`` x ``size`` without squashing it.

    The rule: where the two borders that a crop would cut (the outermost 2 % of the longer side) are both dark, with a
    mean below 0.06, black is added evenly along the shorter side, so that nothing is lost; else the longer side is
    cropped about its centre. The resize is antialiased (Lanczos) and in float.

    Parameters
    ----------
    pixels : numpy.ndarray
        Float, (H, W) or (H, W, 3), in [0, 1].
    size : int
        Side of the result.

    Returns
    -------
    numpy.ndarray
        float32, (size, size) or (size, size, 3), in [0, 1].
    """
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"`pixels` has shape {pixels.shape}; it must be (height, width) or (height, width, 3).")
    if pixels.dtype.kind != "f":
        raise ValueError(f"`pixels` has values of type {pixels.dtype}; they must be float, in [0, 1].")
    if isinstance(size, bool) or operator.index(size) < 1:
        raise ValueError(f"`size` is {size}; it must be a whole number from 1.")
    height, width = pixels.shape[:2]
    short, long = sorted((height, width))
    along = pixels if height > width else pixels.swapaxes(0, 1)  # the longer side first
    strip = max(1, round(BORDER_WIDTH * long))
    if short == long:
        return resize(pixels, size, size)
    if max(float(along[:strip].mean()), float(along[-strip:].mean())) < DARK_BORDER:
        rows, columns = (max(1, round(side * size / long)) for side in (height, width))
        result = np.zeros((size, size, *pixels.shape[2:]), np.float32)
        top, left = (size - rows) // 2, (size - columns) // 2
        result[top : top + rows, left : left + columns] = resize(pixels, rows, columns)
        return result
    top, left = (height - short) // 2, (width - short) // 2
    return resize(pixels[top : top + short, left : left + short], size, size)


def resize(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Resize float pixels with antialiasing, channel by channel, kept in [0, 1]."""
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    if channels.shape[:2] == (rows, columns):
        return np.array(pixels, np.float32, order="C")
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(channels[..., channel], np.float32)).resize(
                (columns, rows), Image.Resampling.LANCZOS
            )
        )
        for channel in range(channels.shape[2])
    ]
    result = np.clip(np.stack(planes, axis=-1), 0, 1)
    return result[..., 0] if pixels.ndim == 2 else result


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file of allowed size; errors repeat no path, for file names carry patients' names."""
    status = attempt(lambda: Path(path).stat(), "`image` is a path at which there is no file that can be opened.")
    if stat.S_ISDIR(status.st_mode):
        raise ImageInputError("`image` is the path of a folder; give one file.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageInputError("`image` is the path of a device or pipe; give a regular file.")
    if status.st_size > dicom_limits.MAX_BYTES:
        raise ImageInputError(
            f"`image` is a file of {status.st_size} bytes; at most {dicom_limits.MAX_BYTES} are allowed."
        )


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a file whole, under the limit on bytes."""
    check_file(path)
    return attempt(lambda: Path(path).read_bytes(), "`image` is a path at which there is no file that can be opened.")


def read_stream(stream: Any) -> bytes:
    """Read an open binary file to its end, under the limit on bytes."""
    data = bytearray()
    while len(data) <= dicom_limits.MAX_BYTES:
        chunk = attempt(lambda: stream.read(1 << 20), "`image` is a file object that cannot be read.")
        if not isinstance(chunk, (bytes, bytearray)):
            raise ImageInputError("`image` is a text file object; open the file in binary mode.")
        if not chunk:
            return bytes(data)
        data += chunk
    raise ImageInputError(f"`image` is a file object with more than the {dicom_limits.MAX_BYTES} bytes allowed.")


def _opened(data: bytes) -> Dataset | Image.Image:
    if not data:
        raise ImageInputError("`image` is empty.")
    if len(data) > dicom_limits.MAX_BYTES:
        raise ImageInputError(f"`image` has {len(data)} bytes; at most {dicom_limits.MAX_BYTES} are allowed.")
    if dicom_limits.looks_like_dicom(data):
        return dicom_limits.parse_dicom(data)
    dicom_limits.check_scans(data)
    try:
        return Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
    except Image.DecompressionBombError:
        reason = f"is a picture with more than the {dicom_limits.MAX_PIXELS} pixels allowed."
    except Exception:
        reason = (
            "is neither a DICOM object nor a PNG, JPEG, WebP, TIFF, BMP, GIF or JPEG 2000 picture that can be read."
        )
    raise ImageInputError(f"`image` {reason}")  # outside the handlers, so that the cause is not chained to it


def _picture(picture: Image.Image, frame: int | None) -> np.ndarray:
    dicom_limits.check_size(picture.height, picture.width)
    number = 1 if frame is None else dicom_limits.chosen_frame(frame, getattr(picture, "n_frames", 1), 1)
    if number > 1:
        picture.seek(number - 1)
        dicom_limits.check_size(picture.height, picture.width)
    picture = ImageOps.exif_transpose(picture)
    mode = picture.mode
    if mode in ("1", "L"):
        return _scaled(np.asarray(picture))
    if mode.startswith("I"):  # I;16 and its byte orders, and I, as which some 16 bit pictures open
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ImageInputError("`image` is a 32 bit picture with values beyond 0 to 65535.")
        return _scaled(values.astype(np.uint16))
    if mode == "F":
        return _scaled(np.asarray(picture))
    if mode in ("LA", "La"):
        grey, alpha = (_scaled(np.asarray(band)) for band in picture.convert("LA").split())
        return grey * alpha
    if mode in ("RGBA", "RGBa", "PA") or "transparency" in picture.info:
        return _opaque(_scaled(np.asarray(picture.convert("RGBA"))))
    return _scaled(np.asarray(picture.convert("RGB")))


def _array(image: Any) -> np.ndarray:
    channels_first = False
    if callable(getattr(image, "detach", None)) and callable(getattr(image, "cpu", None)):  # a tensor, torch not needed
        channels_first = True
        tensor = attempt(lambda: image.detach().cpu(), "`image` is a tensor that cannot be brought to the CPU.")
        try:
            image = tensor.numpy()
        except Exception:  # numpy has no bfloat16
            image = attempt(lambda: tensor.float().numpy(), "`image` is a tensor that cannot be made an array.")
    if isinstance(image, np.ndarray):
        image = np.asarray(image)  # no subclasses: a matrix or masked array behaves differently
    else:
        raise ImageInputError(
            f"`image` is of type {type(image).__name__}; give a path, bytes, a binary file, a pydicom Dataset, a PIL "
            "image, a numpy array or a torch tensor."
        )
    shape = image.shape
    if image.ndim == 4 and shape[0] == 1:
        image = image[0]
    if image.ndim == 3:
        first, last = image.shape[0] in (1, 3, 4), image.shape[2] in (1, 3, 4)
        if first and (channels_first or not last):
            image = image.transpose(1, 2, 0)
        elif not last:
            image = np.empty(0)
    if image.ndim not in (2, 3) or image.size == 0:
        raise ImageInputError(
            f"`image` has shape {shape}; it must be (height, width), or have 1, 3 or 4 channels first or last."
        )
    dicom_limits.check_size(*image.shape[:2])
    image = _scaled(image)
    if image.ndim == 2 or image.shape[2] == 3:
        return np.ascontiguousarray(image)
    return np.ascontiguousarray(image[..., 0]) if image.shape[2] == 1 else _opaque(image)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Bring pixel values of a known kind to float32 in [0, 1]."""
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        scaled = values.astype(np.float32)
        scaled /= np.float32(np.iinfo(values.dtype).max)
        return scaled
    if not np.issubdtype(values.dtype, np.floating):
        raise ImageInputError(f"`image` has values of type {values.dtype}; allowed are bool, uint8, uint16 and float.")
    low, high = float(values.min()), float(values.max())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # also when not a number
        raise ImageInputError(f"`image` has float values from {low:.6g} to {high:.6g}; they must lie in [0, 1].")
    return np.clip(values, 0, 1).astype(np.float32)


def _opaque(rgba: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rgba[..., :3] * rgba[..., 3:])


def _with_square_pixels(
    pixels: np.ndarray, spacing: tuple[float, float] | None, aspect: float
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Stretch the coarser axis so that pixels are square, within the limit on pixels."""
    if abs(aspect - 1) < 0.01:
        return pixels, spacing
    height, width = pixels.shape[0] * max(aspect, 1.0), pixels.shape[1] * max(1 / aspect, 1.0)
    shrink = min(1.0, (dicom_limits.MAX_PIXELS / (height * width)) ** 0.5)
    rows, columns = max(1, round(height * shrink)), max(1, round(width * shrink))
    if spacing is not None:
        side = round(min(spacing) / shrink, 6)
        spacing = (side, side)
    return resize(pixels, rows, columns), spacing


def _hash(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    for row in pixels:  # not at once: that would take several times the memory of the image
        digest.update(np.rint(row * 65535).astype("<u2").tobytes())
    return digest.hexdigest()
