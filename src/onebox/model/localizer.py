"""The network: backbone, localisation head, classification head, box coder. B = batch size, K = number of classes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from onebox.errors import refuse
from onebox.model.features import Features, FeatureShape

Head = Callable[[FeatureShape, int], nn.Module]


class Backbone(Protocol):
    """A module that gives `Features` and says their sizes."""

    feature_shape: FeatureShape

    def __call__(self, images: Tensor) -> Features:
        """[B, 3, H, W] normalised images to features."""


class BoxCoder(Protocol):
    """See `onebox.model.box_coder`."""

    def activate(self, raw: Tensor) -> Tensor:
        """[B, 4] output of the head to codes."""

    def encode(self, boxes: Tensor) -> Tensor:
        """[B, 4] boxes to codes."""

    def decode(self, codes: Tensor) -> Tensor:
        """[B, 4] codes to boxes."""


class Prediction(NamedTuple):
    """What a localizer gives.

    Attributes:
        loc: [B, 4] codes of the box coder.
        boxes: [B, 4] xyxy, in [0, 1] where they are inside the image.
        logits: [B, K].
    """

    loc: Tensor
    boxes: Tensor
    logits: Tensor


class Target(NamedTuple):
    """What it should have given.

    Attributes:
        loc: [B, 4] codes of the true boxes.
        boxes: [B, 4] xyxy in [0, 1].
        labels: [B] int64.
    """

    loc: Tensor
    boxes: Tensor
    labels: Tensor


class Localizer(nn.Module):
    """One image in, one box and one class out.

    Args:
        backbone: gives the features.
        loc_head: makes the localisation head from (feature sizes, 4).
        cls_head: makes the classification head from (feature sizes, num_classes).
        box_coder: what the localisation head's four outputs mean.
        num_classes: K, with the background if it has a logit.
        mean: mean of each channel, for images in [0, 1].
        std: standard deviation of each channel, for images in [0, 1].
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        loc_head: Head,
        cls_head: Head,
        box_coder: BoxCoder,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        refuse(
            {
                f"model.mean needs three numbers, not {mean}": len(mean) != 3,
                f"model.std needs three numbers > 0, not {std}": len(std) != 3 or min(std) <= 0,
            }
        )
        self.backbone = backbone
        self.loc_head = loc_head(backbone.feature_shape, 4)
        self.cls_head = cls_head(backbone.feature_shape, num_classes)
        self.box_coder = box_coder
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean)).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).reshape(-1, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Prediction:
        """Predict a box and a class for each image.

        Args:
            images: [B, 3, H, W], uint8 in [0, 255] or float in [0, 1].
        """
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        features = self.backbone((images - self.mean).div_(self.std))
        loc = self.loc_head(features)
        loc = self.box_coder.encode(loc) if self.loc_head.gives_boxes else self.box_coder.activate(loc)
        return Prediction(loc, self.box_coder.decode(loc), self.cls_head(features))

    def encode(self, boxes: Tensor, labels: Tensor) -> Target:
        """The target that belongs to true boxes ([B, 4] xyxy in [0, 1]) and labels ([B])."""
        return Target(self.box_coder.encode(boxes), boxes, labels)
