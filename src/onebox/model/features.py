"""What a backbone gives to the heads."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """maps: [B, channels, height, width], with positions; pooled: [B, pooled], without."""

    maps: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class FeatureShape:
    """The sizes of `Features`; every backbone has one as `feature_shape`, and heads are built from it."""

    channels: int
    height: int
    width: int
    pooled: int
