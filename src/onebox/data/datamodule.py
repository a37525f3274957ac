"""The LightningDataModule: from a VOC tree on disk to loaders of batches."""

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from onebox.data.annotations import BACKGROUND, Conventions, odd_classes
from onebox.data.augment import Transform
from onebox.data.batched import BatchedTransform
from onebox.data.dataset import Batch, Cache, OneBoxDataset, pixel_source
from onebox.data.index import WHAT_TO_DO, Index, build_index, class_names, draw_splits
from onebox.data.layout import Layout, Tree, open_tree
from onebox.data.listed import Listed
from onebox.data.loading import Loading, make_loader
from onebox.data.selection import SPLITS, Selection, Splits, check_disjoint
from onebox.data.table import Ints
from onebox.errors import BadInput, check, is_integer

log = logging.getLogger(__name__)

Part = TypeVar("Part")


class VocDataModule(LightningDataModule):
    """Single-object images of one or several VOC trees.

    Args:
        root: folder that the trees of `splits` lie in; `~` is the home folder.
        source: called with `root` and `download=` before the first use; makes or fetches what is missing, if not None.
        download: whether `source` may fetch what is missing from the network.
        classes: names of the classes; None reads them from the annotations.
        background_class: whether logit 0 stands for "background", so that labels start at 1.
        transform: resize and augmentation.
        cache: `disk` keeps decoded images in a file, for this run and the next; `ram` keeps them in memory; `none`
            decodes at each access.
        cache_dir: folder for what is read once: the index of the annotations, and decoded images.
        seed: seed of order and augmentation.
        views: augment each training image in this many ways, and show every one equally often; None draws anew in each
            epoch.
        views_seed: seed of these views; `seed` says which of them an epoch shows.
        features: `auto` computes what a frozen part of the network gives for each view once, `off` in every epoch; see
            `onebox.frozen_features`.
        parts: the fields of `Layout`, `Splits`, `Selection`, `Conventions` and `Loading`.
    """

    def __init__(
        self,
        *,
        root: str,
        source: Callable[..., object] | None,
        download: bool,
        classes: Sequence[str] | None,
        background_class: bool,
        transform: Transform,
        cache: Cache,
        cache_dir: str,
        seed: int,
        views: int | None,
        views_seed: int,
        features: Literal["auto", "off"],
        **parts: Any,
    ) -> None:
        super().__init__()
        parts.setdefault("split_seed", seed)  # as in runs that were stored before it had a key
        self._layout = _part(Layout, parts)
        self._splits = _part(Splits, parts)
        self._selection = _part(Selection, parts)
        self._conventions = _part(Conventions, parts)
        self._loading = _part(Loading, parts)
        if parts:
            raise TypeError(f"VocDataModule has no argument {', '.join(sorted(parts))}")
        classes = classes if classes is None or isinstance(classes, str) else list(map(str, classes))
        each_once = classes is None or (not isinstance(classes, str) and 0 < len(set(classes)) == len(classes))
        check(each_once, f"data.classes must be names, each once, not {classes}")
        check(cache in ("disk", "ram", "none"), f"data.cache must be disk, ram or none, not {cache}")
        check(views is None or is_integer(views, 1), f"data.views must be a number >= 1 or null, not {views}")
        check(is_integer(views_seed, 0), f"data.views_seed must be a number >= 0, not {views_seed}")
        check(features in ("auto", "off"), f"data.features must be auto or off, not {features}")
        self.root = Path(str(root)).expanduser()
        self._source = source
        self._download = download
        self._classes = None if classes is None else list(classes)
        self._background_class = background_class
        self._transform = transform
        self.image_size: int = transform.resize.size
        self._cache: Cache = cache
        self._cache_dir = Path(cache_dir)
        self._seed = seed
        self._views_seed = seed if views is None else views_seed
        self.views = views if transform.is_random else 1
        self.features = features
        self.features_memory_mb = self._loading.features_memory_mb
        self._trees: dict[str, Tree] = {}
        self._left_out = 0  # lines of lists
        self._undecodable: dict[int, str] = {}  # by row of the listed images
        self._datasets: dict[str, OneBoxDataset] = {}
        self._replaced: dict[str, Any] = {}
        self.start = (0, 0)  # epoch and step of it that training begins with
        self.only_shown = False  # the data may be without training images
        self.class_names: list[str] = []  # index = logit
        self.indexes: dict[str, Index] = {}

    def prepare_data(self) -> None:
        """Make or fetch the trees, on one process a machine."""
        if self._source is not None:
            self._source(str(self.root), download=self._download)

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations and split them. Called again, it does nothing.

        Raises:
            BadInput: something in the trees or the selection is wrong; the message names it.
        """
        if self.indexes:
            return
        try:
            self._read()
        except OSError as error:
            where = error.filename or self.root
            raise BadInput(f"{where}: cannot be read ({error.strerror}); see data.root") from error
        if self._selection.on_error == "skip":  # which images are used depends on what can be decoded
            self.decode()
        self._check_training_images()
        for split, index in self.indexes.items():
            log.info("%-5s %s", split, index)
            for first in index.skipped[:1]:
                skipped = f"{len(index.skipped)} bad samples skipped, the first: {first.file}: {first.reason}"
                log.warning("%-5s %s", split, skipped)
        for text, count in self.notes.items():
            log.warning("data  %s %s", f"{count:,}", text)

    @property
    def notes(self) -> dict[str, int]:
        """What looks odd, though it is used -> how many objects, pictures or images of all splits it concerns."""
        notes: Counter[str] = Counter()
        for index in self.indexes.values():
            notes.update(index.notes)
        if self._left_out:
            notes["lines of the lists have -1 behind the image: left out, as the class is not in it"] = self._left_out
        if "" in self._trees and self._splits.lists("train") == ["*"]:
            notes.update(self._trees[""].remarks)
        if text := odd_classes(self._classes or []):
            notes[text] = len(self._classes or [])
        return dict(notes)

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
    def is_upright(self) -> bool:
        """Whether images are turned as their EXIF data ask."""
        return self._conventions.exif == "apply"

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
        """Hashes of the class names, of how files become pixels, of each split's images, boxes and labels, and of the
        content of all image files.
        """
        upright = ", upright" * self.is_upright
        texts = {"classes": "\n".join(self.class_names), "pixels": pixel_source(self._transform.resize) + upright}
        contents = {name: text.encode("utf-8", "surrogateescape") for name, text in texts.items()}
        contents["files"] = b"".join(digest for index in self.indexes.values() for digest in index.digests)
        hashes = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in contents.items()}
        return hashes | {split: index.fingerprint() for split, index in self.indexes.items()}

    def dataset(self, split: str) -> OneBoxDataset:
        """The images of one split as the loaders give them; decoded at the first call when there is a cache."""
        while split not in self._datasets:
            index = self.indexes[split]
            dataset = self._dataset(split, augment=split == "train")
            looks = self._cache != "none" or self._selection.on_error == "skip"
            try:
                bad = dataset.load(self._cache, self._cache_dir) if looks else {}
            except OSError as error:
                log.warning("%s: %s; decoding at each access, as with data.cache=none", self._cache_dir, error)
                self._cache = "none"  # said once
                continue
            if not bad:
                self._datasets[split] = dataset
            elif self._selection.on_error == "raise":
                others = f" (and {len(bad) - 1:,} other images; data.on_error=skip leaves them out)"
                raise BadInput(f"{index.image_paths[min(bad)]}: {bad[min(bad)]}{others * (len(bad) > 1)}")
            else:
                self._undecodable |= {int(index.rows[row]): reason for row, reason in bad.items()}
                self.indexes[split] = self._index(split)
        return self._datasets[split]

    def plain_batch(self, split: str, rows: Sequence[int]) -> Batch:
        """Some images of one split without augmentation."""
        return self._dataset(split, augment=False).__getitems__([(0, row) for row in rows])

    def replace_datasets(self, make: Callable[[OneBoxDataset, str, int, Path], Any]) -> None:
        """Let the loaders of train and val take their batches from other datasets, such as stored features.

        Tests and pictures keep to the images, so what they say holds for the network as it is. `make` gives the dataset
        in the place of a split's own, from that, the split's name, its number of views and the cache folder.
        """
        for split, views in (("train", self.views), ("val", 1)):
            assert views is not None, "without data.views every epoch has views of its own"
            if len(self.indexes[split]):
                self._replaced[split] = make(self.dataset(split), split, views, self._cache_dir)

    def test_on(self, index: Index) -> None:
        """Let a test take other images, as they are."""
        self.indexes["test"] = index
        self._datasets.pop("test", None)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in an order of their own for each epoch, from `start` on."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Paint what is augmented where the network is; called by the trainer."""
        if batch.strokes is None:
            return batch
        assert isinstance(self._transform, BatchedTransform)
        assert batch.images is not None
        return dataclasses.replace(batch, images=self._transform.paint(batch.images, batch.strokes), strokes=None)

    def _dataset(self, split: str, *, augment: bool) -> OneBoxDataset:
        index = self.indexes[split]
        return OneBoxDataset(
            index,
            self._transform,
            root=self.root,
            augment=augment,
            seed=self._views_seed,
            upright=self.is_upright,
        )

    def _read(self) -> None:
        self.listed, self._rows = self._read_lists()
        if self._classes is None:
            self._classes = class_names(self.listed)
        check(
            not self._background_class or BACKGROUND not in self._classes,
            f"data.classes has {BACKGROUND}, which data.background_class=true puts before them; set "
            f"data.background_class=false, or give the class another name by data.rename={{{BACKGROUND}: other}}",
        )
        self.class_names = [BACKGROUND] * self._background_class + self._classes
        draw_splits(self.listed, self._rows, self._splits, self._selection, self._label_of)
        self.indexes = {split: self._index(split) for split in SPLITS}

    def _read_lists(self) -> tuple[Listed, dict[str, Ints]]:
        """All listed images, and which of them are in each split."""
        trees = self._trees
        listed: dict[str, dict[tuple[str, str], None]] = {split: {} for split in SPLITS}  # in order, each image once
        for split in SPLITS:
            for item in self._splits.lists(split):
                name, _, list_name = str(item).rpartition("/")
                if name not in trees:
                    trees[name] = open_tree(self.root / name, self._layout, self._cache_dir)
                ids, left_out = trees[name].ids(list_name)
                self._left_out += left_out
                images = [(name, image_id) for image_id in ids]
                listed["train" if self._splits.only_train else split].update(dict.fromkeys(images))
        check_disjoint({split: ["/".join(image).lstrip("/") for image in images] for split, images in listed.items()})
        all_images = [image for images in listed.values() for image in images]
        unknown = {str(image_id) for image_id in self._selection.ids or []} - {image_id for _, image_id in all_images}
        check(
            not unknown,
            f"data.ids: no list of data.splits names {', '.join(sorted(unknown))} "
            "(an unquoted number loses its zeros: write \"data.ids=['000028']\")",
        )
        ends = np.cumsum([0, *(len(images) for images in listed.values())]).tolist()
        rows = {split: np.arange(*ends[place : place + 2]) for place, split in enumerate(SPLITS)}
        return Listed(trees, all_images, self._cache_dir, self._conventions), rows

    @property
    def _label_of(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.class_names)}

    def _index(self, split: str) -> Index:
        index = build_index(
            self.listed,
            self._rows[split],
            self._selection.of(split),
            label_of=self._label_of,
            undecodable=self._undecodable,
        )
        return index.where(self._transform.keeps(index.boxes.numpy()), "below augment.min_area")

    def _check_training_images(self) -> None:
        train, batch_size = self.indexes["train"], self._loading.batch_size
        why = max((count, reason) for reason, count in train.dropped.items())
        what = WHAT_TO_DO[why[1]] if why[0] else "name other lists in data.splits"
        check(self.only_shown or len(train) > 0, f"{self.root}: no training image is left ({train}); {what}")
        check(
            self.only_shown or not self._loading.drop_last or len(train) >= batch_size,
            f"data.drop_last leaves no batch of {batch_size} from {len(train)} training "
            "images; set data.drop_last=false or a smaller data.batch_size",
        )

    def _loader(self, split: str) -> DataLoader[Batch]:
        dataset = self._replaced[split] if split in self._replaced else self.dataset(split).unpainted()
        # A run on the processor leaves a GPU that is there alone.
        is_on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        how: dict[str, Any] = {"seed": self._seed, "name": split, "pin_memory": is_on_gpu}
        if split == "train":
            how |= {"is_train": True, "start": self.start, "views": self.views}
        return make_loader(dataset, self._loading, **how)


def _part(kind: Callable[..., Part], keys: dict[str, Any]) -> Part:
    """A part of the data module, from those of its keys that are fields of it, which are taken out of `keys`."""
    fields = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]  # it is one of the dataclasses
    return kind(**{name: keys.pop(name) for name in fields if name in keys})
