"""Learning-rate schedules that need the number of training steps; each is stepped once a step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


def cosine(optimizer: Optimizer, num_steps: int, *, warmup: float, hold_steps: int, final_factor: float) -> LRScheduler:
    """Linear warm-up to the optimizer's learning rate, then half a cosine down (arXiv:1608.03983, equation 5).

    Args:
        optimizer: its learning rates are the peak.
        num_steps: optimizer steps of the whole fit.
        warmup: share of the steps spent rising, [0, 1).
        hold_steps: steps at the peak before it falls.
        final_factor: the last learning rate as a share of the peak.
    """
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
    """
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=num_steps,
        pct_start=warmup,
        div_factor=1 / initial_factor,
        final_div_factor=initial_factor / final_factor,
    )
