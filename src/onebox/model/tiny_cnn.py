"""The small CNN that the project grew from: four conv blocks and one fully connected layer."""

from collections.abc import Sequence

from torch import nn

from onebox.errors import check, is_integer, is_number
from onebox.model.backbone import Backbone, FeatureShape, InputRecord, MapShape


class TinyCnn(Backbone):
    """conv 3x3 - max pool 2 - ReLU, once for each width, then a fully connected layer.

    Pooling before the ReLU gives the same output as after it, for a quarter of the ReLU's work.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        widths: Sequence[int],
        hidden_features: int,
        dropout: float,
        input: InputRecord,
    ) -> None:
        super().__init__(input)
        smallest = 2 ** len(widths)
        counts = (*widths, hidden_features)
        are_counts = bool(widths) and all(is_integer(count, 1) for count in counts)
        check(are_counts, f"model.backbone.widths and hidden_features must be numbers >= 1, not {counts}")
        check(in_channels == 3, f"model.backbone.in_channels must be 3 (images are RGB), not {in_channels}")
        check(is_integer(image_size, smallest), f"image_size must be a number >= {smallest}, not {image_size}")
        check(is_number(dropout, 0, 0.999), f"model.backbone.dropout must be in [0, 1), not {dropout}")
        blocks: list[nn.Module] = []
        for c_in, c_out in zip([in_channels, *widths[:-1]], widths, strict=True):
            blocks += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        side = image_size // smallest
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(widths[-1] * side * side, hidden_features), nn.ReLU()
        )
        self.feature_shape = FeatureShape((MapShape(widths[-1], side, side),), pooled=hidden_features)
        self._map_ends = [len(blocks)]
        self._add_stages([*(f"blocks.{number}" for number in range(len(blocks))), "fc"])
