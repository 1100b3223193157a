"""What a recipe says of a volume, and where its voxels lie: array axes, slices, millimetres. numpy alone.

Directions are those of DICOM: x grows to the patient's left, y to the back, z to the head (LPS). NIfTI counts to the
right and to the front instead (RAS): the same place with the first two signs turned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_SIDE, MAX_VOXELS, MAX_LABELS, MAX_TEXT = 1024, 2**27, 255, 2000
# Row direction, then column direction, as `dicom_profiles.IMAGE_ORIENTATION` has them.
_PLANES = {"axial": (1, 0, 0, 0, 1, 0), "coronal": (1, 0, 0, 0, 0, -1), "sagittal": (0, 1, 0, 0, 0, -1)}
_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class VolumeRecipe:
    """What a recipe has of a volume, besides what images have.

    Attributes
    ----------
    subject : str
        What the model draws, in words; the profile and the sequence come from here.
    shape : tuple of int
        Voxels along each array axis.
    axes : str
        The direction in which each array axis grows, such as "RAS".
    spacing : tuple of float
        Millimetres along each array axis.
    labels : tuple of str
        Names of the labels 1, 2, ... of the label map; empty where there is none. Like `obtained` no part of a digest.
    covariates : tuple of (name, number)
        What the volume was asked to have, in mm3.
    warnings : tuple of str
        What is to be said about the request.
    obtained : tuple of (name, number)
        What the label map has, in mm3.
    """

    subject: str
    shape: tuple[int, int, int]
    axes: str
    spacing: tuple[float, float, float]
    labels: tuple[str, ...] = ()
    covariates: tuple[tuple[str, float], ...] = ()
    warnings: tuple[str, ...] = ()
    obtained: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        """Check every field and bring it to one type; a ValueError names the field."""
        if not _is_text(self.subject):
            raise ValueError(f"`volume.subject` must be a text of at most {MAX_TEXT} characters")
        shape = _list(self.shape, "shape", 3)
        if any(isinstance(n, bool) or not hasattr(n, "__index__") or not 1 <= n <= MAX_SIDE for n in shape):
            raise ValueError(f"`volume.shape` is {self.shape!r:.80}; allowed are three whole numbers to {MAX_SIDE}")
        if math.prod(int(n) for n in shape) > MAX_VOXELS:
            raise ValueError(f"`volume.shape` is {self.shape!r:.80}; at most {MAX_VOXELS} voxels are allowed")
        known = isinstance(self.axes, str) and all(letter in _LETTERS for letter in self.axes)
        if not known or sorted(_LETTERS[letter][0] for letter in self.axes) != [0, 1, 2]:
            raise ValueError(
                f"`volume.axes` is {self.axes!r:.80}; allowed are three letters, one each of LR, AP and IS"
            )
        spacing = tuple(_number(n, "spacing") for n in _list(self.spacing, "spacing", 3))
        if not all(1e-3 <= n <= 1e3 for n in spacing):
            raise ValueError(f"`volume.spacing` is {spacing}; allowed are millimetres from 0.001 to 1000")
        _set(self, "shape", tuple(int(n) for n in shape))
        _set(self, "spacing", spacing)
        for name in ("labels", "warnings"):
            texts = tuple(_list(getattr(self, name), name))
            if len(texts) > MAX_LABELS or not all(_is_text(text) for text in texts):
                raise ValueError(f"`volume.{name}` must be at most {MAX_LABELS} texts of {MAX_TEXT} characters")
            _set(self, name, texts)
        for name in ("covariates", "obtained"):
            rows = [_list(row, name, 2) for row in _list(getattr(self, name), name)]
            if len(rows) > MAX_LABELS or not all(_is_text(row[0]) for row in rows):
                raise ValueError(f"`volume.{name}` must be at most {MAX_LABELS} pairs of a name and a number")
            _set(self, name, tuple((row[0], _number(row[1], name)) for row in rows))


@dataclass(frozen=True)
class Slices:
    """How a volume is cut into slices: a plane of the three, and the places that follow.

    Attributes
    ----------
    plane : {"axial", "coronal", "sagittal"}
        Slices are stacked along its normal, row direction times column direction.
    volume : VolumeRecipe
        Shape, axes and spacing of the array.
    """

    plane: str
    volume: VolumeRecipe

    @property
    def orientation(self) -> tuple[int, ...]:
        """Image Orientation (Patient): row direction, then column direction."""
        return _PLANES[self.plane]

    @property
    def order(self) -> tuple[tuple[int, bool], ...]:
        """For slices, rows and columns: which array axis each is, and whether it runs the other way."""
        order = []
        for direction in (self._normal, self.orientation[3:], self.orientation[:3]):
            along = next(i for i in range(3) if direction[i])
            axis = next(i for i, letter in enumerate(self.volume.axes) if _LETTERS[letter][0] == along)
            order.append((axis, _LETTERS[self.volume.axes[axis]][1] != direction[along]))
        return tuple(order)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        first, second, third = (self.volume.shape[axis] for axis, _ in self.order)
        return first, second, third

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns."""
        first, second, third = (self.volume.spacing[axis] for axis, _ in self.order)
        return first, second, third

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Bring an array (X, Y, Z) into slices (slices, rows, columns)."""
        moved = np.transpose(array, [axis for axis, _ in self.order])
        turned = tuple(slice(None, None, -1) if flip else slice(None) for _, flip in self.order)
        return np.ascontiguousarray(moved[turned])

    def position(self, index: int) -> np.ndarray:
        """Image Position (Patient) of a slice: the centre of its first pixel, the volume's centre being the origin."""
        across, down = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        slices, rows, columns = self.shape
        steps = self.spacing
        return (
            (index - (slices - 1) / 2) * steps[0] * np.array(self._normal)
            - (rows - 1) / 2 * steps[1] * down
            - (columns - 1) / 2 * steps[2] * across
        ) + 0.0  # no negative zero

    @property
    def _normal(self) -> tuple[int, ...]:
        return tuple(int(n) for n in np.cross(self.orientation[:3], self.orientation[3:]))


def affine_of(volume: VolumeRecipe) -> np.ndarray:
    """Give array indices to millimetres as NIfTI has them (R, A, S), the volume's centre being 0: float64 (4, 4)."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, letter in enumerate(volume.axes):
        along, sign = _LETTERS[letter]
        affine[along, axis] = volume.spacing[axis] * (sign if along == 2 else -sign)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2)
    return affine + 0.0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _list(value: Any, name: str, length: int | None = None) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise ValueError(f"`volume.{name}` must be a list" + (f" of {length} values" if length else ""))
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e12:
        return float(value) + 0.0
    raise ValueError(f"`volume.{name}` must hold finite numbers, not {value!r:.80}")


def _set(owner: object, name: str, value: object) -> None:
    object.__setattr__(owner, name, value)  # the way of a frozen dataclass to tidy its own fields
