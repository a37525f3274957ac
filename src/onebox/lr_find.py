"""The learning-rate range test (arXiv:1506.01186, section 3.3): train while the rate grows, see where the loss falls.

Lightning's own sets one rate for all parameter groups; here each keeps its share.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from onebox.errors import BadInput
from onebox.files import replacing
from onebox.module import LocalizationModule

SMOOTHING = 0.9  # of the mean over the steps so far: about ten of them
WIDTH = 5  # standard deviation of the centred mean, in steps, which is as smooth
DIVERGED = 4.0  # times the lowest smoothed loss, as in fastai


class LrRange(Callback):
    """Lets the learning rate grow by a constant factor a step, and stops when the loss diverges.

    Args:
        min_lr: of the first step.
        max_lr: of the last.
        num_steps: from the first to the last.
        lr: the optimizer's own, of which each parameter group has a share.
    """

    def __init__(self, *, min_lr: float, max_lr: float, num_steps: int, lr: float) -> None:
        self._rates = np.geomspace(min_lr, max_lr, num_steps)
        self._lr = lr
        self._shares: list[float] = []
        self.losses: list[float] = []  # of the steps so far

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the shares."""
        self._shares = [group["lr"] / self._lr for group in trainer.optimizers[0].param_groups]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rates of the step."""
        for group, share in zip(trainer.optimizers[0].param_groups, self._shares, strict=True):
            group["lr"] = share * self._rates[len(self.losses)]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss before the step."""
        loss = cast(LocalizationModule, pl_module).last_step[0]["loss"].item()
        if math.isfinite(loss):
            self.losses.append(loss)
            means = running_mean(self.losses)
        if not math.isfinite(loss) or means[-1] > DIVERGED * means.min():
            trainer.should_stop = True

    def curve(self) -> "Curve":
        """What came out.

        Raises:
            BadInput: the loss never fell.
        """
        return Curve.of(self._rates[: len(self.losses)], self.losses)


@dataclass(frozen=True)
class Curve:
    """Loss over learning rate.

    Attributes:
        rates: [steps] learning rate of each step.
        losses: [steps] loss before it.
        smoothed: [steps] their centred mean.
        suggested: the rate at which the smoothed loss falls fastest over the logarithm of the rate, the first steps
            left out.
        lowest: the rate at which it is lowest.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggested: float
    lowest: float

    @classmethod
    def of(cls, rates: Sequence[float] | np.ndarray, losses: Sequence[float]) -> "Curve":
        """The curve of some steps.

        Raises:
            BadInput: the loss never fell.
        """
        rates, smoothed = np.asarray(rates), centred_mean(losses)
        last = int(smoothed.argmin()) if len(losses) else 0
        if last < 2:
            raise BadInput(
                f"the loss does not fall between learning rates of {rates[0] if len(rates) else math.nan:.2g} and "
                f"{rates[-1] if len(rates) else math.nan:.2g}; choose a lower --min-lr, or more --steps"
            )
        slopes = np.gradient(smoothed, np.log(rates))[: last + 1]
        # The mean of the first few steps follows each of them: what looks like a fall there is which images came first.
        begin = min(2 * WIDTH, last // 2)
        steepest = begin + int(slopes[begin:].argmin())
        return cls(rates, np.asarray(losses), smoothed, float(rates[steepest]), float(rates[last]))

    def draw(self, path: Path, title: str) -> None:
        """Write it as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, ".", color="#B8C0C8", markersize=3, label="loss of a step")
        axes.plot(self.rates, self.smoothed, color="#0072B2", linewidth=2, label="smoothed")
        axes.axvline(self.suggested, color="#D55E00", label=f"falls fastest: {self.suggested:.2g}")
        axes.axvline(self.lowest, color="#D55E00", linestyle=":", label=f"lowest: {self.lowest:.2g}")
        axes.plot(self.suggested, self.smoothed[self.rates.searchsorted(self.suggested)], "o", color="#D55E00")
        axes.set(xscale="log", xlabel="optimizer.lr", ylabel="train/loss")
        axes.set_title(textwrap.fill(title, 90, max_lines=4), fontsize=9)
        top = max(self.smoothed[0], self.smoothed[: int(self.smoothed.argmin()) + 1].max())
        axes.set_ylim(
            top=self.smoothed.min() + 1.5 * (top - self.smoothed.min())
        )  # where it diverges it leaves the picture
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def centred_mean(losses: Sequence[float]) -> np.ndarray:
    """Mean of the steps on both sides, with the weights of a Gaussian, so that nothing on the curve comes late.

    What diverges counts no more than the highest running mean before it, or it would reach far to the left.
    """
    if not len(losses):
        return np.zeros(0)
    means = running_mean(losses)
    steps = np.arange(len(losses))
    weights = np.exp(-0.5 * ((steps - steps[:, None]) / WIDTH) ** 2)  # [steps, steps]
    return weights @ np.minimum(losses, means[: means.argmin() + 1].max()) / weights.sum(axis=1)


def running_mean(losses: Sequence[float]) -> np.ndarray:
    """Exponential moving mean without the pull of its beginning (arXiv:1412.6980, section 3)."""
    mean, means = 0.0, []
    for step, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**step))
    return np.array(means)
