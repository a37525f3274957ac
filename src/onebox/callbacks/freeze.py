"""Keeps the backbone, or its first stages, as they are."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer
from torch import nn

from onebox.errors import check, is_integer

log = logging.getLogger(__name__)

ALL = "all"


class Freeze(Callback):
    """Trains the heads, and of the backbone only what `unfreeze` names, from the epoch on that it names.

    What is frozen gets no gradient and so no optimizer state and no weight decay. It is in evaluation mode: norms keep
    their running statistics, nothing is dropped. All of it is a function of the epoch, so a fit that resumes needs no
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
        self._logged: Sequence[str] | None = None  # frozen stages that the last line was about

    def frozen(self, stages: Sequence[str], num_epochs: int) -> Sequence[str]:
        """The first of the backbone's `stages`, as many as a fit of so many epochs never trains.

        Raises:
            BadInput: `unfreeze` names no stage of these.
        """
        names = [*stages, ALL]
        for _, name in self._unfreeze:
            check(
                name in names,
                f"callbacks.freeze.unfreeze: the backbone has no stage {name}; it has {', '.join(names)}",
            )
        begins = [0 if name == ALL else stages.index(name) for epoch, name in self._unfreeze if epoch < num_epochs]
        return stages[: min(begins, default=len(stages))]

    def num_trained(self, module: Any, num_epochs: int) -> int:
        """How many parameters of a `LocalizationModule` a fit of so many epochs trains at some time."""
        backbone = module.localizer.backbone
        frozen = self.frozen(backbone.stages, num_epochs)
        kept = [item for name, item in backbone.named_parameters() if frozen and backbone.stage_of(name) in frozen]
        return sum(item.numel() for item in module.parameters()) - sum(item.numel() for item in kept)

    def outcome(self, module: Any) -> dict[str, int]:
        return {"trained_parameters": self.num_trained(module, module.current_epoch)}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Freeze before the strategy looks at what is trained.

        Raises:
            BadInput: the backbone has no such stage; or something is to be unfrozen later on several devices.
        """
        if stage != "fit":
            return
        last = max((epoch for epoch, _ in self._unfreeze), default=0)
        check(
            trainer.world_size == 1 or last == 0,
            "callbacks.freeze.unfreeze: on several devices, what is trained cannot change during a fit; train the "
            "heads in a run of their own, or on trainer.devices=1",
        )
        self._set_gradients(trainer, pl_module.localizer.backbone)  # Lightning would warn of modes now
        assert trainer.max_epochs is not None
        if 0 <= trainer.max_epochs <= last and trainer.is_global_zero:  # -1: as many as it takes
            log.warning(
                "callbacks.freeze.unfreeze=%s: epoch %d (counted from 0) is beyond trainer.max_epochs=%d",
                [list(pair) for pair in self._unfreeze],
                last,
                trainer.max_epochs,
            )

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Freeze where a fit resumes within an epoch, whose beginning is not called."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        backbone, num_epochs = pl_module.localizer.backbone, trainer.current_epoch + 1
        self._set_gradients(trainer, backbone)
        self._set_modes(backbone)
        frozen = self.frozen(backbone.stages, num_epochs)
        if frozen != self._logged and trainer.is_global_zero:
            self._logged = frozen
            trained = backbone.stages[len(frozen) :]
            log.info(
                "trained from epoch %d: the heads%s%s, %s of %s parameters",
                trainer.current_epoch,
                " and the backbone" if trained else "",
                f" from {trained[0]} on" if trained and frozen else "",
                f"{self.num_trained(pl_module, num_epochs):,}",
                f"{sum(item.numel() for item in pl_module.parameters()):,}",
            )

    def _set_gradients(self, trainer: Trainer, backbone: Any) -> None:
        frozen = self.frozen(backbone.stages, trainer.current_epoch + 1)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(not frozen or backbone.stage_of(name) not in frozen)

    def _set_modes(self, module: nn.Module) -> None:
        """Evaluation mode for what has parameters and none that is trained, with all that is in it."""
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
            return
        module.training = not (self._norms == "eval" and isinstance(module, nn.modules.batchnorm._NormBase))
        for child in module.children():
            self._set_modes(child)
