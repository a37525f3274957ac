"""The network: backbone, localisation head, classification head, box coder. B = batch size, K = number of classes."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onebox.boxes import mirror
from onebox.errors import check, is_number
from onebox.model.backbone import Backbone, Features
from onebox.model.box_coder import BoxCoder
from onebox.model.cells import CellsCoder, CellsHead
from onebox.model.heads import MakeHead, PerClassBox

LEAST_LOOK = 0.25  # share of the image's side that a second look shows: smaller things would be nothing but pixels


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
        second_look: if not None, evaluation cuts out the predicted box, widened so many times (at least `LEAST_LOOK` of
            the image), and predicts what it shows: that gives the box, and both looks together the class. After
            `prefix` there is no image to look at again, and no second look.
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
        **later: Any,
    ) -> None:
        super().__init__()
        second_look = later.pop("second_look", None)  # as in runs that were stored before it had a key
        if later:
            raise TypeError(f"Localizer has no argument {', '.join(sorted(later))}")
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
        is_widened = second_look is None or is_number(second_look, 1)
        check(is_widened, f"model.second_look must be a number >= 1, or null, not {second_look}")
        check(
            second_look is None or self.num_boxes == 1,
            "model.second_look: each look could take the box of another class of per_class_box; set it to null",
        )
        self.flip_average = flip_average
        self.second_look = second_look
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
        if after is not None:
            size = len(images) // (1 + averages)
            states = (images[:size], images[size:]) if averages else (images,)
            features = [self.backbone.suffix(tuple(part.float() for part in state), after=after) for state in states]
            return self._predict(*features, labels=labels)
        assert isinstance(images, Tensor)
        first = self._look(images, labels)
        if self.second_look is None or self.training:
            return first
        crops = widened(first.boxes, self.second_look)
        second = self._look(cut_out(images, crops), labels)
        boxes = crops[:, :2].repeat(1, 2) + second.boxes * (crops[:, 2:] - crops[:, :2]).repeat(1, 2)
        return Prediction(self.box_coder.encode(boxes), boxes, _mean_logits(first.logits, second.logits))

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

    def _look(self, images: Tensor, labels: Tensor | None) -> Prediction:
        averages = self.flip_average and not self.training
        looks = (images, images.flip(-1)) if averages else (images,)
        return self._predict(*(self.backbone(self.normalise(look)) for look in looks), labels=labels)

    def _predict(self, features: Features, mirrored: Features | None = None, *, labels: Tensor | None) -> Prediction:
        """The heads' part of `forward`: for images, or the mean over them and their mirror images."""
        out, logits = self._outputs(features)
        if mirrored is None:
            loc = self._codes(out, logits, labels)
            return Prediction(loc, self.box_coder.decode(loc), logits)
        other_out, other_logits = self._outputs(mirrored)
        logits = _mean_logits(logits, other_logits)
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


def _mean_logits(logits: Tensor, others: Tensor) -> Tensor:
    """Those that give the mean of the probabilities."""
    return torch.stack([logits.log_softmax(1), others.log_softmax(1)]).logsumexp(0) - math.log(2)


def widened(boxes: Tensor, factor: float) -> Tensor:
    """[B, 4] boxes so many times as wide and high, each side at least `LEAST_LOOK`, as far as they lie in the image."""
    boxes = boxes.clamp(0, 1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = ((boxes[:, 2:] - boxes[:, :2]) * factor).clamp(min=LEAST_LOOK) / 2
    return torch.cat((centres - halves, centres + halves), dim=1).clamp(0, 1)


def cut_out(images: Tensor, boxes: Tensor) -> Tensor:
    """What `images` ([B, 3, H, W], as in `Localizer.forward`) show within boxes, enlarged to H x W, in [0, 1]."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    _, _, height, width = images.shape
    (x1, y1, x2, y2), places = boxes[..., None].unbind(1), [(torch.arange(n) + 0.5) / n for n in (width, height)]
    x, y = (low + (high - low) * at.to(low) for low, high, at in zip((x1, y1), (x2, y2), places, strict=True))
    grid = torch.stack((x[:, None].expand(-1, height, -1), y[..., None].expand(-1, -1, width)), dim=-1)
    return nn.functional.grid_sample(pixels, 2 * grid - 1, padding_mode="border", align_corners=False)
