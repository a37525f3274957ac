"""The checkpoint that an interrupted run resumes from."""

import math
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from onebox.callbacks.epoch_csv import EpochCsvLogger
from onebox.errors import check, is_number


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` such that a fit that resumes from it ends with the same bits as one that was never stopped.

    Lightning saves in the middle of its hooks, where an epoch is half logged and counters are half counted. This saves
    only where a step or an epoch begins, when everything of the one before is done, and adds what Lightning leaves out:
    the rows of metrics.csv and the values that callbacks monitor. Random numbers need no state, as each draw is a
    function of (seed, epoch, step or image).

    Saved are the beginning of an epoch when the last checkpoint is `epoch_seconds` old, the end of the fit and, on one
    device, a step or the beginning of validation when it is `every_minutes` old or SIGTERM was received, which takes
    effect when the checkpoint is written. The checkpoint before stays as `previous.ckpt` until the fit has ended. The
    best checkpoint, which nothing resumes from, is stored without the optimizer.

    Args:
        folder: where the checkpoints are.
        epoch_seconds: how much work a kill may cost at most when epochs are short; 0 saves each.
        every_minutes: how much work a kill may cost at most within a long epoch.
    """

    def __init__(self, folder: str, epoch_seconds: float, every_minutes: float) -> None:
        for name, value in (("epoch_seconds", epoch_seconds), ("every_minutes", every_minutes)):
            check(is_number(value, 0), f"callbacks.checkpoint_last.{name} must be a number >= 0, not {value}")
        self._folder = Path(folder)
        self._epoch_seconds = epoch_seconds
        self._step_seconds = 60 * every_minutes
        self._saved_at = 0.0
        self._saving: str | None = None  # the place of the fit while last.ckpt is written
        self._sigterm = False
        self._end_now: Any = signal.SIG_DFL  # the handler that stops at once
        self._trained: dict[str, Any] = {}  # weights of the last epoch, where averages take their place at the end
        self._loaded: dict[str, Any] = {"position": (0, 0), "first_step": 0, "done": False, "monitored": {}}

    def on_load_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take back what `on_save_checkpoint` added."""
        self._loaded = checkpoint["fit"] | {"position": tuple(checkpoint["fit"]["position"])}
        trainer.datamodule.start = self._loaded["position"]
        for logger in trainer.loggers:
            if isinstance(logger, EpochCsvLogger):
                logger.rows.update(self._loaded["rows"])
        for state in checkpoint["callbacks"].values():
            if "dirpath" in state:  # Lightning forgets the best score of a run directory that was moved
                state |= _moved(state, state["dirpath"], os.path.realpath(self._folder))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out, and correct its counters, from whose differences it tells where it was."""
        if self._saving is None:  # the best checkpoint
            checkpoint |= {"optimizer_states": [], "lr_schedulers": []}
            return
        loops = checkpoint["loops"]["fit_loop"]
        epochs, steps = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
        if self._saving == "step":
            steps["is_last_batch"] = False  # was already said of the step to come
        elif self._saving == "validation":  # as if it had begun with nothing done: Lightning then begins it again
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            loops["epoch_loop.val_loop.batch_progress"] |= {"total": begun, "current": dict(begun)}
        for scope in ("total", "current"):  # counts what is about to begin
            epochs[scope]["ready"] -= self._saving == "epoch"
            steps[scope]["ready"] -= self._saving == "step"
        is_begun = epochs["current"]["ready"] > epochs["current"]["processed"]
        checkpoint["fit"] = {
            "position": [epochs["current"]["processed"], steps["current"]["completed"] if is_begun else 0],
            # Lightning gives to an epoch's metrics the number of its last step, counted from 0.
            "first_step": trainer.global_step - (self._saving == "validation"),
            "done": self._saving == "end",
            "rows": next((lo.rows for lo in trainer.loggers if isinstance(lo, EpochCsvLogger)), {}),
            "monitored": dict(trainer.callback_metrics),
            "trained": self._trained if self._saving == "end" else {},
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop from TensorBoard what will be logged again; do not train on when the checkpoint is that of the end."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                start = Event(session_log=SessionLog(status=SessionLog.START))
                logger.experiment._get_file_writer().add_event(start, self._loaded["first_step"])
        if self._loaded["done"]:
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give back the monitored values, and take over SIGTERM."""
        trainer._logger_connector._callback_metrics.update(self._loaded["monitored"])
        self._saved_at = time.monotonic()
        self._end_now = signal.getsignal(signal.SIGTERM)
        self._defer_sigterm(True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_due = self._sigterm or self._age() >= self._epoch_seconds
        # The ranks' clocks may differ.
        if (trainer.current_epoch, 0) > self._loaded["position"] and trainer.strategy.broadcast(is_due):
            self._save(trainer, "epoch")
        self._obey_sigterm()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) > self._loaded["position"] and batch_idx > 0:
            has_gradients = batch_idx % trainer.accumulate_grad_batches != 0
            has_validated = batch_idx % (trainer.val_check_batch or math.inf) == 0
            if not has_gradients and not has_validated and self._is_due(trainer):
                self._save(trainer, "step")
            self._obey_sigterm()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the steps before, when that is due: validation itself can be stopped at any time."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and self._is_due(trainer):
                self._save(trainer, "validation")
            self._defer_sigterm(False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store what was found before stopping."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._defer_sigterm(True)

    def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Keep the weights that averaged ones replace when the fit ends, as a run that extends this one trains them."""
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
            self._trained = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "end")
        self._defer_sigterm(False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep nothing twice: `previous.ckpt` goes, and where the best is the last, both names are one file."""
        if not trainer.is_global_zero:
            return
        last, best, link = (self._folder / name for name in ("last.ckpt", "best.ckpt", ".best.ckpt.tmp"))
        (self._folder / "previous.ckpt").unlink(missing_ok=True)
        with suppress(Exception):  # no hard links: two files; a damaged best.ckpt: reported where it is loaded
            step = torch.load(best, map_location="cpu", weights_only=True, mmap=True)["global_step"]
            if step == trainer.global_step and not best.samefile(last):
                os.link(last, link)
                link.replace(best)

    def _age(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._saved_at

    def _is_due(self, trainer: Trainer) -> bool:
        # With several devices the sums of an unfinished epoch lie on each of them, and only one writes.
        return trainer.world_size == 1 and (self._sigterm or self._age() >= self._step_seconds)

    def _save(self, trainer: Trainer, place: str) -> None:
        """Write last.ckpt where an epoch, a step or validation is about to begin, or at the end."""
        last, new = self._folder / "last.ckpt", self._folder / "new.ckpt"
        for logger in trainer.loggers:
            logger.save()  # what was logged until now will not be logged again
        self._saving = place
        trainer.save_checkpoint(new)
        self._saving = None
        if trainer.is_global_zero:
            if last.exists():
                last.replace(last.with_name("previous.ckpt"))
            new.replace(last)
        self._saved_at = time.monotonic()

    def _defer_sigterm(self, is_deferred: bool) -> None:
        """Note SIGTERM until a checkpoint is written, or let it stop the fit at once, also one that was noted."""
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            signal.signal(signal.SIGTERM, self._note_sigterm if is_deferred else self._end_now)
        if self._sigterm and not is_deferred:
            signal.raise_signal(signal.SIGTERM)

    def _note_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._sigterm = True

    def _obey_sigterm(self) -> None:
        if self._sigterm:
            self._defer_sigterm(False)


def _moved(value: Any, old: str, new: str) -> Any:
    """Plain data with `new` for `old` at the beginning of each path."""
    if isinstance(value, dict):
        return {_moved(key, old, new): _moved(item, old, new) for key, item in value.items()}
    return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value
