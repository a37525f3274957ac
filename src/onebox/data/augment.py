"""What happens to images and their boxes before the model. B = batch size, H x W = the model's image size in px.

Both transforms here do it as a function of (seed, epoch, row of the index): workers, order and what was drawn before do
not matter. Neither loses the box: a draw that would is repeated, and at last the image is left as it is.
"""

import json
from collections.abc import Sequence
from typing import Any, Protocol

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from onebox.errors import BadInput, is_integer, is_number, refuse

Image = NDArray[np.uint8]  # [H, W, 3], RGB
Images = NDArray[np.uint8]  # [B, H, W, 3], RGB
Boxes = NDArray[np.float32]  # [B, 4], xyxy in [0, 1]

GREY = np.array([0.299, 0.587, 0.114])  # brightness of R, G, B (ITU-R BT.601)
MIDDLE = 128.0  # what contrast leaves as it is


class Transform(Protocol):
    """A resize for every image, and random changes for training images."""

    @property
    def is_random(self) -> bool:
        """Whether there is anything but the resize."""

    @property
    def resizing(self) -> str:
        """What `resize` does, in words that differ when it gives other pixels."""

    def resize(self, image: Image) -> Image:
        """Bring an image to the model's size."""

    def keeps(self, boxes: Boxes) -> NDArray[np.bool_]:
        """For each box ([B, 4]) whether the resize keeps it."""

    def augment(self, images: Images, boxes: Boxes, seed: int, epoch: int, rows: Sequence[int]) -> tuple[Images, Boxes]:
        """Draw the random changes of a batch of resized images; their size stays."""


class AlbumentationsTransform:
    """Any albumentations transforms, one image after the other.

    Args:
        resize: albumentations transform that brings every image to the model's size; it must not be random.
        transforms: albumentations transforms for training images, applied after `resize`; they must keep the size.
        min_area: a box below this area is lost, px^2; its image is dropped if that is so after the resize already.
        min_visibility: a transformed box is lost when less than this share of its area stays inside the image, [0, 1].
        max_redraws: how often the transforms are drawn again when they lose the box.
    """

    def __init__(
        self,
        resize: A.BasicTransform,
        transforms: Sequence[A.BasicTransform],
        min_area: float,
        min_visibility: float,
        max_redraws: int,
    ) -> None:
        refuse(
            {
                f"augment.min_area must be a number >= 0, not {min_area}": not is_number(min_area, 0),
                f"augment.min_visibility must be in [0, 1], not {min_visibility}": not is_number(min_visibility, 0, 1),
                f"augment.max_redraws must be a number >= 0, not {max_redraws}": not is_integer(max_redraws, 0),
            }
        )
        self._resize = A.Compose([resize])
        self._min_area = min_area
        bbox_params = A.BboxParams(
            format="albumentations",  # xyxy in [0, 1]
            label_fields=[],
            min_area=min_area,
            min_visibility=min_visibility,
            clip=True,  # float rounding puts the edge of a border box a hair outside, which raises otherwise
        )
        self._pipeline = A.Compose(list(transforms), bbox_params=bbox_params) if transforms else None
        self._max_redraws = max_redraws

    @property
    def is_random(self) -> bool:
        """Whether there are transforms besides the resize."""
        return self._pipeline is not None

    @property
    def resizing(self) -> str:
        """See `Transform.resizing`."""
        return json.dumps(self._resize.to_dict(), sort_keys=True, default=str)

    def resize(self, image: Image) -> Image:
        """Bring an image to the model's size."""
        resized: Image = self._resize(image=image)["image"]
        return resized

    def keeps(self, boxes: Boxes) -> NDArray[np.bool_]:
        """See `Transform.keeps`."""
        height, width = self.resize(np.zeros((8, 8, 3), dtype=np.uint8)).shape[:2]
        kept: NDArray[np.bool_] = (boxes[:, 2:] - boxes[:, :2]).prod(1) * height * width >= self._min_area
        return kept

    def augment(self, images: Images, boxes: Boxes, seed: int, epoch: int, rows: Sequence[int]) -> tuple[Images, Boxes]:
        """See `Transform.augment`."""
        if self._pipeline is None:
            return images, boxes
        drawn = [self._one(image, box, (seed, epoch, row)) for image, box, row in zip(images, boxes, rows, strict=True)]
        return np.stack([image for image, _ in drawn]), np.stack([box for _, box in drawn])

    def _one(self, image: Image, box: NDArray[np.float32], key: tuple[int, ...]) -> tuple[Image, NDArray[np.float32]]:
        assert self._pipeline is not None
        for draw in range(self._max_redraws + 1):
            self._pipeline.set_random_seed(int(np.random.SeedSequence([*key, draw]).generate_state(1)[0]))
            result: dict[str, Any] = self._pipeline(image=image, bboxes=box[None])
            if result["image"].shape != image.shape:
                raise BadInput(
                    f"augment.transforms turn {image.shape[:2]} px into {result['image'].shape[:2]}; end them with a "
                    "transform that keeps the size, such as a crop with height and width of image_size"
                )
            if len(result["bboxes"]) == 1:
                return result["image"], np.asarray(result["bboxes"][0][:4], dtype=np.float32)
        return image, box


class BatchedTransform:
    """Mirror, scale and shift, and colour: drawn for a whole batch at once, and painted in two passes an image.

    Args:
        resize: albumentations transform that brings every image to the model's size; it must not be random.
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
        resize: A.BasicTransform,
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
        zooms = list(scale) if isinstance(scale, list | tuple) else [scale]
        refuse(
            {
                f"augment.{name} must be in [{low}, {high}], not {value}": not is_number(value, low, high)
                for name, value, low, high in (
                    ("flip", flip, 0, 1),
                    ("stretch", stretch, 1, 10),
                    ("translate", translate, 0, 1),
                    ("brightness", brightness, 0, 1),
                    ("contrast", contrast, 0, 1),
                    ("saturation", saturation, 0, 1),
                    ("fill", fill, 0, 255),
                    ("min_visibility", min_visibility, 0, 1),
                    ("max_redraws", max_redraws, 0, 1000),
                )
            }
            | {
                f"augment.scale must be two rising numbers in [0.01, 100], not {scale}": len(zooms) != 2
                or not all(is_number(zoom, 0.01, 100) for zoom in zooms)
                or zooms[0] > zooms[1]
            }
        )
        self._resize = A.Compose([resize])
        self._flip = flip
        self._log_scale = np.log(scale)
        self._log_stretch = np.log(stretch)
        self._translate = translate
        self._colour = np.array([brightness, contrast, saturation])
        self._fill = (fill, fill, fill)
        self._min_visibility = min_visibility
        self._max_redraws = max_redraws
        self._moves = bool(self._log_scale.any() or self._log_stretch or translate)

    @property
    def is_random(self) -> bool:
        """Whether anything but the resize can happen."""
        return bool(self._flip or self._moves or self._colour.any())

    @property
    def resizing(self) -> str:
        """See `Transform.resizing`."""
        return json.dumps(self._resize.to_dict(), sort_keys=True, default=str)

    def resize(self, image: Image) -> Image:
        """Bring an image to the model's size."""
        resized: Image = self._resize(image=image)["image"]
        return resized

    def keeps(self, boxes: Boxes) -> NDArray[np.bool_]:
        """Every box."""
        return np.ones(len(boxes), dtype=bool)

    def augment(self, images: Images, boxes: Boxes, seed: int, epoch: int, rows: Sequence[int]) -> tuple[Images, Boxes]:
        """See `Transform.augment`."""
        draws = self._max_redraws + 1
        uniform = _uniform(seed, epoch, rows, 4 + 4 * draws)  # [B, 4 + 4 * draws] in [0, 1)
        flip = uniform[:, 0] < self._flip
        mirrored = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
        boxes = np.where(flip[:, None], mirrored, boxes)
        if self._moves:
            zoom, shift, boxes = self._place(boxes, uniform[:, 4:].reshape(len(rows), draws, 4))
            painted = self._move(images, flip, zoom, shift)
        else:
            painted = images.copy()
            painted[flip] = images[flip, :, ::-1]
        if self._colour.any():
            self._recolour(painted, 1 + self._colour * (2 * uniform[:, 1:4] - 1))
        return painted, boxes.astype(np.float32)

    def _place(self, boxes: NDArray[Any], uniform: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """For each image the first draw of zoom and shift ([B, 2] x and y each) that keeps its box, and the box then.

        A point p of the image goes to (p - 0.5) * zoom + 0.5 + shift.
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
        )

    def _move(self, images: Images, flip: NDArray[Any], zoom: NDArray[Any], shift: NDArray[Any]) -> Images:
        height, width = images.shape[1:3]
        size = np.array([width, height])
        # From a pixel of the result to the one it shows: pixel i is centred at i + 0.5.
        slope = 1 / zoom
        offset = 0.5 * slope - (0.5 + shift) * slope * size + 0.5 * size - 0.5
        slope[flip, 0], offset[flip, 0] = -slope[flip, 0], width - 1 - offset[flip, 0]
        painted = np.empty_like(images)
        for row in range(len(images)):
            matrix = np.array([[slope[row, 0], 0, offset[row, 0]], [0, slope[row, 1], offset[row, 1]]])
            cv2.warpAffine(
                images[row],
                matrix,
                (width, height),
                dst=painted[row],
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderValue=self._fill,
            )
        return painted

    def _recolour(self, images: Images, factors: NDArray[Any]) -> None:
        """Saturation, then contrast, then brightness, as one matrix an image; `factors` is [B, 3] in reverse order."""
        for image, (brightness, contrast, saturation) in zip(images, factors, strict=True):
            mix = saturation * np.eye(3) + (1 - saturation) * GREY
            matrix = np.column_stack([brightness * contrast * mix, np.full(3, brightness * (1 - contrast) * MIDDLE)])
            cv2.transform(image, matrix.astype(np.float32), dst=image)


def _uniform(seed: int, epoch: int, rows: Sequence[int], count: int) -> NDArray[np.float64]:
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
        key = mix((key ^ np.uint64(epoch)) + golden)
        keys = mix((key ^ np.array(rows, dtype=np.uint64)) + golden)
        steps = np.arange(1, count + 1, dtype=np.uint64) * golden
        bits = mix(keys[:, None] + steps) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
