import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from onebox.losses import BoxLoss, ClassLoss, CodeLoss, WeightedLoss
from onebox.model.localizer import Prediction, Target


def make(loc_weight: float, cls_weight: float, loc=None):
    loc_out = torch.tensor([[0.1, 0.2, 0.6, 0.8], [0.0, 0.0, 0.5, 0.5]], requires_grad=True)
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    true = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.0, 0.1, 0.5, 0.5]])
    loss = WeightedLoss(
        loc=loc or CodeLoss(torch.nn.L1Loss()),
        cls=ClassLoss(torch.nn.CrossEntropyLoss()),
        weights={"loc": loc_weight, "cls": cls_weight},
    )
    losses = loss(Prediction(loc_out, loc_out, logits), Target(true, true, torch.tensor([0, 2])))
    return losses, loc_out, logits


def test_total_is_the_weighted_sum_of_the_raw_terms():
    losses, *_ = make(10.0, 0.5)
    assert losses.raw["loc"] == pytest.approx((0.1 + 0.2 + 0.1) / 8)
    assert losses.total.item() == pytest.approx(10 * losses.raw["loc"].item() + 0.5 * losses.raw["cls"].item())
    assert losses.weighted["loc"].item() == pytest.approx(10 * losses.raw["loc"].item())


@pytest.mark.parametrize(("weights", "trained"), [((0.0, 1.0), (False, True)), ((1.0, 0.0), (True, False))])
def test_weight_zero_gives_no_gradient_but_still_a_value(weights, trained):
    losses, loc_out, logits = make(*weights)
    losses.total.backward()
    assert (loc_out.grad is not None, logits.grad is not None) == trained
    assert all(value > 0 for value in losses.raw.values())


def test_no_term_keeps_the_graph_alive_in_the_log():
    losses, *_ = make(1.0, 1.0)
    assert not any(value.requires_grad for value in [*losses.raw.values(), *losses.weighted.values()])


def test_box_loss_is_taken_on_boxes():
    losses, loc_out, _ = make(1.0, 1.0, BoxLoss(lambda a, b: generalized_box_iou_loss(a, b, reduction="mean")))
    # First pair: intersection .4*.4, union .5*.6 + .4*.4 - .16 = .30, the enclosing box is the first one: 1 - .16/.30.
    # Second pair: intersection .5*.4, union .25, the enclosing box is the first one: 1 - .20/.25.
    assert losses.raw["loc"].item() == pytest.approx(((1 - 0.16 / 0.30) + (1 - 0.8)) / 2, abs=1e-5)
