"""Metrics of single-object localisation + classification. B = batch size, K = number of classes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from onebox.boxes import clip, paired_iou

# The mean over IoU thresholds is COCO's: .50, .55, ..., .95.
COCO_THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))

NAMES = (
    "acc",  # top-1 class
    "iou",  # mean IoU
    "loc_acc",  # CorLoc: IoU >= 0.5, class ignored
    "loc_acc70",  # IoU >= 0.7, class ignored
    "joint_acc",  # class right and IoU >= 0.5: 1 - ILSVRC top-1 localisation error
    "joint_acc_top5",  # class among the five highest logits and IoU >= 0.5
    "joint_acc_50_95",  # class right and IoU >= t, mean over COCO_THRESHOLDS
    "loc_l1",  # mean absolute error of xyxy in [0, 1]
    "error_cls",  # class wrong, box right
    "error_loc",  # box wrong, class right
    "error_both",  # both wrong
)


class Results(NamedTuple):
    """micro: each metric over all images; macro: the mean of its class means; per_class: for each class with images
    each metric, and their number as `images`.
    """

    micro: dict[str, float]
    macro: dict[str, float]
    per_class: dict[str, dict[str, float]]

    def tags(self) -> dict[str, float]:
        """Micro means as `name`, macro means as `name_macro`."""
        return self.micro | {f"{name}_macro": value for name, value in self.macro.items()}


class LocalizationMetrics(Metric):
    """All of `NAMES`, over all images (micro), as the mean over classes (macro), and for each class.

    IoU is taken after the predicted box is cut at the image's border. A class without images counts nowhere.
    """

    full_state_update = False
    sums: Tensor  # [K, len(NAMES)], sum of each metric over the images of each true class
    count: Tensor  # [K], images of each true class

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.add_state("sums", torch.zeros(len(class_names), len(NAMES)), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(len(class_names)), dist_reduce_fx="sum")

    def update(self, boxes: Tensor, logits: Tensor, true_boxes: Tensor, labels: Tensor) -> None:
        """Add a batch: predicted boxes [B, 4] and logits [B, K], true boxes [B, 4] and labels [B]."""
        with torch.autocast(boxes.device.type, enabled=False):  # sums are float32 whatever the trainer's precision
            values = per_image(boxes.float(), logits.float(), true_boxes, labels)
            # A matrix product, as index_add_ sums in no fixed order on a GPU.
            one_hot = torch.nn.functional.one_hot(labels, len(self.class_names)).float()
            self.sums += one_hot.T @ values
            self.count += one_hot.sum(0)

    def compute(self) -> Results:
        """Means over what was added, on all processes together."""
        seen = self.count > 0
        micro = self.sums.sum(0) / self.count.sum()
        macro = (self.sums[seen] / self.count[seen, None]).mean(0)
        per_class = {
            name: {"images": int(count), **_named(sums / count)}
            for name, sums, count in zip(self.class_names, self.sums, self.count, strict=True)
            if count > 0
        }
        return Results(_named(micro), _named(macro), per_class)


def _named(values: Tensor) -> dict[str, float]:
    return dict(zip(NAMES, values.tolist(), strict=True))


def per_image(boxes: Tensor, logits: Tensor, true_boxes: Tensor, labels: Tensor) -> Tensor:
    """[B, len(NAMES)]: each metric of each image; arguments as of `LocalizationMetrics.update`."""
    iou = paired_iou(clip(boxes), true_boxes)
    cls_right = logits.argmax(1) == labels
    top5_right = (logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]).any(1)
    loc_right = iou >= 0.5
    at_thresholds = torch.stack([iou >= threshold for threshold in COCO_THRESHOLDS], dim=1)
    columns = {
        "acc": cls_right,
        "iou": iou,
        "loc_acc": loc_right,
        "loc_acc70": iou >= 0.7,
        "joint_acc": cls_right & loc_right,
        "joint_acc_top5": top5_right & loc_right,
        "joint_acc_50_95": (cls_right[:, None] & at_thresholds).float().mean(1),
        "loc_l1": (boxes - true_boxes).abs().mean(1),
        "error_cls": ~cls_right & loc_right,
        "error_loc": cls_right & ~loc_right,
        "error_both": ~cls_right & ~loc_right,
    }
    return torch.stack([columns[name].float() for name in NAMES], dim=1)


def floor_prediction(
    train_boxes: Tensor, train_labels: Tensor, num_classes: int, num_images: int
) -> tuple[Tensor, Tensor]:
    """The prediction that ignores the image: the median box and the most frequent class of the training split.

    It is repeated for each image: boxes [num_images, 4], the median of each edge, and logits [num_images, K], the
    frequencies of the classes.
    """
    box = train_boxes.median(dim=0).values
    frequency = torch.bincount(train_labels, minlength=num_classes).float()
    return box.expand(num_images, 4), frequency.expand(num_images, num_classes)
