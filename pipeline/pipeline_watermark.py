"""An invisible pattern in the pixels that says "synthetic" when the header is gone.

Spread spectrum (Cox, Kilian, Leighton and Shamoon 1997, "Secure spread spectrum watermarking for multimedia"): a fixed
sign for each middle frequency of an image's cosine transform makes a pattern, which is added, strongest where the image
is rough. Frequencies are counted in waves an image and not in waves a pixel: the pattern is found at any size, without
a search. To find it, the image is brought to even roughness and its middle frequencies are correlated with the signs;
brightness, contrast and inversion make no difference to that. Cutting a piece out does, and small rotations do.

An unmarked image knows nothing of the signs, which are as good as fair coins. So by Hoeffding's inequality, whatever
the image, one of the `READINGS` is beyond `THRESHOLD` with a probability below `FALSE_ALARMS`.

The signs are no secret: whoever wants to can take the mark out, or put it into a real image. It is there for accidents.
"""

import functools
import hashlib
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

NAME = "spread-spectrum-1"  # as recipes have it; another pattern gets another name
THRESHOLD = 5.2
READINGS = 8  # an image may have been turned or mirrored
FALSE_ALARMS = 2 * READINGS * math.exp(-(THRESHOLD**2) / 2)  # 2.1e-5
LEAST_PSNR = 43.0  # dB that a marked image keeps, whatever it shows

_KEY = "SYNTHETIC"
_LOWEST, _HIGHEST = 20, 140  # half waves an image
_STRENGTH = 0.5  # of the pattern, relative to the roughness of its neighbourhood
_FAINTEST, _STRONGEST = 1.0 / 255, 5.0 / 255  # its standard deviation, before the bound on PSNR
_TAPER = 0.04  # towards black and white: beyond them it would be cut off, and in CT much enlarged
_NEIGHBOURHOOD = 7 / 256  # of an image's side: the square in which roughness is measured
_SMOOTHEST = 0.003  # of the range of grey: where an image is smoother than this, it says nothing
_OUTLIER = 3.0  # standard deviations at which a value is cut off, so that no edge decides alone
_LARGEST_SIDE = 512  # an image is made smaller than this before it is looked at
_RING = 4  # half waves: width of the rings in which the spectrum is made even


def embed(pixels: np.ndarray, *, key: str = _KEY) -> np.ndarray:
    """Mark an image.

    Parameters
    ----------
    pixels : numpy.ndarray
        Floats of [0, 1], shape (rows, columns) or (rows, columns, 3); all channels get the same pattern.
    key : str
        Decides the signs; the project's own by default.

    Returns
    -------
    numpy.ndarray
        The same shape and type, within [0, 1], at a PSNR of at least `LEAST_PSNR`.
    """
    array = np.asarray(pixels)
    if array.dtype.kind != "f":
        raise ValueError(f"`pixels` has type {array.dtype}; allowed are floats of 0 to 1")
    image = np.clip(array.astype(np.float64), 0, 1)
    grey = _grey(image)
    mark = np.clip(_STRENGTH * _flattened(grey)[1], _FAINTEST, _STRONGEST)
    mark *= np.clip(np.minimum(grey, 1 - grey) / _TAPER, 0, 1) * _pattern(*grey.shape, key)
    mark *= min(1.0, 10 ** (-LEAST_PSNR / 20) / max(math.sqrt(np.mean(mark**2)), 1e-12))
    return np.clip(image + (mark if image.ndim == 2 else mark[..., None]), 0, 1).astype(array.dtype)


def score(pixels: np.ndarray, *, key: str = _KEY) -> float:
    """How much of the pattern is in an image, in standard deviations of what chance puts there; from 0.

    Parameters
    ----------
    pixels : numpy.ndarray
        Any numbers, shape (rows, columns) or (rows, columns, 3).
    key : str
        As for `embed`.
    """
    grey = _grey(np.asarray(pixels))
    if max(grey.shape) > _LARGEST_SIDE:
        size = [max(1, round(side * _LARGEST_SIDE / max(grey.shape))) for side in grey.shape[::-1]]
        smaller = Image.fromarray(grey.astype(np.float32)).resize((size[0], size[1]), Image.Resampling.BICUBIC)
        grey = np.asarray(smaller, np.float64)
    low, high = np.percentile(grey[::3, ::3], (0.1, 99.9))  # a third of the lines will do
    if not (np.isfinite([low, high]).all() and low < high):
        return 0.0
    flat, rough = _flattened(grey)
    even = np.clip(flat / (rough + _SMOOTHEST * (high - low)), -_OUTLIER, _OUTLIER)
    waves = _cosines(even.shape[0]) @ even @ _cosines(even.shape[1]).T
    ring = _rings(*waves.shape)
    power = np.bincount(ring.ravel(), (waves**2).ravel()) / np.maximum(np.bincount(ring.ravel()), 1)
    waves = np.where(ring, waves / np.sqrt(power[ring] + 1e-12), 0).clip(-_OUTLIER, _OUTLIER)
    total = math.sqrt(np.sum(waves**2))
    return max(map(abs, _readings(waves, key))) / total if total else 0.0


def is_marked(pixels: np.ndarray) -> bool:
    """Whether an image bears the mark; see `score` for what is allowed."""
    return score(pixels) > THRESHOLD


def _readings(waves: np.ndarray, key: str) -> Iterator[float]:
    """Correlation with the signs, of the image as it is, turned and mirrored: that changes signs of odd waves alone."""
    mirrors = np.array([[1, 1], [1, -1]])
    for turned in (waves, waves.T):
        products = turned * _signs(key)[: turned.shape[0], : turned.shape[1]]
        sums = np.array([[products[row::2, column::2].sum() for column in (0, 1)] for row in (0, 1)])
        yield from (mirrors @ sums @ mirrors).ravel().tolist()


def _grey(array: np.ndarray) -> np.ndarray:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise ValueError(f"`pixels` has shape {array.shape}; allowed are (rows, columns) and (rows, columns, 3)")
    return array.astype(np.float64) if array.ndim == 2 else array.mean(axis=2, dtype=np.float64)


def _flattened(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image without its neighbourhoods' means, and the standard deviation of what is left there."""
    reach = max(1, round(_NEIGHBOURHOOD * math.sqrt(grey.size) / 2))
    flat = grey - _box(grey, reach)
    return flat, np.sqrt(np.maximum(_box(flat**2, reach), 0))


def _box(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean over a square of 2 reach + 1 pixels, borders repeated."""
    for axis in (0, 1):
        lines = np.moveaxis(values, axis, 0)
        sums = np.cumsum(np.pad(lines, ((reach + 1, reach), (0, 0)), mode="edge"), axis=0)
        width = 2 * reach + 1
        values = np.moveaxis((sums[width:] - sums[:-width]) / width, 0, axis)
    return values


@functools.lru_cache(maxsize=16)
def _rings(rows: int, columns: int) -> np.ndarray:
    """Which ring of the middle frequencies each pair of waves belongs to, from 1; 0 is outside."""
    radius = np.hypot(*np.indices((rows, columns)))
    return np.where((radius >= _LOWEST) & (radius < _HIGHEST), (radius - _LOWEST) // _RING + 1, 0).astype(int)


@functools.lru_cache(maxsize=16)
def _cosines(side: int) -> np.ndarray:
    """The first waves of the cosine transform (DCT-II) of a side, (at most `_HIGHEST`, side)."""
    waves, places = np.arange(min(side, _HIGHEST))[:, None], np.arange(side) + 0.5
    return np.cos(np.pi / side * waves * places) * math.sqrt(2 / side)


@functools.lru_cache(maxsize=4)
def _signs(key: str) -> np.ndarray:
    """1 or -1 for each pair of waves: bits of SHA-256, so that every version of every library gives the same."""
    count = -(-_HIGHEST * _HIGHEST // 256)
    data = b"".join(hashlib.sha256(f"{key} {number}".encode()).digest() for number in range(count))
    bits = np.unpackbits(np.frombuffer(data, np.uint8))[: _HIGHEST * _HIGHEST]
    return bits.reshape(_HIGHEST, _HIGHEST) * 2.0 - 1.0


@functools.lru_cache(maxsize=8)
def _pattern(rows: int, columns: int, key: str) -> np.ndarray:
    """The pattern of a size, with a standard deviation of 1; rounded, so that any number of threads makes the same."""
    down, across = _cosines(rows), _cosines(columns)
    waves = np.where(_rings(len(down), len(across)), _signs(key)[: len(down), : len(across)], 0)
    pattern = down.T @ waves @ across
    return np.round(pattern / max(pattern.std(), 1e-12) * 2**20) / 2**20
