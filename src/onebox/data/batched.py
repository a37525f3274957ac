"""Augmentation of a whole batch at once. B = batch size, S = the model's image size in px."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from onebox.data.augment import Augmented, Boxes
from onebox.data.resize import Image, Resize
from onebox.errors import check, is_integer, is_number

GREY = np.array([0.299, 0.587, 0.114])  # brightness of R, G, B (ITU-R BT.601)
MIDDLE = 128.0  # what contrast leaves as it is


class Drawn(NamedTuple):
    """What is drawn for a batch, before it is painted; `boxes`, `redrawn` and `fallback` as in `Augmented`."""

    strokes: NDArray[np.float64]  # [B, 4 + 12] slope and offset, x and y each, see `paint`; a matrix [3, 4] of colours
    boxes: Boxes
    redrawn: int
    fallback: int


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
        painter: `opencv` paints where the images are loaded, `torch` where the network is; the draws are the same.
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
        **later: Any,
    ) -> None:
        painter = later.pop("painter", "opencv")  # as in runs that were stored before it had a key
        if later:
            raise TypeError(f"BatchedTransform has no argument {', '.join(later)}")
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
        check(painter in ("opencv", "torch"), f"augment.painter must be opencv or torch, not {painter}")
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
        self.paints_later = painter == "torch"

    def keeps(self, boxes: Boxes) -> NDArray[np.bool_]:
        return np.ones(len(boxes), dtype=bool)

    def augment(
        self, images: Sequence[Image], boxes: Boxes, seed: int, epoch: int | Sequence[int], rows: Sequence[int]
    ) -> Augmented:
        drawn = self.draw(len(images[0]), boxes, seed, epoch, rows)
        if self.paints_later:
            nchw = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
            painted = self.paint(nchw, torch.from_numpy(drawn.strokes).float())
            return Augmented(painted.permute(0, 2, 3, 1).numpy(), *drawn[1:])
        canvas = np.empty((len(images), self.resize.size, self.resize.size, 3), dtype=np.uint8)
        for image, stroke, out in zip(images, drawn.strokes, canvas, strict=True):
            self._paint_one(image, stroke, out)
        return Augmented(canvas, *drawn[1:])

    def draw(self, side: int, boxes: Boxes, seed: int, epoch: int | Sequence[int], rows: Sequence[int]) -> Drawn:
        """What `augment` does to images of `side` px."""
        draws = self._max_redraws + 1
        uniform = _uniform(seed, epoch, rows, 4 + 4 * draws)  # [B, 4 + 4 * draws] in [0, 1)
        flip = uniform[:, 0] < self._flip
        mirrored = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
        boxes = np.where(flip[:, None], mirrored, boxes)
        zoom, shift, chosen = np.ones((len(rows), 2)), np.zeros((len(rows), 2)), np.zeros(len(rows))
        if self._moves:
            zoom, shift, boxes, chosen = self._place(boxes, uniform[:, 4:].reshape(len(rows), draws, 4))
        # From a pixel of the result to the one it shows: pixel i is centred at i + 0.5.
        slope = side / self.resize.size / zoom
        offset = 0.5 * slope - (0.5 + shift) / zoom * side + 0.5 * side - 0.5
        slope[flip, 0], offset[flip, 0] = -slope[flip, 0], side - 1 - offset[flip, 0]
        colours = _colours(1 + self._colour * (2 * uniform[:, 1:4] - 1))
        strokes = np.concatenate([slope, offset, colours.reshape(-1, 12)], axis=1)
        return Drawn(strokes, boxes.astype(np.float32), int((chosen > 0).sum()), int((chosen < 0).sum()))

    def paint(self, images: Tensor, strokes: Tensor) -> Tensor:
        """What OpenCV would paint, but for a rounding, on the images' device and without waiting for it.

        Pixel i of a side of the result shows the place slope * i + offset of the image, px.

        Args:
            images: [B, 3, H, H] uint8.
            strokes: [B, 16], see `Drawn`.

        Returns:
            [B, 3, S, S] uint8, channels-last in memory.
        """
        side, size = images.shape[-1], self.resize.size
        slope, offset, colours = strokes[:, :2, None], strokes[:, 2:4, None], strokes[:, 4:].reshape(-1, 3, 4)
        places = slope * torch.arange(size, device=images.device) + offset  # [B, x and y, S]
        x, y = ((2 * places + 1) / side - 1).unbind(1)  # as grid_sample counts: -1 and 1 are the edges
        grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)
        fill = float(self._fill[0])  # outside there are zeros
        moved = (grid_sample(images.float() - fill, grid, align_corners=False) + fill).round_().flatten(2)
        painted = torch.baddbmm(colours[:, :, 3:], colours[:, :, :3], moved).round_().clamp_(0, 255)
        return painted.byte().unflatten(2, (size, size)).contiguous(memory_format=torch.channels_last)

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

    def _paint_one(self, image: Image, stroke: NDArray[np.float64], out: Image) -> None:
        slope, offset, colours = stroke[:2], stroke[2:4], stroke[4:].reshape(3, 4)
        if self._moves:
            matrix = np.column_stack([np.diag(slope), offset])
            how: Any = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderValue": self._fill}
            cv2.warpAffine(image, matrix, out.shape[:2], dst=out, **how)
        elif slope[0] < 0:
            cv2.flip(image, 1, dst=out)
        else:
            out[:] = image
        if self._colour.any():
            cv2.transform(out, colours.astype(np.float32), dst=out)


def _colours(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Saturation, then contrast, then brightness, as one matrix an image, [B, 3, 4]; `factors` is [B, 3], reversed."""
    brightness, contrast, saturation = factors.T[:, :, None, None]  # [B, 1, 1] each
    mix = saturation * np.eye(3) + (1 - saturation) * GREY
    grey = np.broadcast_to(brightness * (1 - contrast) * MIDDLE, (len(factors), 3, 1))
    return np.concatenate([brightness * contrast * mix, grey], axis=2)


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
