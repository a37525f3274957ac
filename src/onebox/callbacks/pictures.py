"""Pictures of what the network predicts."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from onebox.data.datamodule import VocDataModule
from onebox.data.image import read_image
from onebox.draw import PREDICTED_COLOUR, TRUE_COLOUR, Mark, draw_grid, draw_marks
from onebox.errors import is_integer, refuse
from onebox.files import replacing
from onebox.model.localizer import Prediction


class BoxPictures(Callback):
    """Draws true and predicted boxes: validation images in TensorBoard, test images of the best checkpoint in a PNG.

    The images are spread evenly over the split, always the same ones. Without a test split the PNG shows training
    images at the end of the fit.

    Args:
        path: the PNG file.
        num_images: how many images.
        columns: images a row.
        tile_width: width of each image, px.
        every_n_epochs: how often validation images are drawn.
    """

    def __init__(self, path: str, num_images: int, columns: int, tile_width: int, every_n_epochs: int) -> None:
        counts = {
            "num_images": num_images,
            "columns": columns,
            "tile_width": tile_width,
            "every_n_epochs": every_n_epochs,
        }
        refuse(
            {
                f"callbacks.pictures.{name} must be a number >= 1, not {value}": not is_integer(value, 1)
                for name, value in counts.items()
            }
        )
        self._path = Path(path)
        self._num_images = num_images
        self._columns = columns
        self._tile_width = tile_width
        self._every_n_epochs = every_n_epochs

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the validation images to TensorBoard."""
        epoch = trainer.current_epoch + 1
        is_due = epoch % self._every_n_epochs == 0 or epoch == trainer.max_epochs
        if not trainer.is_global_zero or not is_due:
            return
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if writers:
            picture = self._draw(trainer, pl_module, "val", f"Validation images after epoch {epoch}")
            for writer in writers:
                # The step that Lightning gives to the metrics of the epoch.
                writer.add_image("val/predictions", picture, trainer.global_step - 1, dataformats="HWC")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the PNG of training images when there will be no test."""
        if trainer.is_global_zero and not len(_data(trainer).indexes["test"]):
            self._write(self._draw(trainer, pl_module, "train", "Training images after the last epoch"))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the PNG of test images."""
        if trainer.is_global_zero:
            self._write(self._draw(trainer, pl_module, "test", "Test images, best checkpoint"))

    def _draw(self, trainer: Trainer, pl_module: LightningModule, split: str, title: str) -> np.ndarray:
        data = _data(trainer)
        index = data.indexes[split]
        rows = np.unique(np.linspace(0, len(index) - 1, self._num_images).round().astype(int)).tolist()
        batch = data.plain_batch(split, rows).to(pl_module.device)
        assert batch.images is not None
        was_training = pl_module.training
        pl_module.eval()
        with torch.inference_mode():
            preds: Prediction = pl_module(batch.images)
        pl_module.train(was_training)
        confidence, predicted = preds.logits.softmax(1).max(1)
        tiles = [
            draw_marks(
                read_image(index.image_paths[row]),
                [
                    _mark(batch.boxes[i], data.class_names[int(batch.labels[i])], TRUE_COLOUR, "top"),
                    _mark(
                        preds.boxes[i],
                        f"{data.class_names[int(predicted[i])]} {confidence[i]:.0%}",
                        PREDICTED_COLOUR,
                        "bottom",
                    ),
                ],
                width=self._tile_width,
            )
            for i, row in enumerate(rows)
        ]
        legend = [("true", TRUE_COLOUR), ("predicted, with its probability", PREDICTED_COLOUR)]
        return draw_grid(tiles, columns=self._columns, legend=legend, title=title)

    def _write(self, picture: np.ndarray) -> None:
        with replacing(self._path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")


def _data(trainer: Trainer) -> VocDataModule:
    data: VocDataModule = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    return data


def _mark(box: Tensor, text: str, colour: str, label: Literal["top", "bottom"]) -> Mark:
    return Mark(box.tolist(), text, colour, label)
