"""The LightningDataModule: from a VOC tree on disk to loaders of batches."""

import dataclasses
import hashlib
import logging
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from onebox.data.augment import Transform
from onebox.data.catalog import Catalog
from onebox.data.dataset import Batch, Cache, EpochSampler, EvalBatches, OneBoxDataset, UndecodableImages, pixel_source
from onebox.data.index import Index, OnError, Select, build_index, check_disjoint, class_names
from onebox.data.table import Ints
from onebox.data.voc import VocTree
from onebox.errors import BadInput, is_integer, is_number, refuse

log = logging.getLogger(__name__)

BACKGROUND = "background"
SPLITS = ("train", "val", "test")

Image = tuple[str, str]  # tree, id


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
        cache: `disk` keeps decoded images in a file, for this run and the next; `ram` keeps them in memory; `none`
            decodes at each access.
        cache_dir: folder for what is read once: the index of the annotations, and decoded images.
        on_error: what is done with a listed image that cannot be used (a file is missing, unreadable or cut off; a
            box, class or size is wrong): `raise` an error, or `skip` it and say so.
        batch_size: images a training step, on each device.
        eval_batch_size: images a validation or test step, on each device.
        num_workers: loader processes; 0 loads in the main process, which is fastest with the cache.
        drop_last: whether an incomplete last training batch is left out.
        split_seed: seed of holdout. Not the run's: seeds are to measure the noise of training on the same images.
        seed: seed of order and augmentation.
        views: augment each training image in so many ways, and show every one equally often; None draws anew in each
            epoch.
        views_seed: seed of these views; `seed` says which of them an epoch shows.
        features: `auto` computes what a frozen part of the network gives for each view once, `off` in every epoch; see
            `onebox.frozen_features`.
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
        cache: Cache,
        cache_dir: str,
        on_error: OnError,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        drop_last: bool,
        split_seed: int,
        seed: int,
        views: int | None,
        views_seed: int,
        features: Literal["auto", "off"],
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
                f"data.cache must be disk, ram or none, not {cache}": cache not in ("disk", "ram", "none"),
                f"data.on_error must be raise or skip, not {on_error}": on_error not in ("raise", "skip"),
                f"data.batch_size must be >= 1, not {batch_size}": not is_integer(batch_size, 1),
                f"data.eval_batch_size must be a number >= 1, not {eval_batch_size}": not is_integer(
                    eval_batch_size, 1
                ),
                f"data.num_workers must be >= 0, not {num_workers}": not is_integer(num_workers, 0),
                f"data.views must be a number >= 1 or null, not {views}": views is not None
                and not is_integer(views, 1),
                f"data.views_seed must be a number >= 0, not {views_seed}": not is_integer(views_seed, 0),
                f"data.split_seed must be a number >= 0, not {split_seed}": not is_integer(split_seed, 0),
                f"data.features must be auto or off, not {features}": features not in ("auto", "off"),
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
        self._select: Select = select
        self._include_difficult = include_difficult
        self._box_origin = box_origin
        self._ids = None if ids is None else [str(image_id) for image_id in ids]
        self._limit = limit
        self._transform = transform
        self.image_size: int = transform.resize.size
        self._cache: Cache = cache
        self._cache_dir = Path(cache_dir)
        self._on_error: OnError = on_error
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self._num_workers = num_workers
        self._drop_last = drop_last
        self._seed, self._split_seed = seed, split_seed
        self._views_seed = seed if views is None else views_seed
        self.views = views if transform.is_random else 1
        self.features = features
        self._datasets: dict[str, OneBoxDataset] = {}
        self._replaced: dict[str, Any] = {}
        self.start = (0, 0)  # epoch and step of it that training begins with
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
        self._catalog, self._rows = self._listed()
        if self._classes is None:
            rows = np.concatenate(list(self._rows.values()))
            self._classes = class_names(self._catalog, rows, box_origin=self._box_origin)
        self.class_names = [BACKGROUND] * self._background_class + self._classes
        self.indexes = {split: self._index(split) for split in SPLITS}
        self._check_training_images()

    def decode(self) -> None:
        """Decode all splits into the cache, if there is one, so that a bad image is found before the fit.

        Raises:
            BadInput: an image cannot be decoded, and `on_error` is `raise`; or no training image is left.
        """
        for split in SPLITS:
            self.dataset(split)
        self._check_training_images()

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Split, id, file and reason of what on_error=skip left out."""
        return [
            {"split": split, **dataclasses.asdict(item)}
            for split, index in self.indexes.items()
            for item in index.skipped
        ]

    @property
    def num_classes(self) -> int:
        """Number of logits: the classes, and the background if it has one."""
        return len(self.class_names)

    @property
    def class_counts(self) -> list[int]:
        """Number of training images of each class, in the order of the logits."""
        counts: list[int] = np.bincount(self.indexes["train"].labels, minlength=self.num_classes).tolist()
        return counts

    def fingerprint(self) -> dict[str, str]:
        """Hashes of the class names, of how files become pixels, and of each split's images, boxes and labels."""
        texts = {"classes": "\n".join(self.class_names), "pixels": pixel_source(self._transform.resize)}
        hashes = {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}
        return hashes | {split: index.fingerprint() for split, index in self.indexes.items()}

    def dataset(self, split: str) -> OneBoxDataset:
        """The images of one split as the loaders give them; decoded at the first call when there is a cache."""
        while split not in self._datasets:
            try:
                dataset = self._dataset(split, augment=split == "train", cache=self._cache)
                if self._cache == "none" and self._on_error == "skip":
                    dataset.decode_all(None)
                self._datasets[split] = dataset
            except UndecodableImages as error:
                index, bad = self.indexes[split], sorted(error.reasons)
                reasons = [error.reasons[row] for row in bad]
                self._catalog.keep_checks(index.rows[bad], index.image_stamps[bad], reasons)
                if self._on_error == "raise":
                    raise
                self.indexes[split] = self._index(split)
            except OSError as error:
                if self._cache == "none":
                    raise
                log.warning("%s: %s; decoding at each access, as with data.cache=none", self._cache_dir, error)
                self._cache = "none"  # said once
        return self._datasets[split]

    def plain_batch(self, split: str, rows: Sequence[int]) -> Batch:
        """Some images of one split without augmentation."""
        return self._dataset(split, augment=False, cache="none").__getitems__([(0, row) for row in rows])

    def replace_datasets(self, make: Callable[[OneBoxDataset, str, int, Path], Any]) -> None:
        """Let the loaders of train and val take their batches from other datasets, such as stored features.

        Tests and pictures keep to the images, so what they say holds for the network as it is.

        Args:
            make: gives the dataset in the place of a split's own; called with that, the split's name, its number of
                views and the cache folder.
        """
        for split, views in (("train", self.views), ("val", 1)):
            assert views is not None, "without data.views every epoch has views of its own"
            if len(self.indexes[split]):
                self._replaced[split] = make(self.dataset(split), split, views, self._cache_dir)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in an order of their own for each epoch, from `start` on."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches in the order of the lists."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches in the order of the lists."""
        return self._loader("test")

    def _dataset(self, split: str, *, augment: bool, cache: Cache) -> OneBoxDataset:
        return OneBoxDataset(
            self.indexes[split],
            self._transform,
            augment=augment,
            cache=cache,
            cache_dir=self._cache_dir,
            seed=self._views_seed,
        )

    def _listed(self) -> tuple[Catalog, dict[str, Ints]]:
        """What is known of all trees, and the rows of each split in it."""
        trees: dict[str, VocTree] = {}
        listed: dict[str, dict[Image, None]] = {split: {} for split in SPLITS}  # in order, each image once
        for split, lists in self._splits.items():
            for item in lists:
                name, _, list_name = item.rpartition("/")
                if name not in trees:
                    trees[name] = VocTree(self._root / name)
                listed[split].update(dict.fromkeys((name, image_id) for image_id in trees[name].ids(list_name)))
        if self._only_train:
            pooled = dict.fromkeys(image for split in SPLITS for image in listed[split])
            listed = {"train": pooled, "val": {}, "test": {}}
        check_disjoint({split: ["/".join(image).lstrip("/") for image in images] for split, images in listed.items()})
        unknown = set(self._ids or []).difference(image_id for images in listed.values() for _, image_id in images)
        if unknown:
            raise BadInput(
                f"data.ids: no list of data.splits names {', '.join(sorted(unknown))} "
                "(an unquoted number loses its zeros: write \"data.ids=['000028']\")"
            )
        catalog = Catalog(trees, self._cache_dir)
        rows = {split: catalog.rows(images) for split, images in listed.items()}
        if not self._only_train:
            self._hold_out(rows)
        return catalog, rows

    def _index(self, split: str) -> Index:
        index = build_index(
            self._catalog,
            self._rows[split],
            label_of={name: label for label, name in enumerate(self.class_names)},
            select=self._select,
            include_difficult=self._include_difficult,
            box_origin=self._box_origin,
            ids=self._ids,
            limit=self._limit,
            on_error=self._on_error,
        )
        index = index.where(self._transform.keeps(index.boxes.numpy()), "below augment.min_area")
        log.info("%-5s %s", split, index)
        if index.skipped:
            first = index.skipped[0]
            log.warning(
                "%-5s %d bad samples skipped, the first: %s: %s", split, len(index.skipped), first.file, first.reason
            )
        return index

    def _check_training_images(self) -> None:
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

    def _hold_out(self, rows: dict[str, Ints]) -> None:
        """Move a share of the training rows to the splits that name no list."""
        train = rows["train"]
        order = np.random.default_rng(self._split_seed).permutation(len(train))
        for split in ("val", "test"):
            if not self._splits[split]:
                count = math.floor(self._holdout.get(split, 0.0) * len(train))
                taken, order = np.sort(order[:count]), order[count:]
                rows[split] = train[taken]
        rows["train"] = train[np.sort(order)]

    def _loader(self, split: str) -> DataLoader[Batch]:
        dataset = self._replaced[split] if split in self._replaced else self.dataset(split)
        is_train = split == "train"
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        num_replicas = torch.distributed.get_world_size() if distributed else 1
        batch_size = self._batch_size if is_train else self._eval_batch_size
        epoch, step = self.start if is_train else (0, 0)
        batches: dict[str, Any] = {
            "batch_size": batch_size,
            "sampler": EpochSampler(
                len(dataset),
                shuffle=is_train,
                seed=self._seed,
                rank=rank,
                num_replicas=num_replicas,
                start=(epoch, step * batch_size),
                views=self.views if is_train else 1,
            ),
            "drop_last": is_train and self._drop_last,
        }
        if not is_train and len(dataset) and num_replicas > 1:
            if len(dataset) < num_replicas:
                raise BadInput(f"the {split} split has {len(dataset)} images for {num_replicas} devices; use fewer")
            sampler = EvalBatches(len(dataset), batch_size, rank=rank, num_replicas=num_replicas)
            batches = {"batch_sampler": sampler}
        return DataLoader(
            dataset,
            **batches,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            collate_fn=_as_is,  # __getitems__ gives whole batches
            worker_init_fn=_ignore_sigterm,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self._seed),  # workers must not draw from the global generator
        )


def _as_is(batch: Any) -> Any:
    return batch


def _ignore_sigterm(worker: int) -> None:
    # Schedulers send it to all processes of a job; the main process still needs batches until it has stored its state.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
