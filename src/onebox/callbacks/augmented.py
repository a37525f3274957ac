"""Training images as the network sees them."""

from typing import Any

from lightning.pytorch import Callback, LightningModule

from onebox.callbacks.events import add_image, check_counts, writers
from onebox.data.dataset import Batch
from onebox.draw import TRUE_COLOUR, Mark, draw_grid, draw_marks


class AugmentedPictures(Callback):
    """Draws images of an epoch's first batch in TensorBoard, after resize and augmentation, with their boxes.

    Where the batch holds stored features there is nothing to draw.

    Args:
        every_n_epochs: how often, from the first epoch on.
        num_images: how many images.
        columns: images a row.
        tile_width: width of each image, px.
    """

    def __init__(self, num_images: int, columns: int, tile_width: int, every_n_epochs: int) -> None:
        counts = {"num_images": num_images, "columns": columns, "tile_width": tile_width}
        check_counts(self, every_n_epochs=every_n_epochs, **counts)
        self.num_images, self.columns, self.tile_width = num_images, columns, tile_width
        self.every_n_epochs = every_n_epochs

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        is_due = batch_idx == 0 and trainer.current_epoch % self.every_n_epochs == 0
        if not is_due or batch.images is None or not writers(trainer):
            return
        images = batch.images[: self.num_images].permute(0, 2, 3, 1).cpu().numpy()
        names = [trainer.datamodule.class_names[label] for label in batch.labels.tolist()]
        marks = [Mark(box, name, TRUE_COLOUR) for box, name in zip(batch.boxes.tolist(), names, strict=True)]
        tiles = [draw_marks(image, [mark], width=self.tile_width) for image, mark in zip(images, marks, strict=False)]
        title = f"Training images as the network sees them in epoch {trainer.current_epoch + 1}"
        sheet = draw_grid(tiles, columns=self.columns, legend=[("true", TRUE_COLOUR)], title=title)
        add_image(trainer, "train/augmented", sheet, step=trainer.global_step)
