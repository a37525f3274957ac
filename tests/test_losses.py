import math

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from onebox.losses import (
    ClassLoss,
    DynamicWeightAverage,
    FixedWeighting,
    LocLoss,
    UncertaintyWeighting,
    WeightedLoss,
    balanced_cross_entropy,
)
from onebox.model.localizer import Prediction, Target
from onebox.module import RunningResults


def make(loc_weight: float, cls_weight: float, loc=None, weighting=None, training=True):
    loc_out = torch.tensor([[0.1, 0.2, 0.6, 0.8], [0.0, 0.0, 0.5, 0.5]], requires_grad=True)
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    true = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.0, 0.1, 0.5, 0.5]])
    loss = WeightedLoss(
        loc=loc or LocLoss(criterion=torch.nn.L1Loss(), space="codes"),
        cls=ClassLoss(torch.nn.CrossEntropyLoss()),
        weights={"loc": loc_weight, "cls": cls_weight},
        weighting=weighting or FixedWeighting(),
    ).train(training)
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
    giou = LocLoss(criterion=lambda a, b: generalized_box_iou_loss(a, b, reduction="mean"), space="boxes")
    losses, loc_out, _ = make(1.0, 1.0, giou)
    # First pair: intersection .4*.4, union .5*.6 + .4*.4 - .16 = .30, the enclosing box is the first one: 1 - .16/.30.
    # Second pair: intersection .5*.4, union .25, the enclosing box is the first one: 1 - .20/.25.
    assert losses.raw["loc"].item() == pytest.approx(((1 - 0.16 / 0.30) + (1 - 0.8)) / 2, abs=1e-5)


def test_a_sum_of_losses_weighs_its_terms(composed):
    sum_loss = instantiate(composed("loss/loc=l1_giou").loss.loc)
    losses, *_ = make(1.0, 1.0, sum_loss)
    l1, giou = (0.1 + 0.2 + 0.1) / 8, ((1 - 0.16 / 0.30) + (1 - 0.8)) / 2
    assert losses.raw["loc"].item() == pytest.approx(l1 + 0.2 * giou, abs=1e-5)


def test_a_sum_of_losses_is_put_together_on_the_command_line(composed):
    added = ["+loss/loc@loss.loc.terms.ciou=ciou", "+loss.loc.shares.ciou=0.5"]
    taken_out = ["~loss.loc.terms.giou", "~loss.loc.shares.giou"]
    sum_loss = instantiate(composed("loss/loc=l1_giou", *added, *taken_out).loss.loc)
    assert set(sum_loss.terms) == {"l1", "ciou"}
    assert sum_loss.shares == {"l1": 1.0, "ciou": 0.5}


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


@pytest.mark.parametrize("name", ["l1", "smooth_l1", "mse"])
def test_regression_losses_are_taken_on_codes_or_on_boxes(composed, name):
    codes, boxes, true = torch.full((2, 4), 0.3), torch.full((2, 4), 0.5), torch.full((2, 4), 0.1)
    values = {}
    for space in ("codes", "boxes"):
        term = instantiate(composed(f"loss/loc={name}", f"loss.loc.space={space}").loss.loc)
        values[space] = term(Prediction(codes, boxes, codes), Target(true, true, torch.tensor([0, 1]))).item()
    expected = {"l1": (0.2, 0.4), "mse": (0.04, 0.16), "smooth_l1": (0.15, 0.35)}[name]
    assert (values["codes"], values["boxes"]) == pytest.approx(expected)
    with pytest.raises(InstantiationException, match="space must be codes or boxes, not pixels"):
        instantiate(composed(f"loss/loc={name}", "loss.loc.space=pixels").loss.loc)


def test_uncertainty_weighting_is_equation_10_and_learns_the_logarithm_of_the_loss():
    weighting = UncertaintyWeighting(initial_log_variances={"loc": 0.4, "cls": -0.6})
    losses, loc_out, _ = make(1.0, 1.0, weighting=weighting)
    loc, cls = losses.raw["loc"].item(), losses.raw["cls"].item()
    expected = math.exp(-0.4) / 2 * loc + math.exp(0.6) * cls + (0.4 - 0.6) / 2
    assert losses.total.item() == pytest.approx(expected)
    assert losses.weighted["cls"].item() == pytest.approx(math.exp(0.6) * cls)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(1000):
        optimizer.zero_grad()
        losses, *_ = make(1.0, 1.0, weighting=weighting)
        losses.total.backward()
        optimizer.step()
    # Where the derivative is 0: exp(-s) L = 1 for the box, 2 exp(-s) L = 1 for the class.
    learned = {name: value.item() for name, value in weighting.log_variances.items()}
    assert learned == pytest.approx({"loc": math.log(loc), "cls": math.log(2 * cls)}, abs=1e-3)


def test_uncertainty_weighting_leaves_a_term_of_weight_zero_alone():
    weighting = UncertaintyWeighting(initial_log_variances={"loc": 0.0, "cls": 0.0})
    losses, *_ = make(0.0, 1.0, weighting=weighting)
    losses.total.backward()
    assert weighting.log_variances["loc"].grad is None
    assert losses.weighted["loc"] == 0


def test_dynamic_weight_average_is_equation_7():
    weighting = DynamicWeightAverage(temperature=2.0)
    seen = []
    for loc, cls in [(1.0, 4.0), (0.5, 3.6), (0.4, 1.8)]:
        losses, *_ = make(10.0, 1.0, weighting=weighting)
        seen.append([losses.weighted[name] / losses.raw[name] for name in ("loc", "cls")])
        weighting.end_epoch({"loc": torch.tensor(loc), "cls": torch.tensor(cls)})
    loc, cls = math.exp(0.5 / 2), math.exp(0.9 / 2)
    assert seen[0] == seen[1] == pytest.approx([10.0, 1.0])
    assert seen[2] == pytest.approx([10 * 2 * loc / (loc + cls), 2 * cls / (loc + cls)])
    loc, cls = math.exp(0.8 / 2), math.exp(0.5 / 2)
    assert weighting.factors.tolist() == pytest.approx([2 * loc / (loc + cls), 2 * cls / (loc + cls)])


def test_evaluation_has_the_configured_weights():
    weighting = UncertaintyWeighting(initial_log_variances={"loc": 1.0, "cls": 1.0})
    losses, *_ = make(10.0, 1.0, weighting=weighting, training=False)
    assert losses.total.item() == pytest.approx(10 * losses.raw["loc"].item() + losses.raw["cls"].item())


def test_rare_classes_count_by_their_effective_number():
    def weights(beta):
        return balanced_cross_entropy(class_counts=[0, 10, 40], beta=beta, label_smoothing=0.0).weight.tolist()

    assert weights(0) == [0, 1, 1]
    assert weights(1) == pytest.approx([0, 1.6, 0.4])
    ratio = (1 - 0.9**40) / (1 - 0.9**10)
    assert weights(0.9) == pytest.approx([0, 2 * ratio / (1 + ratio), 2 / (1 + ratio)])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_weighted_loss_of_an_epoch_is_that_of_all_images_whatever_the_batch_size(batch_size):
    loss = WeightedLoss(
        loc=LocLoss(criterion=nn.L1Loss(), space="boxes"),
        cls=ClassLoss(nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 5.0]), label_smoothing=0.1)),
        weights={"loc": 2.0, "cls": 1.0},
        weighting=FixedWeighting(),
    ).eval()
    generator = torch.Generator().manual_seed(0)
    boxes, logits, labels = (
        torch.rand(8, 4, generator=generator),
        torch.randn(8, 3, generator=generator),
        torch.arange(8) % 3,
    )
    results = RunningResults(["a", "b", "c"])
    for rows in torch.arange(8).split(batch_size):
        preds, targets = (
            Prediction(boxes[rows], boxes[rows], logits[rows]),
            Target(1 - boxes[rows], 1 - boxes[rows], labels[rows]),
        )
        results.add([loss(preds, targets).tags()], [preds], [targets], loss.counts(targets))
    whole = loss(Prediction(boxes, boxes, logits), Target(1 - boxes, 1 - boxes, labels))
    found, _ = results.pop()
    assert found["loss_cls"].item() == pytest.approx(whole.raw["cls"].item(), rel=1e-5)
    assert found["loss"].item() == pytest.approx(whole.total.item(), rel=1e-5)
    assert set(found) == set(whole.tags())
