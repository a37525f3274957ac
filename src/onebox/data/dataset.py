"""From rows of an index to batches. B = batch size, H x W = the model's image size in px."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from onebox.data.augment import Augmented, Transform
from onebox.data.batched import BatchedTransform, Drawn
from onebox.data.cache import Pixels, stored_pixels
from onebox.data.image import read_image
from onebox.data.index import Index
from onebox.data.loading import Key
from onebox.data.processes import thread_map
from onebox.data.resize import Image, Resize
from onebox.errors import BadInput

Cache = Literal["disk", "ram", "none"]


@dataclass(frozen=True)
class Batch:
    """What the model is given."""

    images: Tensor | None  # [B, 3, H, W] uint8, channels-last in memory; None where `state` takes their place
    boxes: Tensor  # [B, 4] float32, xyxy in [0, 1]
    labels: Tensor  # [B] int64
    ids: tuple[str, ...]  # B names of images
    # what augmentation did to keep boxes, as shares of these images in [0, 1]; empty where it draws nothing
    shares: Mapping[str, float] = field(default_factory=dict)
    state: tuple[Tensor, ...] = ()  # [B, ...] float16 each, what a frozen part of the network gives for the images
    # [B, 16] float32, what is still to be painted (`BatchedTransform.paint`); None where nothing is
    strokes: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        return self._map(lambda column: column.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            images=None if self.images is None else function(self.images),
            boxes=function(self.boxes),
            labels=function(self.labels),
            state=tuple(function(column) for column in self.state),
            strokes=None if self.strokes is None else function(self.strokes),
        )

    def __len__(self) -> int:
        return len(self.ids)


def pixel_source(resize: Resize) -> str:
    """What makes pixels of a file: the decoder and the resize."""
    decoder = f"OpenCV {cv2.__version__}"
    return f"{resize}, {', '.join(sorted({decoder, resize.library}))}"


class OneBoxDataset(Dataset[Batch]):
    """Images with one box and one label each, fetched a batch at a time.

    A sample is a function of (seed, its key) and of nothing else, so it does not depend on workers or order. Until
    `load` has been called, images are decoded at each access.

    Args:
        index: which images and objects.
        transform: resize and augmentation.
        root: folder that holds the images, at whatever depth.
        augment: whether the random transforms are applied.
        seed: seed of the augmentation.
        upright: whether images are turned as their EXIF data ask.
    """

    def __init__(
        self, index: Index, transform: Transform, *, root: Path, augment: bool, seed: int, upright: bool = False
    ) -> None:
        self.index = index
        # Copies, which are quicker to pick from than tensors. Memory of a tensor would be gone once torch has moved it
        # where processes share it, as it does when this is sent to a loader's worker that is not a fork.
        self._boxes, self._labels = index.boxes.numpy().copy(), index.labels.numpy().copy()
        self.folder = str(root.resolve())
        self._transform = transform
        self.is_random = augment and transform.is_random
        self.image_size = transform.resize.size
        self._resize = transform.resize_before_augment if self.is_random else transform.resize
        self._seed = seed
        self._images: Pixels | None = None
        self._rows: NDArray[np.int64] = np.arange(len(index))  # where they are in _images
        self._painter: BatchedTransform | None = None  # of batches, once they are on the device
        self._upright = upright
        decoding = f"{pixel_source(self._resize)}{', upright' * upright}"
        self._source = f"{self.folder}\0{decoding}\0by content".encode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        epochs = [epoch for epoch, _ in keys]
        rows = [row for _, row in keys]
        places = np.array(rows)
        boxes = self._boxes[places]
        shares: dict[str, float] = {}
        drawn: Augmented | Drawn | None = None
        if self.is_random and self._painter is None:
            drawn = self._transform.augment([self._image(row) for row in rows], boxes, self._seed, epochs, rows)
            images = drawn.images
        elif self._images is not None:
            images = self._images[self._rows[places]]  # by NumPy, which copies whole images; torch goes by elements
        else:
            images = np.stack([self._decode(row) for row in rows])
        if self._painter is not None:
            drawn = self._painter.draw(self._resize.size, boxes, self._seed, epochs, rows)
        if drawn is not None:
            boxes = drawn.boxes
            shares = {"augment_redrawn": drawn.redrawn / len(rows), "augment_fallback": drawn.fallback / len(rows)}
        strokes = torch.from_numpy(drawn.strokes).float() if isinstance(drawn, Drawn) else None
        ids = tuple(self.index.ids[row] for row in rows)
        images_nchw = torch.from_numpy(images).permute(0, 3, 1, 2)
        labels = torch.from_numpy(self._labels[places])
        return Batch(images_nchw, torch.from_numpy(boxes), labels, ids, shares, strokes=strokes)

    def __getitem__(self, row: int) -> Batch:
        """One image of epoch 0, as a batch of one."""
        return self.__getitems__([(0, row)])

    def unpainted(self) -> "OneBoxDataset":
        """The same, but batches leave to the transform's `paint` what it can do where the network is."""
        if not (self.is_random and isinstance(self._transform, BatchedTransform) and self._transform.paints_later):
            return self
        dataset = copy.copy(self)
        dataset._painter = self._transform
        return dataset

    def load(self, cache: Cache, cache_dir: Path) -> Mapping[int, str]:
        """Decode all images, so that they are at hand.

        Args:
            cache: `disk` decodes every image once, at the transform's size, into a file that is used again and shared
                by processes; `ram` does it into memory; `none` only finds those that cannot be decoded.
            cache_dir: folder of that file.

        Returns:
            Row -> what is wrong with an image that cannot be used; where there is one, nothing else may be called.

        Raises:
            OSError: the file of `disk` cannot be made.
        """
        side, rows = self._resize.size, range(len(self))
        if not rows or cache == "none":
            return self._decode_all(rows, None)
        if cache == "ram":
            self._images = np.empty((len(rows), side, side, 3), dtype=np.uint8)
            return self._decode_all(rows, self._images)
        path = cache_dir / "pixels" / f"{hashlib.sha256(self._source).hexdigest()[:24]}.pixels"
        about = {"data": self.folder, "resizing": pixel_source(self._resize)}
        self._images, self._rows, bad = stored_pixels(
            path, self.index.digests, side, decode=self._decode_all, about=about
        )
        return bad

    def fingerprint(self) -> str:
        """Hash of what images and boxes follow from, but for the transform's own arguments."""
        digest = hashlib.sha256(self._source)
        digest.update(b"".join(self.index.digests) + self.index.boxes.numpy().tobytes())
        if self.is_random:
            digest.update(str(self._seed).encode())
        return digest.hexdigest()

    def _image(self, row: int) -> Image:
        return self._decode(row) if self._images is None else self._images[self._rows[row]]

    def _decode(self, row: int) -> Image:
        return self._resize(read_image(self.index.image_paths[row], upright=self._upright))

    def _decode_all(self, rows: Sequence[int], images: Pixels | None) -> Mapping[int, str]:
        """Decode some rows into an array, unless it is None; returns what is wrong with those that cannot be."""

        def fill(place: int) -> str | None:
            file = self.index.image_paths[rows[place]]
            try:
                image = self._decode(rows[place])
            except BadInput as error:
                return str(error).removeprefix(f"{file}: ")
            if images is not None:
                images[place] = image
            return None

        wrong = zip(rows, thread_map(fill, range(len(rows)), description="decoding"), strict=True)
        return {row: text for row, text in wrong if text is not None}
