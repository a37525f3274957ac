"""Compares what the two heads want of the features that they share."""

from statistics import mean
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from onebox.data.dataset import Batch
from onebox.errors import check, is_integer
from onebox.losses import TERMS, FixedWeighting
from onebox.module import LocalizationModule

TAGS = ("balance/grad_norm_loc", "balance/grad_norm_cls", "balance/cosine")


class Balance(Callback):
    """Takes the gradient of each loss term, before its weight, with respect to the backbone's maps.

    Logs under `balance/` their norms and the cosine between them. It looks at the graph of the step itself, so the step
    stays as it is to the last bit. While the end of the backbone is frozen nothing is shared, and nothing is measured.

    Args:
        every_n_steps: how often it looks.
    """

    def __init__(self, every_n_steps: int) -> None:
        check(
            is_integer(every_n_steps, 1),
            f"callbacks.balance.every_n_steps must be a number >= 1, not {every_n_steps}",
        )
        self._every_n_steps = every_n_steps
        self._measured: list[list[float]] = []  # norm of loc, norm of cls, cosine
        self._seen: dict[str, Any] = {}  # features and preds of the step that is measured
        self._hooks: list[RemovableHandle] = []

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._measured = list(state_dict["measured"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step % self._every_n_steps == 0:
            net = pl_module.localizer
            # What the head is given: with stored features, the backbone is not called as a whole.
            self._hooks = [
                net.loc_head.register_forward_hook(lambda _, given, out: self._seen.update(features=given[0])),
                net.register_forward_hook(lambda _, given, out: self._seen.update(preds=out)),
            ]

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        seen, self._hooks, self._seen = self._seen, [], {}
        # The finest that is trained: coarser ones are made from it.
        maps = next((one for one in seen["features"].maps if one.requires_grad), None)
        if maps is None:
            return
        values = [pl_module.loss.terms[name](seen["preds"], pl_module.last_step[2]) for name in TERMS]
        loc, cls = (torch.autograd.grad(value, maps, retain_graph=True)[0].flatten() for value in values)
        row = torch.stack([loc.norm(), cls.norm(), torch.cosine_similarity(loc, cls, dim=0)]).tolist()
        self._measured.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(dict(zip(TAGS, row, strict=True)), step=trainer.global_step)

    def outcome(self, module: LocalizationModule) -> dict[str, Any]:
        """What run.json is to say."""
        return {"balance": self._summary(module)}

    def _summary(self, module: LocalizationModule) -> dict[str, Any]:
        """Mean of the cosine, and the weights of the box: as configured, and suggested.

        With the suggested one, given with its quartiles over steps, the median step pulls alike for box and class, the
        class's weight being what it is and both fixed. Where nothing was measured, `steps` is 0 and `nothing` says why.
        """
        rows = [row for row in self._measured if row[0] > 0 and row[1] > 0]
        if not rows:
            why = "a gradient was always 0" if self._measured else "nothing is shared: the backbone is frozen"
            return {"steps": 0, "nothing": why}
        loc, cls, cosine = zip(*rows, strict=True)
        weights = module.loss.weights
        low, middle, high = (weights["cls"] * np.quantile(np.divide(cls, loc), [0.25, 0.5, 0.75])).tolist()
        return {
            "steps": len(rows),
            "cosine": mean(cosine),
            "weight_loc": weights["loc"],
            "suggested_weight_loc": middle,
            "suggested_weight_loc_low": low,
            "suggested_weight_loc_high": high,
            "weighting_is_fixed": isinstance(module.loss.weighting, FixedWeighting),
        }
