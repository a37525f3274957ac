"""The learning-rate range test (arXiv:1506.01186, section 3.3): the rate grows while a network trains.

Lightning's own (2.6) corrects its running mean by the wrong power, so that its curve begins at half the loss, and gives
all parameter groups one rate.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer

from onebox.errors import BadInput

WINDOW = 11  # steps that the shown loss is the mean of, half of them on either side, so that it does not lag
DIVERGED = 4.0  # times the lowest running mean, as in fastai


class LrRange(Callback):
    """Multiplies the learning rate by a constant factor a step, and stops when the loss diverges.

    Args:
        min_lr: learning rate of the first step.
        max_lr: learning rate of the last step.
        num_steps: number of steps, each a batch.
        lr: the optimizer's own rate; each parameter group keeps its ratio to it.
    """

    def __init__(self, *, min_lr: float, max_lr: float, num_steps: int, lr: float) -> None:
        self._planned = np.geomspace(min_lr, max_lr, num_steps)
        self._lr = lr
        self.losses: list[float] = []  # before each step that was made

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = len(self.losses)
        factor = self._planned[step] / (self._planned[step - 1] if step else self._lr)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= factor

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, and stop when it is no number or has grown far beyond its lowest mean."""
        loss = float(outputs["loss"].detach())
        if math.isfinite(loss):
            self.losses.append(loss)
            means = pd.Series(self.losses).ewm(alpha=0.1).mean()
        if not math.isfinite(loss) or means.iloc[-1] > DIVERGED * means.min() or len(self.losses) == len(self._planned):
            trainer.should_stop = True

    @property
    def rates(self) -> np.ndarray:
        """[steps] learning rate of each step that was made."""
        return self._planned[: len(self.losses)]

    def curve(self) -> tuple[np.ndarray, float]:
        """The loss as it is to be read, and the suggested learning rate.

        Returns:
            [steps] centred mean of the losses; and the rate at which it falls fastest over the logarithm of the rate,
            before its lowest point.

        Raises:
            BadInput: the loss never fell.
        """
        # What diverges counts no more than the beginning, or its steps would lift the mean of those before.
        losses = pd.Series(self.losses, dtype=float)
        smoothed = losses.clip(upper=losses.head(WINDOW).max()).rolling(WINDOW, center=True, min_periods=1).mean()
        lowest = int(smoothed.argmin()) if len(losses) else 0
        first = min(WINDOW // 2, lowest // 2)  # the first means follow single batches
        if lowest < 2:
            raise BadInput(
                f"the loss does not fall between learning rates of {self._planned[0]:g} and {self._planned[-1]:g}; "
                "choose another --min-lr or --max-lr, or more --steps"
            )
        slopes = np.gradient(smoothed.to_numpy(), np.log(self.rates))
        return smoothed.to_numpy(), float(self.rates[first + int(slopes[first : lowest + 1].argmin())])
