"""Features of the validation images, for TensorBoard's PROJECTOR."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch.nn.functional import interpolate

from onebox.callbacks.events import check_counts, judged, writers

BATCH = 64  # images at once


class Projector(Callback):
    """Writes the backbone's pooled features at the end of the fit, with thumbnails, classes and IoU.

    Args:
        num_images: at most so many images, spread evenly over those that were validated.
        thumbnail: side of a thumbnail, px.
    """

    def __init__(self, num_images: int, thumbnail: int) -> None:
        check_counts(self, num_images=num_images, thumbnail=thumbnail)
        self.num_images, self.thumbnail = num_images, thumbnail

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if pl_module.validated is None or not writers(trainer):
            return
        seen, data, net = judged(trainer, pl_module), trainer.datamodule, pl_module.localizer
        some = np.unique(np.linspace(0, len(seen.rows) - 1, self.num_images).round().astype(int)).tolist()
        rows, dataset, names = seen.rows[some].tolist(), data.dataset("val"), data.class_names
        features, thumbnails = [], []
        pl_module.eval()
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            for start in range(0, len(rows), BATCH):
                images = dataset.__getitems__([(0, row) for row in rows[start : start + BATCH]]).images
                features.append(net.backbone(net.normalise(images.to(pl_module.device))).pooled.float().cpu())
                thumbnails.append(interpolate(images.float() / 255, size=self.thumbnail, mode="area"))
        columns = [column[some].tolist() for column in (seen.labels, seen.predicted, seen.iou)]
        lines = [
            (
                names[label],
                names[predicted],
                ("no", "yes")[label == predicted],
                f"{iou:.2f}",
                data.indexes["val"].ids[row],
            )
            for label, predicted, iou, row in zip(*columns, rows, strict=True)
        ]
        # What is no text in a file's name is escaped.
        table = [[" ".join(text.split()).encode(errors="backslashreplace").decode() for text in line] for line in lines]
        for writer in writers(trainer):
            shutil.rmtree(Path(writer.log_dir, "00000"), ignore_errors=True)  # of a process that was killed
            writer.add_embedding(
                torch.cat(features).double().numpy().round(4),  # few digits, as it is a text
                metadata=table,
                metadata_header=["class", "predicted", "right", "IoU", "id"],
                label_img=torch.cat(thumbnails),
                tag="validation",
            )
