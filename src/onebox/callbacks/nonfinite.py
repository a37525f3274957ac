"""A loss that is NaN or infinite is not trained on without a word."""

import logging
import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from onebox.errors import BadInput, check

log = logging.getLogger(__name__)


class NonFiniteLoss(Callback):
    """Says where the loss was no finite number first, and stops the fit there.

    Losses stay on the device and are read as rarely as the module reads them.

    Args:
        action: `stop` ends the fit with `BadInput`, `continue` trains on.

    Attributes:
        first: epoch and batch (from 0), and the loss as a text; None while all were finite.
    """

    def __init__(self, action: Literal["stop", "continue"]) -> None:
        check(action in ("stop", "continue"), f"callbacks.nonfinite.action must be stop or continue, not {action}")
        self._action = action
        self._pending: list[tuple[int, Tensor]] = []  # batch, its loss
        self.first: dict[str, Any] | None = None

    def outcome(self, module: LightningModule) -> dict[str, Any]:
        return {"nonfinite": self.first} if self.first else {}

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first = state_dict["first"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.first is None:
            self._pending.append((batch_idx, pl_module.last_step[0]["loss"]))
            if (batch_idx + 1) % pl_module.log_every_n_steps == 0:
                self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        batches, losses = zip(*pending, strict=True)
        for batch, value in zip(batches, torch.stack(losses).tolist(), strict=True):  # in one transfer
            if not math.isfinite(value):
                self.first = {"epoch": trainer.current_epoch, "batch": batch, "loss": str(value)}
                told = f"the loss is {value} in epoch {trainer.current_epoch}, batch {batch} (both from 0)"
                if self._action == "stop":
                    raise BadInput(
                        f"{told}; lower optimizer.lr or set trainer.gradient_clip_val "
                        "(callbacks.nonfinite.action=continue trains on)"
                    )
                log.warning("%s; what is trained from here on is no result", told)
                return
