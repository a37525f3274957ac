"""How IoU and probability are spread."""

from typing import Any

import numpy as np

from onebox.callbacks.events import AfterValidation, Judged, check_counts, writers


class Histograms(AfterValidation):
    """Writes histograms of the validation images: IoU, and the probability of right and of wrong classes.

    Args:
        num_bins: bins over [0, 1].
    """

    def __init__(self, num_bins: int, every_n_epochs: int) -> None:
        super().__init__(every_n_epochs)
        check_counts(self, num_bins=num_bins)
        self.edges = np.linspace(0, 1, num_bins + 1)

    def write(self, trainer: Any, seen: Judged) -> None:
        confidence, is_right = seen.probabilities.amax(1), seen.predicted == seen.labels
        spread = {
            "iou_spread": seen.iou,
            "probability_right": confidence[is_right],
            "probability_wrong": confidence[~is_right],
        }
        for name, values in spread.items():
            for writer in writers(trainer) if len(values) else ():
                writer.add_histogram(
                    f"val/{name}", values.clamp(0, 1).numpy(), trainer.global_step - 1, bins=self.edges
                )
