import copy

import pytest
import torch
from torch import nn

from onebox.model.features import InputRecord
from onebox.model.folding import fold_norms
from onebox.model.timm_net import timm_net
from onebox.model.torchvision_net import torchvision_net

RECORD = InputRecord(size=224, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic")


def with_statistics(net):
    """As after some training: norms do something."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return net.eval()


@pytest.mark.parametrize(
    "make, name, norms_that_stay",
    [  # one of each way in which convolutions and norms follow each other
        (torchvision_net, "resnet18", 0),
        (torchvision_net, "mobilenet_v3_small", 0),
        (torchvision_net, "densenet121", 62),  # those before the convolutions, and after a concatenation
        (torchvision_net, "convnext_tiny", 0),  # has none
        (timm_net, "tf_efficientnet_lite0", 0),
        (timm_net, "resnetv2_18d", 9),  # those after a sum,
    ],
)
@torch.no_grad()
def test_a_folded_network_gives_the_same(make, name, norms_that_stay):
    net = with_statistics(make(name=name, image_size=64, levels=[32], pretrained=False, input=RECORD))
    folded = copy.deepcopy(net)
    images = torch.rand(2, 3, 64, 64)
    fold_norms(folded, lambda: folded(images).maps)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == norms_that_stay
    torch.testing.assert_close(folded(images).maps, net(images).maps, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_convolution_that_is_called_twice_keeps_its_norms():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.second(self.conv(self.first(self.conv(x)))) + self.other(x)

    net = with_statistics(Shared())
    folded = copy.deepcopy(net)
    x = torch.rand(2, 3, 4, 4)
    fold_norms(folded, lambda: [folded(x)])
    assert isinstance(folded.first, nn.BatchNorm2d)
    torch.testing.assert_close(folded(x), net(x))


@torch.no_grad()
def test_a_convolution_that_a_shortcut_reads_too_keeps_its_norm():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(x)
            return x + self.norm(x)

    net = with_statistics(Shortcut())
    folded = copy.deepcopy(net)
    x = torch.rand(2, 3, 4, 4)
    fold_norms(folded, lambda: [folded(x)])
    assert isinstance(folded.norm, nn.BatchNorm2d)
    torch.testing.assert_close(folded(x), net(x))
