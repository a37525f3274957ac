"""Whether all processes of a run are about to do the same."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from onebox.errors import check


class SameOnAllRanks(Callback):
    """Stops all ranks before the fit when one of them was started differently.

    Args:
        facts: what must be the same, by name.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        self._facts = dict(facts)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise `BadInput` on all ranks alike, which names the first rank that differs, and in what."""
        everyone: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everyone, self._facts)
        for rank, theirs in enumerate(everyone):
            differs = [
                f"{name} {theirs[name]}, not {value}" for name, value in everyone[0].items() if theirs[name] != value
            ]
            check(
                not differs,
                f"rank {rank} was started with another config, data or state than rank 0 ({', '.join(differs)}); "
                "start all ranks by the same command, with the same files and hydra.run.dir",
            )
