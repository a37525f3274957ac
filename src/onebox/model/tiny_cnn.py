"""The small CNN that the project grew from: four conv blocks and one fully connected layer."""

from collections.abc import Sequence

from torch import Tensor, nn

from onebox.errors import is_integer, is_number, refuse
from onebox.model.features import Features, FeatureShape


class TinyCnn(nn.Module):
    """conv 3x3 - max pool 2 - ReLU, once for each width, then a fully connected layer.

    Pooling before the ReLU gives the same output as after it, for a quarter of the ReLU's work.

    Args:
        image_size: side of the square input, px.
        in_channels: channels of the input.
        widths: output channels of each block.
        hidden_features: outputs of the fully connected layer.
        dropout: share of the flattened map that is dropped before the fully connected layer in training, [0, 1).
    """

    def __init__(
        self, *, image_size: int, in_channels: int, widths: Sequence[int], hidden_features: int, dropout: float
    ) -> None:
        super().__init__()
        smallest = 2 ** len(widths)
        refuse(
            {
                "model.backbone.widths must name at least one block": not widths,
                f"image_size must be a number >= {smallest}, not {image_size}": not is_integer(image_size, smallest),
                f"model.backbone.dropout must be in [0, 1), not {dropout}": not is_number(dropout, 0, 0.999),
            }
        )
        blocks: list[nn.Module] = []
        for c_in, c_out in zip([in_channels, *widths[:-1]], widths, strict=True):
            blocks += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        side = image_size // 2 ** len(widths)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(widths[-1] * side * side, hidden_features), nn.ReLU()
        )
        self.feature_shape = FeatureShape(channels=widths[-1], height=side, width=side, pooled=hidden_features)

    def forward(self, images: Tensor) -> Features:
        """[B, in_channels, image_size, image_size] float32, normalised, to features."""
        maps = self.blocks(images)
        return Features(maps, self.fc(maps))
