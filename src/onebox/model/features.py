"""What a backbone takes, and what it gives to the heads. B = batch size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from onebox.errors import check, is_integer


@dataclass(frozen=True)
class InputRecord:
    """The images that a backbone is made for; with pretrained weights, those that the weights were trained on.

    Args:
        size: side of the square, px. Other sizes work too: see `image_size`.
        mean: mean of each channel, for images in [0, 1].
        std: standard deviation of each channel, for images in [0, 1].
        interpolation: how they were resized. Others work too: see `interpolation` in `conf/train.yaml`.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str

    def __post_init__(self) -> None:
        check(is_integer(self.size, 1), f"model.backbone.input.size must be a number >= 1, not {self.size}")
        check(len(self.mean) == 3, f"model.backbone.input.mean needs three numbers, not {self.mean}")
        check(
            len(self.std) == 3 and min(self.std) > 0,
            f"model.backbone.input.std needs three numbers > 0, not {self.std}",
        )


class MapShape(NamedTuple):
    """Sizes of a map with positions."""

    channels: int
    height: int
    width: int


class Features(NamedTuple):
    """What the heads see.

    Attributes:
        maps: [B, channels, height, width] each, the finest first: with positions.
        pooled: [B, pooled]: without.
    """

    maps: tuple[Tensor, ...]
    pooled: Tensor


@dataclass(frozen=True)
class FeatureShape:
    """The sizes of `Features`; every backbone has one as `feature_shape`, and heads are built from it."""

    maps: tuple[MapShape, ...]
    pooled: int
