"""Heads: from features to four numbers a box. B = batch size."""

import torch
from onebox.model.backbone import Features, FeatureShape
from onebox.model.heads import Head
from torch import Tensor, nn


class AxesHead(Head):
    """The means of the map over its columns and over its rows, which say where along each axis something is."""

    reads_maps = True

    def __init__(self, feature_shape: FeatureShape, out_features: int, *, hidden_features: int) -> None:
        super().__init__()
        channels, height, width = feature_shape.maps[0]
        self.layers = nn.Sequential(
            nn.Linear(channels * (height + width), hidden_features), nn.ReLU(), nn.Linear(hidden_features, out_features)
        )

    def forward(self, features: Features) -> Tensor:
        finest = features.maps[0]  # [B, channels, height, width]
        axes = torch.cat((finest.mean(3), finest.mean(2)), dim=2)  # [B, channels, height + width]
        return self.layers(axes.flatten(1))
