"""Loss terms, their weighted sum, and how the weights move in the course of a fit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from onebox.errors import check, is_number
from onebox.model.box_coder import BoxCoder
from onebox.model.cells import WIDTHS, CellsCoder
from onebox.model.localizer import Prediction, Target

TERMS = ("loc", "cls")
Criterion = Callable[[Tensor, Tensor], Tensor]  # (predicted, true) -> scalar


class LocLoss(nn.Module):
    """A loss between predicted and true boxes, such as `torch.nn.L1Loss` or `torchvision.ops.generalized_box_iou_loss`.

    The `criterion` compares [B, 4] tensors of the `space`: `codes` of the box coder, or `boxes` (xyxy in [0, 1]).
    """

    def __init__(self, *, criterion: Criterion, space: Literal["codes", "boxes"]) -> None:
        super().__init__()
        check(space in ("codes", "boxes"), f"loss.loc.space must be codes or boxes, not {space}")
        self.criterion = criterion
        self.space = space

    def forward(self, preds: Prediction, targets: Target) -> Tensor:
        if self.space == "codes":
            return self.criterion(preds.loc, targets.loc)
        return self.criterion(preds.boxes, targets.boxes)


class ClassLoss(nn.Module):
    """A loss between logits and labels, such as `torch.nn.CrossEntropyLoss`."""

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, preds: Prediction, targets: Target) -> Tensor:
        return self.criterion(preds.logits, targets.labels)

    def count(self, targets: Target) -> Tensor | None:
        """What the loss of a batch is a mean over, if not its images: the sum of the weights of their classes."""
        weights = getattr(self.criterion, "weight", None)
        return None if weights is None else weights[targets.labels].sum()


class BinsCrossEntropy(nn.Module):
    """Mean cross-entropy of the distributions of a `BinsCoder`, [B, 4, bins] (arXiv:2006.04388, equation 6).

    Raises:
        BadInput: they are other codes.
    """

    def forward(self, preds: Tensor, targets: Tensor) -> Tensor:
        check(
            preds.ndim == 3, "loss.loc: a cross-entropy of bins needs a box coder with bins; set model/box_coder=bins"
        )
        return -(targets * preds.clamp(min=1e-12).log()).sum(-1).mean()


class CellsLoss(nn.Module):
    """What a box costs in expectation when a cell of a `CellsCoder` is drawn by its share.

    A box costs its L1 distance and `giou` times 1 - GIoU (arXiv:1902.09630). The expectation is smallest where the
    cells with large shares have boxes that are right, so one of two objects is chosen, where the loss of a mean box
    would have it between them. Coarse boxes cost `coarse` times as much, and the shares learn nothing from that.
    """

    def __init__(self, *, giou: float, coarse: float) -> None:
        super().__init__()
        check(is_number(giou, 0), f"loss.loc.giou must be a number >= 0, not {giou}")
        check(is_number(coarse, 0), f"loss.loc.coarse must be a number >= 0, not {coarse}")
        self.giou, self.coarse = giou, coarse

    def forward(self, preds: Prediction, targets: Target) -> Tensor:
        boxes, shares, coarse = preds.loc.split(WIDTHS, dim=-1)
        shares, true = shares.squeeze(-1), targets.boxes[:, None].expand_as(boxes)
        costs = shares * self._cost(boxes, true) + self.coarse * shares.detach() * self._cost(coarse, true)
        return costs.sum(1).mean()

    def _cost(self, boxes: Tensor, true: Tensor) -> Tensor:
        """[B, N] of [B, N, 4]."""
        return (boxes - true).abs().mean(-1) + self.giou * generalized_box_iou_loss(boxes, true)


def balanced_cross_entropy(*, class_counts: Sequence[int], beta: float, label_smoothing: float) -> nn.CrossEntropyLoss:
    """Cross-entropy in which rare classes count more, by their effective number (arXiv:1901.05555, equation 2).

    A class of n images counts as (1 - beta) / (1 - beta^n), scaled so that the mean over the classes with images is 1:
    beta 0 weighs all classes alike, 1 by the inverse of their number.
    """
    check(is_number(beta, 0, 1), f"loss.cls.criterion.beta must be in [0, 1], not {beta}")
    counts = torch.tensor(list(class_counts), dtype=torch.float64)
    effective = counts if beta == 1 else (1 - beta**counts) / (1 - beta)
    weights = torch.where(counts > 0, 1 / effective, 0.0)
    weights = (weights * (counts > 0).sum() / weights.sum()).float()
    return nn.CrossEntropyLoss(weight=weights, label_smoothing=label_smoothing)


class SumLoss(nn.Module):
    """sum of share * term over several terms of one head; `shares`, > 0, have the names of the `terms`."""

    def __init__(self, *, terms: Mapping[str, nn.Module], shares: Mapping[str, float]) -> None:
        super().__init__()
        check(
            set(terms) == set(shares),
            f"a sum of losses needs one share for each of its terms {sorted(terms)}, not {sorted(shares)}",
        )
        are_positive = all(is_number(share, 0) and share > 0 for share in shares.values())
        check(are_positive, f"shares of losses must be numbers > 0, not {dict(shares)}")
        self.terms = nn.ModuleDict(terms)
        self.shares = dict(shares)

    def forward(self, preds: Prediction, targets: Target) -> Tensor:
        return torch.stack([share * self.terms[name](preds, targets) for name, share in self.shares.items()]).sum()


Factors = Mapping[str, Tensor | float]


class Weighting(nn.Module):
    """Moves the weights of the terms; this base leaves them as they are configured."""

    def forward(self, names: Sequence[str]) -> tuple[Factors, Tensor | float]:
        """What each named term is multiplied by, beside its configured weight; and what is added to the total."""
        return dict.fromkeys(names, 1.0), 0.0

    def end_epoch(self, means: Mapping[str, Tensor]) -> None:
        """Receives at the end of each epoch the mean of each term before its weight, scalars."""


class FixedWeighting(Weighting):
    """The weights stay as they are configured."""


class UncertaintyWeighting(Weighting):
    """Each term is divided by a variance that is learned (Kendall, Gal and Cipolla 2018, arXiv:1705.07115, eq. 10).

    With s = log variance the factor is exp(-s) / 2 of the box and exp(-s) of the class, and the sum of s / 2 is added.
    The configured weights multiply the terms before that: they only say where the learning begins.
    """

    def __init__(self, *, initial_log_variances: Mapping[str, float]) -> None:
        super().__init__()
        for name, value in initial_log_variances.items():
            check(is_number(value), f"loss.weighting.initial_log_variances.{name} must be a number, not {value}")
        self.log_variances = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor([float(initial_log_variances[name])])) for name in TERMS}
        )

    def forward(self, names: Sequence[str]) -> tuple[Factors, Tensor | float]:
        halves = {"loc": 0.5, "cls": 1.0}
        log_variances = {name: self.log_variances[name].squeeze() for name in names}
        factors = {name: halves[name] * (-value).exp() for name, value in log_variances.items()}
        return factors, torch.stack(list(log_variances.values())).sum() / 2


class DynamicWeightAverage(Weighting):
    """A term that falls slower than the other one counts more (Liu, Johns and Davison 2019, arXiv:1803.10704, eq. 7).

    The factors sum to 2: twice the softmax of (mean of the last epoch / mean of the one before) / temperature. In the
    first two epochs both are 1. The larger the temperature (2 in the paper), the more alike are the factors.
    """

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        is_positive = is_number(temperature, 0) and temperature > 0
        check(is_positive, f"loss.weighting.temperature must be a number > 0, not {temperature}")
        self._temperature = temperature
        self.last: Tensor
        self.factors: Tensor
        self.register_buffer("last", torch.full((len(TERMS),), torch.nan))  # means of the last epoch
        self.register_buffer("factors", torch.ones(len(TERMS)))

    def forward(self, names: Sequence[str]) -> tuple[Factors, Tensor | float]:
        return {name: self.factors[TERMS.index(name)] for name in names}, 0.0

    def end_epoch(self, means: Mapping[str, Tensor]) -> None:
        new = torch.stack([means[name] for name in TERMS]).to(self.last)
        rates = new / self.last
        if rates.isfinite().all():  # not in the first epoch, nor after a term was 0
            self.factors = len(TERMS) * (rates / self._temperature).softmax(0)
        self.last = new


class WeightedLoss(nn.Module):
    """sum of weight * term over the localisation and the classification term.

    In training the weighting may change the weights; evaluation has the configured ones, so that its losses compare. A
    term of weight 0 is computed for the log but gives no gradient at all, so its head is not trained, not even by the
    optimizer's weight decay.
    """

    def __init__(self, *, loc: nn.Module, cls: nn.Module, weights: Mapping[str, float], weighting: Weighting) -> None:
        super().__init__()
        for name in TERMS:
            value = weights.get(name)
            check(is_number(value, 0), f"loss.weights.{name} must be a number >= 0, not {value}")
        check(any(weights.values()), "loss.weights: both are 0, so there is nothing to learn")
        self.terms = nn.ModuleDict({"loc": loc, "cls": cls})
        self.weights = {name: float(weights[name]) for name in TERMS}
        self.weighting = weighting

    def check_fits(self, box_coder: BoxCoder) -> None:
        """Refuse a loss of one box for codes of cells, whose scores would learn nothing from it, and the reverse."""
        is_of_cells = any(isinstance(part, CellsLoss) for part in self.modules())
        is_of_one = any(isinstance(part, LocLoss) for part in self.modules())
        gives_cells = isinstance(box_coder, CellsCoder)
        told = "loss.loc: model/box_coder=cells and loss/loc=cells go together; set both of them, or neither"
        check(not (is_of_one if gives_cells else is_of_cells), told)

    def counts(self, targets: Target) -> dict[str, Tensor]:
        """For each term whose value is no mean over images what it is a mean over: the sum of their weights, scalar."""
        counts = {name: getattr(term, "count", lambda _: None)(targets) for name, term in self.terms.items()}
        return {name: count for name, count in counts.items() if count is not None}

    def forward(self, preds: Prediction, targets: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, scalar; and what is logged, detached: the sum, and each term before and after its weight."""
        raw: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        total = preds.loc.new_zeros(())
        factors, addend = self.weighting([name for name in TERMS if self.weights[name] != 0])
        for name, term in self.terms.items():
            is_on = self.weights[name] != 0
            weight: float | Tensor = self.weights[name]
            with torch.set_grad_enabled(torch.is_grad_enabled() and is_on):
                value = term(preds, targets)
            if is_on:
                weight = weight * factors[name] if self.training else weight
                total = total + weight * value
            raw[f"loss_{name}"] = value.detach()
            constant = weight.detach() if isinstance(weight, Tensor) else weight
            weighted[f"loss_{name}_weighted"] = value.detach() * constant
        total = total + addend if self.training else total
        return total, {"loss": total.detach(), **raw, **weighted}
