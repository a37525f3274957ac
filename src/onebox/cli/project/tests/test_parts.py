"""`pytest` runs these (`pip install pytest`)."""

import torch
from onebox.model.backbone import Features, FeatureShape, MapShape

from my_project.heads import AxesHead
from my_project.losses import Charbonnier


def test_the_head_gives_four_numbers_an_image_and_sees_where_something_is():
    head = AxesHead(FeatureShape((MapShape(8, 5, 6),), pooled=16), 4, hidden_features=10)
    maps = torch.zeros(2, 8, 5, 6)
    maps[1, :, 2, 3] = 1
    numbers = head(Features((maps,), torch.zeros(2, 16)))
    assert numbers.shape == (2, 4)
    assert not numbers[0].equal(numbers[1])


def test_the_loss_is_zero_for_the_true_box_and_grows_with_the_error():
    loss, true = Charbonnier(scale=0.05), torch.tensor([[0.2, 0.2, 0.6, 0.8]])
    assert loss(true, true) == 0
    assert loss(true + 0.1, true) < loss(true + 0.2, true)
