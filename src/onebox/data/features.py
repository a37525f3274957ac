"""What a frozen part of a network gives for a split, computed once. B = batch size, V = views, N = images.

A view of an image is its augmentation's draw with the number of the view in the place of the epoch. The features of
each view lie in a file of the cache folder (see `onebox.data.cache`), as float16, maps channels-last. Its name is a
hash of all that they follow from, so runs that differ only in what comes after, or in the number of views, share it.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import Timeout
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from onebox.data.cache import open_array
from onebox.data.dataset import Batch, Key, OneBoxDataset
from onebox.data.progress import progress
from onebox.errors import BadInput

log = logging.getLogger(__name__)

FORMAT = 2  # of the file; part of its name
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
        about = {
            "data": source.folder,
            "split": split,
            "images": len(source),
            "image_size": source.image_size,
            "backbone": frozen.name,
        }
        follows_from = {
            "format": FORMAT,
            "images": source.fingerprint(),
            "augment": dict(augment) if source.is_random else None,
            "frozen": dict(frozen.follows_from),
        }
        key = hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()[:24]
        self._paths = [cache_dir / "features" / f"{key}-{view}.npy" for view in range(views)]
        self._what = f"{split:5} features of {len(source):,} images x {views} view{'s' * (views > 1)}, {frozen.name}"
        if all(path.exists() for path in self._paths):
            log.info("%s: %s", self._what, cache_dir / "features" / f"{key}-*.npy")
        self._seconds: list[float] = []  # that each view took which was not there yet
        opened: dict[int, dict[str, NDArray[Any]]] = {}
        # Processes that want the same views share the work: each begins with what no other is computing.
        for doing in (None, f"computes features of {split} of"):
            for view, path in enumerate(self._paths):
                if view in opened:
                    continue
                try:
                    array = open_array(
                        path,
                        shape=(len(source),),
                        dtype=self._columns,
                        fill=partial(self._compute, view),
                        about=about | {"view": view, "follows_from": follows_from},
                        doing=doing,
                    )
                except Timeout:  # an OSError too
                    continue
                except OSError as error:
                    raise BadInput(f"{path}: {error.strerror or error}; {_ADVICE}") from error
                opened[view] = {name: array[name] for name in array.dtype.names or ()}
        self._views = [opened[view] for view in range(views)]
        if self._seconds:
            log.info("%.0f images/s", len(source) * len(self._seconds) / sum(self._seconds))

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these (view, row) keys."""
        views, rows = np.array(keys).T
        columns = {name: self._gather(name, views, rows) for name in self._views[0]}
        state = tuple(torch.from_numpy(column) for name, column in columns.items() if name.startswith(STATE))
        return Batch(
            images=None,
            state=tuple(column.permute(0, 3, 1, 2) if column.ndim == 4 else column for column in state),
            boxes=torch.from_numpy(columns["boxes"]),
            labels=self.index.labels[rows],
            ids=tuple(self.index.ids[row] for row in rows),
            shares={
                name.removeprefix(SHARE): float(column.mean())
                for name, column in columns.items()
                if name.startswith(SHARE)
            },
        )

    def _gather(self, name: str, views: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
        """[B, ...] what one column holds of these keys."""
        column = self._views[0][name]
        gathered = np.empty((len(rows), *column.shape[1:]), column.dtype)
        for view in np.unique(views):
            chosen = views == view
            gathered[chosen] = self._views[view][name][rows[chosen]]
        return gathered

    def _columns(self) -> np.dtype[Any]:
        """The columns of a file, from the features of one image.

        Raises:
            BadInput: the files that are not there yet would not fit on the disk.
        """
        batch = self._source[0]
        assert batch.images is not None
        items = [_channels_last(tensor).numpy() for tensor in self._frozen.compute(batch.images)]
        columns = np.dtype(
            [(f"{STATE}{number}", np.float16, item.shape[1:]) for number, item in enumerate(items)]
            + [("boxes", np.float32, (4,))]
            + [(f"{SHARE}{name}", np.float64) for name in batch.shares]
        )
        missing = [path for path in self._paths if not path.exists()]
        size = columns.itemsize * len(self) * len(missing) / 1e6
        folder = self._paths[0].parent
        free = shutil.disk_usage(folder).free / 1e6
        if size > free:
            raise BadInput(f"{folder}: {size:,.0f} MB of features, but {free:,.0f} MB are free; {_ADVICE}")
        if not self._seconds:
            log.info("%s: computed once, %s MB in %s", self._what, f"{size:,.1f}", folder)
        return columns

    def _compute(self, view: int, array: NDArray[Any]) -> None:
        start = time.perf_counter()
        chunks = range(0, len(self), CHUNK)
        description = f"computing features, view {view + 1} of {len(self._paths)}"
        for first in progress(chunks, total=len(chunks), description=description):
            rows = range(first, min(first + CHUNK, len(self)))
            batches = [self._source.__getitems__([(view, row)]) for row in rows]
            states = self._frozen.compute(torch.cat([batch.images for batch in batches if batch.images is not None]))
            for number, state in enumerate(states):
                half = _channels_last(state).half()
                if not half.isfinite().all():
                    raise BadInput(f"features {self._frozen.name} exceed float16; set data.features=off")
                array[f"{STATE}{number}"][rows.start : rows.stop] = half.numpy()
            for row, batch in zip(rows, batches, strict=True):
                array["boxes"][row] = batch.boxes[0].numpy()
                for name, share in batch.shares.items():
                    array[f"{SHARE}{name}"][row] = share
        self._seconds.append(time.perf_counter() - start)


_ADVICE = "lower data.views or image_size, choose another data.cache_dir, or set data.features=off"


def _channels_last(state: Tensor) -> Tensor:
    state = state.cpu()
    return state.permute(0, 2, 3, 1) if state.ndim == 4 else state
