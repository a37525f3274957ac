"""What happens to images and their boxes before the model. B = batch size, S = the model's image size in px.

Augmentation is a function of (seed, epoch, row of the index): workers, order and what was drawn before do not matter.
It does not lose the box: a draw that would is repeated, and at last the image is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from onebox.data.resize import Image, Resize
from onebox.errors import BadInput, check, is_integer, is_number

if TYPE_CHECKING:
    import albumentations as A

Images = NDArray[np.uint8]  # [B, S, S, 3], RGB
Boxes = NDArray[np.float32]  # [B, 4], xyxy in [0, 1]


class Augmented(NamedTuple):
    """A batch after its random changes."""

    images: Images  # [B, S, S, 3]
    boxes: Boxes  # [B, 4]
    redrawn: int  # how many images lost the box at first and kept it in a later draw
    fallback: int  # how many lost it in every draw, and stayed as they are


class Transform(Protocol):
    """A resize for every image, and random changes for training images."""

    @property
    def is_random(self) -> bool:
        """Whether there is anything but the resize."""

    @property
    def resize(self) -> Resize:
        """Brings an image to the model's size."""

    @property
    def resize_before_augment(self) -> Resize:
        """Brings an image to the size that `augment` takes, which is larger where it zooms in."""

    def keeps(self, boxes: Boxes) -> NDArray[np.bool_]:
        """For each box ([B, 4]) whether the resize keeps it."""

    def augment(
        self, images: Sequence[Image], boxes: Boxes, seed: int, epoch: int | Sequence[int], rows: Sequence[int]
    ) -> Augmented:
        """Draw the random changes of a batch of resized images, which are not written to.

        `epoch` is that of the batch, or one number for each image: see `EpochSampler`.
        """


class AlbumentationsTransform:
    """Any albumentations transforms, one image after the other.

    Args:
        resize: brings every image to the model's size.
        transforms: albumentations transforms for training images, applied after `resize`; they must keep the size.
        min_area: a box below this area is lost, px^2; its image is dropped if that is so after the resize already.
        min_visibility: a transformed box is lost when less than this share of its area stays inside the image, [0, 1].
        max_redraws: how often the transforms are drawn again when they lose the box.
    """

    def __init__(
        self,
        resize: Resize,
        transforms: Sequence[A.BasicTransform],
        min_area: float,
        min_visibility: float,
        max_redraws: int,
    ) -> None:
        check(is_number(min_area, 0), f"augment.min_area must be a number >= 0, not {min_area}")
        check(is_number(min_visibility, 0, 1), f"augment.min_visibility must be in [0, 1], not {min_visibility}")
        check(is_integer(max_redraws, 0), f"augment.max_redraws must be a number >= 0, not {max_redraws}")
        self.resize = self.resize_before_augment = resize
        self._min_area = min_area
        self._pipeline = _composed(transforms, min_area, min_visibility) if transforms else None
        self._max_redraws = max_redraws
        self.is_random = bool(transforms)

    def keeps(self, boxes: Boxes) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = (boxes[:, 2:] - boxes[:, :2]).prod(1) * self.resize.size**2 >= self._min_area
        return kept

    def augment(
        self, images: Sequence[Image], boxes: Boxes, seed: int, epoch: int | Sequence[int], rows: Sequence[int]
    ) -> Augmented:
        if self._pipeline is None:
            return Augmented(np.stack(images), boxes, 0, 0)
        epochs = np.broadcast_to(epoch, len(rows)).tolist()
        drawn = [
            self._one(image, box, (seed, *key)) for image, box, *key in zip(images, boxes, epochs, rows, strict=True)
        ]
        painted, moved, draws = zip(*drawn, strict=True)
        fallback = draws.count(None)
        return Augmented(np.stack(painted), np.stack(moved), len(draws) - draws.count(0) - fallback, fallback)

    def _one(
        self, image: Image, box: NDArray[np.float32], key: tuple[int, ...]
    ) -> tuple[Image, NDArray[np.float32], int | None]:
        """Image and box, and which draw they are; None is no draw."""
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
                return result["image"], np.asarray(result["bboxes"][0][:4], dtype=np.float32), draw
        return image, box, None


def _composed(transforms: Sequence[A.BasicTransform], min_area: float, min_visibility: float) -> A.Compose:
    import albumentations as A

    bbox_params = A.BboxParams(
        format="albumentations",  # xyxy in [0, 1]
        label_fields=[],
        min_area=min_area,
        min_visibility=min_visibility,
        clip=True,  # float rounding puts the edge of a border box a hair outside, which raises otherwise
    )
    return A.Compose(list(transforms), bbox_params=bbox_params)
