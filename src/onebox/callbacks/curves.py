"""Precision and recall of each class."""

import re
from typing import Any

from onebox.callbacks.events import AfterValidation, Judged, check_counts, writers


class PrCurves(AfterValidation):
    """Writes a curve of precision and recall for each class, from its probability on the validation images.

    Args:
        num_thresholds: probabilities at which a curve has a point, evenly spread over [0, 1].
        max_classes: how many classes, the most frequent ones.
    """

    def __init__(self, num_thresholds: int, max_classes: int, every_n_epochs: int) -> None:
        super().__init__(every_n_epochs)
        check_counts(self, num_thresholds=num_thresholds, max_classes=max_classes)
        self.num_thresholds, self.max_classes = num_thresholds, max_classes

    def write(self, trainer: Any, seen: Judged) -> None:
        labels, counts = seen.labels.unique(return_counts=True)
        for label in labels[counts.argsort(descending=True, stable=True)][: self.max_classes].tolist():
            name = re.sub(r"[^\w.-]", "_", text := trainer.datamodule.class_names[label], flags=re.ASCII)
            tag = f"pr/{name}" if name == text else f"pr/{name}_{label}"  # others may be changed into the same
            curve = (seen.labels == label).numpy(), seen.probabilities[:, label].numpy()
            for writer in writers(trainer):
                writer.add_pr_curve(tag, *curve, trainer.global_step - 1, self.num_thresholds)
