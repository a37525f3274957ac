"""The validation images that an epoch got most wrong."""

from typing import Any

from onebox.callbacks.events import Judged
from onebox.callbacks.pictures import Gallery


class WorstPictures(Gallery):
    """Draws in TensorBoard those of which IoU plus the probability of the true class is lowest, the worst first."""

    def write(self, trainer: Any, seen: Judged) -> None:
        goodness = seen.iou + seen.probabilities.gather(1, seen.labels[:, None])[:, 0]
        some = goodness.argsort(stable=True)[: self.num_images]
        self.add(trainer, "val/worst", seen, some, f"The worst of {len(goodness)} validation images")
