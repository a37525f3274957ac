"""Any convolutional classification network of torchvision, without its classifier."""

import difflib
from collections.abc import Sequence

import torch
from torchvision import models

from onebox.errors import check
from onebox.model.features import InputRecord
from onebox.model.staged_net import StagedNet
from onebox.model.weights import check_record, fetching

# vit_* has no map with positions; the other two warn when made and have outputs in training that nothing here reads.
UNFIT = ["vit_*", "googlenet", "inception_v3"]


def torchvision_net(
    *, name: str, image_size: int, levels: Sequence[int], pretrained: bool | str, input: InputRecord
) -> StagedNet:
    """Make the network.

    Args:
        name: any of `torchvision.models.list_models(torchvision.models)`, such as resnet18.
        image_size: side of the square input, px.
        levels: strides of the maps to give, see `StagedNet`.
        pretrained: true for ImageNet's weights, torchvision's default ones, which it downloads; a file of weights; or
            false to draw them.
        input: the images that the weights were trained on.

    Raises:
        BadInput: there is no such network, its weights cannot be had or were trained on other images, or `StagedNet`.
    """
    known = models.list_models(models, exclude=UNFIT)
    near = difflib.get_close_matches(str(name), known, n=3) or ["resnet18", "mobilenet_v3_small"]
    check(
        name in known,
        f"model.backbone.name={name} is no network of torchvision that fits; did you mean {' or '.join(near)}?",
    )
    weights = models.get_model_weights(name).DEFAULT if pretrained is True else None
    if weights is None:
        net = models.get_model(name, weights=None)
    else:
        check_record(name, input, record(weights))
        with fetching(weights.url, f"{torch.hub.get_dir()}/checkpoints"):
            net = models.get_model(name, weights=weights)
    return StagedNet(
        net, name=name, method="forward", image_size=image_size, levels=levels, pretrained=pretrained, input=input
    )


def record(weights: models.WeightsEnum) -> InputRecord:
    """What torchvision says of the images that weights were trained on."""
    preset = weights.transforms()
    return InputRecord(
        size=preset.crop_size[0],
        mean=preset.mean,
        std=preset.std,
        interpolation=preset.interpolation.value,
    )
