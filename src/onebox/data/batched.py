"""Augmentation of a whole batch at once. B = batch size, S = the model's image size in px."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from onebox.data.augment import Augmented, Boxes, Images
from onebox.data.resize import Image, Resize
from onebox.errors import check, is_integer, is_number

GREY = np.array([0.299, 0.587, 0.114])  # brightness of R, G, B (ITU-R BT.601)
MIDDLE = 128.0  # what contrast leaves as it is


class BatchedTransform:
    """Mirror, scale and shift, and colour: drawn for a whole batch at once, and painted in two passes an image.

    Args:
        resize: brings every image to the model's size.
        margin: training images are taken so many times wider and higher than that, >= 1, so that a zoom has pixels to
            show; without any zoom or shift they are not.
        flip: probability of mirroring left and right.
        scale: range of the zoom, log-uniform; 1 keeps the size, 2 doubles it.
        stretch: width and height are zoomed apart by up to this factor, >= 1.
        translate: largest shift, as a share of the image's side.
        brightness: colours are multiplied by 1 +- up to this.
        contrast: their distance from the middle grey is multiplied by 1 +- up to this.
        saturation: their distance from their own grey is multiplied by 1 +- up to this.
        fill: grey level of what comes in from outside, 0 to 255.
        min_visibility: a box is lost when less than this share of its area stays inside the image, [0, 1].
        max_redraws: how often zoom and shift are drawn again when they lose the box.
    """

    def __init__(
        self,
        resize: Resize,
        margin: float,
        flip: float,
        scale: tuple[float, float],
        stretch: float,
        translate: float,
        brightness: float,
        contrast: float,
        saturation: float,
        fill: int,
        min_visibility: float,
        max_redraws: int,
    ) -> None:
        for name, value, low, high in (
            ("margin", margin, 1, 10),
            ("flip", flip, 0, 1),
            ("stretch", stretch, 1, 10),
            ("translate", translate, 0, 1),
            ("brightness", brightness, 0, 1),
            ("contrast", contrast, 0, 1),
            ("saturation", saturation, 0, 1),
            ("fill", fill, 0, 255),
            ("min_visibility", min_visibility, 0, 1),
        ):
            check(is_number(value, low, high), f"augment.{name} must be in [{low}, {high}], not {value}")
        check(is_integer(max_redraws, 0, 1000), f"augment.max_redraws must be in [0, 1000], not {max_redraws}")
        zooms = list(scale) if isinstance(scale, list | tuple) else [scale]
        check(
            len(zooms) == 2 and all(is_number(zoom, 0.01, 100) for zoom in zooms) and zooms[0] <= zooms[1],
            f"augment.scale must be two rising numbers in [0.01, 100], not {scale}",
        )
        self._flip = flip
        self._log_scale = np.log(scale)
        self._log_stretch = np.log(stretch)
        self._translate = translate
        self._colour = np.array([brightness, contrast, saturation])
        self._fill = (fill, fill, fill)
        self._min_visibility = min_visibility
        self._max_redraws = max_redraws
        self._moves = bool(self._log_scale.any() or self._log_stretch or translate)
        self.resize = resize
        self.resize_before_augment = resize.times(margin) if self._moves else resize
        self.is_random = bool(flip or self._moves or self._colour.any())

    def keeps(self, boxes: Boxes) -> NDArray[np.bool_]:
        """Every box."""
        return np.ones(len(boxes), dtype=bool)

    def augment(
        self, images: Sequence[Image], boxes: Boxes, seed: int, epoch: int | Sequence[int], rows: Sequence[int]
    ) -> Augmented:
        """See `Transform.augment`."""
        draws = self._max_redraws + 1
        uniform = _uniform(seed, epoch, rows, 4 + 4 * draws)  # [B, 4 + 4 * draws] in [0, 1)
        flip = uniform[:, 0] < self._flip
        mirrored = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
        boxes = np.where(flip[:, None], mirrored, boxes)
        painted = np.empty((len(images), self.resize.size, self.resize.size, 3), dtype=np.uint8)
        redrawn = fallback = 0
        if self._moves:
            zoom, shift, boxes, chosen = self._place(boxes, uniform[:, 4:].reshape(len(rows), draws, 4))
            self._move(images, flip, zoom, shift, painted)
            redrawn, fallback = int((chosen > 0).sum()), int((chosen < 0).sum())
        else:
            for image, mirror, out in zip(images, flip, painted, strict=True):
                if mirror:
                    cv2.flip(image, 1, dst=out)
                else:
                    out[:] = image
        if self._colour.any():
            self._recolour(painted, 1 + self._colour * (2 * uniform[:, 1:4] - 1))
        return Augmented(painted, boxes.astype(np.float32), redrawn, fallback)

    def _place(
        self, boxes: NDArray[Any], uniform: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """For each image the first draw of zoom and shift ([B, 2] x and y each) that keeps its box, and the box then.

        A point p of the image goes to (p - 0.5) * zoom + 0.5 + shift. The last result ([B]) is which draw that was; -1
        stands for none, and zoom 1 and shift 0.
        """
        low, high = self._log_scale
        log_zoom = low + (high - low) * uniform[..., 0]
        log_stretch = self._log_stretch * (uniform[..., 1] - 0.5)
        zoom = np.exp(np.stack([log_zoom + log_stretch, log_zoom - log_stretch], axis=-1))  # [B, draws, 2]
        shift = self._translate * (2 * uniform[..., 2:] - 1)
        corners = boxes.reshape(-1, 1, 2, 2)  # [B, 1, corner, x and y]
        moved = (corners - 0.5) * zoom[:, :, None] + 0.5 + shift[:, :, None]
        inside = moved.clip(0, 1)
        visible = (inside[:, :, 1] - inside[:, :, 0]).prod(-1) / (moved[:, :, 1] - moved[:, :, 0]).prod(-1)
        keeps = visible >= self._min_visibility  # [B, draws]
        first = keeps.argmax(1)
        rows = np.arange(len(boxes))
        kept = keeps[rows, first, None]
        return (
            np.where(kept, zoom[rows, first], 1.0),
            np.where(kept, shift[rows, first], 0.0),
            np.where(kept, inside[rows, first].reshape(-1, 4), boxes),
            np.where(kept[:, 0], first, -1),
        )

    def _move(
        self, images: Sequence[Image], flip: NDArray[Any], zoom: NDArray[Any], shift: NDArray[Any], painted: Images
    ) -> None:
        before, after = len(images[0]), self.resize.size
        # From a pixel of the result to the one it shows: pixel i is centred at i + 0.5.
        slope = before / after / zoom
        offset = 0.5 * slope - (0.5 + shift) / zoom * before + 0.5 * before - 0.5
        slope[flip, 0], offset[flip, 0] = -slope[flip, 0], before - 1 - offset[flip, 0]
        for row, image in enumerate(images):
            cv2.warpAffine(
                image,
                np.array([[slope[row, 0], 0, offset[row, 0]], [0, slope[row, 1], offset[row, 1]]]),
                (after, after),
                dst=painted[row],
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderValue=self._fill,
            )

    def _recolour(self, images: Images, factors: NDArray[Any]) -> None:
        """Saturation, then contrast, then brightness, as one matrix an image; `factors` is [B, 3] in reverse order."""
        for image, (brightness, contrast, saturation) in zip(images, factors, strict=True):
            mix = saturation * np.eye(3) + (1 - saturation) * GREY
            matrix = np.column_stack([brightness * contrast * mix, np.full(3, brightness * (1 - contrast) * MIDDLE)])
            cv2.transform(image, matrix.astype(np.float32), dst=image)


def _uniform(seed: int, epoch: int | Sequence[int], rows: Sequence[int], count: int) -> NDArray[np.float64]:
    """[len(rows), count] numbers in [0, 1), each row of them a function of (seed, epoch, row) alone.

    SplitMix64 (Steele, Lea and Flood 2014, figure 16), whose state after n steps is known without taking them.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)

    def mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

    with np.errstate(over="ignore"):  # 64-bit numbers are meant to wrap around
        key = mix(np.array([seed], dtype=np.uint64) + golden)
        key = mix((key ^ np.array(epoch, dtype=np.uint64)) + golden)
        keys = mix((key ^ np.array(rows, dtype=np.uint64)) + golden)
        steps = np.arange(1, count + 1, dtype=np.uint64) * golden
        bits = mix(keys[:, None] + steps) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
