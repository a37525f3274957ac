"""Losses of the box: what is predicted and what is true, [B, 4] each, to one number."""

from torch import Tensor, nn


class Charbonnier(nn.Module):
    """mean of sqrt(error^2 + scale^2) - scale."""

    def __init__(self, *, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, preds: Tensor, targets: Tensor) -> Tensor:
        return ((preds - targets).square() + self.scale**2).sqrt().mean() - self.scale
