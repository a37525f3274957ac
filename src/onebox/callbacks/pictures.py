"""Pictures of what the network predicts."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary

from onebox.data.image import read_image
from onebox.draw import LEGEND, PREDICTED_COLOUR, TRUE_COLOUR, Mark, draw_grid, draw_marks
from onebox.errors import check, is_integer
from onebox.files import replacing


class BoxPictures(Callback):
    """Draws true and predicted boxes: validation images in TensorBoard, test images of the best checkpoint in a file.

    The images are spread evenly over the split, always the same ones. Without a test split the file shows training
    images at the end of the fit. All are JPEG, a tenth of a PNG.

    Args:
        path: the file; the report of the run embeds it.
        num_images: how many images.
        columns: images a row.
        tile_width: width of each image, px.
        every_n_epochs: how often validation images are drawn.
    """

    def __init__(self, path: str, num_images: int, columns: int, tile_width: int, every_n_epochs: int) -> None:
        counts = {"num_images": num_images, "columns": columns, "tile_width": tile_width}
        for name, value in (counts | {"every_n_epochs": every_n_epochs}).items():
            check(is_integer(value, 1), f"callbacks.pictures.{name} must be a number >= 1, not {value}")
        self._path = Path(path)
        self._num_images = num_images
        self._columns = columns
        self._tile_width = tile_width
        self._every_n_epochs = every_n_epochs

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        is_due = epoch % self._every_n_epochs == 0 or epoch == trainer.max_epochs
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.is_global_zero and is_due and loggers:
            jpeg = self._draw(trainer, pl_module, "val", f"Validation images after epoch {epoch}")
            image = Summary.Value(tag="val/predictions", image=Summary.Image(encoded_image_string=jpeg))
            for logger in loggers:
                step = trainer.global_step - 1  # the one that Lightning gives to the metrics of the epoch
                logger.experiment._get_file_writer().add_summary(Summary(value=[image]), step)

    def on_fit_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Write the training images when there will be no test."""
        if trainer.is_global_zero and not len(trainer.datamodule.indexes["test"]):
            self._write(self._draw(trainer, pl_module, "train", "Training images after the last epoch"))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._write(self._draw(trainer, pl_module, "test", "Test images, best checkpoint"))

    def _write(self, jpeg: bytes) -> None:
        with replacing(self._path) as temporary:
            temporary.write_bytes(jpeg)

    def _draw(self, trainer: Any, pl_module: LightningModule, split: str, title: str) -> bytes:
        data = trainer.datamodule
        paths = data.indexes[split].image_paths
        rows = np.unique(np.linspace(0, len(paths) - 1, self._num_images).round().astype(int)).tolist()
        batch = data.plain_batch(split, rows).to(pl_module.device)
        pl_module.eval()  # as in validation and in a test already
        with torch.inference_mode():
            preds = pl_module(batch.images)
        confidence, predicted = preds.logits.softmax(1).max(1)
        tiles = []
        for i, row in enumerate(rows):
            answer = f"{data.class_names[int(predicted[i])]} {confidence[i]:.0%}"
            marks = [
                Mark(batch.boxes[i].tolist(), data.class_names[int(batch.labels[i])], TRUE_COLOUR),
                Mark(preds.boxes[i].tolist(), answer, PREDICTED_COLOUR, below=True),
            ]
            tiles.append(draw_marks(read_image(paths[row], upright=data.is_upright), marks, width=self._tile_width))
        file = io.BytesIO()
        draw_grid(tiles, columns=self._columns, legend=LEGEND, title=title).save(file, "JPEG")
        return file.getvalue()
