"""The resize of every image, which comes before the cache."""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from onebox.errors import is_integer, refuse

Image = NDArray[np.uint8]  # [H, W, 3], RGB

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}


@dataclass(frozen=True)
class Resize:
    """Brings every image to a square, whatever its aspect; boxes in [0, 1] stay as they are.

    Args:
        size: side of the square, px.
        shrink: name in INTERPOLATIONS, for images that are wider or higher than that.
        enlarge: the same for all others.
    """

    size: int
    shrink: str
    enlarge: str

    def __post_init__(self) -> None:
        names = ", ".join(INTERPOLATIONS)
        refuse(
            {
                f"image_size must be a number >= 1, not {self.size}": not is_integer(self.size, 1),
                f"augment.resize.shrink must be one of {names}, not {self.shrink}": self.shrink not in INTERPOLATIONS,
                f"augment.resize.enlarge must be one of {names}, not {self.enlarge}": self.enlarge
                not in INTERPOLATIONS,
            }
        )

    def __call__(self, image: Image) -> Image:
        """[H, W, 3] of any size to [size, size, 3]."""
        name = self.shrink if max(image.shape[:2]) > self.size else self.enlarge
        resized = cv2.resize(image, (self.size, self.size), interpolation=INTERPOLATIONS[name])
        return np.asarray(resized, dtype=np.uint8)

    def times(self, factor: float) -> "Resize":
        """The same to a square `factor` times as wide."""
        return replace(self, size=math.ceil(self.size * factor))
