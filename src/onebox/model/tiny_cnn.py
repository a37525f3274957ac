"""The small CNN that the project grew from: four conv blocks and one fully connected layer."""

from collections.abc import Sequence

from torch import Tensor, nn

from onebox.errors import check, is_integer, is_number
from onebox.model.backbone import Features, FeatureShape, InputRecord, MapShape

LAYERS_A_BLOCK = 3


class TinyCnn(nn.Module):
    """A `Backbone`: conv 3x3 - max pool 2 - ReLU, once for each width, then a fully connected layer.

    Pooling before the ReLU gives the same output as after it, for a quarter of the ReLU's work. A stage is a block,
    named after its convolution, or the fully connected layer.
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
        super().__init__()
        smallest = 2 ** len(widths)
        check(bool(widths), "model.backbone.widths must name at least one block")
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
        self.input = input
        self.feature_shape = FeatureShape((MapShape(widths[-1], side, side),), pooled=hidden_features)
        self.stages = (*(f"blocks.{number}" for number in range(0, len(blocks), LAYERS_A_BLOCK)), "fc")
        self.weights_fingerprint: str | None = None

    def forward(self, images: Tensor) -> Features:
        maps = self.blocks(images)
        return Features((maps,), self.fc(maps))

    def prefix(self, images: Tensor, *, until: str) -> tuple[Tensor, ...]:
        maps = self.blocks[: self._num_layers(until)](images)
        return (maps, self.fc(maps)) if until == "fc" else (maps,)

    def suffix(self, state: tuple[Tensor, ...], *, after: str) -> Features:
        maps = self.blocks[self._num_layers(after) :](state[0])
        return Features((maps,), state[1] if after == "fc" else self.fc(maps))

    def stage_of(self, parameter_name: str) -> str:
        return "fc" if parameter_name.startswith("fc.") else parameter_name.rpartition(".")[0]

    def _num_layers(self, stage: str) -> int:
        """How many of `blocks` an image has gone through at the end of a stage."""
        return min(LAYERS_A_BLOCK * (self.stages.index(stage) + 1), len(self.blocks))
