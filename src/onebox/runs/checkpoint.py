"""Checkpoint files that a crash cannot leave half-written."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from onebox.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and renames: it is the old one or the new one, never a piece of it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """See `lightning.fabric.plugins.CheckpointIO.save_checkpoint`."""
        with replacing(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)
