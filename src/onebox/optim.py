"""Learning rate and weight decay: of each part of the network, and in the course of a fit.

A schedule is made from an optimizer, whose learning rates are its peak, and the number of optimizer steps of the whole
fit; but for `Plateau` it is stepped once a step.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from onebox.errors import check, is_integer, is_number
from onebox.model.localizer import Localizer

PARTS = ("backbone", "loc_head", "cls_head", "loss")


class ParamGroups:
    """Splits parameters into an optimizer's groups, each with a share of its learning rate and weight decay.

    Where no setting differs there is one group, `all`. Otherwise a group is named after its part: backbone, loc_head,
    cls_head or loss (what a weighting learns), and backbone_1, backbone_2, ... for pieces of a backbone: where
    `lr_factors` has a list for it, its stages are cut, in forward order, into as many pieces, as even as they can be.
    Norms and biases are the parameters with less than two dimensions.
    """

    def __init__(
        self,
        *,
        lr_factors: Mapping[str, float | Sequence[float]],
        weight_decay_factors: Mapping[str, float],
        decay_norms_and_biases: bool,
    ) -> None:
        self._lr_factors = {
            part: list(factor) if isinstance(factor, Sequence) else [factor] for part, factor in lr_factors.items()
        }
        numbers = {f"lr_factors.{part}": lr_factors[part] for part in PARTS[1:]}
        numbers |= {f"lr_factors.backbone[{i}]": factor for i, factor in enumerate(self._lr_factors["backbone"])}
        numbers |= {f"weight_decay_factors.{part}": weight_decay_factors[part] for part in PARTS}
        for key, value in numbers.items():
            check(is_number(value, 0), f"param_groups.{key} must be a number >= 0, not {value}")
        check(bool(self._lr_factors["backbone"]), "param_groups.lr_factors.backbone must name at least one factor")
        self._weight_decay_factors = weight_decay_factors
        self._decay_norms_and_biases = decay_norms_and_biases

    def optimizer(self, make: Callable[..., Optimizer], localizer: Localizer, loss: nn.Module) -> Optimizer:
        """The optimizer, made by `make` from parameter groups, of all parameters of the network and of the loss.

        Raises:
            BadInput: the backbone has fewer stages than it is to be cut into.
        """
        groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}  # (name, factors of lr and weight decay)
        for part in PARTS:
            module: Any = loss if part == "loss" else getattr(localizer, part)
            factors = self._lr_factors[part]
            piece_of = self._pieces(module.stages, factors) if len(factors) > 1 else {}
            for name, parameter in module.named_parameters():
                piece = piece_of[module.stage_of(name)] if piece_of else 0
                decays = self._decay_norms_and_biases or parameter.ndim > 1
                decay = self._weight_decay_factors[part] if decays else 0.0
                setting = (f"{part}_{piece + 1}" if piece_of else part, factors[piece], decay)
                groups.setdefault(setting, []).append(parameter)
        shares = {setting[1:] for setting in groups}
        if len(shares) == 1:
            groups = {("all", *shares.pop()): [parameter for group in groups.values() for parameter in group]}
        optimizer = make([{"params": parameters, "name": name} for (name, *_), parameters in groups.items()])
        for (_, lr_factor, decay), group in zip(groups, optimizer.param_groups, strict=True):
            group["lr"] *= lr_factor
            group["weight_decay"] *= decay
        return optimizer

    @staticmethod
    def _pieces(stages: Sequence[str], factors: Sequence[float]) -> dict[str, int]:
        """The number of the piece that each stage is in."""
        check(
            len(stages) >= len(factors),
            f"param_groups.lr_factors.backbone={factors} but the backbone has only the stages {', '.join(stages)}; "
            "name fewer factors",
        )
        return {stage: number * len(factors) // len(stages) for number, stage in enumerate(stages)}


def cosine(optimizer: Optimizer, num_steps: int, *, warmup: float, hold_steps: int, final_factor: float) -> LRScheduler:
    """Linear warm-up for a share of the steps, then half a cosine down (arXiv:1608.03983, equation 5).

    It stays at its peak for `hold_steps` and ends at `final_factor` of it.
    """
    check(is_number(warmup, 0) and warmup < 1, f"scheduler.warmup must be in [0, 1), not {warmup}")
    check(is_integer(hold_steps, 0), f"scheduler.hold_steps must be a number >= 0, not {hold_steps}")
    check(is_number(final_factor, 0), f"scheduler.final_factor must be a number >= 0, not {final_factor}")
    rise = warmup * num_steps
    fall = num_steps - rise - hold_steps

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        progress = min(max(step - rise - hold_steps, 0) / max(fall, 1), 1)
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def one_cycle(
    optimizer: Optimizer, num_steps: int, *, warmup: float, initial_factor: float, final_factor: float
) -> LRScheduler:
    """Up for a share of the steps and down once, with momentum down and up (arXiv:1708.07120).

    It begins at `initial_factor` of its peak and ends at `final_factor` of it.
    """
    check(is_number(warmup, 0) and 0 < warmup < 1, f"scheduler.warmup must be in (0, 1), not {warmup}")
    for name, value in {"initial_factor": initial_factor, "final_factor": final_factor}.items():
        check(is_number(value, 0) and value > 0, f"scheduler.{name} must be a number > 0, not {value}")
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=num_steps,
        pct_start=warmup if warmup * num_steps != 1 else warmup * (1 + 1e-9),  # it divides by their difference
        div_factor=1 / initial_factor,
        final_div_factor=initial_factor / final_factor,
    )


def slanted_triangular(
    optimizer: Optimizer, num_steps: int, *, cycles: Sequence[Mapping[str, float]], initial_factor: float
) -> LRScheduler:
    """Cycle after cycle a short linear rise and a long linear fall (arXiv:1801.06146, equation 3).

    Each of the `cycles` has a `length` (in any unit; all together are the whole fit), a `factor` (its peak as a share
    of the optimizer's rate) and a `rise` (share of its steps, [0, 1)). It begins and ends at `initial_factor` of its
    peak.
    """
    are_cycles = all(
        set(cycle) == {"length", "factor", "rise"}
        and cycle["length"] > 0
        and cycle["factor"] >= 0
        and 0 <= cycle["rise"] < 1
        for cycle in cycles
    )
    example = "[{length: 3, factor: 1.0, rise: 0.2}]"
    check(bool(cycles) and are_cycles, f"scheduler.cycles must be like {example}, not {cycles}")
    check(is_number(initial_factor, 0), f"scheduler.initial_factor must be a number >= 0, not {initial_factor}")
    sums = list(accumulate(cycle["length"] for cycle in cycles))
    ends = [num_steps * length / sums[-1] for length in sums]

    def factor(step: int) -> float:
        number = min(bisect_right(ends, step), len(cycles) - 1)
        cycle, begin, end = cycles[number], ends[number - 1] if number else 0.0, ends[number]
        progress = min((step - begin) / (end - begin), 1)
        share = progress / cycle["rise"] if progress < cycle["rise"] else (1 - progress) / (1 - cycle["rise"])
        return cycle["factor"] * (initial_factor + (1 - initial_factor) * share)

    return LambdaLR(optimizer, factor)


class Plateau(ReduceLROnPlateau):
    """Falls when the logged value `monitor` has not improved by more than `min_delta` for a while.

    It receives the value in each epoch that logs it. The other options are those of `ReduceLROnPlateau`.
    """

    def __init__(self, optimizer: Optimizer, num_steps: int, *, monitor: str, min_delta: float, **options: Any) -> None:
        super().__init__(optimizer, threshold=min_delta, threshold_mode="abs", eps=0.0, **options)
        self.monitor = monitor
