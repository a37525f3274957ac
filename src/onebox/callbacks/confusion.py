"""Which classes are taken for which."""

from typing import Any

import torch

from onebox.callbacks.events import AfterValidation, Judged, add_image
from onebox.draw import draw_matrix


class ConfusionMatrix(AfterValidation):
    """Draws the confusion matrix of the validation images in TensorBoard."""

    def write(self, trainer: Any, seen: Judged) -> None:
        used = torch.cat([seen.labels, seen.predicted]).unique()  # there may be no background
        places = torch.searchsorted(used, seen.labels) * len(used) + torch.searchsorted(used, seen.predicted)
        counts = places.bincount(minlength=len(used) ** 2).view(len(used), -1)
        names = [trainer.datamodule.class_names[label] for label in used.tolist()]
        title = f"Rows: true class, columns: predicted, after epoch {trainer.current_epoch + 1}"
        add_image(trainer, "val/confusion", draw_matrix(counts.numpy(), names, title=title), "PNG")
