"""A small residual network, for training from scratch in minutes on a CPU."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation

from onebox.errors import check, is_integer
from onebox.model.backbone import Backbone, InputRecord, StagedNet


def small_cnn(*, image_size: int, widths: Sequence[int], levels: Sequence[int], input: InputRecord) -> Backbone:
    """A convolution of stride 2, then one residual block of stride 2 for each further width (arXiv:1512.03385).

    Args:
        image_size: side of the square input, px.
        widths: channels of the first convolution and of each block.
        levels: strides of the maps to give; of four widths 2, 4, 8 and 16 exist.
        input: the images that it is made for.

    Raises:
        BadInput: a width is no number >= 1, there is no map of such a stride, or the image does not fit.
    """
    are_counts = len(widths) > 1 and all(is_integer(width, 1) for width in widths)
    check(are_counts, f"model.backbone.widths must be at least two numbers >= 1, not {widths}")
    net = nn.Sequential(OrderedDict(stem=Conv2dNormActivation(3, widths[0], stride=2)))
    for number, (c_in, c_out) in enumerate(pairwise(widths), start=1):
        net.add_module(f"block{number}", _block(c_in, c_out))
    return StagedNet(net, name="small_cnn", method="forward", image_size=image_size, levels=levels, input=input)


def _block(c_in: int, c_out: int) -> nn.Module:
    shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=2, bias=False), nn.BatchNorm2d(c_out))
    return BasicBlock(c_in, c_out, stride=2, downsample=shortcut)
