"""Display windows of CT: how grey of [0, 1] becomes Hounsfield units, and back."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HounsfieldWindow:
    """How grey of [0, 1] becomes Hounsfield units, for one display window.

    Between its ends a window is linear. What lies outside of it was cut off in the pictures that a model learnt
    from, so that air and bone are only "black" and "white": near the ends the curve is stretched, and air comes
    out near -1000 HU and bone above the window. In its own window the picture looks the same.

    Attributes
    ----------
    low, high : float
        Ends of the display window in HU.
    grey, hounsfield : tuple of float
        Corners of the curve, both rising.
    rescale_slope : float
        HU of one stored level. Fine enough for more than 1,000 levels inside the window.
    """

    low: float
    high: float
    grey: tuple[float, ...]
    hounsfield: tuple[float, ...]
    rescale_slope: float = 1.0 / 16.0
    rescale_intercept: float = -1024.0

    @property
    def center(self) -> float:
        """Window Center in HU."""
        return (self.low + self.high) / 2.0

    @property
    def width(self) -> float:
        """Window Width in HU."""
        return self.high - self.low

    def to_hounsfield(self, pixels: np.ndarray) -> np.ndarray:
        """Give the HU of float pixels of [0, 1]."""
        return np.interp(pixels, self.grey, self.hounsfield)

    def to_grey(self, hounsfield: np.ndarray) -> np.ndarray:
        """Give the float pixels of HU, the inverse of `to_hounsfield`."""
        return np.interp(hounsfield, self.hounsfield, self.grey)


def _hounsfield_window(
    low: float,
    high: float,
    below: tuple[tuple[float, float], ...],
    linear: tuple[float, float],
    above: tuple[tuple[float, float], ...],
    rescale_slope: float = 1.0 / 16.0,
) -> HounsfieldWindow:
    """Join (grey, HU) corners below and above to the linear part between two greys."""
    inner = tuple((grey, low + grey * (high - low)) for grey in linear)
    grey, hounsfield = zip(*below, *inner, *above, strict=True)
    return HounsfieldWindow(low, high, grey, hounsfield, rescale_slope)


# The two lung windows already reach air inside the window, so only the little below air is pressed together there.
# The ends were read off the real pictures: air, fat and muscle lie where these windows put -1000, -105 and 55 HU.
HOUNSFIELD_WINDOWS: dict[str, HounsfieldWindow] = {
    "lung": _hounsfield_window(-1350, 150, ((0.0, -1024.0),), (0.2275, 0.97), ((0.985, 180.0), (1.0, 900.0))),
    "wide-lung": _hounsfield_window(-1250, 250, ((0.0, -1024.0),), (0.161, 0.97), ((0.985, 290.0), (1.0, 1000.0))),
    "soft-tissue": _hounsfield_window(
        -160, 240, ((0.0, -1000.0), (0.015, -900.0)), (0.04, 0.96), ((0.985, 320.0), (1.0, 1100.0))
    ),
    # A narrow window needs finer steps; 1/32 HU still reaches 1,023 HU.
    "brain": _hounsfield_window(
        0, 80, ((0.0, -1000.0), (0.03, -900.0)), (0.06, 0.95), ((0.98, 250.0), (1.0, 1000.0)), 1.0 / 32.0
    ),
    "bone": _hounsfield_window(-450, 1050, ((0.0, -1010.0), (0.02, -800.0)), (0.05, 0.97), ((1.0, 1600.0),)),
}
