import pytest
import torch
from hydra.utils import instantiate
from torchvision.ops import generalized_box_iou_loss

from onebox.boxes import paired_iou
from onebox.build import build_data, build_module
from onebox.errors import BadInput
from onebox.losses import CellsLoss, LocLoss
from onebox.model.backbone import Features, FeatureShape, MapShape
from onebox.model.localizer import Prediction, Target

CELLS = ["model/loc_head=cells", "model/box_coder=cells", "loss/loc=cells"]
BOXES = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0], [0.4, 0.4, 0.41, 0.42]])


def of_cells(boxes, shares, coarse=None) -> Prediction:
    """What one image's cells give."""
    codes = torch.cat((boxes, shares[:, None], boxes if coarse is None else coarse), dim=1)[None]
    return Prediction(codes, boxes[:1], torch.zeros(1, 3))


def test_the_box_of_the_largest_share_is_meant(composed):
    coder = instantiate(composed("model/box_coder=cells").model.box_coder)
    for boxes in (torch.zeros(0, 4), BOXES):
        torch.testing.assert_close(coder.decode(coder.encode(boxes)), boxes)
    raw = torch.cat((BOXES, torch.tensor([[0.5], [2.0], [1.0]]), BOXES.flip(0)), dim=1)[None]
    codes = coder.activate(raw)
    torch.testing.assert_close(codes[0, :, 4], torch.tensor([0.5, 2.0, 1.0]).softmax(0))
    torch.testing.assert_close(coder.decode(codes), BOXES[1:2])


def test_the_loss_is_what_a_cell_drawn_by_its_share_costs():
    shares, true, coarse = torch.tensor([0.5, 0.3, 0.2], requires_grad=True), BOXES[[0, 0, 0]], BOXES.flip(0)
    costs, rough = (
        (item - true).abs().mean(1) + 0.3 * generalized_box_iou_loss(item, true) for item in (BOXES, coarse)
    )
    assert costs[0] == pytest.approx(0, abs=1e-6)
    targets = Target(BOXES[:1], BOXES[:1], torch.tensor([0]))
    loss = CellsLoss(giou=0.3, coarse=0.4)(of_cells(BOXES, shares, coarse), targets)
    torch.testing.assert_close(loss, (shares * (costs + 0.4 * rough)).sum())
    loss.backward()
    torch.testing.assert_close(shares.grad, costs)  # a coarse box is no reason for its cell


@pytest.mark.parametrize(("loc_head", "overrides"), [("cells", CELLS), ("edges", ["model/loc_head=edges"])])
def test_of_two_things_that_look_alike_one_is_chosen(composed, loc_head, overrides):
    """A head that is taught by its mean box places it between them, where neither is."""
    cfg = composed(*overrides, f"model.loc_head.{'channels=32' if loc_head == 'cells' else 'channels=64'}").model
    torch.manual_seed(0)
    coder = instantiate(cfg.box_coder)
    head = instantiate(cfg.loc_head)(FeatureShape((MapShape(4, 6, 12),), 4), coder.num_outputs)
    low, high = torch.tensor([[0.0, 1 / 3, 1 / 4, 2 / 3]]), torch.tensor([[3 / 4, 1 / 3, 1.0, 2 / 3]])
    lit = torch.zeros(1, 4, 6, 12)
    lit[:, 0, 2:4, :3] = lit[:, 0, 2:4, 9:] = 1
    seen = Features((lit.expand(16, -1, -1, -1),), torch.zeros(16, 4))
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(150):
        boxes = torch.where(torch.rand(16, 1, generator=draw) < 0.6, low, high)
        codes = coder.activate(head(seen)) if loc_head == "cells" else coder.encode(head(seen))
        preds, targets = (Prediction(codes, coder.decode(codes), codes), Target(coder.encode(boxes), boxes, boxes))
        criterion = CellsLoss(giou=0.2, coarse=0.5) if loc_head == "cells" else LocLoss(criterion=_l2, space="boxes")
        optimizer.zero_grad()
        criterion(preds, targets).backward()
        optimizer.step()
    head.eval()
    found = coder.decode(coder.activate(head(seen)) if loc_head == "cells" else coder.encode(head(seen)))[:1]
    nearest = torch.maximum(paired_iou(found, low), paired_iou(found, high)).item()
    assert nearest > 0.7 if loc_head == "cells" else nearest < 0.5


def _l2(boxes, others):
    return (boxes - others).square().mean()


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss/loc=l1"],
        ["loss/loc=giou"],  # of the one box that is meant: the scores would learn nothing
        ["loss/loc=l1_giou"],
        ["model/loc_head=edges", "model/box_coder=bins", "model.box_coder.bins=9"],  # as wide as codes of cells
    ],
)
def test_codes_of_cells_and_other_losses_refuse_each_other(composed, overrides):
    cfg = composed("model.num_classes=3", *CELLS, *overrides)
    data = build_data(cfg)
    data.class_names = ["bird", "cat", "dog"]
    with pytest.raises(BadInput, match="loss/loc=cells go together"):
        build_module(cfg, data)
