from itertools import pairwise

import torch
from hydra.utils import instantiate
from torch import nn


class NotebookModel(nn.Module):
    """The notebook's network, as the reference: conv - ReLU - pool, one shared layer, two linear heads."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        widths = [3, 8, 16, 32, 64]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.fc = nn.Linear(64 * 6 * 6, 100)
        self.loc = nn.Linear(100, 4)
        self.cls = nn.Linear(100, n_classes)

    def forward(self, x):
        for conv in self.convs:
            x = nn.functional.max_pool2d(nn.functional.relu(conv(x)), 2)
        x = nn.functional.relu(self.fc(x.reshape(len(x), -1)))
        return self.loc(x), self.cls(x)


def test_output_is_the_notebooks_with_the_same_weights(composed):
    model = instantiate(composed("model/box_coder=xywh", "model.num_classes=21").model)
    reference = NotebookModel(21)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            theirs.copy_(mine)
    images = torch.rand(8, 3, 100, 100)
    preds, (loc, logits) = model(images), reference(images)
    assert (preds.loc.shape, preds.logits.shape) == ((8, 4), (8, 21))
    torch.testing.assert_close(preds.loc, loc)
    torch.testing.assert_close(preds.logits, logits)
