import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from onebox.errors import BadInput
from onebox.model.torchvision_net import TorchvisionNet


@pytest.mark.parametrize(
    "name, channels, side",
    [  # at 96 px; one of each way in which torchvision writes a network
        ("resnet18", 512, 3),
        ("mobilenet_v3_small", 576, 3),
        ("convnext_tiny", 768, 3),
        ("densenet121", 1024, 3),
        ("alexnet", 256, 6),
        ("regnet_y_400mf", 440, 3),
        ("shufflenet_v2_x0_5", 1024, 3),
        ("swin_t", 768, 3),
    ],
)
def test_features_are_the_last_map_and_its_mean(name, channels, side):
    net = TorchvisionNet(name=name, image_size=96, weights=None)
    features = net(torch.rand(2, 3, 96, 96))
    shape = net.feature_shape
    assert (shape.channels, shape.height, shape.width, shape.pooled) == (channels, side, side, channels)
    assert features.maps.shape == (2, channels, side, side)
    torch.testing.assert_close(features.pooled, features.maps.mean((2, 3)))


def test_resnet_is_torchvisions_without_its_classifier(composed):
    from torchvision.models import resnet18

    cfg = composed("model/backbone=resnet18", "model.num_classes=5", "image_size=64").model
    model = instantiate(cfg)
    reference = resnet18()
    wanted = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    model.backbone.net.load_state_dict(wanted)
    reference.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    for is_training in (True, False):
        model.train(is_training), reference.train(is_training)
        torch.testing.assert_close(model.backbone(images).pooled, reference(images), atol=1e-3, rtol=1e-3)
    assert model(images).boxes.shape == (2, 4)


@pytest.mark.parametrize("name, near", [("resnet81", "resnet18"), ("vit_b_16", "did you mean"), (18, "resnet18")])
def test_an_unknown_name_is_told_what_is_near(name, near):
    with pytest.raises(BadInput, match=f"model.backbone.name={name} .*{near}"):
        TorchvisionNet(name=name, image_size=96, weights=None)


def test_a_size_that_does_not_fit_is_one_line():
    with pytest.raises(BadInput, match="image_size=20 does not fit alexnet") as caught:
        TorchvisionNet(name="alexnet", image_size=20, weights=None)
    assert "\n" not in str(caught.value)


def test_unknown_weights_are_one_line(composed):
    with pytest.raises(InstantiationException) as caught:
        instantiate(composed("model/backbone=resnet18", "model.backbone.weights=IMAGENET", "model.num_classes=5").model)
    assert isinstance(caught.value.__cause__, BadInput)
    assert "model.backbone.weights=IMAGENET" in str(caught.value.__cause__)
