"""Keeps the trace of a fit, and ends a fit when its trace is long enough."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from onebox.data.dataset import Batch
from onebox.module import LocalizationModule
from onebox.trace import CHECKSUM, LOSS, RATE, TraceWriter, checksums

SEEN = ("batch images", "batch boxes", "batch labels", "pred loc", "pred logits")
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
NUM_CHUNKS = 64


class _Step(NamedTuple):
    """What is kept of a step until it is written: small tensors, still on the device."""

    counters: tuple[int, int]
    seen: list[Tensor]
    losses: dict[str, Tensor]
    rates: dict[str, float]
    parameters: list[Tensor]


class StepTrace(Callback):
    """Writes one record a step: the bits of losses and learning rates, a checksum of every tensor that matters.

    In the order in which a step makes them: batch, predictions, losses, learning rates, parameters after the step.
    Gradients are left out: they would only tell apart backward and optimizer. A checksum costs about as much as
    reading the tensor once. What it needs stays on the device and is read as rarely as the module reads its losses.

    Args:
        path: the file; a fit that goes on from a checkpoint cuts it back to the checkpoint's last step.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._writer: TraceWriter | None = None
        self._pending: list[_Step] = []
        self._steps = 0  # in the file or pending
        self._is_writing = True

    def state_dict(self) -> dict[str, Any]:
        """Goes into checkpoints."""
        return {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the checkpoint's last step."""
        self._steps = state_dict["steps"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint's steps are in the file before the checkpoint is there."""
        self._write()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the weights before the first step."""
        self._is_writing = trainer.is_global_zero
        named = dict(pl_module.named_parameters())
        self._parameters = [_Rows(parameter) for parameter in named.values()]
        self._rows = [rows() for rows in self._parameters]
        self._initial = dict(zip(named, checksums(*_integers(self._rows)).tolist(), strict=True))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Note what the step may change: the inputs, which are still in the processor's cache, and the rates."""
        self._inputs = torch.cat([_chunks(part) for part in batch.inputs])
        self._rates = _rates(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Take a record."""
        module = cast(LocalizationModule, pl_module)
        losses, preds, targets = module.last_step
        self._rows = [
            make() if make.parameter.requires_grad else rows  # what is frozen is not read again
            for make, rows in zip(self._parameters, self._rows, strict=True)
        ]
        seen = [self._inputs, targets.boxes, targets.labels, preds.loc, preds.logits]
        self._pending.append(_Step((trainer.current_epoch, batch_idx), seen, losses, self._rates, self._rows))
        self._steps += 1
        if (batch_idx + 1) % module.log_every_n_steps == 0:
            self._write()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's last steps."""
        self._write()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the last steps before an error, which are the ones to look at."""
        self._write()

    def _write(self) -> None:
        """Read the pending steps, all in one transfer, and append them to the file."""
        steps, self._pending = self._pending, []
        if not steps or not self._is_writing:
            return
        names = sorted(steps[0].losses, key=lambda name: name == "loss")  # the total is made last
        if self._writer is None:
            fields = [
                *((name, CHECKSUM) for name in SEEN),
                *((name, LOSS) for name in names),
                *((name, RATE) for name in steps[0].rates),
                *((name, CHECKSUM) for name in self._initial),
            ]
            self._writer = TraceWriter(self._path, fields, self._initial, keep=self._steps - len(steps))
        # One transfer; the losses first, as they are not hashed.
        losses = [torch.stack([step.losses[name].float() for name in names]) for step in steps]
        values, lengths = _integers([*losses, *(tensor for step in steps for tensor in (*step.seen, *step.parameters))])
        num_losses, num_hashed = len(steps) * len(names), len(SEEN) + len(self._initial)
        sums = np.empty((len(steps), num_hashed), np.uint32)
        start = num_losses
        for row, first in enumerate(range(len(steps), len(lengths), num_hashed)):
            mine = lengths[first : first + num_hashed]
            sums[row] = checksums(values[start : start + sum(mine)], mine)
            start += sum(mine)
        blocks = [
            np.array([step.counters for step in steps]),
            sums[:, : len(SEEN)],
            values[:num_losses].view(np.float32).reshape(len(steps), -1),
            np.array([list(step.rates.values()) for step in steps]),
            sums[:, len(SEEN) :],
        ]
        self._writer.append([column for block in blocks for column in block.T])


class Enough(Exception):
    """The fit has made the steps that were asked for."""


class StopAfter(Callback):
    """Ends a fit with `Enough`. `trainer.max_steps` would also shorten the schedule of the learning rate.

    Args:
        steps: how many are made.
    """

    def __init__(self, steps: int) -> None:
        self._left = steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count."""
        self._left -= 1
        if self._left == 0:
            raise Enough


def _rates(trainer: Trainer) -> dict[str, float]:
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return {"lr" if number == 0 else f"lr_{number}": float(group["lr"]) for number, group in enumerate(groups)}


class _Rows:
    """[N] sums of a parameter's bits over all but its first dimension, which wrap around; called, it gives a copy.

    Keeps its view of the parameter's memory, which takes half of the time to make.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self._address = -1

    def __call__(self) -> Tensor:
        if self.parameter.data_ptr() != self._address:
            self._address = self.parameter.data_ptr()
            self._bits = self.parameter.detach().view(INTEGERS[self.parameter.element_size()])
            self._dimensions = tuple(range(1, self._bits.ndim))
            self._sum_type = torch.int64 if self._bits.dtype == torch.int64 else torch.int32
        if not self._dimensions:
            return self._bits.reshape(-1).clone()
        return self._bits.sum(self._dimensions, dtype=self._sum_type)


def _chunks(images: Tensor) -> Tensor:
    """[C] sums of the bits of equal parts of [B, C, H, W] maps or [B, F], 8 bytes at once, and the bytes left."""
    maps = images.permute(0, 2, 3, 1) if images.ndim == 4 else images
    data = maps.reshape(-1).view(torch.uint8)  # no copy: they are channels-last in memory
    if data.storage_offset() % 8:
        data = data.clone()
    size = 8 * NUM_CHUNKS
    whole = len(data) // size * size
    sums = data[:whole].view(torch.int64).view(NUM_CHUNKS, -1).sum(1)
    return torch.cat([sums, data[whole:].long()]) if whole < len(data) else sums


def _integers(tensors: Sequence[Tensor]) -> tuple[np.ndarray, list[int]]:
    """The bits of some tensors, one after the other: [V] int32 and the number of values of each."""
    pieces = []
    for tensor in tensors:
        if tensor.dtype is torch.int32 and tensor.ndim == 1:  # most are: passed over quickly
            pieces.append(tensor)
            continue
        flat = tensor.detach().flatten()
        if flat.element_size() < 4:
            flat = flat.float() if flat.is_floating_point() else flat.int()
        pieces.append(flat.view(torch.int32))
    return torch.cat(pieces).cpu().numpy(), [len(piece) for piece in pieces]
