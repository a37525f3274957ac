"""Heads: from features to four box codes, or to one logit a class."""

from torch import Tensor, nn

from onebox.model.features import Features, FeatureShape


class LinearHead(nn.Module):
    """One linear layer on the pooled features.

    Args:
        feature_shape: sizes of the backbone's features.
        out_features: 4 for boxes, the number of classes for logits.
        dropout: share of the pooled features that is dropped in training, [0, 1).
    """

    def __init__(self, feature_shape: FeatureShape, out_features: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(feature_shape.pooled, out_features)

    def forward(self, features: Features) -> Tensor:
        """Features to [B, out_features]."""
        out: Tensor = self.linear(self.dropout(features.pooled))
        return out
