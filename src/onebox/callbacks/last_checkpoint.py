"""The checkpoint that an interrupted run resumes from."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from onebox.callbacks.epoch_csv import EpochCsvLogger
from onebox.errors import check, is_number

Loops = dict[str, Any]  # Lightning's counters of the fit


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
        self._every_seconds = 60 * every_minutes
        self._saved_at = 0.0
        self._sigterm = False
        self._end_now: Any = signal.SIG_DFL  # the handler that stops at once
        self._settle: Callable[[Loops], None] | None = None
        self._position = (0, 0)  # epoch and step of it where the fit began
        self._loaded: dict[str, Any] = {}
        self._first_step = 0  # that is logged

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what Lightning cannot resume exactly."""
        check(
            trainer.max_steps == -1,
            "trainer.max_steps cannot be resumed; set trainer.max_epochs or callbacks.checkpoint_last=null",
        )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take back what `on_save_checkpoint` added."""
        self._loaded = checkpoint["fit"]
        self._position = tuple(self._loaded["position"])
        self._first_step = self._loaded["first_step"]
        trainer.datamodule.start = self._position  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        for logger in trainer.loggers:
            if isinstance(logger, EpochCsvLogger):
                logger.rows.update(self._loaded["rows"])
        folder = os.path.realpath(self._folder)
        for state in checkpoint["callbacks"].values():
            if "dirpath" in state:  # Lightning forgets the best score of a run directory that was moved
                state |= _moved(state, state["dirpath"], folder)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out."""
        if self._settle is None:  # the best checkpoint
            checkpoint |= {"optimizer_states": [], "lr_schedulers": []}
            return
        loops = checkpoint["loops"]["fit_loop"]
        self._settle(loops)
        epochs = loops["epoch_progress"]["current"]
        is_begun = epochs["ready"] > epochs["processed"]
        step = loops["epoch_loop.batch_progress"]["current"]["completed"] if is_begun else 0
        checkpoint["fit"] = {
            "position": [epochs["processed"], step],
            # Lightning gives to an epoch's metrics the number of its last step, counted from 0.
            "first_step": trainer.global_step - (self._settle is _before_validation),
            "done": self._settle is _as_they_are,
            "rows": next((lo.rows for lo in trainer.loggers if isinstance(lo, EpochCsvLogger)), {}),
            "monitored": dict(trainer.callback_metrics),
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop from TensorBoard what will be logged again; do not train on when the checkpoint is that of the end."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                start = SessionLog(status=SessionLog.START)
                logger.experiment._get_file_writer().add_event(Event(session_log=start), self._first_step)
        if self._loaded.get("done"):
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give back the monitored values, and take over SIGTERM."""
        trainer._logger_connector._callback_metrics.update(self._loaded.get("monitored", {}))
        self._saved_at = time.monotonic()
        self._end_now = signal.getsignal(signal.SIGTERM)
        self._on_sigterm(self._note_sigterm)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save all of the epoch before, when that is due."""
        if (trainer.current_epoch, 0) > self._position:
            is_due = self._sigterm or self._age() >= self._epoch_seconds
            if trainer.strategy.broadcast(is_due):  # the ranks' clocks may differ
                self._save(trainer, _before_epoch)
        self._obey_sigterm()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save the steps before, when that is due."""
        if (trainer.current_epoch, batch_idx) > self._position and batch_idx > 0:
            has_gradients = batch_idx % trainer.accumulate_grad_batches != 0
            has_validated = batch_idx % (trainer.val_check_batch or math.inf) == 0
            if not has_gradients and not has_validated and self._is_due(trainer):
                self._save(trainer, _before_step)
            self._obey_sigterm()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the steps before, when that is due: validation itself can be stopped at any time."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and self._is_due(trainer):
            self._save(trainer, _before_validation)
        self._obey_sigterm()
        self._on_sigterm(self._end_now)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store what was found before stopping."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._on_sigterm(self._note_sigterm)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end."""
        self._save(trainer, _as_they_are)
        self._obey_sigterm()
        self._on_sigterm(self._end_now)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep nothing twice: `previous.ckpt` goes, and where the best is the last, both names are one file."""
        last, best, link = (self._folder / name for name in ("last.ckpt", "best.ckpt", ".best.ckpt.tmp"))
        if not trainer.is_global_zero:
            return
        (self._folder / "previous.ckpt").unlink(missing_ok=True)
        # Without hard links there are two files, and a best checkpoint that is damaged is told where it is loaded.
        with suppress(Exception):
            step = torch.load(best, map_location="cpu", weights_only=True, mmap=True)["global_step"]
            if step == trainer.global_step and not best.samefile(last):
                os.link(last, link)
                link.replace(best)

    def _is_due(self, trainer: Trainer) -> bool:
        # With several devices the sums of an unfinished epoch lie on each of them, and only one writes.
        return trainer.world_size == 1 and (self._sigterm or self._age() >= self._every_seconds)

    def _age(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._saved_at

    def _save(self, trainer: Trainer, settle: Callable[[Loops], None]) -> None:
        last, new = self._folder / "last.ckpt", self._folder / "new.ckpt"
        for logger in trainer.loggers:
            logger.save()  # what was logged until now will not be logged again
        self._settle = settle
        trainer.save_checkpoint(new)
        self._settle = None
        if trainer.is_global_zero:
            if last.exists():
                last.replace(last.with_name("previous.ckpt"))
            new.replace(last)
        self._saved_at = time.monotonic()

    def _note_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._sigterm = True

    def _obey_sigterm(self) -> None:
        if self._sigterm:
            self._on_sigterm(self._end_now)
            signal.raise_signal(signal.SIGTERM)

    def _on_sigterm(self, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            signal.signal(signal.SIGTERM, handler)


# Lightning counts what is ready, started, processed and completed, and tells from the differences where a checkpoint
# was written. These make the counters say what is so at the places where `LastCheckpoint` saves.


def _as_they_are(loops: Loops) -> None:
    """At the end of the fit all is counted."""


def _before_epoch(loops: Loops) -> None:
    for scope in ("total", "current"):
        loops["epoch_progress"][scope]["ready"] -= 1


def _before_step(loops: Loops) -> None:
    progress = loops["epoch_loop.batch_progress"]
    progress["is_last_batch"] = False  # was already said of the step to come
    for scope in ("total", "current"):
        progress[scope]["ready"] -= 1


def _before_validation(loops: Loops) -> None:
    """As if validation had begun with nothing done: Lightning then begins it again."""
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    loops["epoch_loop.val_loop.batch_progress"] |= {"total": begun, "current": dict(begun)}


def _moved(value: Any, old: str, new: str) -> Any:
    """Plain data with `new` for `old` at the beginning of each path."""
    if isinstance(value, dict):
        return {_moved(key, old, new): _moved(item, old, new) for key, item in value.items()}
    return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value
