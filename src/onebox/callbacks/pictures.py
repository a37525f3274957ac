"""Pictures of what the network predicts."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor

from onebox import draw
from onebox.boxes import clip, paired_iou
from onebox.callbacks.events import AfterValidation, Judged, add_image, check_counts
from onebox.data.image import read_image
from onebox.draw import PREDICTED_COLOUR, TRUE_COLOUR, Mark, draw_grid, draw_marks
from onebox.files import replacing

FRAMES = {"both right": "#2E8B3D", "class or box (IoU < 0.5) wrong": "#F2B200", "both wrong": "#C62828"}
LEGEND = [*draw.LEGEND, *FRAMES.items()]


class Gallery(AfterValidation):
    """A grid of images with true and predicted boxes.

    Args:
        num_images: how many images.
        columns: images a row.
        tile_width: width of each image, px.
    """

    def __init__(self, num_images: int, columns: int, tile_width: int, every_n_epochs: int) -> None:
        super().__init__(every_n_epochs)
        check_counts(self, num_images=num_images, columns=columns, tile_width=tile_width)
        self.num_images, self.columns, self.tile_width = num_images, columns, tile_width

    def add(self, trainer: Any, tag: str, seen: Judged, some: Sequence[int] | Tensor, title: str) -> None:
        """Write `some` of the validated images to TensorBoard."""
        found = zip(seen.rows[some].tolist(), seen.boxes[some], seen.probabilities[some], strict=True)
        sheet = self.sheet(trainer.datamodule, "val", found, f"{title} after epoch {trainer.current_epoch + 1}")
        add_image(trainer, tag, sheet)

    def sheet(self, data: Any, split: str, found: Iterable[tuple[int, Tensor, Tensor]], title: str) -> Image.Image:
        """Draw rows of a split with what was predicted, a box [4] and probabilities [K]."""
        tiles = [_tile(data, split, *one, width=self.tile_width) for one in found]
        return draw_grid(tiles, columns=self.columns, legend=LEGEND, title=title)


class BoxPictures(Gallery):
    """Draws true and predicted boxes on validation images in TensorBoard.

    The images are spread evenly over the split, always the same ones. A file shows training images at the end of the
    fit if there is no test split, of which the report would have pictures. All are JPEG, a tenth of a PNG.

    Args:
        path: the file; the report of the run embeds it.
    """

    def __init__(self, path: str, **counts: int) -> None:
        super().__init__(**counts)
        self.path = path

    def write(self, trainer: Any, seen: Judged) -> None:
        self.add(trainer, "val/predictions", seen, self._spread(len(seen.rows)), "Validation images")

    def on_fit_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Write the training images when there will be no test."""
        data = trainer.datamodule
        if not trainer.is_global_zero or len(data.indexes["test"]):
            return
        rows = self._spread(len(data.indexes["train"]))
        pl_module.eval()
        with torch.inference_mode():
            preds = pl_module(data.plain_batch("train", rows).to(pl_module.device).images)
        found = zip(rows, preds.boxes.cpu(), preds.logits.softmax(1).cpu(), strict=True)
        with replacing(Path(self.path)) as temporary:
            self.sheet(data, "train", found, "Training images after the last epoch").save(temporary, "JPEG")

    def _spread(self, count: int) -> list[int]:
        rows: list[int] = np.unique(np.linspace(0, count - 1, self.num_images).round().astype(int)).tolist()
        return rows


def _tile(data: Any, split: str, row: int, box: Tensor, probabilities: Tensor, *, width: int) -> Image.Image:
    index, names = data.indexes[split], data.class_names
    label, predicted = int(index.labels[row]), int(probabilities.argmax())
    iou = paired_iou(clip(box[None].float()), index.boxes[row][None]).item()
    answer = f"{names[predicted]} {probabilities[predicted]:.0%}, IoU {iou:.2f}"
    marks = [
        Mark(index.boxes[row].tolist(), names[label], TRUE_COLOUR),
        Mark(box.tolist(), answer, PREDICTED_COLOUR, below=True),
    ]
    image = read_image(index.image_paths[row], upright=data.is_upright)
    frame = [*FRAMES.values()][(predicted != label) + (not iou >= 0.5)]
    return draw_marks(image, marks, width=width, frame=frame)
