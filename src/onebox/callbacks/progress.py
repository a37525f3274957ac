"""How far a fit is: a line an epoch, above a bar on a terminal."""

import math
import multiprocessing
import os
import shutil
import sys
import time
from collections import deque
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from onebox.callbacks.epoch_csv import EpochCsvLogger
from onebox.streams import draw_bar

REPEAT = 40  # lines until the names of the columns are printed again
REFRESH_S = 0.1
GAP = 2  # characters between two columns


class EpochBar(Callback):
    """Prints a line after each epoch, with as many columns as fit; on a terminal a bar of the batches stands below.

    A `*` marks what is the best in `monitor` until then.

    Args:
        monitor: the tag by which an epoch is the best.
        mode: max or min.
        every_n_epochs: how many of them have a line; the last one always has.
    """

    def __init__(self, monitor: str, mode: str, every_n_epochs: int) -> None:
        self._monitor, self._sign, self._every = monitor, 1 if mode == "max" else -1, every_n_epochs
        self._best, self._best_epoch = -math.inf, 0  # times the sign; from 1
        self._ended: int | None = None  # the epoch that has ended and has no line yet
        self._began_s, self._lr, self._num_lines = 0.0, 0.0, 0
        self._durations_s: deque[float] = deque(maxlen=5)  # of the last epochs
        self._phase, self._phase_at, self._drawn_s = "", (0, 0.0), 0.0
        process = multiprocessing.current_process().name
        self._has_terminal = process == "MainProcess" and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._is_among_others = process.startswith("Loky")  # joblib's jobs print into one stream
        self._job = ""  # how its lines begin there

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began_s = time.monotonic()
        if self._is_among_others:
            self._job = os.path.basename(trainer.default_root_dir)[:6] + "  "  # of its fingerprint
        for epoch, row in sorted(_rows(trainer).items()):  # of a run that is resumed
            self._is_best(epoch + 1, row)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before, whose values were not there yet at its end."""
        self._print(trainer)
        self._began_s = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._draw(
            trainer, f"epoch {_of(trainer, trainer.current_epoch + 1)}", batch_idx + 1, trainer.num_training_batches
        )

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any, **named: Any) -> None:
        self._draw(trainer, "validation", batch[2] + 1, sum(trainer.num_val_batches))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any, **named: Any) -> None:
        self._draw(trainer, "test", batch[2] + 1, sum(trainer.num_test_batches))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = trainer.current_epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, is_last=True)
        if self._best_epoch and trainer.is_global_zero:
            print(
                f"{self._job}best {self._monitor} {self._best * self._sign:.4f} in epoch {self._best_epoch}", flush=True
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no bar behind, however it ended."""
        if self._phase:
            draw_bar("")

    def _is_best(self, epoch: int, row: dict[str, float]) -> bool:
        is_best = self._sign * row.get(self._monitor, math.nan) > self._best
        if is_best:
            self._best, self._best_epoch = self._sign * row[self._monitor], epoch
        return is_best

    def _print(self, trainer: Trainer, *, is_last: bool = False) -> None:
        if self._ended is None or not trainer.is_global_zero:
            return
        epoch, row, self._ended = self._ended + 1, _rows(trainer).get(self._ended, {}), None
        is_best = self._is_best(epoch, row)
        self._durations_s.append(time.monotonic() - self._began_s)
        if not (is_last or epoch % self._every == 0):
            return
        left_s = sum(self._durations_s) / len(self._durations_s) * ((trainer.max_epochs or 0) - epoch)
        texts = {tag: _number(tag, value) for tag, value in row.items()} | {
            "epoch": _of(trainer, epoch),
            "lr": f"{self._lr:.1e}".replace("e-0", "e-"),
            "time": f"{self._durations_s[-1]:.1f}s",
            "left": str(timedelta(seconds=round(left_s))) if left_s >= 0 else "-",
        }
        texts[self._monitor] = texts.get(self._monitor, "-") + (mark := "*" if is_best else " ")
        widths = self._widths(trainer)
        cells = {tag: texts.get(tag, "-").rjust(width) for tag, width in widths.items()}
        if mark == "*" and self._has_terminal and not os.environ.get("NO_COLOR"):
            cells[self._monitor] = f"\x1b[1;32m{cells[self._monitor]}\x1b[0m"
        if self._phase:
            draw_bar("")
        if self._num_lines % REPEAT == 0:
            names = ((_name(tag) + " " * (tag == self._monitor)).rjust(width) for tag, width in widths.items())
            print(self._job + (" " * GAP).join(names), flush=True)
        print(self._job + (" " * GAP).join(cells.values()), flush=True)
        self._num_lines += 1

    def _widths(self, trainer: Trainer) -> dict[str, int]:
        """The columns that fit, in the order of the line, and their widths."""
        split = "val" if sum(trainer.num_val_batches) > 0 else "train"
        loss, joint, acc, iou, *more = (
            f"{split}/{name}" for name in ("loss", "joint_acc", "acc", "iou", "loc_acc", "loss_loc", "loss_cls")
        )
        # What is left out first, where there is little room, stands last.
        ranked = ["epoch", self._monitor, loss, "train/loss", "left", iou, acc, joint, "time", "lr", *more]
        widths = dict.fromkeys(ranked, 0) | {
            "epoch": len(_of(trainer, trainer.max_epochs or 0)),
            "lr": 6,
            "time": 6,
            "left": 7,
        }
        widths = {tag: max(width, len(_name(tag)), 5) for tag, width in widths.items()}
        widths[self._monitor] += 1
        room, kept = shutil.get_terminal_size().columns - len(self._job) + GAP, set()
        for tag, width in widths.items():
            if (room := room - width - GAP) >= 0:
                kept.add(tag)
        shown = ["epoch", "train/loss", loss, self._monitor, joint, acc, iou, *more, "lr", "time", "left"]
        return {tag: widths[tag] for tag in dict.fromkeys(shown) if tag in kept}

    def _draw(self, trainer: Trainer, phase: str, done: int, total: float) -> None:
        if not self._has_terminal or not trainer.is_global_zero:
            return
        now_s = time.monotonic()
        if phase != self._phase:
            self._phase, self._phase_at = phase, (done, now_s)
        elif now_s < self._drawn_s + REFRESH_S:
            return
        self._drawn_s, (first, began_s) = now_s, self._phase_at
        rate = (done - first) / (now_s - began_s) if done > first else 0.0
        left = f"  {rate:.1f} it/s  {timedelta(seconds=round((total - done) / rate))} left" if rate else ""
        room = shutil.get_terminal_size().columns - 1
        size = max(0, min(40, room - len(f"{phase}  {done}/{total}{left}")))
        full, empty = "━─" if "utf" in str(sys.stdout.encoding).lower() else "=-"
        part = round(size * done / total)
        draw_bar(f"{phase} {full * part}{empty * (size - part)} {done}/{total}{left}"[:room])


class EpochLines(Callback):
    """Prints `Epoch 1/30 loss_loc 0.42393 loss_cls 3.05736` after each epoch.

    Args:
        tags: tags to print, by the last part of their name; those that were not logged are left out.
    """

    def __init__(self, tags: list[str]) -> None:
        self._tags = list(tags)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before, whose values were not there yet at its end."""
        if trainer.current_epoch > 0:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            logged = [tag for tag in self._tags if tag in trainer.callback_metrics]
            values = [f"{tag.rpartition('/')[2]} {trainer.callback_metrics[tag]:.5f}" for tag in logged]
            print(" ".join([f"Epoch {trainer.current_epoch}/{trainer.max_epochs}", *values]))


def _rows(trainer: Trainer) -> dict[int, dict[str, float]]:
    return next((logger.rows for logger in trainer.loggers if isinstance(logger, EpochCsvLogger)), {})


def _of(trainer: Trainer, epoch: int) -> str:
    """`3/30`; `3` where there is no last epoch."""
    return f"{epoch}/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else str(epoch)


def _number(tag: str, value: float) -> str:
    return f"{value:.1e}" if abs(value) >= 1000 else f"{value:.{4 if 'loss' in tag else 3}f}"


def _name(tag: str) -> str:
    """The name of a column: of a metric of the validation without its split, but for the loss."""
    return tag.removeprefix("val/").replace("/", "_") if tag != "val/loss" else "val_loss"
