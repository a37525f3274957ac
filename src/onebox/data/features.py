"""What a frozen part of a network gives for a split, computed once. B = batch size, V = views, N = images.

A view of an image is its augmentation's draw with the number of the view in the place of the epoch. The features of
all views lie in one file of the cache folder (see `onebox.data.cache`), as float16, maps channels-last. Its name is a
hash of all that they follow from, so runs that differ only in what comes after share it.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from onebox.data.cache import open_array
from onebox.data.dataset import Batch, Key, OneBoxDataset
from onebox.data.progress import progress
from onebox.errors import BadInput

log = logging.getLogger(__name__)

FORMAT = 1  # of the file; part of its name
CHUNK = 32  # images that are computed together, whatever the batch size: it may decide the last bits
STATE, SHARE = "state ", "share "  # begin the names of columns: `Batch.state` by number, `Batch.shares` by name


@dataclass(frozen=True)
class Frozen:
    """A part of a network that does not change.

    Attributes:
        name: for people.
        follows_from: plain data that its output follows from, such as a hash of its weights.
        compute: [B, 3, H, W] uint8 images to tensors [B, ...].
    """

    name: str
    follows_from: Mapping[str, Any]
    compute: Callable[[Tensor], Sequence[Tensor]]


class FeatureDataset(Dataset[Batch]):
    """Like a `OneBoxDataset`, but its batches hold features (`state`) in the place of images.

    Args:
        source: the images; read only when the features are not there yet.
        frozen: makes features of them.
        split: name of the split, for people.
        views: V; an image's key (v, row) gives its view v.
        augment: plain data that the views follow from beside `source`.
        cache_dir: the cache folder.

    Raises:
        BadInput: there is no room for the features, or they exceed float16.
    """

    def __init__(
        self,
        source: OneBoxDataset,
        frozen: Frozen,
        *,
        split: str,
        views: int,
        augment: Mapping[str, Any],
        cache_dir: Path,
    ) -> None:
        self.index = source.index
        self._source = source
        self._frozen = frozen
        self._shape = (views, len(source))
        about = {
            "data": source.folder,
            "split": split,
            "images": len(source),
            "views": f"{views} view{'s' * (views > 1)}",
            "image_size": source.image_size,
            "backbone": frozen.name,
        }
        follows_from = {
            "format": FORMAT,
            "views": views,
            "images": source.fingerprint(),
            "augment": dict(augment) if source.is_random else None,
            "frozen": dict(frozen.follows_from),
        }
        key = hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()[:24]
        self._path = cache_dir / "features" / f"{key}.npy"
        self._what = f"{split:5} features of {len(source):,} images x {about['views']}, {frozen.name}"
        if self._path.exists():
            log.info("%s: %s", self._what, self._path)
        try:
            array = open_array(
                self._path,
                shape=self._shape,
                dtype=self._columns,
                fill=self._compute,
                about=about | {"follows_from": follows_from},
                doing=f"computes features of {split} of",
            )
        except OSError as error:
            raise BadInput(f"{self._path}: {error.strerror or error}; {_ADVICE}") from error
        columns = {name: array[name] for name in array.dtype.names or ()}
        self._boxes = columns["boxes"]
        self._states = [column for name, column in columns.items() if name.startswith(STATE)]
        self._shares = {name.removeprefix(SHARE): column for name, column in columns.items() if name.startswith(SHARE)}

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these (view, row) keys."""
        views, rows = (list(part) for part in zip(*keys, strict=True))
        state = tuple(torch.from_numpy(column[views, rows]) for column in self._states)
        return Batch(
            images=None,
            state=tuple(column.permute(0, 3, 1, 2) if column.ndim == 4 else column for column in state),
            boxes=torch.from_numpy(self._boxes[views, rows]),
            labels=self.index.labels[rows],
            ids=tuple(self.index.ids[row] for row in rows),
            shares={name: float(column[views, rows].mean()) for name, column in self._shares.items()},
        )

    def _columns(self) -> np.dtype[Any]:
        """The columns of the file, from the features of one image.

        Raises:
            BadInput: the file would not fit on the disk.
        """
        batch = self._source[0]
        assert batch.images is not None
        items = [_channels_last(tensor).numpy() for tensor in self._frozen.compute(batch.images)]
        columns = np.dtype(
            [(f"{STATE}{number}", np.float16, item.shape[1:]) for number, item in enumerate(items)]
            + [("boxes", np.float32, (4,))]
            + [(f"{SHARE}{name}", np.float64) for name in batch.shares]
        )
        size = columns.itemsize * self._shape[0] * self._shape[1] / 1e6
        free = shutil.disk_usage(self._path.parent).free / 1e6
        if size > free:
            raise BadInput(f"{self._path.parent}: {size:,.0f} MB of features, but {free:,.0f} MB are free; {_ADVICE}")
        log.info("%s: computed once, %s MB in %s", self._what, f"{size:,.1f}", self._path)
        return columns

    def _compute(self, array: NDArray[Any]) -> None:
        start = time.perf_counter()
        views, images = self._shape
        chunks = list(product(range(views), range(0, images, CHUNK)))
        for view, first in progress(chunks, total=len(chunks), description="computing features"):
            rows = range(first, min(first + CHUNK, images))
            batches = [self._source.__getitems__([(view, row)]) for row in rows]
            states = self._frozen.compute(torch.cat([batch.images for batch in batches if batch.images is not None]))
            for number, state in enumerate(states):
                half = _channels_last(state).half()
                if not half.isfinite().all():
                    raise BadInput(f"features {self._frozen.name} exceed float16; set data.features=off")
                array[f"{STATE}{number}"][view, rows.start : rows.stop] = half.numpy()
            for row, batch in zip(rows, batches, strict=True):
                array["boxes"][view, row] = batch.boxes[0].numpy()
                for name, share in batch.shares.items():
                    array[f"{SHARE}{name}"][view, row] = share
        log.info("%.0f images/s", views * images / (time.perf_counter() - start))


_ADVICE = "lower data.views or image_size, choose another data.cache_dir, or set data.features=off"


def _channels_last(state: Tensor) -> Tensor:
    state = state.cpu()
    return state.permute(0, 2, 3, 1) if state.ndim == 4 else state
