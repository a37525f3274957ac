"""trace.csv: the losses of every training step, to the last bit."""

from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from onebox.errors import Preempted, check
from onebox.files import MAX_LONG, read_file, write_text


class StepTrace(Callback):
    """Writes one row a step: `step` and `epoch`, both from 0, and the total and the terms of the loss of its batch.

    The losses stay on the device and are read as rarely as the module reads them. Nine digits give each float32 back.

    Args:
        path: the file. A fit that resumes from a checkpoint cuts it back to the checkpoint's last step.
        stop_after: end the fit with `Preempted` after this many steps (`trainer.max_steps` would also shorten the
            schedule of the learning rate); None runs to the end.
    """

    def __init__(self, path: str, stop_after: int | None) -> None:
        self._path = Path(path)
        self._stop_after = stop_after
        self._pending: list[tuple[int, int, dict[str, Tensor]]] = []
        self._steps = 0  # in the file or pending

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = state_dict["steps"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the header and the rows of the steps that the checkpoint has seen.

        Raises:
            BadInput: the file cannot be read, or is a link, which may lead out of the run directory.
        """
        check(not self._path.is_symlink(), f"{self._path}: is a link, which is not written through; remove it")
        if trainer.is_global_zero and self._path.exists():
            remedy = "move it away: the trace then begins where the run resumes"
            header, *kept = read_file(self._path, self._rows_to_keep, remedy=remedy, max_bytes=MAX_LONG)
            write_text(self._path, "".join(f"{line}\n" for line in [header, *kept]) if kept else "")

    def _rows_to_keep(self, file: IO[bytes]) -> list[str]:
        # Without a last row that a kill has torn.
        header, *rows = file.read().decode().rpartition("\n")[0].split("\n")
        return [header, *(row for row in rows if int(row.partition(",")[0]) < self._steps)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._pending.append((self._steps, trainer.current_epoch, pl_module.last_step[0]))
        self._steps += 1
        is_enough = self._steps == self._stop_after
        if is_enough or (batch_idx + 1) % pl_module.log_every_n_steps == 0:
            self._write(trainer)
        if is_enough:
            raise Preempted(f"stopped after {self._steps} steps, as asked")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint's steps are in the file before the checkpoint is there."""
        self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the last steps before an error, which are the ones to look at."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        """Read the pending steps, all in one transfer, and append them to the file."""
        steps, self._pending = self._pending, []
        if not steps or not trainer.is_global_zero:
            return
        names = list(steps[0][2])
        values = torch.stack([losses[name].float() for *_, losses in steps for name in names]).view(-1, len(names))
        with self._path.open("a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(",".join(["step", "epoch", *names]) + "\n")
            for (step, epoch, _), row in zip(steps, values.tolist(), strict=True):
                file.write(",".join([str(step), str(epoch), *(f"{value:.9g}" for value in row)]) + "\n")
