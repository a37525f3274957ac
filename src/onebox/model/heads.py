"""Heads: from features to four numbers a box, or to one logit a class.

A head is made from the sizes of the backbone's features and its number of outputs (4 for boxes, the number of classes
for logits); wrong arguments raise `BadInput`. A localisation head with `gives_boxes` gives boxes (xyxy in [0, 1]); any
other gives four numbers that the box coder reads. Heads that see positions read all of the backbone's maps, and have
`reads_maps`. A classification head with `reads_boxes` is given the predicted boxes too. `dropout` is a share, [0, 1),
that is dropped in training. B = batch size, H x W = the finest map.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from onebox.errors import check, is_integer, is_number
from onebox.model.backbone import Features, FeatureShape, MapShape
from onebox.model.box_coder import in_order

MakeHead = Callable[[FeatureShape, int], nn.Module]


class Head(nn.Module):
    """What a head is unless it says otherwise."""

    gives_boxes = False
    reads_maps = False
    reads_boxes = False


class LinearHead(Head):
    """One linear layer on the pooled features, after their dropout."""

    def __init__(self, feature_shape: FeatureShape, out_features: int, *, dropout: float) -> None:
        super().__init__()
        check_sizes(dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(feature_shape.pooled, out_features)

    def forward(self, features: Features) -> Tensor:
        return self.linear(self.dropout(features.pooled))


class MlpHead(Head):
    """One hidden layer of `hidden_features` on the pooled features; dropout before both layers."""

    def __init__(self, feature_shape: FeatureShape, out_features: int, *, hidden_features: int, dropout: float) -> None:
        super().__init__()
        check_sizes(hidden_features=hidden_features, dropout=dropout)
        self.layers = _mlp(feature_shape.pooled, hidden_features, out_features, dropout)

    def forward(self, features: Features) -> Tensor:
        return self.layers(features.pooled)


class BoxPoolHead(Head):
    """One linear layer on the pooled features and on the mean of the coarsest map within the predicted box.

    A cell counts by its share inside the box, which is widened to one cell where it is smaller: region of interest
    pooling to one bin. torchvision's `roi_align` samples points instead, and on a GPU has no deterministic gradient.
    """

    reads_boxes = True

    def __init__(self, feature_shape: FeatureShape, out_features: int, *, dropout: float) -> None:
        super().__init__()
        check_sizes(dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(feature_shape.pooled + feature_shape.maps[-1].channels, out_features)

    def forward(self, features: Features, boxes: Tensor | None = None) -> Tensor:
        """Logits, with boxes [B, 4] xyxy in [0, 1]; without, each is all of the image."""
        coarsest = features.maps[-1]
        if boxes is None:
            boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=coarsest.device).expand(coarsest.shape[0], 4)
        x1, y1, x2, y2 = boxes.unbind(1)
        rows, columns = _covered(y1, y2, coarsest.shape[2]), _covered(x1, x2, coarsest.shape[3])
        within = (coarsest * (rows[:, None, :, None] * columns[:, None, None, :])).sum((2, 3))
        return self.linear(self.dropout(torch.cat((features.pooled, within), dim=1)))


class SpatialHead(Head):
    """A 1x1 convolution to a thin map of `channels`, then an `MlpHead`'s layers on all its positions."""

    reads_maps = True

    def __init__(
        self, feature_shape: FeatureShape, out_features: int, *, channels: int, hidden_features: int, dropout: float
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, hidden_features=hidden_features, dropout=dropout)
        self.thin = nn.Sequential(Thin(feature_shape, channels, bias=True), nn.ReLU(), nn.Flatten())
        positions = feature_shape.maps[0].height * feature_shape.maps[0].width
        self.layers = _mlp(channels * positions, hidden_features, out_features, dropout)

    def forward(self, features: Features) -> Tensor:
        return self.layers(self.thin(features.maps))


class AttentionPoolHead(Head):
    """A learnt query looks at all positions of the map (multi-head attention), then one linear layer.

    Positions are told apart by a learnt vector each, so that a box can be read from them. Queries, keys and values have
    `channels` numbers each.
    """

    reads_maps = True

    def __init__(
        self, feature_shape: FeatureShape, out_features: int, *, channels: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, num_heads=num_heads, dropout=dropout)
        is_multiple = channels % num_heads == 0
        check(is_multiple, f"channels={channels} of an attention must be a multiple of num_heads={num_heads}")
        positions = feature_shape.maps[0].height * feature_shape.maps[0].width
        self.thin = Thin(feature_shape, channels, bias=True)
        self.positions = nn.Parameter(torch.randn(positions, channels) * channels**-0.5)
        self.query = nn.Parameter(torch.randn(1, 1, channels) * 0.02)
        self.attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.layers = nn.Sequential(nn.LayerNorm(channels), nn.Dropout(dropout), nn.Linear(channels, out_features))

    def forward(self, features: Features) -> Tensor:
        cells = self.thin(features.maps).flatten(2).transpose(1, 2) + self.positions  # [B, H * W, channels]
        pooled, _ = self.attention(self.query.expand(cells.shape[0], -1, -1), cells, cells, need_weights=False)
        return self.layers(pooled[:, 0])


class DenseHead(Head):
    """Each cell gives a box and a score; the box is the mean over cells, weighted by the softmax of the scores.

    A cell's box is told by the distances of its four sides from the cell's centre, as in FCOS (arXiv:1904.01355).
    Before that come three convolutions of `channels` each, then dropout.
    """

    gives_boxes = True
    reads_maps = True

    def __init__(self, feature_shape: FeatureShape, out_features: int, *, channels: int, dropout: float) -> None:
        super().__init__()
        check_sizes(channels=channels, dropout=dropout)
        self.trunk = _trunk(feature_shape, channels, dropout)
        self.score = nn.Conv2d(channels, 1, 1)
        self.distances = nn.Conv2d(channels, out_features, 1)
        y, x = ((torch.arange(cells) + 0.5) / cells for cells in feature_shape.maps[0][1:])  # centres of rows, columns
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        self.centres: Tensor
        self.register_buffer("centres", torch.stack((grid_x, grid_y)).flatten(1), persistent=False)  # [2, H * W]

    def forward(self, features: Features) -> Tensor:
        maps = self.trunk(features.maps)
        share = self.score(maps).float().flatten(2).softmax(-1)  # [B, 1, H * W]
        left_top, right_bottom = nn.functional.softplus(self.distances(maps).float().flatten(2)).chunk(2, dim=1)
        boxes = torch.cat((self.centres - left_top, self.centres + right_bottom), dim=1)  # [B, 4, H * W]
        return (boxes * share).sum(-1)


class EdgesHead(Head):
    """One heatmap for each side of the box, summed to one axis and read as its expected coordinate.

    Left and right are summed over the rows, top and bottom over the columns (log-sum-exp), so that a side is found
    wherever along it there is evidence; the softmax over the other axis weighs the coordinates 0 to 1. Before them come
    three convolutions of `channels` each, then dropout. Heatmaps are `upsample` times as fine as the map. With more
    than four outputs, which `BinsCoder` asks for, the head gives what that softmax would take.
    """

    gives_boxes = True
    reads_maps = True

    def __init__(
        self, feature_shape: FeatureShape, out_features: int, *, channels: int, upsample: int, dropout: float
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, upsample=upsample, dropout=dropout)
        self._read(_trunk(feature_shape, channels, dropout), channels, out_features, feature_shape, upsample)

    def _read(
        self, trunk: nn.Module, channels: int, out_features: int, feature_shape: FeatureShape, upsample: int
    ) -> None:
        """Read the heatmaps from a trunk that makes of all maps one of `channels`, as fine as the finest."""
        self.trunk = trunk
        self.upsample = nn.Upsample(scale_factor=upsample, mode="bilinear", align_corners=False)
        self.heatmaps = nn.Conv2d(channels, 4, 1)
        self.gives_boxes = out_features == 4
        self.bins = out_features // 4
        _, height, width = feature_shape.maps[0]
        # The outermost cells stand for the borders: a box may touch them.
        self.x: Tensor
        self.y: Tensor
        self.register_buffer("x", torch.linspace(0, 1, width * upsample), persistent=False)
        self.register_buffer("y", torch.linspace(0, 1, height * upsample), persistent=False)

    def forward(self, features: Features) -> Tensor:
        heatmaps = self.heatmaps(self.trunk(features.maps)).float()  # coordinates need more than bfloat16
        left, top, right, bottom = self.upsample(heatmaps).unbind(1)  # [B, H, W] each
        sides = left.logsumexp(1), top.logsumexp(2), right.logsumexp(1), bottom.logsumexp(2)
        if not self.gives_boxes:
            return torch.cat([_resampled(side, self.bins) for side in sides], dim=1)
        axes = self.x, self.y, self.x, self.y
        expected = [(side.softmax(-1) * axis).sum(-1) for side, axis in zip(sides, axes, strict=True)]
        return in_order(torch.stack(expected, dim=-1))


class PyramidEdgesHead(EdgesHead):
    """An `EdgesHead` whose heatmaps are read from a `Pyramid` of `channels`, `blocks` and `fine_channels`."""

    def __init__(
        self,
        feature_shape: FeatureShape,
        out_features: int,
        *,
        channels: int,
        blocks: int,
        fine_channels: int,
        upsample: int,
        dropout: float,
    ) -> None:
        Head.__init__(self)
        check_sizes(channels=channels, blocks=blocks, fine_channels=fine_channels, upsample=upsample, dropout=dropout)
        pyramid = Pyramid(feature_shape, channels, blocks, fine_channels)
        trunk = nn.Sequential(pyramid, nn.Dropout2d(dropout))
        self._read(trunk, pyramid.channels, out_features, feature_shape, upsample)


def _covered(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """[B, cells] how much of each span from `low` to `high` ([B], in [0, 1]) lies in each cell; the sum is 1."""
    low = low.clamp(0.0, 1 - 1 / cells)
    high = high.clamp(max=1.0).maximum(low + 1 / cells)
    begins = torch.arange(cells, device=low.device) / cells
    inside = (high[:, None].minimum(begins + 1 / cells) - low[:, None].maximum(begins)).clamp(min=0.0)
    return inside / inside.sum(1, keepdim=True)


def _resampled(line: Tensor, length: int) -> Tensor:
    """[B, length] from numbers along a line, whose first and last stay what they are."""
    return nn.functional.interpolate(line[:, None], length, mode="linear", align_corners=True)[:, 0]


class PerClassBox:
    """A box for each class, by any head that gives numbers: `head` makes it with 4 * K outputs.

    In training, the box of the true class is taken, so that it alone gets a gradient; otherwise the box of the class
    that the classification head finds likeliest.
    """

    def __init__(self, *, head: MakeHead) -> None:
        self.head = head

    def __call__(self, feature_shape: FeatureShape, out_features: int) -> nn.Module:
        """The head.

        Raises:
            BadInput: it gives boxes of its own, one an image.
        """
        made = self.head(feature_shape, out_features)
        check(
            not getattr(type(made), "gives_boxes", False),
            f"model.loc_head.head: {type(made).__name__} predicts one box; a box for each class can be predicted by "
            "linear, mlp, spatial or attention_pool",
        )
        return made


class Thin(nn.Module):
    """All maps as one of few channels, as fine as the finest: a 1x1 convolution each, enlarged, and their sum.

    The same as one 1x1 convolution on the enlarged maps side by side, for less work.
    """

    def __init__(self, feature_shape: FeatureShape, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(shape.channels, channels, 1, bias=bias and number == 0)
            for number, shape in enumerate(feature_shape.maps)
        )

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        finest, *others = (conv(features) for conv, features in zip(self.convs, maps, strict=True))
        for other in others:
            finest = finest + nn.functional.interpolate(other, finest.shape[2:], mode="bilinear", align_corners=False)
        return finest


class Pyramid(nn.Module):
    """All maps as one, as fine as the finest: worked on where they are coarsest, then enlarged level by level.

    `blocks` residual convolutions of `channels` on the coarsest maps see all of the image for little work. Each finer
    map is added to what comes from the coarser one, as in feature pyramids (arXiv:1612.03144), and goes through a 3x3
    convolution of `fine_channels`.

    Attributes:
        channels: of the result.
    """

    def __init__(self, feature_shape: FeatureShape, channels: int, blocks: int, fine_channels: int) -> None:
        super().__init__()
        sizes = [shape[1:] for shape in feature_shape.maps]
        self.num_finer = sizes.index(sizes[-1])
        finer, coarsest = feature_shape.maps[: self.num_finer], feature_shape.maps[self.num_finer :]
        first = (Thin(FeatureShape(coarsest, 0), channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        residuals = (_Residual(channels, dilation=1 + number % 2) for number in range(blocks))
        self.coarsest = nn.Sequential(*first, *residuals)
        self.merges = nn.ModuleList()
        self.channels = channels
        for shape in reversed(finer):
            merge = Thin(FeatureShape((shape, MapShape(self.channels, 1, 1)), 0), fine_channels, bias=False)
            norm = (nn.BatchNorm2d(fine_channels), nn.ReLU())
            self.merges.append(nn.Sequential(merge, *norm, *_convolution(fine_channels, dilation=1), nn.ReLU()))
            self.channels = fine_channels

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        x = self.coarsest(maps[self.num_finer :])
        for merge, finer_map in zip(self.merges, reversed(maps[: self.num_finer]), strict=True):
            x = merge((finer_map, x))
        return x


class _Residual(nn.Module):
    def __init__(self, channels: int, *, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_convolution(channels, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x + self.layers(x))


def _mlp(in_features: int, hidden_features: int, out_features: int, dropout: float) -> nn.Module:
    hidden = (nn.Dropout(dropout), nn.Linear(in_features, hidden_features), nn.ReLU())
    return nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(hidden_features, out_features))


def _trunk(feature_shape: FeatureShape, channels: int, dropout: float) -> nn.Module:
    """A thin map in which each cell has seen 7 x 7 of them."""
    layers: list[nn.Module] = [Thin(feature_shape, channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    for dilation in (1, 2):
        layers += [*_convolution(channels, dilation=dilation), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout2d(dropout))


def _convolution(channels: int, *, dilation: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
    return conv, nn.BatchNorm2d(channels)


def check_sizes(*, dropout: float, **counts: int) -> None:
    """Refuse a dropout outside [0, 1), and numbers of channels and the like below 1."""
    check(is_number(dropout, 0, 0.999), f"a head's dropout must be in [0, 1), not {dropout}")
    for name, count in counts.items():
        check(is_integer(count, 1), f"a head's {name} must be a number >= 1, not {count}")
