from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torchvision.ops import generalized_box_iou_loss

from onebox.build import build_data, build_module
from onebox.data.dataset import Batch
from onebox.errors import BadInput
from onebox.model.backbone import Features, FeatureShape, MapShape
from onebox.model.heads import Thin
from onebox.module import LocalizationModule

CONF = Path(__file__).parent.parent.parent / "conf/model"
SHAPE = FeatureShape(maps=(MapShape(16, 5, 7),), pooled=24)
SAME_SIZE = FeatureShape(maps=(MapShape(8, 5, 7), MapShape(12, 3, 4), MapShape(16, 3, 4)), pooled=24)
TWO_LEVELS = FeatureShape(maps=(MapShape(8, 5, 7), MapShape(16, 3, 4)), pooled=24)
HEADS = [f"{kind}={path.stem}" for kind in ("loc_head", "cls_head") for path in sorted((CONF / kind).glob("*.yaml"))]


def features(num_images: int, shape: FeatureShape = SHAPE) -> Features:
    return Features(tuple(torch.randn(num_images, *item) for item in shape.maps), torch.randn(num_images, shape.pooled))


def make(composed, choice: str, *overrides: str, shape=SHAPE, out_features: int = 4) -> torch.nn.Module:
    torch.manual_seed(0)
    group = choice.partition("=")[0]
    return instantiate(composed(f"model/{choice}", *overrides).model[group])(shape, out_features)


def built(composed, *overrides: str) -> LocalizationModule:
    cfg = composed("model.num_classes=3", *overrides)
    data = build_data(cfg)
    data.class_names = ["bird", "cat", "dog"]
    return build_module(cfg, data)


@pytest.mark.parametrize("shape", [SHAPE, TWO_LEVELS, SAME_SIZE], ids=["one", "two sizes", "same size"])
@pytest.mark.parametrize("choice", HEADS)
def test_every_head_gives_its_outputs_learns_with_all_of_it_and_can_drop(composed, choice, shape):
    num_outputs = 4 if "loc" in choice else 9
    key = "head.dropout" if "per_class" in choice else "dropout"
    overrides = [f"model.{choice.partition('=')[0]}.{key}=0.5"]
    head, seen = make(composed, choice, *overrides, shape=shape, out_features=num_outputs), features(3, shape)
    out = head(seen)
    assert out.shape == (3, num_outputs)
    assert not torch.equal(out, head(seen))
    head.eval()
    torch.testing.assert_close(head(seen), head(seen))
    out.square().mean().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("choice", [choice for choice in HEADS if "loc" in choice])
def test_every_localisation_head_can_learn_where(composed, choice):
    """Boxes that are told by where the map is lit: what a head without positions can learn from pooled features too."""
    widths = {"linear": "dropout=0", "mlp": "hidden_features=64", "per_class_box": "head.channels=32"}
    width = widths.get(choice.partition("=")[2], "channels=32")
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
        loss = (coder.activate(model(Features((maps,), pooled))) - boxes).abs().mean()
        loss.backward()
        optimizer.step()
    assert loss < (0.15 if "attention" in choice else 0.06)  # one box for all images: 0.2


def test_edges_reach_the_borders_of_the_image(composed):
    head = make(composed, "loc_head=edges")
    lit = torch.full((1, 4, 5, 7), -100.0)
    lit[0, 0, :, 0] = lit[0, 1, 0, :] = lit[0, 2, :, 6] = lit[0, 3, 4, :] = 100
    head.heatmaps.register_forward_hook(lambda *_: lit)
    torch.testing.assert_close(head(features(1)), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), atol=0.1, rtol=0)


def test_edges_give_boxes_whose_sides_are_in_order(composed):
    """GIoU has no lower bound for boxes turned inside out: alone as the loss it drove edges there, to no box at all."""
    head = make(composed, "loc_head=edges", "model.loc_head.channels=32")
    seen = features(8)
    with torch.no_grad():
        boxes = head(seen)
        head.heatmaps.weight.copy_(head.heatmaps.weight[[2, 3, 0, 1]])  # left for right and top for bottom
        head.heatmaps.bias.copy_(head.heatmaps.bias[[2, 3, 0, 1]])
        torch.testing.assert_close(head(seen), boxes)
    targets = torch.tensor([[0.1, 0.2, 0.6, 0.9]]).expand(8, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        boxes = head(seen)
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        loss = generalized_box_iou_loss(boxes, targets, reduction="mean")
        loss.backward()
        optimizer.step()
    assert 0 <= loss < 0.2


@pytest.mark.parametrize("head", ["edges", "pyramid_edges"])
def test_edges_are_the_same_where_bins_read_them(composed, head):
    overrides = ["model.num_classes=3", f"model/loc_head={head}", "model/box_coder=bins", "model.box_coder.bins=12"]
    model = instantiate(composed(*overrides).model).eval()  # a map of 6 x 6
    features = model.backbone(torch.rand(2, 3, 100, 100))
    given = model.box_coder.decode(model.box_coder.activate(model.loc_head(features)))
    model.loc_head.gives_boxes = True
    torch.testing.assert_close(given, model.loc_head(features))


@pytest.mark.parametrize("coder", ["xywh", "cxcywh_sigmoid", "xyxy", "ltrb"])
@pytest.mark.parametrize("head", ["dense", "edges", "pyramid_edges", "cells"])
def test_heads_that_give_boxes_go_with_every_coder(composed, coder, head):
    model = instantiate(composed(f"model/loc_head={head}", f"model/box_coder={coder}", "model.num_classes=3").model)
    images = torch.randint(0, 256, (2, 3, 100, 100), dtype=torch.uint8)
    model.eval()
    preds, given = model(images), model.loc_head(model.backbone(images / 255))
    ordered = torch.cat((given[:, :2], given[:, 2:].maximum(given[:, :2])), dim=1)
    torch.testing.assert_close(preds.boxes[given[:, 0] < given[:, 2]], ordered[given[:, 0] < given[:, 2]])
    torch.testing.assert_close(preds.loc, model.box_coder.encode(given))


@pytest.mark.parametrize(
    ("box", "seen"),
    [
        ([0.0, 0.0, 1.0, 1.0], (slice(0, 5), slice(0, 7))),
        ([1 / 7, 0.4, 3 / 7, 0.6], (slice(2, 3), slice(1, 3))),  # a row and two columns
        ([-0.5, -0.2, 1 / 7, 0.2], (slice(0, 1), slice(0, 1))),  # beyond the image
        ([1.2, 1.1, 1.4, 1.3], (slice(4, 5), slice(6, 7))),
        ([3 / 7, 0.4, 3 / 7, 0.4], (slice(2, 3), slice(3, 4))),  # empty
    ],
)
def test_the_class_is_read_from_the_mean_within_the_box(composed, box, seen):
    head, given = make(composed, "cls_head=box_pool", out_features=9), features(2)
    inside = given.maps[0][:, :, *seen].mean((2, 3))
    wanted = head.linear(torch.cat((given.pooled, inside), dim=1))
    torch.testing.assert_close(head(given, torch.tensor([box, box])), wanted)


def test_a_cell_counts_by_its_share_inside_the_box(composed):
    head, given = make(composed, "cls_head=box_pool", out_features=9), features(1)
    fine = torch.nn.functional.interpolate(given.maps[0], scale_factor=4)[:, :, 5:15, 7:22].mean((2, 3))
    wanted = head.linear(torch.cat((given.pooled, fine), dim=1))
    torch.testing.assert_close(head(given, torch.tensor([[7 / 28, 5 / 20, 22 / 28, 15 / 20]])), wanted)


@pytest.mark.parametrize("loc_head", ["linear", "edges"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_class_is_read_within_the_predicted_box_which_it_does_not_move(composed, loc_head, mode):
    overrides = ["model/cls_head=box_pool", f"model/loc_head={loc_head}", "model.num_classes=3"]
    model = getattr(instantiate(composed(*overrides).model), mode)()
    images = torch.rand(4, 3, 100, 100)
    preds = model(images)
    wanted = model.cls_head(model.backbone(model.normalise(images)), preds.boxes)
    torch.testing.assert_close(preds.logits, wanted)
    assert not torch.allclose(wanted, model.cls_head(model.backbone(model.normalise(images))))
    preds.logits.sum().backward()
    assert all(parameter.grad is None for parameter in model.loc_head.parameters())


def test_maps_are_fused_as_by_one_convolution_on_all_of_them():
    thin = Thin(TWO_LEVELS, 6, bias=True)
    fine, coarse = features(2, TWO_LEVELS).maps
    enlarged = torch.nn.functional.interpolate(coarse, size=(5, 7), mode="bilinear")
    weight = torch.cat([conv.weight for conv in thin.convs], dim=1)
    wanted = torch.nn.functional.conv2d(torch.cat((fine, enlarged), dim=1), weight, thin.convs[0].bias)
    torch.testing.assert_close(thin((fine, coarse)), wanted)


def test_a_box_for_each_class_trains_that_of_the_label_and_shows_that_of_the_likeliest_class(composed):
    module = built(composed, "model/loc_head=per_class_box", "image_size=32")
    model, images, labels = module.localizer, torch.rand(2, 3, 32, 32), torch.tensor([2, 0])
    boxes = model.loc_head(model.backbone(model.normalise(images))).reshape(2, 3, 4)
    batch = Batch(images, torch.tensor([[0.1, 0.1, 0.5, 0.5]] * 2), labels, ids=("a", "b"))
    preds = module._predict(batch)[0]
    torch.testing.assert_close(preds.loc, model.box_coder.activate(boxes[[0, 1], labels]))
    preds.loc.sum().backward()
    gradient = model.loc_head.layers[-1].bias.grad.reshape(3, 4)
    assert gradient.ne(0).all(1).tolist() == [True, False, True]
    preds = module.eval()._predict(batch)[0]  # validation does not know the label
    torch.testing.assert_close(preds.loc, model.box_coder.activate(boxes[[0, 1], preds.logits.argmax(1)]))


ATTENTION = "model/loc_head=attention_pool"
PER_CLASS = "model/loc_head=per_class_box"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model/loc_head=edges", "image_size=20"], "EdgesHead .* at image_size=20 is 1x1; set a larger image_size$"),
        (["model/loc_head=dense", "image_size=31"], "DenseHead .* 1x1"),
        ([ATTENTION, "image_size=20"], "AttentionPoolHead .* 1x1"),
        ([PER_CLASS, "image_size=20"], "SpatialHead"),
        (
            ["model/loc_head=spatial", "model/backbone=resnet18", "image_size=32"],
            "is 1x1; set a larger image_size, or name a finer level in model.backbone.levels$",
        ),
        ([PER_CLASS, "model/loc_head@model.loc_head.head=edges"], "EdgesHead predicts one box"),
        ([PER_CLASS, "model/cls_head=box_pool"], "BoxPoolHead reads the predicted box"),
        (["model/loc_head=dense", "model/box_coder=bins"], "DenseHead gives boxes .* BinsCoder"),
        ([PER_CLASS, "model/loc_head@model.loc_head.head=cells"], "CellsHead predicts one box"),
        (["model/loc_head=cells", "model/box_coder=bins"], "CellsHead gives boxes .* BinsCoder"),
        (["model/loc_head=cells", "model.loc_head.window=0"], "window must be a number >= 0.001, not 0"),
        (["model/loc_head=edges", "model/box_coder=cells"], "EdgesHead gives one box.* set model/loc_head=cells"),
        ([PER_CLASS, "model.second_look=2"], "second_look: each look could take the box of another class"),
        (["model.second_look=0.5"], "second_look must be a number >= 1, or null, not 0.5"),
        (["model/box_coder=bins", "model.box_coder.bins=1"], "bins must be a number >= 2, not 1"),
        ([ATTENTION, "model.loc_head.channels=10"], "multiple of num_heads"),
        (["model/cls_head=mlp", "model.cls_head.hidden_features=0"], "hidden_features must be a number >= 1, not 0"),
    ],
)
def test_what_does_not_fit_is_one_line(composed, overrides, message):
    """Among it a head that looks for the box on a map without positions."""
    with pytest.raises(Exception, match=message) as error:
        built(composed, *overrides)
    assert isinstance(error.value, BadInput) or isinstance(error.value.__cause__, BadInput)


@pytest.mark.parametrize("choice", ["loc_head=mlp", "cls_head=attention_pool"])
def test_what_needs_no_positions_goes_with_a_map_without_any(composed, choice):
    module = built(composed, f"model/{choice}", "image_size=20")
    assert module.localizer.backbone.feature_shape.maps[0][1:] == (1, 1)
    assert module.localizer(torch.zeros(2, 3, 20, 20)).boxes.shape == (2, 4)
