import math

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

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

TRUE = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.0, 0.1, 0.5, 0.5]])
L1 = (0.1 + 0.2 + 0.1) / 8  # of `make`
# First pair: intersection .4*.4, union .5*.6 + .4*.4 - .16 = .30, the enclosing box is the first one: 1 - .16/.30.
# Second pair: intersection .5*.4, union .25, the enclosing box is the first one: 1 - .20/.25.
GIOU = ((1 - 0.16 / 0.30) + (1 - 0.20 / 0.25)) / 2


def make(loc_weight: float, cls_weight: float, loc=None, weighting=None, training=True):
    """The sum and the logged losses, and the tensors that they are of."""
    loc_out = torch.tensor([[0.1, 0.2, 0.6, 0.8], [0.0, 0.0, 0.5, 0.5]], requires_grad=True)
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    loss = WeightedLoss(
        loc=loc or LocLoss(criterion=nn.L1Loss(), space="codes"),
        cls=ClassLoss(nn.CrossEntropyLoss()),
        weights={"loc": loc_weight, "cls": cls_weight},
        weighting=weighting or FixedWeighting(),
    ).train(training)
    return *loss(Prediction(loc_out, loc_out, logits), Target(TRUE, TRUE, torch.tensor([0, 2]))), loc_out, logits


def test_total_is_the_weighted_sum_of_the_raw_terms():
    total, losses, *_ = make(10.0, 0.5)
    assert losses["loss_loc"] == pytest.approx(L1)
    assert total.item() == losses["loss"] == pytest.approx(10 * L1 + 0.5 * losses["loss_cls"].item())
    assert losses["loss_loc_weighted"].item() == pytest.approx(10 * L1)
    assert not any(value.requires_grad for value in losses.values())  # the log keeps no graph alive


@pytest.mark.parametrize(("weights", "trained"), [((0.0, 1.0), (False, True)), ((1.0, 0.0), (True, False))])
def test_weight_zero_gives_no_gradient_but_still_a_value(weights, trained):
    total, losses, loc_out, logits = make(*weights)
    total.backward()
    assert (loc_out.grad is not None, logits.grad is not None) == trained
    assert losses["loss_loc"] > 0 and losses["loss_cls"] > 0


def test_a_sum_of_losses_weighs_its_terms_and_is_put_together_on_the_command_line(composed):
    _, losses, *_ = make(1.0, 1.0, instantiate(composed("loss/loc=l1_giou").loss.loc))
    assert losses["loss_loc"].item() == pytest.approx(L1 + 0.2 * GIOU, abs=1e-5)
    added = ["+loss/loc@loss.loc.terms.ciou=ciou", "+loss.loc.shares.ciou=0.5"]
    taken_out = ["~loss.loc.terms.giou", "~loss.loc.shares.giou"]
    sum_loss = instantiate(composed("loss/loc=l1_giou", *added, *taken_out).loss.loc)
    assert set(sum_loss.terms) == {"l1", "ciou"}
    assert sum_loss.shares == {"l1": 1.0, "ciou": 0.5}
    with pytest.raises(InstantiationException, match="one share for each of its terms"):
        instantiate(composed("loss/loc=l1_giou", "+loss.loc.shares.l2=1").loss.loc)


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
def test_box_losses_fall_to_nothing_at_the_true_box(composed, name):
    term = instantiate(composed(f"loss/loc={name}").loss.loc)
    target = Target(TRUE, TRUE, torch.tensor([0, 1]))
    assert term(Prediction(TRUE, TRUE, TRUE), target).item() == pytest.approx(0, abs=1e-5)
    assert term(Prediction(TRUE, TRUE + 0.3, TRUE), target).item() > 0.5


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
    total, losses, *_ = make(1.0, 1.0, weighting=weighting)
    loc, cls = losses["loss_loc"].item(), losses["loss_cls"].item()
    expected = math.exp(-0.4) / 2 * loc + math.exp(0.6) * cls + (0.4 - 0.6) / 2
    assert total.item() == pytest.approx(expected)
    assert losses["loss_cls_weighted"].item() == pytest.approx(math.exp(0.6) * cls)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(1000):
        optimizer.zero_grad()
        make(1.0, 1.0, weighting=weighting)[0].backward()
        optimizer.step()
    # Where the derivative is 0: exp(-s) L = 1 for the box, 2 exp(-s) L = 1 for the class.
    learned = {name: value.item() for name, value in weighting.log_variances.items()}
    assert learned == pytest.approx({"loc": math.log(loc), "cls": math.log(2 * cls)}, abs=1e-3)
    evaluated, *_ = make(10.0, 1.0, weighting=weighting, training=False)  # with the configured weights
    assert evaluated.item() == pytest.approx(10 * loc + cls)


def test_uncertainty_weighting_leaves_a_term_of_weight_zero_alone():
    weighting = UncertaintyWeighting(initial_log_variances={"loc": 0.0, "cls": 0.0})
    total, losses, *_ = make(0.0, 1.0, weighting=weighting)
    total.backward()
    assert weighting.log_variances["loc"].grad is None
    assert losses["loss_loc_weighted"] == 0


def test_dynamic_weight_average_is_equation_7():
    weighting = DynamicWeightAverage(temperature=2.0)
    seen = []
    for loc, cls in [(1.0, 4.0), (0.5, 3.6), (0.4, 1.8)]:
        _, losses, *_ = make(10.0, 1.0, weighting=weighting)
        seen.append([losses[f"loss_{name}_weighted"] / losses[f"loss_{name}"] for name in ("loc", "cls")])
        weighting.end_epoch({"loc": torch.tensor(loc), "cls": torch.tensor(cls)})
    loc, cls = math.exp(0.5 / 2), math.exp(0.9 / 2)
    assert seen[0] == seen[1] == pytest.approx([10.0, 1.0])
    assert seen[2] == pytest.approx([10 * 2 * loc / (loc + cls), 2 * cls / (loc + cls)])


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
    draw = torch.Generator().manual_seed(0)
    boxes, logits, labels = torch.rand(8, 4, generator=draw), torch.randn(8, 3, generator=draw), torch.arange(8) % 3
    results = RunningResults(["a", "b", "c"])
    for rows in torch.arange(8).split(batch_size):
        preds = Prediction(boxes[rows], boxes[rows], logits[rows])
        targets = Target(1 - boxes[rows], 1 - boxes[rows], labels[rows])
        results.add([loss(preds, targets)[1]], [preds], [targets], loss.counts(targets))
    _, whole = loss(Prediction(boxes, boxes, logits), Target(1 - boxes, 1 - boxes, labels))
    means, _ = results.pop()
    assert {tag: value.item() for tag, value in means.items()} == pytest.approx(
        {tag: value.item() for tag, value in whole.items()}, rel=1e-5
    )
