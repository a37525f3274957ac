"""Keeps the backbone, or its first stages, as they are."""

import logging
import sys
from collections.abc import Sequence
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from onebox.errors import BadInput, check, is_integer
from onebox.module import LocalizationModule

log = logging.getLogger(__name__)

ALL = "all"


class Freeze(Callback):
    """Trains the heads, and of the backbone only what `unfreeze` names, from the epoch on that it names.

    What is frozen gets no gradient and so no optimizer state and no weight decay. It is in evaluation mode: norms keep
    their running statistics, nothing is dropped. All of it is a function of the epoch, so a fit that goes on needs no
    state. Learning-rate schedules run on while a part is frozen.

    Args:
        unfreeze: pairs of an epoch, from 0, and the first stage that is trained from it on, or `all`.
        norms: mode of norms with running statistics in trained stages: train, or eval to keep the statistics.
    """

    def __init__(self, unfreeze: Sequence[Sequence[Any]], norms: Literal["train", "eval"]) -> None:
        is_pairs = isinstance(unfreeze, Sequence) and all(
            isinstance(pair, Sequence) and len(pair) == 2 and is_integer(pair[0], 0) and isinstance(pair[1], str)
            for pair in unfreeze
        )
        check(is_pairs, f"callbacks.freeze.unfreeze must be pairs such as [[5, {ALL}]], not {unfreeze}")
        check(norms in ("train", "eval"), f"callbacks.freeze.norms must be train or eval, not {norms}")
        self._unfreeze = [(epoch, stage) for epoch, stage in unfreeze]
        self._norms = norms
        self._said: int | None = None  # number of the first trained stage, as last logged

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze before the strategy looks at what is trained.

        Raises:
            BadInput: the backbone has no such stage; or something is to be unfrozen later on several devices.
        """
        if stage != "fit":
            return
        self.frozen_until(_backbone(pl_module).stages, 0)
        if trainer.world_size > 1 and any(epoch > 0 for epoch, _ in self._unfreeze):
            raise BadInput(
                "callbacks.freeze.unfreeze: several devices keep to what is trained at the beginning; train the heads "
                "in a run of its own, or on trainer.devices=1"
            )
        self._set_gradients(trainer, pl_module)  # Lightning would warn of modes now
        if trainer.max_steps == -1 and trainer.max_epochs is not None and trainer.is_global_zero:  # no trial of a few
            missed = self.missed(_backbone(pl_module).stages, trainer.max_epochs)
            if missed is not None:
                log.warning(
                    "callbacks.freeze: %s is never trained, epoch %d is beyond trainer.max_epochs=%d (counted from 0)",
                    missed,
                    max(epoch for epoch, _ in self._unfreeze),
                    trainer.max_epochs,
                )

    def frozen_until(self, stages: Sequence[str], num_epochs: int) -> str | None:
        """The last of the first stages that no epoch of a fit trains; None when the first stage is trained some day.

        Raises:
            BadInput: `unfreeze` names no stage of these.
        """
        first = self._first_trained(stages, num_epochs)
        return stages[first - 1] if first else None

    def missed(self, stages: Sequence[str], num_epochs: int) -> str | None:
        """What a fit of so many epochs ends too early to train, though `unfreeze` names it; None when it does all.

        Raises:
            BadInput: `unfreeze` names no stage of these.
        """
        until = self.frozen_until(stages, num_epochs)
        if until == self.frozen_until(stages, sys.maxsize):
            return None
        return "the backbone" if until == stages[-1] else f"the backbone until {until}"

    def num_trained(self, pl_module: LightningModule, num_epochs: int) -> int:
        """How many parameters a fit of so many epochs trains at some time."""
        backbone = _backbone(pl_module)
        frozen = backbone.stages[: self._first_trained(backbone.stages, num_epochs)]
        parameters = backbone.named_parameters()
        num_frozen = sum(item.numel() for name, item in parameters if frozen and backbone.stage_of(name) in frozen)
        return sum(parameter.numel() for parameter in pl_module.parameters()) - int(num_frozen)

    def _first_trained(self, stages: Sequence[str], num_epochs: int) -> int:
        """Number of the first stage that a fit trains, that of stages when it trains none."""
        unknown = [name for _, name in self._unfreeze if name not in (*stages, ALL)]
        if unknown:
            raise BadInput(
                f"callbacks.freeze.unfreeze: the backbone has no stage {unknown[0]}; it has {', '.join(stages)}, "
                f"and {ALL}"
            )
        begins = [_number(stages, name) for epoch, name in self._unfreeze if epoch < num_epochs]
        return min(begins, default=len(stages))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where a fit goes on within an epoch, there is no beginning of it."""
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze what is frozen in this epoch."""
        self._apply(trainer, pl_module)

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set_gradients(trainer, pl_module)
        self._set_modes(_backbone(pl_module))
        stages = _backbone(pl_module).stages
        first = self._first_trained(stages, trainer.current_epoch + 1)
        if first != self._said and trainer.is_global_zero:
            self._said = first
            what = "" if first == len(stages) else " and the backbone" + (f" from {stages[first]} on" if first else "")
            log.info(
                "trained from epoch %d: the heads%s, %s of %s parameters",
                trainer.current_epoch,
                what,
                f"{self.num_trained(pl_module, trainer.current_epoch + 1):,}",
                f"{sum(parameter.numel() for parameter in pl_module.parameters()):,}",
            )

    def _set_gradients(self, trainer: Trainer, pl_module: LightningModule) -> None:
        backbone = _backbone(pl_module)
        trained = backbone.stages[self._first_trained(backbone.stages, trainer.current_epoch + 1) :]
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(bool(trained) and backbone.stage_of(name) in trained)

    def _set_modes(self, module: nn.Module) -> None:
        """Evaluation mode for what has parameters and none that is trained, with all that is in it."""
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
            return
        keeps_statistics = self._norms == "eval" and isinstance(module, nn.modules.batchnorm._NormBase)
        module.training = not keeps_statistics
        for child in module.children():
            self._set_modes(child)


def _number(stages: Sequence[str], name: str) -> int:
    return 0 if name == ALL else stages.index(name)


def _backbone(pl_module: LightningModule) -> Any:
    """A module, and what `onebox.model.localizer.Backbone` says."""
    return cast(LocalizationModule, pl_module).localizer.backbone
