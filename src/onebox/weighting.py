"""How the weights of the loss terms move in the course of a fit."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from onebox.errors import check, is_number

TERMS = ("loc", "cls")
Factors = dict[str, Tensor | float]


class Weighting(Protocol):
    """A module that moves weights."""

    def __call__(self, names: Sequence[str]) -> tuple[Factors, Tensor | float]:
        """What each named term is multiplied by, beside its configured weight; and what is added to the total."""

    def end_epoch(self, means: Mapping[str, Tensor]) -> None:
        """Told at the end of each epoch the mean of each term before its weight, scalars."""


class FixedWeighting(nn.Module):
    """The weights stay as they are configured."""

    def forward(self, names: Sequence[str]) -> tuple[Factors, Tensor | float]:
        """See `Weighting`."""
        return dict.fromkeys(names, 1.0), 0.0

    def end_epoch(self, means: Mapping[str, Tensor]) -> None:
        """Nothing moves."""


class UncertaintyWeighting(nn.Module):
    """Each term is divided by a variance that is learned (Kendall, Gal and Cipolla 2018, arXiv:1705.07115, eq. 10).

    With s = log variance the factor is exp(-s) / 2 of the box and exp(-s) of the class, and the sum of s / 2 is added.
    The configured weights multiply the terms before that: they only say where the learning begins.

    Args:
        initial_log_variances: s of `loc` and of `cls` at the beginning.
    """

    def __init__(self, *, initial_log_variances: Mapping[str, float]) -> None:
        super().__init__()
        for name, value in initial_log_variances.items():
            check(is_number(value), f"loss.weighting.initial_log_variances.{name} must be a number, not {value}")
        self.log_variances = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor([float(initial_log_variances[name])])) for name in TERMS}
        )

    def forward(self, names: Sequence[str]) -> tuple[Factors, Tensor | float]:
        """See `Weighting`."""
        halves = {"loc": 0.5, "cls": 1.0}
        log_variances = {name: self.log_variances[name].squeeze() for name in names}
        factors: Factors = {name: halves[name] * (-value).exp() for name, value in log_variances.items()}
        return factors, torch.stack(list(log_variances.values())).sum() / 2

    def end_epoch(self, means: Mapping[str, Tensor]) -> None:
        """Nothing to learn from means."""


class DynamicWeightAverage(nn.Module):
    """A term that falls slower than the other one counts more (Liu, Johns and Davison 2019, arXiv:1803.10704, eq. 7).

    The factors sum to 2: twice the softmax of (mean of the last epoch / mean of the one before) / temperature. In the
    first two epochs both are 1.

    Args:
        temperature: the larger, the more alike are the factors; > 0, 2 in the paper.
    """

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        check(
            is_number(temperature, 0) and temperature > 0,
            f"loss.weighting.temperature must be a number > 0, not {temperature}",
        )
        self._temperature = temperature
        self.last: Tensor
        self.factors: Tensor
        self.register_buffer("last", torch.full((len(TERMS),), torch.nan))  # means of the last epoch
        self.register_buffer("factors", torch.ones(len(TERMS)))

    def forward(self, names: Sequence[str]) -> tuple[Factors, Tensor | float]:
        """See `Weighting`."""
        return {name: self.factors[TERMS.index(name)] for name in names}, 0.0

    def end_epoch(self, means: Mapping[str, Tensor]) -> None:
        """See `Weighting`."""
        new = torch.stack([means[name] for name in TERMS]).to(self.last)
        rates = new / self.last
        if rates.isfinite().all():  # not in the first epoch, nor after a term was 0
            self.factors = len(TERMS) * (rates / self._temperature).softmax(0)
        self.last = new
