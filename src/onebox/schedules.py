"""Learning-rate schedules, made from an optimizer and the number of training steps; but for `Plateau` stepped once a
step.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from onebox.errors import check, is_integer, is_number


def cosine(optimizer: Optimizer, num_steps: int, *, warmup: float, hold_steps: int, final_factor: float) -> LRScheduler:
    """Linear warm-up to the optimizer's learning rate, then half a cosine down (arXiv:1608.03983, equation 5).

    Args:
        optimizer: its learning rates are the peak.
        num_steps: optimizer steps of the whole fit.
        warmup: share of the steps spent rising, [0, 1).
        hold_steps: steps at the peak before it falls.
        final_factor: the last learning rate as a share of the peak.

    Raises:
        BadInput: one is out of its range.
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
    """Up and down once, with momentum down and up (arXiv:1708.07120).

    Args:
        optimizer: its learning rates are the peak.
        num_steps: optimizer steps of the whole fit.
        warmup: share of the steps spent rising, (0, 1).
        initial_factor: the first learning rate as a share of the peak.
        final_factor: the last learning rate as a share of the peak.

    Raises:
        BadInput: one is out of its range.
    """
    factors = {"initial_factor": initial_factor, "final_factor": final_factor}
    check(is_number(warmup, 0) and 0 < warmup < 1, f"scheduler.warmup must be in (0, 1), not {warmup}")
    for name, value in factors.items():
        check(is_number(value, 0) and value > 0, f"scheduler.{name} must be a number > 0, not {value}")
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=num_steps,
        pct_start=warmup,
        div_factor=1 / initial_factor,
        final_div_factor=initial_factor / final_factor,
    )


def slanted_triangular(
    optimizer: Optimizer, num_steps: int, *, cycles: Sequence[Mapping[str, float]], initial_factor: float
) -> LRScheduler:
    """Cycle after cycle a short linear rise and a long linear fall (arXiv:1801.06146, equation 3).

    Args:
        optimizer: its learning rates are the peak of a cycle whose factor is 1.
        num_steps: optimizer steps of the whole fit.
        cycles: of each its `length` (in any unit; all together are the whole fit), `factor` (its peak as a share of the
            optimizer's rate) and `rise` (share of its steps spent rising, [0, 1)).
        initial_factor: the first and last learning rate of a cycle as a share of its peak.

    Raises:
        BadInput: a cycle is not described so, or the factor is negative.
    """
    check(
        bool(cycles)
        and all(
            set(cycle) == {"length", "factor", "rise"}
            and cycle["length"] > 0
            and cycle["factor"] >= 0
            and 0 <= cycle["rise"] < 1
            for cycle in cycles
        ),
        f"scheduler.cycles must be like [{{length: 3, factor: 1.0, rise: 0.2}}], not {cycles}",
    )
    check(is_number(initial_factor, 0), f"scheduler.initial_factor must be a number >= 0, not {initial_factor}")
    lengths = [cycle["length"] for cycle in cycles]
    ends = [num_steps * sum(lengths[: number + 1]) / sum(lengths) for number in range(len(cycles))]

    def factor(step: int) -> float:
        number = min(bisect_right(ends, step), len(cycles) - 1)
        cycle, begin, end = cycles[number], ends[number - 1] if number else 0.0, ends[number]
        progress = min((step - begin) / (end - begin), 1)
        share = progress / cycle["rise"] if progress < cycle["rise"] else (1 - progress) / (1 - cycle["rise"])
        return cycle["factor"] * (initial_factor + (1 - initial_factor) * share)

    return LambdaLR(optimizer, factor)


class Plateau(ReduceLROnPlateau):
    """Falls when a logged value has not improved for a while; told the value at the end of each epoch that logs it.

    Args:
        optimizer: its learning rates are the first ones.
        num_steps: not needed.
        monitor: tag of the value.
        mode: whether less (`min`) or more (`max`) is better.
        factor: what the learning rate is multiplied by, (0, 1).
        patience: how many times in a row the value may fail to improve.
        min_delta: an improvement is larger than this.
        min_lr: the learning rate falls no further.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: int,
        *,
        monitor: str,
        mode: Literal["min", "max"],
        factor: float,
        patience: int,
        min_delta: float,
        min_lr: float,
    ) -> None:
        super().__init__(
            optimizer,
            mode=mode,
            factor=factor,
            patience=patience,
            threshold=min_delta,
            threshold_mode="abs",
            min_lr=min_lr,
            eps=0.0,
        )
        self.monitor = monitor
