"""Lets a fit train on stored features where the first part of its backbone stays frozen."""

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from onebox.callbacks.freeze import Freeze
from onebox.data.datamodule import VocDataModule
from onebox.data.features import Frozen
from onebox.model.folding import fold_norms
from onebox.model.localizer import Localizer
from onebox.model.weights import weights_hash
from onebox.module import LocalizationModule
from onebox.runs.checkpoint import load_weights

log = logging.getLogger(__name__)


def store_features(
    trainer: Trainer,
    module: LocalizationModule,
    data: VocDataModule,
    *,
    checkpoint: Path | None,
    backbone: Mapping[str, Any],
    augment: Mapping[str, Any],
) -> None:
    """Compute what the part of the backbone that is frozen throughout gives for each view, unless it is there already.

    Without such a part, or with data.features=off, nothing happens. When it could be used but is not, a line says why.

    Args:
        trainer: its callbacks say what is frozen.
        module: is told to go on after that part.
        data: receives the features.
        checkpoint: what the fit goes on from.
        backbone: config of the backbone.
        augment: config of the augmentation.

    Raises:
        BadInput: there is no room for the features.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    freeze = next((callback for callback in callbacks if isinstance(callback, Freeze)), None)
    if freeze is None or data.features == "off":
        return
    localizer = module.localizer
    network: Any = localizer.backbone  # a module as well
    stages = network.stages
    assert trainer.max_epochs is not None
    until = freeze.frozen_until(stages, trainer.max_epochs)
    if until is None:
        log.info("features are computed in every epoch, as callbacks.freeze.unfreeze has all of the backbone trained")
        return
    if data.views is None:
        log.info(
            "features are computed in every epoch, as each draws its own views; data.views=8 computes 8 of them once"
        )
        return
    if checkpoint is not None:
        load_weights(module, checkpoint)  # a file of pretrained weights may have changed since
    frozen = stages[: stages.index(until) + 1]
    device = trainer.strategy.root_device

    @cache
    def still() -> Localizer:
        evaluates = copy.deepcopy(localizer).eval().to(device)
        random = torch.Generator().manual_seed(0)
        example = torch.rand(1, 3, data.image_size, data.image_size, generator=random).to(device)
        fold_norms(evaluates, lambda: evaluates.prefix(example, until=until, mirrored=False))
        return evaluates

    def compute(images: Tensor, *, mirrored: bool) -> Sequence[Tensor]:
        with torch.inference_mode():
            return still().prefix(images.to(device), until=until, mirrored=mirrored)

    name = backbone.get("name") or backbone["_target_"].rpartition(".")[2]
    follows_from = {
        "backbone": dict(backbone),
        "until": until,
        "weights": weights_hash(network, lambda name: network.stage_of(name) in frozen),
        "torch": torch.__version__,
        "device": device.type,
    }
    parts = {
        split: Frozen(
            f"{name} until {until}{', mirrored too' * mirrored}",
            follows_from | {"mirrored": mirrored},
            partial(compute, mirrored=mirrored),
        )
        for split, mirrored in (("train", False), ("val", localizer.flip_average))
    }
    data.store_features(parts, augment)
    module.stored_until = until
