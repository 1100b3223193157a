"""Find what looks like text burned into a picture: names and numbers that no cleaning of a header removes.

Text that a machine draws has thin strokes of one brightness that stand out from what is around them; its letters are
of one height and stand close together on one line. That is what is looked for: thin strokes by a top-hat, letters as
connected pixels, rows as neighbours that agree. It finds and does not read: a ruler may be taken for text, and text
that is faint, slanted, handwritten, large or shorter than three letters is missed. `evaluation burned-in` measures how
often.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

THRESHOLD = 2.0  # chosen by `evaluation burned-in` on one half of the images, measured on the other
MAX_SIDE = 2048  # larger pictures are looked at smaller: what a person can read on them stays legible
CONTRAST = 0.18  # by which strokes must stand out
STROKE = 5  # pixels: strokes are thinner, at one of the sizes that are looked at
LETTER_HEIGHTS = (6, 36)
MAX_LETTERS = 20_000  # a picture with more specks than this is noise
REGIONS = 20  # that are told, at most


@dataclass(frozen=True)
class TextRegion:
    """One row of what looks like text.

    Attributes
    ----------
    box : (top, left, bottom, right)
        In pixels of the picture, bottom and right exclusive.
    score : float
        About the number of letters that agree in height, line and brightness.
    """

    box: tuple[int, int, int, int]
    score: float


@dataclass(frozen=True)
class _Letters:
    """Connected pixels, an entry each; boxes are inclusive."""

    top: np.ndarray
    left: np.ndarray
    bottom: np.ndarray
    right: np.ndarray
    area: np.ndarray
    peak: np.ndarray

    @property
    def height(self) -> np.ndarray:
        return self.bottom - self.top + 1

    @property
    def width(self) -> np.ndarray:
        return self.right - self.left + 1

    def __getitem__(self, which: np.ndarray) -> "_Letters":
        return _Letters(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


class BurnedInTextWarning(UserWarning):
    """An input picture seems to hold text, which stays recognisable in what is made of it."""


def in_words(regions: Sequence[tuple[int, int, int, int]], annotation: bool) -> str | None:
    """Say where text was found, and whether the header says that there is some; None where neither."""
    if not regions and not annotation:
        return None
    places = [f"rows {top + 1} to {bottom}, columns {left + 1} to {right}" for top, left, bottom, right in regions[:3]]
    found = f"what looks like burned-in text ({'; '.join(places)})" if places else "burned-in text"
    if len(regions) > 3:
        found = found.removesuffix(")") + f"; and {len(regions) - 3} more)"
    said = ", as its header says" if annotation else ""
    return f"`image` holds {found}{said}; it may name a person, and nothing here removes it"


def find_text(pixels: np.ndarray, threshold: float = THRESHOLD) -> list[TextRegion]:
    """Find rows of what looks like text.

    Parameters
    ----------
    pixels : numpy.ndarray
        Float, (H, W) or (H, W, 3), in [0, 1], at the size that the picture has.
    threshold : float
        Rows with a lower score are not told.

    Returns
    -------
    list of TextRegion
        The surest first, at most 20.
    """
    grey = pixels if pixels.ndim == 2 else pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    picture = Image.fromarray(np.ascontiguousarray(grey, np.float32))
    found: list[TextRegion] = []
    first = max(1, -(-max(grey.shape) // MAX_SIDE))
    for factor in (first, 2 * first, 4 * first):
        if min(grey.shape) < 4 * LETTER_HEIGHTS[0] * factor and factor > 1:
            break
        values = np.asarray(picture if factor == 1 else picture.reduce(factor))
        for ink in (values, 1 - values):
            for box, score in _rows(_letters(ink)):
                if score >= threshold:
                    top, left, bottom, right = (side * factor for side in box)
                    found.append(TextRegion((top, left, min(bottom, grey.shape[0]), min(right, grey.shape[1])), score))
    found.sort(key=lambda region: -region.score)
    kept: list[TextRegion] = []
    for region in found:
        if len(kept) < REGIONS and not any(_overlap(region.box, other.box) for other in kept):
            kept.append(region)
    return kept


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _letters(ink: np.ndarray) -> _Letters:
    """Thin bright strokes, as connected pixels that have the size and shape of a letter."""
    strokes = ink - _extreme(_extreme(ink, np.minimum), np.maximum)
    found = _connected(strokes > CONTRAST, ink)
    filled = found.area / (found.height * found.width)
    slim = found.width <= 0.35 * found.height  # an I or a 1
    fits = (
        (found.height >= LETTER_HEIGHTS[0])
        & (found.height <= LETTER_HEIGHTS[1])
        & (found.width <= 3 * found.height)  # small letters run together
        & (filled >= 0.15)
        & (slim | (filled <= 0.9))
    )
    if fits.sum() > MAX_LETTERS:
        fits[:] = False
    found = found[fits]
    return found[np.lexsort((found.top, found.left))]


def _extreme(values: np.ndarray, which: np.ufunc) -> np.ndarray:
    """Smallest or largest value of STROKE x STROKE pixels about each pixel."""
    reach = STROKE // 2
    for axis in (0, 1):
        edges = [(reach, reach) if axis == side else (0, 0) for side in (0, 1)]
        padded = np.pad(values, edges, mode="edge")
        length = values.shape[axis]
        values = np.array(padded.take(range(length), axis))
        for shift in range(1, STROKE):
            which(values, padded.take(range(shift, shift + length), axis), out=values)
    return values


def _connected(mask: np.ndarray, ink: np.ndarray) -> _Letters:
    """Join pixels that touch, also at corners: as runs within a row first, then from row to row."""
    rows, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(edges == 1)
    end = np.nonzero(edges == -1)[1]  # exclusive
    if not row.size:
        none = np.zeros(0, np.int64)
        return _Letters(none, none, none, none, none, np.zeros(0, np.float32))
    # A run meets those of the row above that end at or after its start and begin at or before its end.
    place = np.int64(width + 2)
    low = np.searchsorted(row * place + end, (row - 1) * place + start, "left")
    high = np.searchsorted(row * place + start, (row - 1) * place + end, "right")
    count = np.maximum(high - low, 0)
    below = np.repeat(np.arange(row.size), count)
    above = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    label = _joined(row.size, below, above)
    _, label = np.unique(label, return_inverse=True)
    number = int(label.max()) + 1
    top, left = np.full(number, rows), np.full(number, width)
    bottom, right = np.zeros(number, np.int64), np.zeros(number, np.int64)
    np.minimum.at(top, label, row)
    np.maximum.at(bottom, label, row)
    np.minimum.at(left, label, start)
    np.maximum.at(right, label, end - 1)
    peak = np.zeros(number, np.float32)
    flat = np.maximum.reduceat(
        np.append(ink.ravel(), np.float32(0)), np.stack([row * width + start, row * width + end], 1).ravel()
    )
    np.maximum.at(peak, label, flat[::2])
    return _Letters(top, left, bottom, right, np.bincount(label, end - start).astype(np.int64), peak)


def _joined(number: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Give each of `number` things the smallest number among those that it is joined to by pairs."""
    label = np.arange(number)
    while True:
        lowest = np.minimum(label[one], label[other])
        before = label.copy()
        np.minimum.at(label, before[one], lowest)
        np.minimum.at(label, before[other], lowest)
        np.minimum.at(label, one, lowest)
        np.minimum.at(label, other, lowest)
        label = label[label]
        if np.array_equal(label, before):
            return label


def _rows(letters: _Letters) -> Iterator[tuple[tuple[int, int, int, int], float]]:
    """Rows of letters that stand close together and agree; box (bottom and right exclusive) and score."""
    if len(letters.top) < 3:
        return
    one, other = _neighbours(letters)
    label = _joined(len(letters.top), one, other)
    for start in np.flatnonzero(np.bincount(label, minlength=len(label)) >= 3):
        row = letters[label == start]
        yield (
            (int(row.top.min()), int(row.left.min()), int(row.bottom.max()) + 1, int(row.right.max()) + 1),
            _score(row),
        )


def _neighbours(letters: _Letters) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of letters, left and right, that may stand in one word or line."""
    near = int(LETTER_HEIGHTS[1] * 1.2)
    first = np.searchsorted(letters.left, letters.left, "right")
    last = np.minimum(np.searchsorted(letters.left, letters.right + near, "right"), first + 60)
    count = np.maximum(last - first, 0)
    one = np.repeat(np.arange(len(letters.top)), count)
    other = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    a, b = letters[one], letters[other]
    lower, higher = np.minimum(a.height, b.height), np.maximum(a.height, b.height)
    overlap = np.minimum(a.bottom, b.bottom) - np.maximum(a.top, b.top) + 1
    gap = b.left - a.right - 1
    fits = (
        (gap >= -0.2 * higher)
        & (gap <= 1.0 * higher)
        & (overlap >= 0.7 * lower)
        & (higher <= 1.6 * lower)
        & (np.abs(a.peak - b.peak) <= 0.2)
    )
    return one[fits], other[fits]


def _score(row: _Letters) -> float:
    """About the number of letters that agree; wide ones count for several that run together."""
    height = float(np.median(row.height))
    on_line = np.abs(row.bottom - np.median(row.bottom)) <= max(1.0, 0.12 * height)
    alike = (np.abs(row.height - height) <= max(1.0, 0.15 * height)) & on_line
    count = np.clip(row.width / (0.6 * height), 1, 4)[alike].sum()
    spread = float(np.std(row.peak[alike])) if alike.any() else 1.0
    return float(count * alike.mean() * np.exp(-spread / 0.1))
