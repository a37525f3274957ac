"""Keeps the backbone, or its first stages, as they are."""

from collections.abc import Sequence
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from onebox.errors import BadInput, is_integer, refuse
from onebox.module import LocalizationModule

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
        refuse(
            {
                f"callbacks.freeze.unfreeze must be pairs such as [[5, {ALL}]], not {unfreeze}": not isinstance(
                    unfreeze, Sequence
                )
                or not all(
                    isinstance(pair, Sequence)
                    and len(pair) == 2
                    and is_integer(pair[0], 0)
                    and isinstance(pair[1], str)
                    for pair in unfreeze
                ),
                f"callbacks.freeze.norms must be train or eval, not {norms}": norms not in ("train", "eval"),
            }
        )
        self._unfreeze = [(epoch, stage) for epoch, stage in unfreeze]
        self._norms = norms

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

    def frozen_until(self, stages: Sequence[str], num_epochs: int) -> str | None:
        """The last of the first stages that no epoch of a fit trains; None when the first stage is trained some day.

        Raises:
            BadInput: `unfreeze` names no stage of these.
        """
        unknown = [name for _, name in self._unfreeze if name not in (*stages, ALL)]
        if unknown:
            raise BadInput(
                f"callbacks.freeze.unfreeze: the backbone has no stage {unknown[0]}; it has {', '.join(stages)}, "
                f"and {ALL}"
            )
        begins = [0 if name == ALL else stages.index(name) for epoch, name in self._unfreeze if epoch < num_epochs]
        first = min(begins, default=len(stages))
        return stages[first - 1] if first else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where a fit goes on within an epoch, there is no beginning of it."""
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze what is frozen in this epoch."""
        self._apply(trainer, pl_module)

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set_gradients(trainer, pl_module)
        self._set_modes(_backbone(pl_module))

    def _set_gradients(self, trainer: Trainer, pl_module: LightningModule) -> None:
        backbone = _backbone(pl_module)
        trained: set[str] = set()
        for epoch, name in self._unfreeze:
            if trainer.current_epoch >= epoch:
                trained |= set(backbone.stages[0 if name == ALL else backbone.stages.index(name) :])
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


def _backbone(pl_module: LightningModule) -> Any:
    """A module, and what `onebox.model.localizer.Backbone` says."""
    return cast(LocalizationModule, pl_module).localizer.backbone
