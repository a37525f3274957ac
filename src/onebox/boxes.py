"""Box geometry: thin names over `torchvision.ops`. Unmarked boxes are float xyxy = (x1, y1, x2, y2) in [0, 1]."""

import torch
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image


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
