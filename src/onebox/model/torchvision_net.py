"""Any convolutional classification network of torchvision, without its classifier."""

import difflib

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from onebox.errors import BadInput, is_integer, refuse
from onebox.model.features import Features, FeatureShape

# vit_* has no map with positions; the other two warn when made and have outputs in training that nothing here reads.
UNFIT = ["vit_*", "googlenet", "inception_v3"]
USUAL_SIZE = 224  # px


class TorchvisionNet(nn.Module):
    """The network up to its last map; `pooled` is the mean over that map's positions.

    Parameters keep torchvision's names.

    Args:
        name: any of `torchvision.models.list_models(torchvision.models)`, such as resnet18.
        image_size: side of the square input, px.
        weights: a name that torchvision knows for this network, such as DEFAULT, which it downloads; None draws them.

    Raises:
        BadInput: there is no such network, it has no such weights, or the image is too small for it.
    """

    def __init__(self, *, name: str, image_size: int, weights: str | None) -> None:
        super().__init__()
        known = models.list_models(models, exclude=UNFIT)
        near = difflib.get_close_matches(str(name), known, n=3) or ["resnet18", "mobilenet_v3_small"]
        refuse(
            {
                f"model.backbone.name={name} is no network of torchvision that fits; did you mean "
                f"{' or '.join(near)}?": name not in known,
                f"image_size must be a number >= 1, not {image_size}": not is_integer(image_size, 1),
            }
        )
        try:
            net = models.get_model(name, weights=weights)
        except (ValueError, KeyError, OSError) as error:
            raise BadInput(f"model.backbone.weights={weights}: {error}; null starts from random weights") from error
        self.net = create_feature_extractor(net, {_last_map(net): "maps"}, suppress_diff_warning=True)
        try:
            _, channels, height, width = _run(self.net, image_size)["maps"].shape
        except RuntimeError as error:
            raise BadInput(f"image_size={image_size} does not fit {name}: {error}; {USUAL_SIZE} does") from error
        self.feature_shape = FeatureShape(channels=channels, height=height, width=width, pooled=channels)

    def forward(self, images: Tensor) -> Features:
        """[B, 3, image_size, image_size] float32, normalised, to features."""
        maps = self.net(images)["maps"]
        return Features(maps, maps.mean((2, 3)))


def _last_map(net: nn.Module) -> str:
    """The name of the last node of the network's graph that gives a map with positions."""
    nodes, _ = get_graph_node_names(net, suppress_diff_warning=True)
    outputs = _run(create_feature_extractor(net, nodes, suppress_diff_warning=True), USUAL_SIZE)
    found = [node for node in nodes if isinstance(outputs[node], Tensor) and _is_map(outputs[node].shape)]
    return found[-1]


def _is_map(shape: torch.Size) -> bool:
    return len(shape) == 4 and min(shape[2:]) > 1


def _run(net: nn.Module, image_size: int) -> dict[str, Tensor]:
    """One image through the network, which is left in training mode."""
    net.eval()
    with torch.no_grad():
        outputs = net(torch.zeros(1, 3, image_size, image_size))
    net.train()
    return outputs
