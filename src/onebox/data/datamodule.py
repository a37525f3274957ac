"""The LightningDataModule: from a VOC tree on disk to loaders of batches."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from onebox.data.augment import Transform
from onebox.data.dataset import Batch, EpochSampler, OneBoxDataset
from onebox.data.index import Index, Select, build_index, check_disjoint, class_names
from onebox.data.voc import VocTree
from onebox.errors import BadInput, is_integer, is_number, refuse

log = logging.getLogger(__name__)

BACKGROUND = "background"
SPLITS = ("train", "val", "test")
Entry = tuple[VocTree, str]


class Source(Protocol):
    """Where trees come from."""

    def __call__(self, root: str, *, download: bool) -> object:
        """Make or fetch the trees below `root` that are missing; ask the network only if `download` is true."""


class VocDataModule(LightningDataModule):
    """Single-object images of one or several VOC trees.

    Args:
        root: folder that the trees of `splits` lie in.
        source: called with `root` before the first use; makes or fetches the trees. None: they are there.
        download: whether `source` may fetch what is missing from the network.
        splits: for train, val and test the lists that make it up, as `TREE/LIST` (`VOC2007/train`) or `LIST` when
            root itself is the tree; the list `*` is every image of the tree.
        holdout: for val and test, the share of the training images in [0, 1] that a seeded draw takes away for it when
            `splits` names no list for it.
        only_train: put the images of all lists into the training split (overfitting checks); val and test are empty.
        classes: names of the classes; None reads them from the annotations.
        background_class: whether logit 0 stands for "background", so that labels start at 1.
        select: `single` keeps images with exactly one object, `largest` takes each image's largest.
        include_difficult: whether objects marked difficult count.
        box_origin: 1 for VOC's pixels, which count from 1; 0 for tools that count from 0.
        ids: keep only these images; None keeps all.
        limit: keep at most so many images of each split; None keeps all.
        transform: resize and augmentation.
        cache: `ram` keeps decoded images in memory, `none` decodes at each access.
        batch_size: images a training step, on each device.
        eval_batch_size: images a validation or test step, on each device.
        num_workers: loader processes; 0 loads in the main process, which is fastest with the cache.
        drop_last: whether an incomplete last training batch is left out.
        seed: seed of holdout, order and augmentation.
    """

    def __init__(
        self,
        *,
        root: str,
        source: Source | None,
        download: bool,
        splits: Mapping[str, Sequence[str]],
        holdout: Mapping[str, float],
        only_train: bool,
        classes: Sequence[str] | None,
        background_class: bool,
        select: Select,
        include_difficult: bool,
        box_origin: Literal[0, 1],
        ids: Sequence[str] | None,
        limit: int | None,
        transform: Transform,
        cache: Literal["ram", "none"],
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        drop_last: bool,
        seed: int,
    ) -> None:
        super().__init__()
        shares = [holdout.get(split, 0.0) for split in ("val", "test")]
        refuse(
            {
                f"data.splits has {sorted(set(splits) - set(SPLITS))}, but the splits are train, val and test": bool(
                    set(splits) - set(SPLITS)
                ),
                f"data.holdout must be shares >= 0 that leave something to train, not {dict(holdout)}": not all(
                    is_number(share, 0, 1) for share in shares
                )
                or sum(shares) >= 1,
                "data.classes must be names, each once": classes is not None
                and (not classes or isinstance(classes, str) or len(set(classes)) < len(classes)),
                f"data.select must be single or largest, not {select}": select not in ("single", "largest"),
                f"data.box_origin must be 1 or 0, not {box_origin}": box_origin not in (0, 1),
                f"data.ids must be a list, such as ['000028'], not {ids}": isinstance(ids, str | int),
                f"data.limit must be a number >= 1 or null, not {limit}": limit is not None
                and not is_integer(limit, 1),
                f"data.cache must be ram or none, not {cache}": cache not in ("ram", "none"),
                f"data.batch_size must be >= 1, not {batch_size}": not is_integer(batch_size, 1),
                f"data.eval_batch_size must be a number >= 1, not {eval_batch_size}": not is_integer(
                    eval_batch_size, 1
                ),
                f"data.num_workers must be >= 0, not {num_workers}": not is_integer(num_workers, 0),
            }
        )
        self._root = Path(root)
        self._source = source
        self._download = download
        self._splits = {split: list(splits.get(split, [])) for split in SPLITS}
        self._holdout = dict(holdout)
        self._only_train = only_train
        self._classes = None if classes is None else list(classes)
        self._background_class = background_class
        self._select = select
        self._include_difficult = include_difficult
        self._box_origin = box_origin
        self._ids = None if ids is None else [str(image_id) for image_id in ids]
        self._limit = limit
        self._transform = transform
        self._cache = cache
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self._num_workers = num_workers
        self._drop_last = drop_last
        self._seed = seed
        self._datasets: dict[str, OneBoxDataset] = {}
        self.class_names: list[str] = []  # index = logit
        self.indexes: dict[str, Index] = {}

    def prepare_data(self) -> None:
        """Make or fetch the trees, on one process a machine."""
        if self._source is not None:
            self._source(str(self._root), download=self._download)

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations and split them. Called again, it does nothing.

        Raises:
            BadInput: something in the trees or the selection is wrong; the message names it.
        """
        if self.indexes:
            return
        entries = self._entries()
        check_disjoint(entries)
        unknown = set(self._ids or []) - {image_id for split in SPLITS for _, image_id in entries[split]}
        if unknown:
            raise BadInput(
                f"data.ids: no list of data.splits names {', '.join(sorted(unknown))} "
                "(an unquoted number loses its zeros: write \"data.ids=['000028']\")"
            )
        everything = [entry for split in SPLITS for entry in entries[split]]
        if self._classes is None:
            self._classes = class_names(everything, box_origin=self._box_origin)
        self.class_names = [BACKGROUND] * self._background_class + self._classes
        label_of = {name: label for label, name in enumerate(self.class_names)}
        for split in SPLITS:
            self.indexes[split] = build_index(
                entries[split],
                label_of=label_of,
                select=self._select,
                include_difficult=self._include_difficult,
                box_origin=self._box_origin,
                ids=self._ids,
                limit=self._limit,
            )
            kept = self._transform.keeps(self.indexes[split].boxes.numpy())
            self.indexes[split] = self.indexes[split].where(kept, "below augment.min_area")
            log.info("%-5s %s", split, self.indexes[split])
        if len(self.indexes["train"]) == 0:
            raise BadInput(
                f"{self._root}: no training image is left ({self.indexes['train']}); "
                "loosen data.select, data.ids or data.limit, or name other lists in data.splits"
            )
        if self._drop_last and len(self.indexes["train"]) < self._batch_size:
            raise BadInput(
                f"data.drop_last leaves no batch of {self._batch_size} from {len(self.indexes['train'])} training "
                "images; set data.drop_last=false or a smaller data.batch_size"
            )

    def decode(self) -> None:
        """Decode all splits into the cache, if there is one, so that a bad image is found before the fit."""
        for split in SPLITS:
            self.dataset(split)

    @property
    def num_classes(self) -> int:
        """Number of logits: the classes, and the background if it has one."""
        return len(self.class_names)

    def fingerprint(self) -> dict[str, str]:
        """Hash of each split's images, boxes and labels, and of the class names."""
        names = hashlib.sha256("\n".join(self.class_names).encode()).hexdigest()[:16]
        return {"classes": names} | {split: index.fingerprint() for split, index in self.indexes.items()}

    def dataset(self, split: str) -> OneBoxDataset:
        """The images of one split as the loaders give them; decoded at the first call when there is a cache."""
        if split not in self._datasets:
            self._datasets[split] = self._dataset(split, augment=split == "train", cache=self._cache)
        return self._datasets[split]

    def plain_batch(self, split: str, rows: Sequence[int]) -> Batch:
        """Some images of one split without augmentation."""
        return self._dataset(split, augment=False, cache="none").__getitems__([(0, row) for row in rows])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in an order of their own for each epoch."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches in the order of the lists."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches in the order of the lists."""
        return self._loader("test")

    def _dataset(self, split: str, *, augment: bool, cache: Literal["ram", "none"]) -> OneBoxDataset:
        return OneBoxDataset(self.indexes[split], self._transform, augment=augment, cache=cache, seed=self._seed)

    def _entries(self) -> dict[str, list[Entry]]:
        trees: dict[str, VocTree] = {}
        entries: dict[str, list[Entry]] = {}
        for split, lists in self._splits.items():
            found: dict[str, Entry] = {}  # by id: two lists of one split may name the same image
            for item in lists:
                tree, _, list_name = item.rpartition("/")
                if tree not in trees:
                    trees[tree] = VocTree(self._root / tree)
                for image_id in trees[tree].ids(list_name):
                    found.setdefault(image_id, (trees[tree], image_id))
            entries[split] = list(found.values())
        if self._only_train:
            pooled = {entry[1]: entry for split in SPLITS for entry in entries[split]}
            return {"train": list(pooled.values()), "val": [], "test": []}
        train = entries["train"]
        order = np.random.default_rng(self._seed).permutation(len(train)).tolist()
        for split in ("val", "test"):
            if not self._splits[split]:
                count = math.floor(self._holdout.get(split, 0.0) * len(train))
                taken, order = sorted(order[:count]), order[count:]
                entries[split] = [train[row] for row in taken]
        entries["train"] = [train[row] for row in sorted(order)]
        return entries

    def _loader(self, split: str) -> DataLoader[Batch]:
        dataset = self.dataset(split)
        is_train = split == "train"
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return DataLoader(
            dataset,
            batch_size=self._batch_size if is_train else self._eval_batch_size,
            sampler=EpochSampler(
                len(dataset),
                shuffle=is_train,
                seed=self._seed,
                rank=torch.distributed.get_rank() if distributed else 0,
                num_replicas=torch.distributed.get_world_size() if distributed else 1,
            ),
            drop_last=is_train and self._drop_last,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            collate_fn=_as_is,  # __getitems__ gives whole batches
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self._seed),  # workers must not draw from the global generator
        )


def _as_is(batch: Any) -> Any:
    return batch
