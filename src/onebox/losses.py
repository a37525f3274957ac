"""Loss terms and their weighted sum."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from onebox.errors import is_number, refuse
from onebox.model.localizer import Prediction, Target

Criterion = Callable[[Tensor, Tensor], Tensor]  # (predicted, true) -> scalar


class CodeLoss(nn.Module):
    """A regression loss between predicted and true codes of the box coder, such as `torch.nn.L1Loss`."""

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, preds: Prediction, targets: Target) -> Tensor:
        """Scalar loss."""
        return self.criterion(preds.loc, targets.loc)


class BoxLoss(nn.Module):
    """A loss between predicted and true boxes (xyxy in [0, 1]), such as `torchvision.ops.generalized_box_iou_loss`."""

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, preds: Prediction, targets: Target) -> Tensor:
        """Scalar loss."""
        return self.criterion(preds.boxes, targets.boxes)


class ClassLoss(nn.Module):
    """A loss between logits and labels, such as `torch.nn.CrossEntropyLoss`."""

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, preds: Prediction, targets: Target) -> Tensor:
        """Scalar loss."""
        return self.criterion(preds.logits, targets.labels)


class SumLoss(nn.Module):
    """sum of share * term over several terms of one head.

    Args:
        terms: losses such as `CodeLoss` and `BoxLoss`, by any name.
        shares: the factor of each term, by the same names, > 0.
    """

    def __init__(self, *, terms: Mapping[str, nn.Module], shares: Mapping[str, float]) -> None:
        super().__init__()
        refuse(
            {
                f"a sum of losses needs one share for each of its terms {sorted(terms)}, not {sorted(shares)}": set(
                    terms
                )
                != set(shares),
                f"shares of losses must be numbers > 0, not {dict(shares)}": not all(
                    is_number(share, 0) and share > 0 for share in shares.values()
                ),
            }
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

    A term of weight 0 is computed for the log but gives no gradient at all, so its head is not trained, not even by the
    optimizer's weight decay.

    Args:
        loc: term of the box.
        cls: term of the class.
        weights: weight of `loc` and of `cls`, >= 0.
    """

    def __init__(self, *, loc: nn.Module, cls: nn.Module, weights: Mapping[str, float]) -> None:
        super().__init__()
        refuse(
            {
                f"loss.weights.{name} must be a number >= 0, not {weights.get(name)}": not is_number(
                    weights.get(name), 0
                )
                for name in ("loc", "cls")
            }
            | {"loss.weights: both are 0, so there is nothing to learn": not any(weights.values())}
        )
        self.terms = nn.ModuleDict({"loc": loc, "cls": cls})
        self.weights = {name: float(weights[name]) for name in self.terms}

    def forward(self, preds: Prediction, targets: Target) -> Losses:
        """All terms and their weighted sum."""
        raw: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        total = preds.loc.new_zeros(())
        for name, term in self.terms.items():
            weight = self.weights[name]
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight != 0):
                value = term(preds, targets)
            if weight != 0:
                total = total + weight * value
            raw[name] = value.detach()
            weighted[name] = raw[name] * weight
        return Losses(total, raw, weighted)
