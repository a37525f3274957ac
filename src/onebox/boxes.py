"""Box formats and box geometry: thin names over `torchvision.ops`.

Unmarked boxes are float xyxy in [0, 1]. Formats: xyxy = (x1, y1, x2, y2), xywh = (x1, y1, width, height),
cxcywh = (centre x, centre y, width, height). N = number of boxes.
"""

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, clip_boxes_to_image


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[N, 4] xywh to [N, 4] xyxy, in the unit given."""
    return box_convert(boxes, "xywh", "xyxy")


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """[N, 4] xyxy to [N, 4] xywh, in the unit given."""
    return box_convert(boxes, "xyxy", "xywh")


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[N, 4] cxcywh to [N, 4] xyxy, in the unit given."""
    return box_convert(boxes, "cxcywh", "xyxy")


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[N, 4] xyxy to [N, 4] cxcywh, in the unit given."""
    return box_convert(boxes, "xyxy", "cxcywh")


def unnorm(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """[0, 1] to pixels, in any of the three formats.

    Args:
        boxes: [N, 4] or [4].
        shape: (height, width) of the image, px.
    """
    height, width = shape
    return boxes * torch.tensor([width, height, width, height], dtype=torch.float32, device=boxes.device)


def clip(boxes: Tensor) -> Tensor:
    """[N, 4] xyxy in [0, 1], the parts outside the image cut off."""
    return clip_boxes_to_image(boxes, (1, 1))


def mirror(boxes: Tensor) -> Tensor:
    """[N, 4] xyxy in [0, 1], as they lie in the image mirrored left to right."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([1 - x2, y1, 1 - x1, y2], dim=-1)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of each box with the one in the same row: two [N, 4] xyxy to [N]."""
    return box_iou(boxes[:, None], others[:, None])[:, 0, 0]
