"""From a dataset to batches: their size, and the order of the images."""

import os
import signal
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from onebox.errors import check, is_integer, is_number

MOST = 10**9  # images of a batch
Key = tuple[int, int]  # (epoch or number of the view, row of the index)


@dataclass(frozen=True)
class Loading:
    """How batches are made."""

    batch_size: int  # images of a training step, on each device
    eval_batch_size: int  # images of a validation or test step, on each device
    num_workers: int  # loader processes; 0 loads in the main process, which is fastest with the cache
    drop_last: bool  # whether an incomplete last training batch is left out
    features_memory_mb: float = 0  # stored features of a split that take no more than this are held in memory

    def __post_init__(self) -> None:
        for key, least, most in (("batch_size", 1, MOST), ("eval_batch_size", 1, MOST), ("num_workers", 0, 1024)):
            value = getattr(self, key)
            check(is_integer(value, least, most), f"data.{key} must be a number >= {least} and <= {most}, not {value}")
        size_mb = self.features_memory_mb
        check(is_number(size_mb, 0), f"data.features_memory_mb must be a number >= 0, not {size_mb}")


def make_loader(
    dataset: Any,
    loading: Loading,
    *,
    seed: int,
    name: str,
    is_train: bool = False,
    start: tuple[int, int] = (0, 0),
    views: int | None = 1,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """The loader of the split `name`: training images in an order of their own for each epoch, others in that of the
    lists. The `dataset` gives whole batches by `__getitems__`; training begins with epoch and step `start`. With
    `pin_memory` batches lie where a GPU fetches them while the processor works on.

    Raises:
        BadInput: there are fewer images to evaluate than devices.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else 0
    num_replicas = torch.distributed.get_world_size() if distributed else 1
    batch_size = loading.batch_size if is_train else loading.eval_batch_size
    if not is_train and len(dataset) and num_replicas > 1:
        too_few = f"the {name} split has {len(dataset)} images for {num_replicas} devices; use fewer"
        check(len(dataset) >= num_replicas, too_few)
        eval_batches = EvalBatches(len(dataset), batch_size, rank=rank, num_replicas=num_replicas)
        batches: dict[str, Any] = {"batch_sampler": eval_batches}
    else:
        first = (start[0], start[1] * batch_size)
        sampler = EpochSampler(
            len(dataset), shuffle=is_train, seed=seed, rank=rank, num_replicas=num_replicas, start=first, views=views
        )
        batches = {"batch_size": batch_size, "sampler": sampler, "drop_last": is_train and loading.drop_last}
    return _Loader(
        dataset,
        **batches,
        num_workers=loading.num_workers,
        persistent_workers=loading.num_workers > 0,
        collate_fn=_as_is,  # __getitems__ gives whole batches
        worker_init_fn=_begin,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # workers must not draw from the global generator
    )


class _Loader(DataLoader[Any]):
    """In one process it only asks for the next batch; what torch does around that takes as long as a small batch."""

    def __iter__(self) -> Any:
        if self.num_workers or self.pin_memory:
            return super().__iter__()
        dataset: Any = self.dataset
        batches: Any = self.batch_sampler
        return map(dataset.__getitems__, batches)


def _as_is(batch: Any) -> Any:
    return batch


def _begin(worker: int) -> None:
    # Schedulers and terminals send them to all processes of a job; the main process still needs batches until it has
    # stored its state.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # By default a batch that cannot be handed over, as a limit is reached, is waited for for ever.
    abort = staticmethod(lambda error, batch: os._exit(1))
    Queue._on_queue_feeder_error = abort  # type: ignore[attr-defined]  # a hook that its stubs leave out


@dataclass(eq=False)
class EpochSampler(Sampler[Key]):
    """Keys of one epoch, in an order that is a function of (seed, epoch); the epoch is set by the trainer.

    With several replicas each takes every `num_replicas`-th key. The last ones start again from the front, so that
    all replicas have the same number.
    """

    num_rows: int  # how many images there are
    _: KW_ONLY
    shuffle: bool  # whether each epoch has an order of its own; if not, it is that of the rows
    seed: int  # seed of the order
    rank: int = 0  # which replica this is
    num_replicas: int = 1  # how many there are
    start: tuple[int, int] = (0, 0)  # (epoch, number of keys): this epoch is begun after so many of its keys
    # None for keys (epoch, row). V for keys (view, row), where the view of each image, from 0 to V - 1, is drawn such
    # that it comes in each once in V epochs
    views: int | None = None

    def __post_init__(self) -> None:
        self._epoch = self.start[0]  # loader workers may ask for keys before the trainer sets the epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_rows // self.num_replicas)

    def __iter__(self) -> Iterator[Key]:
        rows = np.arange(self.num_rows)
        if self.shuffle:
            np.random.default_rng([self.seed, self._epoch]).shuffle(rows)
        mine = np.resize(rows, len(self) * self.num_replicas)[self.rank :: self.num_replicas]
        done = self.start[1] if self._epoch == self.start[0] else 0
        return iter(list(zip(self._numbers()[mine[done:]].tolist(), mine[done:].tolist(), strict=True)))

    def _numbers(self) -> NDArray[np.int64]:
        """[num_rows] the first half of the keys."""
        if self.views is None:
            return np.full(self.num_rows, self._epoch)
        draw = np.random.default_rng([self.seed, self._epoch // self.views, 1])  # 1: not the draw of the order
        return (draw.integers(self.views, size=self.num_rows) + self._epoch) % self.views


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
