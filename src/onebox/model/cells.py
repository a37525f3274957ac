"""Boxes of which each cell of a map gives one, with its share: which object is meant, and where its sides are."""

import torch
from torch import Tensor, cat, nn

from onebox.errors import check, is_number
from onebox.model.backbone import Features, FeatureShape
from onebox.model.box_coder import BoxCoder, in_order
from onebox.model.heads import Head, Pyramid, check_sizes

WIDTHS = (4, 1, 4)  # of a cell's code: its box, its share, its coarse box
LEAST_WINDOW = 0.02  # standard deviation, share of the image's side


class CellsHead(Head):
    """Each cell gives a box and a score, and heatmaps of the edges say where exactly the sides of that box are.

    A cell's coarse box is told by the distances of its four sides from the cell's centre, as in FCOS
    (arXiv:1904.01355). Each side is then read from a heatmap as in `EdgesHead`, but near the coarse side alone: under a
    Gaussian around it, whose standard deviation is `window` times the coarse box's width or height. So where two things
    have edges, a box keeps to one of them, and is not the mean of both. What comes before is a `Pyramid`, then dropout.

    Gives [B, N, 9] for the N = H * W cells: box, score, coarse box, as `CellsCoder` reads it. For a coder of four
    numbers it gives the mean of the boxes, weighted by the softmax of the scores.
    """

    gives_boxes = True
    reads_maps = True

    def __init__(
        self,
        feature_shape: FeatureShape,
        out_features: int,
        *,
        channels: int,
        blocks: int,
        fine_channels: int,
        upsample: int,
        window: float,
        dropout: float,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, blocks=blocks, fine_channels=fine_channels, upsample=upsample, dropout=dropout)
        check(is_number(window, 0.001), f"model.loc_head.window must be a number >= 0.001, not {window}")
        self.gives_boxes = out_features != CellsCoder.num_outputs
        pyramid = Pyramid(feature_shape, channels, blocks, fine_channels)
        self.trunk = nn.Sequential(pyramid, nn.Dropout2d(dropout))
        self.cells = nn.Conv2d(pyramid.channels, 5, 1)
        self.heatmaps = nn.Conv2d(pyramid.channels, 4, 1)
        self.upsample = nn.Upsample(scale_factor=upsample, mode="bilinear", align_corners=False)
        self.window = window
        _, height, width = feature_shape.maps[0]
        y, x = ((torch.arange(count) + 0.5) / count for count in (height, width))
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        self.centres: Tensor
        self.register_buffer("centres", torch.stack((grid_x, grid_y)).flatten(1), persistent=False)  # [2, N]
        # The outermost cells stand for the borders, as in EdgesHead.
        self.x: Tensor
        self.y: Tensor
        self.register_buffer("x", torch.linspace(0, 1, width * upsample), persistent=False)
        self.register_buffer("y", torch.linspace(0, 1, height * upsample), persistent=False)

    def forward(self, features: Features) -> Tensor:
        maps = self.trunk(features.maps)
        distances, scores = self.cells(maps).float().flatten(2).split((4, 1), dim=1)
        distances = nn.functional.softplus(distances - 1)  # a third of the image's side at first
        coarse = cat((self.centres - distances[:, :2], self.centres + distances[:, 2:]), dim=1)  # [B, 4, N]
        left, top, right, bottom = self.upsample(self.heatmaps(maps).float()).unbind(1)
        x1, x2 = self._read(torch.stack((left, right)).logsumexp(2), coarse[:, 0], coarse[:, 2], self.x)
        y1, y2 = self._read(torch.stack((top, bottom)).logsumexp(3), coarse[:, 1], coarse[:, 3], self.y)
        boxes = in_order(torch.stack((x1, y1, x2, y2), dim=-1))
        if self.gives_boxes:
            return (boxes * scores.transpose(1, 2).softmax(1)).sum(1)
        return cat((boxes, scores.transpose(1, 2), coarse.transpose(1, 2)), dim=2)

    def _read(self, lines: Tensor, low: Tensor, high: Tensor, axis: Tensor) -> Tensor:
        """[2, B, N] expected coordinates on `axis` [L] by `lines` [2, B, L], near the coarse sides, [B, N] each."""
        deviation = self.window * (high - low).detach() + LEAST_WINDOW
        away = (axis - torch.stack((low, high)).clamp(0, 1)[..., None]) / deviation[..., None]  # [2, B, N, L]
        return ((lines[:, :, None] - away.square() / 2).softmax(-1) * axis).sum(-1)


class CellsCoder(BoxCoder):
    """Codes are a box, a share and a coarse box for each of N cells, [B, N, 9]: the box of the largest share is meant.

    The shares of an image are the softmax of the cells' scores. The code of a true box is that of one cell, [B, 1, 9].
    """

    num_outputs = sum(WIDTHS)

    def activate(self, raw: Tensor) -> Tensor:
        boxes, scores, coarse = raw.split(WIDTHS, dim=-1)
        return cat((boxes, scores.softmax(-2), coarse), dim=-1)

    def encode(self, boxes: Tensor) -> Tensor:
        return cat((boxes, torch.ones_like(boxes[..., :1]), boxes), dim=-1)[..., None, :]

    def decode(self, codes: Tensor) -> Tensor:
        boxes, shares, _ = codes.split(WIDTHS, dim=-1)
        likeliest = shares.argmax(-2, keepdim=True)
        return boxes.gather(-2, likeliest.expand(*likeliest.shape[:-1], 4)).squeeze(-2)
