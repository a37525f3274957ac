"""Box coders: what the four outputs of the localisation head mean. All tensors are [B, 4]."""

from torch import Tensor, cat, nn
from torchvision.ops import box_convert


class BoxCoder(nn.Module):
    """Turns the head's outputs into codes, boxes into codes (the target of a regression loss), and codes into boxes.

    Boxes are xyxy in [0, 1]. Codes are the head's outputs themselves unless a coder overrides `activate`.
    """

    def activate(self, raw: Tensor) -> Tensor:
        return raw

    def encode(self, boxes: Tensor) -> Tensor:
        raise NotImplementedError  # each coder has its own

    def decode(self, codes: Tensor) -> Tensor:
        raise NotImplementedError  # each coder has its own


class XywhCoder(BoxCoder):
    """Codes are (x1, y1, width, height) in [0, 1]: nothing keeps them in the image.

    A negative width or height is an empty box at x1, y1.
    """

    def encode(self, boxes: Tensor) -> Tensor:
        return box_convert(boxes, "xyxy", "xywh")

    def decode(self, codes: Tensor) -> Tensor:
        return box_convert(cat((codes[..., :2], codes[..., 2:].clamp(min=0)), dim=-1), "xywh", "xyxy")


class CxcywhSigmoidCoder(BoxCoder):
    """Codes are (centre x, centre y, width, height) in (0, 1): the sigmoid of the head's outputs.

    A head that gives zeros starts from a centred box of half the image's width and height. Edges may lie outside the
    image.
    """

    def activate(self, raw: Tensor) -> Tensor:
        return raw.sigmoid()

    def encode(self, boxes: Tensor) -> Tensor:
        return box_convert(boxes, "xyxy", "cxcywh")

    def decode(self, codes: Tensor) -> Tensor:
        return box_convert(codes, "cxcywh", "xyxy")


class XyxyCoder(BoxCoder):
    """Codes are the corners (x1, y1, x2, y2) in [0, 1]; where x2 < x1 or y2 < y1 the box is empty at x1, y1."""

    def encode(self, boxes: Tensor) -> Tensor:
        return boxes

    def decode(self, codes: Tensor) -> Tensor:
        return cat((codes[..., :2], codes[..., 2:].maximum(codes[..., :2])), dim=-1)


class LtrbCoder(BoxCoder):
    """Codes are the distances of the left, top, right and bottom side from the image's centre.

    They are negative where a side lies beyond the centre; where it lies beyond its opposite, the box is empty.
    """

    def encode(self, boxes: Tensor) -> Tensor:
        return cat((0.5 - boxes[..., :2], boxes[..., 2:] - 0.5), dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        corner = 0.5 - codes[..., :2]
        return cat((corner, (0.5 + codes[..., 2:]).maximum(corner)), dim=-1)
