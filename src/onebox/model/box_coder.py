"""Box coders: what the outputs of the localisation head mean. Tensors are [B, 4] where nothing else is said."""

import torch
from torch import Tensor, cat, nn
from torchvision.ops import box_convert

from onebox.errors import check, is_integer


class BoxCoder(nn.Module):
    """Turns the head's outputs into codes, boxes into codes (the target of a regression loss), and codes into boxes.

    Boxes are xyxy in [0, 1]. Codes are the head's outputs themselves unless a coder overrides `activate`.

    Attributes:
        num_outputs: of the head, for one box.
    """

    num_outputs = 4

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


class BinsCoder(BoxCoder):
    """Codes are a distribution for each side of the box, [B, 4, bins]: how likely it lies at each of the coordinates.

    These are evenly spread, the first at 0 and the last at 1, and a side is read as its expected coordinate. The code
    of a true side is shared by the two coordinates next to it, as in arXiv:2006.04388, section 3.2.
    """

    def __init__(self, *, bins: int) -> None:
        super().__init__()
        check(is_integer(bins, 2), f"model.box_coder.bins must be a number >= 2, not {bins}")
        self.num_outputs = 4 * bins
        self.coordinates: Tensor
        self.register_buffer("coordinates", torch.linspace(0, 1, bins), persistent=False)

    def activate(self, raw: Tensor) -> Tensor:
        return raw.unflatten(1, (4, -1)).softmax(-1)

    def encode(self, boxes: Tensor) -> Tensor:
        last = len(self.coordinates) - 1
        distances = boxes.clamp(0, 1)[..., None] * last - torch.arange(last + 1, device=boxes.device)
        return (1 - distances.abs()).clamp(min=0)

    def decode(self, codes: Tensor) -> Tensor:
        return in_order((codes * self.coordinates).sum(-1))


def in_order(sides: Tensor) -> Tensor:
    """Boxes xyxy from two sides in each direction, whichever comes first.

    As GIoU's paper has it (arXiv:1902.09630, algorithm 1): of boxes turned inside out, which heads give at first, it
    has no lower bound and would be driven there.
    """
    x1, y1, x2, y2 = sides.unbind(-1)
    return torch.stack((x1.minimum(x2), y1.minimum(y2), x1.maximum(x2), y1.maximum(y2)), dim=-1)
