"""Box geometry: thin names over `torchvision.ops`. Unmarked boxes are float xyxy = (x1, y1, x2, y2) in [0, 1]."""

import torch
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image, diou_loss, giou_loss


def unnorm(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """[N, 4] or [4] in [0, 1] (xyxy or xywh) to px of an image of `shape` (height, width)."""
    height, width = shape
    return boxes * torch.tensor([width, height, width, height], dtype=torch.float32, device=boxes.device)


def clip(boxes: Tensor) -> Tensor:
    """[N, 4], the parts outside the image cut off."""
    return clip_boxes_to_image(boxes, (1, 1))


def mirror(boxes: Tensor) -> Tensor:
    """[N, 4], as they lie in the image mirrored left to right."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([1 - x2, y1, 1 - x1, y2], dim=-1)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of each box with the one in the same row: two [N, 4] to [N]."""
    return box_iou(boxes[:, None], others[:, None])[:, 0, 0]


def _loss_inter_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union of each box with the one in the same row: two [N, 4] to two [N].

    To the last bit what torchvision has in its place, where a mask picks the boxes that overlap: for that a GPU is
    waited for in each step.
    """
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    x1_true, y1_true, x2_true, y2_true = others.unbind(dim=-1)
    left, top = torch.maximum(x1, x1_true), torch.maximum(y1, y1_true)
    width, height = torch.minimum(x2, x2_true) - left, torch.minimum(y2, y2_true) - top
    intersection = torch.where((width > 0) & (height > 0), width * height, 0.0)
    return intersection, (x2 - x1) * (y2 - y1) + (x2_true - x1_true) * (y2_true - y1_true) - intersection


for _loss in (giou_loss, diou_loss):  # ciou_loss calls the latter
    _loss._loss_inter_union = _loss_inter_union
