"""TensorBoard's events: the logger, and what the callbacks share that write more than scalars."""

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer, loggers
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from onebox.boxes import clip, paired_iou
from onebox.errors import check, is_integer


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Lightning's, without the tags that match one of the patterns `hide`; metrics.csv has them all."""

    def __init__(self, hide: Sequence[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._hide = list(hide)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Write all of them as one event; Lightning writes one a tag."""
        shown = [tag for tag in metrics if not any(fnmatchcase(tag, pattern) for pattern in self._hide)]
        values = [Summary.Value(tag=tag, simple_value=float(metrics[tag])) for tag in shown]
        self.experiment._get_file_writer().add_summary(Summary(value=values), step)


class Judged(NamedTuple):
    """The validation images of an epoch, N, with what was predicted; on the processor."""

    rows: Tensor  # [N] int64, of the split
    boxes: Tensor  # [N, 4], predicted
    labels: Tensor  # [N] int64, true
    probabilities: Tensor  # [N, K]
    predicted: Tensor  # [N] int64, classes
    iou: Tensor  # [N]


class AfterValidation(Callback, ABC):
    """Writes something of the validated images to TensorBoard.

    Args:
        every_n_epochs: how often; in the last epoch too.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        check_counts(self, every_n_epochs=every_n_epochs)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        is_due = epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs
        if is_due and trainer.state.fn == "fit" and not trainer.sanity_checking and writers(trainer):
            self.write(trainer, judged(trainer, pl_module))

    @abstractmethod
    def write(self, trainer: Any, seen: Judged) -> None:
        """Write it."""


def check_counts(callback: Callback, **counts: Any) -> None:
    """Refuse arguments that are no numbers >= 1."""
    for name, value in counts.items():
        key = f"callbacks.{type(callback).__module__.rpartition('.')[2]}.{name}"
        check(is_integer(value, 1), f"{key} must be a number >= 1, not {value}")


def judged(trainer: Any, module: Any) -> Judged:
    """What the last validation epoch predicted, beside what is true."""
    rows, boxes, logits = module.validated
    index = trainer.datamodule.indexes["val"]
    iou = paired_iou(clip(boxes.float()), index.boxes[rows]).nan_to_num()
    probabilities = logits.float().softmax(1).nan_to_num()
    return Judged(rows, boxes, index.labels[rows], probabilities, logits.argmax(1), iou)


def writers(trainer: Trainer) -> list[Any]:
    """The SummaryWriters: none without TensorBoard, and in ranks other than 0."""
    found = [logger for logger in trainer.loggers if isinstance(logger, loggers.TensorBoardLogger)]
    return [logger.experiment for logger in found] if trainer.is_global_zero else []


def add_image(trainer: Trainer, tag: str, picture: Image.Image, form: str = "JPEG", step: int | None = None) -> None:
    """Write a picture; without `step`, where Lightning puts the metrics of the epoch."""
    file = io.BytesIO()
    picture.save(file, form)
    image = Summary.Value(tag=tag, image=Summary.Image(encoded_image_string=file.getvalue()))
    for writer in writers(trainer):
        writer._get_file_writer().add_summary(Summary(value=[image]), trainer.global_step - 1 if step is None else step)
