"""What happens to an image and its box before the model: the only code that knows albumentations' interface."""

from collections.abc import Sequence
from typing import Any

import albumentations as A
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # [H, W, 3], RGB


class BoxTransform:
    """A resize for every image, and random transforms for training images.

    Args:
        resize: albumentations transform that brings every image to the model's size; it must not be random.
        transforms: albumentations transforms for training images, applied after `resize`; they must keep the size.
        min_area: a transformed box below this area is lost, px^2.
        min_visibility: a transformed box is lost when less than this share of its area stays inside the image, [0, 1].
        max_redraws: how often the transforms are drawn again when they lose the box; then the image is left as it is.
    """

    def __init__(
        self,
        resize: A.BasicTransform,
        transforms: Sequence[A.BasicTransform],
        min_area: float,
        min_visibility: float,
        max_redraws: int,
    ) -> None:
        self._resize = A.Compose([resize])
        bbox_params = A.BboxParams(
            format="albumentations",  # xyxy in [0, 1]
            label_fields=[],
            min_area=min_area,
            min_visibility=min_visibility,
            clip=True,  # float rounding puts the edge of a border box a hair outside, which raises otherwise
        )
        self._augment = A.Compose(list(transforms), bbox_params=bbox_params) if transforms else None
        self._max_redraws = max_redraws

    @property
    def is_random(self) -> bool:
        """Whether there are transforms besides the resize."""
        return self._augment is not None

    def resize(self, image: Image) -> Image:
        """Bring an image to the model's size."""
        resized: Image = self._resize(image=image)["image"]
        return resized

    def augment(self, image: Image, box: NDArray[np.float32], seed: Sequence[int]) -> tuple[Image, NDArray[np.float32]]:
        """Draw the random transforms for one sample; the same seed gives the same result.

        Args:
            image: [H, W, 3] uint8, already resized.
            box: [4] xyxy in [0, 1].
            seed: integers that name the draw: (seed, epoch, index).

        Returns:
            The image, of the same size, and the box after the transforms. A draw that loses the box is drawn again.
        """
        if self._augment is None:
            return image, box
        for draw in range(self._max_redraws + 1):
            self._augment.set_random_seed(int(np.random.SeedSequence([*seed, draw]).generate_state(1)[0]))
            result: dict[str, Any] = self._augment(image=image, bboxes=box[None])
            if len(result["bboxes"]) == 1:
                return result["image"], np.asarray(result["bboxes"][0][:4], dtype=np.float32)
        return image, box
