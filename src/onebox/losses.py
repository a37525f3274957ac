"""Loss terms and their weighted sum."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from onebox.errors import check, is_number
from onebox.model.localizer import Prediction, Target
from onebox.weighting import Weighting

Criterion = Callable[[Tensor, Tensor], Tensor]  # (predicted, true) -> scalar


class LocLoss(nn.Module):
    """A loss between predicted and true boxes, such as `torch.nn.L1Loss` or `torchvision.ops.generalized_box_iou_loss`.

    Args:
        criterion: of two [B, 4] tensors.
        space: what they are: `codes` of the box coder, or `boxes` (xyxy in [0, 1]).
    """

    def __init__(self, *, criterion: Criterion, space: Literal["codes", "boxes"]) -> None:
        super().__init__()
        check(space in ("codes", "boxes"), f"loss.loc.space must be codes or boxes, not {space}")
        self.criterion = criterion
        self.space = space

    def forward(self, preds: Prediction, targets: Target) -> Tensor:
        """Scalar loss."""
        if self.space == "codes":
            return self.criterion(preds.loc, targets.loc)
        return self.criterion(preds.boxes, targets.boxes)


class ClassLoss(nn.Module):
    """A loss between logits and labels, such as `torch.nn.CrossEntropyLoss`."""

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, preds: Prediction, targets: Target) -> Tensor:
        """Scalar loss."""
        return self.criterion(preds.logits, targets.labels)

    def count(self, targets: Target) -> Tensor | None:
        """What the loss of a batch is a mean over, if not its images: the sum of the weights of their classes."""
        weights = getattr(self.criterion, "weight", None)
        return None if weights is None else weights[targets.labels].sum()


def balanced_cross_entropy(*, class_counts: Sequence[int], beta: float, label_smoothing: float) -> nn.CrossEntropyLoss:
    """Cross-entropy in which rare classes count more, by their effective number (arXiv:1901.05555, equation 2).

    A class of n images counts as (1 - beta) / (1 - beta^n), scaled so that the mean over the classes with images is 1.

    Args:
        class_counts: training images of each class, [K].
        beta: in [0, 1]: 0 weighs all classes alike, 1 by the inverse of their number.
        label_smoothing: share of the target that is spread over all classes.

    Raises:
        BadInput: `beta` is out of its range.
    """
    check(is_number(beta, 0, 1), f"loss.cls.criterion.beta must be in [0, 1], not {beta}")
    counts = torch.tensor(list(class_counts), dtype=torch.float64)
    effective = counts if beta == 1 else (1 - beta**counts) / (1 - beta)
    weights = torch.where(counts > 0, 1 / effective, 0.0)
    return nn.CrossEntropyLoss(
        weight=(weights * (counts > 0).sum() / weights.sum()).float(), label_smoothing=label_smoothing
    )


class SumLoss(nn.Module):
    """sum of share * term over several terms of one head.

    Args:
        terms: losses such as `LocLoss`, by any name.
        shares: the factor of each term, by the same names, > 0.
    """

    def __init__(self, *, terms: Mapping[str, nn.Module], shares: Mapping[str, float]) -> None:
        super().__init__()
        check(
            set(terms) == set(shares),
            f"a sum of losses needs one share for each of its terms {sorted(terms)}, not {sorted(shares)}",
        )
        check(
            all(is_number(share, 0) and share > 0 for share in shares.values()),
            f"shares of losses must be numbers > 0, not {dict(shares)}",
        )
        self.terms = nn.ModuleDict(terms)
        self.shares = dict(shares)

    def forward(self, preds: Prediction, targets: Target) -> Tensor:
        """Scalar loss."""
        return torch.stack([share * self.terms[name](preds, targets) for name, share in self.shares.items()]).sum()


class Losses(NamedTuple):
    """total: the weighted sum, scalar; raw and weighted: each term before and after its weight, detached."""

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]


class WeightedLoss(nn.Module):
    """sum of weight * term over the localisation and the classification term.

    In training the weighting may change the weights; evaluation has the configured ones, so that its losses compare. A
    term of weight 0 is computed for the log but gives no gradient at all, so its head is not trained, not even by the
    optimizer's weight decay.

    Args:
        loc: term of the box.
        cls: term of the class.
        weights: weight of `loc` and of `cls`, >= 0.
        weighting: see `onebox.weighting`.
    """

    def __init__(self, *, loc: nn.Module, cls: nn.Module, weights: Mapping[str, float], weighting: Weighting) -> None:
        super().__init__()
        for name in ("loc", "cls"):
            value = weights.get(name)
            check(is_number(value, 0), f"loss.weights.{name} must be a number >= 0, not {value}")
        check(any(weights.values()), "loss.weights: both are 0, so there is nothing to learn")
        self.terms = nn.ModuleDict({"loc": loc, "cls": cls})
        self.weights = {name: float(weights[name]) for name in self.terms}
        self.weighting = weighting

    def counts(self, targets: Target) -> dict[str, Tensor]:
        """For each term whose value is no mean over images what it is a mean over: the sum of their weights, scalar."""
        counts = {name: getattr(term, "count", lambda _: None)(targets) for name, term in self.terms.items()}
        return {name: count for name, count in counts.items() if count is not None}

    def forward(self, preds: Prediction, targets: Target) -> Losses:
        """All terms and their weighted sum."""
        raw: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        total = preds.loc.new_zeros(())
        factors, addend = self.weighting([name for name in self.terms if self.weights[name] != 0])
        for name, term in self.terms.items():
            is_on = self.weights[name] != 0
            weight: float | Tensor = self.weights[name]
            with torch.set_grad_enabled(torch.is_grad_enabled() and is_on):
                value = term(preds, targets)
            if is_on:
                weight = weight * factors[name] if self.training else weight
                total = total + weight * value
            raw[name] = value.detach()
            weighted[name] = raw[name] * (weight.detach() if isinstance(weight, Tensor) else weight)
        return Losses(total + addend if self.training else total, raw, weighted)
