"""Whether all processes of a run are about to do the same."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from onebox.errors import BadInput


class SameOnAllRanks(Callback):
    """Stops all ranks before the fit when one of them was started differently.

    Args:
        facts: what must be the same, by name.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        self._facts = dict(facts)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare.

        Raises:
            BadInput: on all ranks alike; names the first rank that differs, and in what.
        """
        everyone: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everyone, self._facts)
        for rank, theirs in enumerate(everyone):
            differs = [
                f"{name} {theirs[name]}, not {everyone[0][name]}"
                for name in theirs
                if theirs[name] != everyone[0][name]
            ]
            if differs:
                raise BadInput(
                    f"rank {rank} was started with another config, data or state than rank 0 ({', '.join(differs)}); "
                    "start all ranks by the same command, with the same files and hydra.run.dir"
                )
