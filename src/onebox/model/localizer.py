"""The network: backbone, localisation head, classification head, box coder. B = batch size, K = number of classes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from onebox.boxes import mirror
from onebox.errors import check
from onebox.model.backbone import Backbone, Features
from onebox.model.box_coder import BoxCoder
from onebox.model.cells import CellsCoder, CellsHead
from onebox.model.heads import MakeHead, PerClassBox


class Prediction(NamedTuple):
    """What a localizer gives: codes of the box coder, boxes (xyxy, in [0, 1] where inside the image), and logits."""

    loc: Tensor  # [B, 4], or as the box coder has it
    boxes: Tensor  # [B, 4]
    logits: Tensor  # [B, K]


class Target(NamedTuple):
    """The ground truth of a batch: codes of the true boxes, the boxes (xyxy in [0, 1]), and labels."""

    loc: Tensor  # [B, 4], or as the box coder has it
    boxes: Tensor  # [B, 4]
    labels: Tensor  # [B] int64


class Localizer(nn.Module):
    """One image in, one box and one class out.

    Args:
        backbone: gives the features.
        loc_head: makes the localisation head from (feature sizes, number of outputs: 4, or as the box coder has it).
        cls_head: makes the classification head from (feature sizes, num_classes).
        box_coder: what the localisation head's outputs mean.
        num_classes: K, with the background if it has a logit.
        flip_average: whether evaluation predicts the mirror image as well, and gives the mean.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        loc_head: MakeHead,
        cls_head: MakeHead,
        box_coder: BoxCoder,
        num_classes: int,
        flip_average: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_boxes = num_classes if isinstance(loc_head, PerClassBox) else 1
        self.loc_head = loc_head(backbone.feature_shape, box_coder.num_outputs * self.num_boxes)
        check(
            box_coder.num_outputs == 4 or not self.loc_head.gives_boxes,
            f"model.loc_head: {type(self.loc_head).__name__} gives boxes as they are, without the distributions that "
            f"{type(box_coder).__name__} reads; choose another model/box_coder, or model/loc_head=edges",
        )
        check(
            isinstance(self.loc_head, CellsHead) or not isinstance(box_coder, CellsCoder),
            f"model.loc_head: {type(self.loc_head).__name__} gives one box, and CellsCoder reads one for each cell; "
            "set model/loc_head=cells, or another model/box_coder",
        )
        self.cls_head = cls_head(backbone.feature_shape, num_classes)
        check(
            self.num_boxes == 1 or not getattr(self.cls_head, "reads_boxes", False),
            f"model.cls_head: {type(self.cls_head).__name__} reads the predicted box, but of a box for each class none "
            "is chosen before the class is; choose another model/cls_head or model/loc_head",
        )
        self.box_coder = box_coder
        self.flip_average = flip_average
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(backbone.input.mean)).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(backbone.input.std)).reshape(-1, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, images: Tensor | tuple[Tensor, ...], labels: Tensor | None = None, *, after: str | None = None
    ) -> Prediction:
        """Predict a box and a class for each image ([B, 3, H, W], uint8 in [0, 255] or float in [0, 1]).

        Where there is a box for each class, training takes that of the label. With `after`, a stage, `images` is what
        `prefix` gave until there.
        """
        averages = self.flip_average and not self.training
        if after is None:
            assert isinstance(images, Tensor)
            looks = (images, images.flip(-1)) if averages else (images,)
            features = [self.backbone(self.normalise(look)) for look in looks]
        else:
            size = len(images) // (1 + averages)
            states = (images[:size], images[size:]) if averages else (images,)
            features = [self.backbone.suffix(tuple(part.float() for part in state), after=after) for state in states]
        return self._predict(*features, labels=labels)

    def prefix(self, images: Tensor, *, until: str, mirrored: bool) -> tuple[Tensor, ...]:
        """What `forward` with `after` takes: the backbone's first stages, and those for the mirror images if asked."""
        state = self.backbone.prefix(self.normalise(images), until=until)
        return (*state, *self.prefix(images.flip(-1), until=until, mirrored=False)) if mirrored else state

    def normalise(self, images: Tensor) -> Tensor:
        """What the backbone reads, float32; `images` as in `forward`."""
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        return (images - self.mean).div_(self.std)

    def encode(self, boxes: Tensor, labels: Tensor) -> Target:
        """The target that belongs to true boxes ([B, 4] xyxy in [0, 1]) and labels ([B])."""
        return Target(self.box_coder.encode(boxes), boxes, labels)

    def _predict(self, features: Features, mirrored: Features | None = None, *, labels: Tensor | None) -> Prediction:
        """The heads' part of `forward`: for images, or the mean over them and their mirror images."""
        out, logits = self._outputs(features)
        if mirrored is None:
            loc = self._codes(out, logits, labels)
            return Prediction(loc, self.box_coder.decode(loc), logits)
        other_out, other_logits = self._outputs(mirrored)
        log_probabilities = torch.stack([logits.log_softmax(1), other_logits.log_softmax(1)])
        logits = log_probabilities.logsumexp(0) - math.log(2)  # those that give the mean of the probabilities
        boxes, others = (self.box_coder.decode(self._codes(item, logits, labels)) for item in (out, other_out))
        boxes = (boxes + mirror(others)) / 2
        return Prediction(self.box_coder.encode(boxes), boxes, logits)

    def _outputs(self, features: Features) -> tuple[Tensor, Tensor]:
        """What both heads give; float32 whatever the trainer's precision: in bfloat16 a box moves in steps of 1/256."""
        out = self.loc_head(features).float()
        if not getattr(self.cls_head, "reads_boxes", False):
            return out, self.cls_head(features).float()
        boxes = self.box_coder.decode(self._activated(out)).detach()  # what names the object is not to move the box
        return out, self.cls_head(features, boxes).float()

    def _activated(self, out: Tensor) -> Tensor:
        return self.box_coder.encode(out) if self.loc_head.gives_boxes else self.box_coder.activate(out)

    def _codes(self, out: Tensor, logits: Tensor, labels: Tensor | None) -> Tensor:
        """Codes from the localisation head's outputs; of a box for each class that of the label or likeliest class."""
        if self.num_boxes > 1:
            chosen = logits.argmax(1) if labels is None else labels
            out = out.unflatten(1, (self.num_boxes, -1))[torch.arange(out.shape[0], device=out.device), chosen]
        return self._activated(out)
