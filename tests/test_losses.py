import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
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


def test_a_sum_of_losses_weighs_its_terms(composed):
    sum_loss = instantiate(composed("loss/loc=l1_giou").loss.loc)
    losses, *_ = make(1.0, 1.0, sum_loss)
    l1, giou = (0.1 + 0.2 + 0.1) / 8, ((1 - 0.16 / 0.30) + (1 - 0.8)) / 2
    assert losses.raw["loc"].item() == pytest.approx(l1 + 0.2 * giou, abs=1e-5)


def test_a_sum_of_losses_refuses_shares_without_terms(composed):
    with pytest.raises(InstantiationException, match="one share for each of its terms"):
        instantiate(composed("loss/loc=l1_giou", "+loss.loc.shares.l2=1").loss.loc)


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
def test_box_losses_fall_to_nothing_at_the_true_box(composed, name):
    term = instantiate(composed(f"loss/loc={name}").loss.loc)
    true = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.0, 0.1, 0.5, 0.5]])
    target = Target(true, true, torch.tensor([0, 1]))
    assert term(Prediction(true, true, true), target).item() == pytest.approx(0, abs=1e-5)
    assert term(Prediction(true, true + 0.3, true), target).item() > 0.5
