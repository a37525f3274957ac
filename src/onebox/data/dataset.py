"""From rows of an index to batches. B = batch size, H x W = the model's image size in px."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from onebox.data.augment import Transform
from onebox.data.cache import Pixels, open_pixels, pixels_key
from onebox.data.image import read_image, wrong_size
from onebox.data.index import Index
from onebox.data.progress import progress
from onebox.data.resize import Image, Resize
from onebox.errors import BadInput

Cache = Literal["disk", "ram", "none"]
Key = tuple[int, int]  # (epoch, row of the index)


@dataclass(frozen=True)
class Batch:
    """What the model is given.

    Attributes:
        images: [B, 3, H, W] uint8, channels-last in memory.
        boxes: [B, 4] float32, xyxy in [0, 1].
        labels: [B] int64.
        ids: B names of images.
        shares: what augmentation did to keep boxes, as shares of these images in [0, 1]; empty where it draws nothing.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    shares: Mapping[str, float] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same batch on a device."""
        images, boxes, labels = (
            column.to(device, non_blocking=non_blocking) for column in (self.images, self.boxes, self.labels)
        )
        return replace(self, images=images, boxes=boxes, labels=labels)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory."""
        images, boxes, labels = (column.pin_memory() for column in (self.images, self.boxes, self.labels))
        return replace(self, images=images, boxes=boxes, labels=labels)

    def __len__(self) -> int:
        return len(self.ids)


class UndecodableImages(BadInput):
    """Images whose head and end are whole, but not what lies between.

    Args:
        reasons: row of the index -> what is wrong.
        first: the file of the first of them.
    """

    def __init__(self, reasons: Mapping[int, str], first: Path) -> None:
        self.reasons = reasons
        others = f" (and {len(reasons) - 1:,} other images; data.on_error=skip leaves them out)" * (len(reasons) > 1)
        super().__init__(f"{first}: {reasons[min(reasons)]}{others}")


def pixel_source(resize: Resize) -> str:
    """What makes pixels of a file: the decoder and the resize."""
    return f"{resize}, OpenCV {cv2.__version__}"


class OneBoxDataset(Dataset[Batch]):
    """Images with one box and one label each, fetched a batch at a time.

    A sample is a function of (seed, epoch, row) and of nothing else, so it does not depend on workers or order.

    Args:
        index: which images and objects.
        transform: resize and augmentation.
        augment: whether the random transforms are applied.
        cache: `disk` decodes every image once, at the transform's size, into a file that is used again and shared by
            processes; `ram` does it into memory; `none` decodes at each access.
        cache_dir: folder of that file.
        seed: seed of the augmentation.

    Raises:
        OSError: the file of `disk` cannot be made.
        UndecodableImages: `disk` or `ram` found some.
    """

    def __init__(
        self, index: Index, transform: Transform, *, augment: bool, cache: Cache, cache_dir: Path, seed: int
    ) -> None:
        self.index = index
        self._transform = transform
        self._augment = augment and transform.is_random
        self._resize = transform.resize_before_augment if self._augment else transform.resize
        self._seed = seed
        self._images: Pixels | None = None
        if len(index) and cache == "ram":
            images = np.empty(self._shape(), dtype=np.uint8)
            self.decode_all(images)
            self._images = images
        elif len(index) and cache == "disk":
            self._images = self._open(cache_dir)

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these (epoch, row) keys."""
        rows = [row for _, row in keys]
        boxes = self.index.boxes.numpy()[rows]
        shares: dict[str, float] = {}
        if self._augment:
            decoded = [self._image(row) for row in rows]
            drawn = self._transform.augment(decoded, boxes, self._seed, keys[0][0], rows)
            images, boxes = drawn.images, drawn.boxes
            shares = {"augment_redrawn": drawn.redrawn / len(rows), "augment_fallback": drawn.fallback / len(rows)}
        elif self._images is not None:
            images = self._images[rows]  # by NumPy, which copies whole images; torch goes element by element
        else:
            images = np.stack([self._decode(row) for row in rows])
        ids = tuple(self.index.ids[row] for row in rows)
        images_nchw = torch.from_numpy(images).permute(0, 3, 1, 2)
        return Batch(images_nchw, torch.from_numpy(boxes), self.index.labels[rows], ids, shares)

    def __getitem__(self, row: int) -> Batch:
        """One image of epoch 0, as a batch of one."""
        return self.__getitems__([(0, row)])

    def _image(self, row: int) -> Image:
        return self._decode(row) if self._images is None else self._images[row]

    def _decode(self, row: int) -> Image:
        path = self.index.image_paths[row]
        image = read_image(path)
        height, width = self.index.sizes[row].tolist()
        if image.shape[:2] != (height, width):
            raise BadInput(f"{path}: {wrong_size(image.shape[0], image.shape[1], height, width)}")
        return self._resize(image)

    def _open(self, cache_dir: Path) -> Pixels:
        resizing = pixel_source(self._resize)
        folders = {str(self.index.image_paths[row].parent.absolute()) for row in (0, -1)}
        about = {"data": os.path.commonpath(folders), "resizing": resizing}
        key = pixels_key(self.index.ids, self.index.image_stamps, resizing)
        return open_pixels(cache_dir, key, shape=self._shape, fill=self.decode_all, about=about)

    def _shape(self) -> tuple[int, ...]:
        return len(self), self._resize.size, self._resize.size, 3

    def decode_all(self, images: Pixels | None) -> None:
        """Decode all images into an array ([N, H, W, 3]); into none to see whether they can be decoded.

        Raises:
            UndecodableImages: some cannot.
        """
        bad: dict[int, str] = {}

        def fill(row: int) -> None:
            try:
                image = self._decode(row)
                if images is not None:
                    images[row] = image
            except BadInput as error:
                bad[row] = str(error).removeprefix(f"{self.index.image_paths[row]}: ")

        # Threads are enough: OpenCV lets go of the interpreter while it decodes.
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            done = pool.map(fill, range(len(self)))
            for _ in progress(done, total=len(self), description="decoding"):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C is not to wait for all the others
        if bad:
            raise UndecodableImages(bad, self.index.image_paths[min(bad)])


class EpochSampler(Sampler[Key]):
    """Keys of one epoch, in an order that is a function of (seed, epoch); the epoch is set by the trainer.

    With several replicas each takes every `num_replicas`-th key. The last ones start again from the front, so that
    all replicas have the same number.

    Args:
        num_rows: how many images there are.
        shuffle: whether each epoch has an order of its own; if not, it is that of the rows.
        seed: seed of the order.
        rank: which replica this is.
        num_replicas: how many there are.
        start: (epoch, number of keys): this epoch is begun after so many of its keys.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        num_replicas: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self._num_rows = num_rows
        self._shuffle = shuffle
        self._seed = seed
        self._rank = rank
        self._num_replicas = num_replicas
        self._start = start
        self._epoch = start[0]  # loader workers may ask for keys before the trainer sets the epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._num_rows // self._num_replicas)

    def __iter__(self) -> Iterator[Key]:
        rows = np.arange(self._num_rows)
        if self._shuffle:
            np.random.default_rng([self._seed, self._epoch]).shuffle(rows)
        mine = np.resize(rows, len(self) * self._num_replicas)[self._rank :: self._num_replicas]
        done = self._start[1] if self._epoch == self._start[0] else 0
        return ((self._epoch, row) for row in mine[done:].tolist())


class EvalBatches(Sampler[list[Key]]):
    """Batches of all rows for one of several replicas, such that each row is on one replica only.

    All replicas have the same number of batches, as they wait for each other at each; some are an image smaller.

    Args:
        num_rows: how many images there are.
        batch_size: how many make a batch; where this is 1, a batch may have 2.
        rank: which replica this is.
        num_replicas: how many there are; not more than images.
    """

    def __init__(self, num_rows: int, batch_size: int, *, rank: int, num_replicas: int) -> None:
        self._rows = np.arange(num_rows)[rank::num_replicas]
        most, least = -(-num_rows // num_replicas), num_rows // num_replicas
        self._num_batches = min(-(-most // batch_size), least)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        for rows in np.array_split(self._rows, self._num_batches):
            yield [(0, row) for row in rows.tolist()]
