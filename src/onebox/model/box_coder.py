"""Box coders: how four outputs of the localisation head mean a box.

A coder has three functions on [B, 4] tensors: `activate` turns what the head gives into codes, `encode` gives the codes
of a box (the target of a regression loss), and `decode` gives the box of codes. Boxes are xyxy in [0, 1].
"""

from torch import Tensor, cat, nn

from onebox.boxes import cxcywh_to_xyxy, xywh_to_xyxy, xyxy_to_cxcywh, xyxy_to_xywh


class XywhCoder(nn.Module):
    """Codes are (x1, y1, width, height) in [0, 1], read straight from the head: nothing keeps them in the image."""

    def activate(self, raw: Tensor) -> Tensor:
        """The head's output as it is."""
        return raw

    def encode(self, boxes: Tensor) -> Tensor:
        """Codes of boxes."""
        return xyxy_to_xywh(boxes)

    def decode(self, codes: Tensor) -> Tensor:
        """Boxes of codes; a negative width or height is an empty box at x1, y1."""
        return xywh_to_xyxy(cat((codes[..., :2], codes[..., 2:].clamp(min=0)), dim=-1))


class CxcywhSigmoidCoder(nn.Module):
    """Codes are (centre x, centre y, width, height) in (0, 1): the sigmoid of the head's output.

    A head that gives zeros so starts from a centred box of half the image's width and height.
    """

    def activate(self, raw: Tensor) -> Tensor:
        """Sigmoid of the head's output."""
        return raw.sigmoid()

    def encode(self, boxes: Tensor) -> Tensor:
        """Codes of boxes."""
        return xyxy_to_cxcywh(boxes)

    def decode(self, codes: Tensor) -> Tensor:
        """Boxes of codes; edges may lie outside the image."""
        return cxcywh_to_xyxy(codes)


class XyxyCoder(nn.Module):
    """Codes are the corners (x1, y1, x2, y2) in [0, 1], read straight from the head: nothing keeps them in order."""

    def activate(self, raw: Tensor) -> Tensor:
        """The head's output as it is."""
        return raw

    def encode(self, boxes: Tensor) -> Tensor:
        """Codes of boxes."""
        return boxes

    def decode(self, codes: Tensor) -> Tensor:
        """Boxes of codes; where x2 < x1 or y2 < y1 the box is empty at x1, y1."""
        return cat((codes[..., :2], codes[..., 2:].maximum(codes[..., :2])), dim=-1)


class LtrbCoder(nn.Module):
    """Codes are the distances of the left, top, right and bottom side from the image's centre, read straight from the
    head; negative where a side lies beyond the centre. A head that gives zeros starts from the centre.
    """

    def activate(self, raw: Tensor) -> Tensor:
        """The head's output as it is."""
        return raw

    def encode(self, boxes: Tensor) -> Tensor:
        """Codes of boxes."""
        return cat((0.5 - boxes[..., :2], boxes[..., 2:] - 0.5), dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Boxes of codes; where a side lies beyond its opposite the box is empty at x1, y1."""
        corner = 0.5 - codes[..., :2]
        return cat((corner, (0.5 + codes[..., 2:]).maximum(corner)), dim=-1)
