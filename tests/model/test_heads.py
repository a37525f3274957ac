from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from onebox.errors import BadInput
from onebox.model.features import Features, FeatureShape

CONF = Path(__file__).parent.parent.parent / "conf/model"
SHAPE = FeatureShape(channels=16, height=5, width=7, pooled=24)
HEADS = [f"{kind}={path.stem}" for kind in ("loc_head", "cls_head") for path in sorted((CONF / kind).glob("*.yaml"))]


def features(num_images: int) -> Features:
    return Features(torch.randn(num_images, 16, 5, 7), torch.randn(num_images, 24))


def make(composed, choice: str, *overrides: str, out_features: int = 4) -> torch.nn.Module:
    torch.manual_seed(0)
    group = choice.partition("=")[0]
    return instantiate(composed(f"model/{choice}", *overrides).model[group])(SHAPE, out_features)


@pytest.mark.parametrize("choice", HEADS)
def test_every_head_gives_its_outputs_and_all_of_it_learns(composed, choice):
    head = make(composed, choice, out_features=4 if "loc" in choice else 9)
    out = head(features(3))
    assert out.shape == (3, 4 if "loc" in choice else 9)
    out.square().mean().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("choice", [choice for choice in HEADS if "loc" in choice])
def test_every_localisation_head_can_learn_where(composed, choice):
    """Boxes that are told by where the map is lit: what a head without positions can learn from pooled features too."""
    width = {"linear": "dropout=0", "mlp": "hidden_features=64"}.get(choice.partition("=")[2], "channels=32")
    model = make(composed, choice, f"model.loc_head.{width}")
    coder = instantiate(composed("model/box_coder=xyxy").model.box_coder)
    draw = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 5, (25, 2), generator=draw)
    boxes = torch.stack((cells[:, 1] / 7, cells[:, 0] / 5, (cells[:, 1] + 2) / 7, (cells[:, 0] + 1) / 5), dim=1)
    maps, pooled = torch.zeros(25, 16, 5, 7), torch.zeros(25, 24)
    rows = torch.arange(25)
    maps[rows, 0, cells[:, 0], cells[:, 1]] = 1
    maps[rows, 1, cells[:, 0], cells[:, 1] + 1] = 1
    pooled[rows, cells[:, 0]] = 1
    pooled[rows, 10 + cells[:, 1]] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = (coder.activate(model(Features(maps, pooled))) - boxes).abs().mean()
        loss.backward()
        optimizer.step()
    assert loss < (0.15 if "attention" in choice else 0.06)  # one box for all images: 0.2


def test_edges_reach_the_borders_of_the_image(composed):
    head = make(composed, "loc_head=edges")
    with torch.no_grad():
        head.heatmaps.weight.zero_()
        head.heatmaps.bias.zero_()
        lit = torch.full((1, 4, 5, 7), -100.0)
        lit[0, 0, :, 0] = lit[0, 1, 0, :] = lit[0, 2, :, 6] = lit[0, 3, 4, :] = 100
        head.heatmaps.register_forward_hook(lambda *_: lit)
        torch.testing.assert_close(head(features(1)), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), atol=0.1, rtol=0)


@pytest.mark.parametrize("coder", ["xywh", "cxcywh_sigmoid", "xyxy", "ltrb"])
@pytest.mark.parametrize("head", ["dense", "edges"])
def test_heads_that_give_boxes_go_with_every_coder(composed, coder, head):
    model = instantiate(composed(f"model/loc_head={head}", f"model/box_coder={coder}", "model.num_classes=3").model)
    images = torch.randint(0, 256, (2, 3, 100, 100), dtype=torch.uint8)
    model.eval()
    preds, given = model(images), model.loc_head(model.backbone(images / 255))
    ordered = torch.cat((given[:, :2], given[:, 2:].maximum(given[:, :2])), dim=1)
    torch.testing.assert_close(preds.boxes[given[:, 0] < given[:, 2]], ordered[given[:, 0] < given[:, 2]])
    torch.testing.assert_close(preds.loc, model.box_coder.encode(given))


def test_wrong_arguments_are_named(composed):
    with pytest.raises(Exception, match="multiple of num_heads") as error:
        make(composed, "loc_head=attention_pool", "model.loc_head.channels=10")
    assert isinstance(error.value, BadInput)
    with pytest.raises(BadInput, match="hidden_features must be a number >= 1, not 0"):
        make(composed, "cls_head=mlp", "model.cls_head.hidden_features=0")
