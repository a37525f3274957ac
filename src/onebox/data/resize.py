"""The resize of every image, which comes before the cache."""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from onebox.errors import check, is_integer

try:
    import torch
except ImportError:  # an exported network needs none; Pillow's pixels are the same but for a rounding
    torch = None  # type: ignore[assignment]  # mypy knows the name as a module

Image = NDArray[np.uint8]  # [H, W, 3], RGB

# Read the four or sixteen nearest pixels, so that details of an image that shrinks a lot are lost or flicker.
UNFILTERED = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
# Weigh all pixels that a pixel of the result covers, as Pillow does: what the records of pretrained weights mean.
ANTIALIASED = ("bilinear", "bicubic")
INTERPOLATIONS = ("area", *ANTIALIASED, *UNFILTERED)


@dataclass(frozen=True)
class Resize:
    """Brings every image to a square, whatever its aspect; boxes in [0, 1] stay as they are.

    Args:
        size: side of the square, px.
        interpolation: one of INTERPOLATIONS. `area` is the mean over the covered pixels where an image shrinks, and
            linear where it is enlarged.
    """

    size: int
    interpolation: str

    def __post_init__(self) -> None:
        check(is_integer(self.size, 1), f"image_size must be a number >= 1, not {self.size}")
        check(
            self.interpolation in INTERPOLATIONS,
            f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {self.interpolation}",
        )

    def __call__(self, image: Image) -> Image:
        """[H, W, 3] of any size to [size, size, 3]."""
        square = (self.size, self.size)
        if self.interpolation in ANTIALIASED and torch is None:
            method = Pillow.Resampling[self.interpolation.upper()]
            return np.asarray(Pillow.fromarray(image).resize(square, method))
        if self.interpolation in ANTIALIASED:
            batch = torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)[None]
            resized = torch.nn.functional.interpolate(batch, square, mode=self.interpolation, antialias=True)
            return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
        if self.interpolation == "area":
            method = cv2.INTER_AREA if max(image.shape[:2]) > self.size else cv2.INTER_LINEAR
        else:
            method = UNFILTERED[self.interpolation]
        return np.asarray(cv2.resize(image, square, interpolation=method), dtype=np.uint8)

    @property
    def library(self) -> str:
        """What makes the pixels, with its version."""
        return f"torch {torch.__version__}" if self.interpolation in ANTIALIASED else f"OpenCV {cv2.__version__}"

    def times(self, factor: float) -> "Resize":
        """The same to a square `factor` times as wide."""
        return replace(self, size=math.ceil(self.size * factor))
