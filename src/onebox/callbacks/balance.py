"""Compares what the two heads want of the features that they share."""

from statistics import mean, median
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from onebox.data.dataset import Batch
from onebox.errors import is_integer, refuse
from onebox.module import LocalizationModule
from onebox.weighting import TERMS, FixedWeighting


class Balance(Callback):
    """Takes the gradient of each loss term, before its weight, with respect to the backbone's maps.

    Logs under `balance/` their norms and the cosine between them. It looks at the graph of the step itself, so the step
    stays as it is to the last bit. While the end of the backbone is frozen nothing is shared, and nothing is measured.

    Args:
        every_n_steps: how often it looks.
    """

    def __init__(self, every_n_steps: int) -> None:
        refuse(
            {
                f"callbacks.balance.every_n_steps must be a number >= 1, not {every_n_steps}": not is_integer(
                    every_n_steps, 1
                )
            }
        )
        self._every_n_steps = every_n_steps
        self._measured: list[list[float]] = []  # norm of loc, norm of cls, cosine
        self._step: dict[str, Any] = {}
        self._hooks: list[RemovableHandle] = []
        self._weights: dict[str, float] = {}
        self._is_fixed = True

    def state_dict(self) -> dict[str, Any]:
        """Goes into checkpoints."""
        return {"measured": [list(row) for row in self._measured]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was measured."""
        self._measured = [list(row) for row in state_dict["measured"]]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the weights; a run that goes on after the end of its fit has no step any more."""
        loss = cast(LocalizationModule, pl_module).loss
        self._weights = dict(loss.weights)
        self._is_fixed = isinstance(loss.weighting, FixedWeighting)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Keep what the step makes, when a look is due."""
        module = cast(LocalizationModule, pl_module)
        if trainer.global_step % self._every_n_steps == 0:
            # What the head is given: with stored features, the backbone is not called as a whole.
            self._hooks = [
                module.localizer.loc_head.register_forward_hook(lambda _, given, out: self._keep(features=given[0])),
                module.localizer.register_forward_hook(lambda _, given, out: self._keep(preds=out)),
            ]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        step, self._hooks, self._step = self._step, [], {}
        # The finest that is trained: coarser ones are made from it.
        maps = next((one for one in step["features"].maps if one.requires_grad), None)
        if maps is None:
            return
        module = cast(LocalizationModule, pl_module)
        values = [module.loss.terms[name](step["preds"], module.last_step[2]) for name in TERMS]
        loc, cls = (torch.autograd.grad(value, maps, retain_graph=True)[0].flatten() for value in values)
        row = torch.stack([loc.norm(), cls.norm(), torch.cosine_similarity(loc, cls, dim=0)]).tolist()
        self._measured.append(row)
        tags = dict(zip(("grad_norm_loc", "grad_norm_cls", "cosine"), row, strict=True))
        for logger in trainer.loggers:
            logger.log_metrics({f"balance/{name}": value for name, value in tags.items()}, step=trainer.global_step)

    def summary(self) -> dict[str, Any]:
        """Medians of the norms, mean of the cosine, and the weights of the box: as configured, and suggested.

        With the suggested one, given with its quartiles over steps, the median step pulls alike for box and class, the
        class's weight being what it is and both fixed. Where nothing was measured, `steps` is 0 and `nothing` says why.
        """
        rows = [row for row in self._measured if row[0] > 0 and row[1] > 0]
        if not rows:
            why = "a gradient was always 0" if self._measured else "nothing is shared: the backbone is frozen"
            return {"steps": 0, "nothing": why}
        ratios = np.quantile([row[1] / row[0] for row in rows], [0.25, 0.5, 0.75])
        low, middle, high = (self._weights["cls"] * ratios).tolist()
        return {
            "steps": len(rows),
            "grad_norm_loc": median(row[0] for row in rows),
            "grad_norm_cls": median(row[1] for row in rows),
            "cosine": mean(row[2] for row in rows),
            "weight_loc": self._weights["loc"],
            "suggested_weight_loc": middle,
            "suggested_weight_loc_low": low,
            "suggested_weight_loc_high": high,
            "weighting_is_fixed": self._is_fixed,
        }

    def _keep(self, **parts: Any) -> None:
        self._step |= parts
