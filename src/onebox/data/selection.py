"""Which of the listed images are used, and for what: parts of the data module."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onebox.data.table import Ints
from onebox.errors import BadInput, check, is_integer, is_number

SPLITS = ("train", "val", "test")

Select = Literal["single", "largest"]


@dataclass(frozen=True)
class Splits:
    """Which images are for training, validation and test."""

    # for train, val and test the lists that make it up, as `TREE/LIST` (`VOC2007/train`) or `LIST` when root itself is
    # the tree; the list `*` is every image of the tree
    splits: Mapping[str, Sequence[str]]
    # for val and test, the share of the usable training images in [0, 1] that a draw takes away for it when `splits`
    # names no list for it; at least one where one can be spared
    holdout: Mapping[str, float]
    only_train: bool  # put the images of all lists into the training split (overfitting checks); val and test are empty
    split_seed: int  # seed of that draw
    # for cross-validation, which of `folds` parts of all usable images is the test, from 0; `holdout.val` of the others
    # is for validation. Each part has its share of every class, and images with the same content are in one part. None
    # keeps to the lists
    fold: int | None = None
    folds: int = 5  # how many parts there are

    def __post_init__(self) -> None:
        unknown = sorted(set(self.splits) - set(SPLITS))
        check(not unknown, f"data.splits has {unknown}, but the splits are train, val and test")
        for split, names in self.splits.items():
            is_list = isinstance(names, Sequence) and not isinstance(names, str)
            check(is_list, f"data.splits.{split} must be a list, such as [{names}], not {names}")
        shares = [self.holdout.get(split, 0.0) for split in ("val", "test")]
        check(
            all(is_number(share, 0, 1) for share in shares) and sum(shares) < 1,
            f"data.holdout must be shares >= 0 that leave something to train, not {dict(self.holdout)}",
        )
        check(is_integer(self.split_seed, 0), f"data.split_seed must be a number >= 0, not {self.split_seed}")
        check(is_integer(self.folds, 2), f"data.folds must be a number >= 2, not {self.folds}")
        is_part = self.fold is None or is_integer(self.fold, 0, self.folds - 1)
        check(is_part, f"data.fold must be null or one of 0 to {self.folds - 1} (see data.folds), not {self.fold}")
        is_either = self.fold is None or not self.only_train
        check(is_either, "data.only_train leaves no test, and data.fold chooses one; set one of them")

    def lists(self, split: str) -> list[str]:
        return list(self.splits.get(split, []))

    def hold_out(self, rows: dict[str, Ints], usable: Ints) -> None:
        """Move a share of the usable training rows to the splits that name no list."""
        order = np.random.default_rng(self.split_seed).permutation(len(usable))
        for split in ("val", "test"):
            share = self.holdout.get(split, 0.0)
            if not self.lists(split) and share > 0:
                count = min(max(1, math.floor(share * len(usable))), max(0, len(order) - 1))
                rows[split], order = np.sort(usable[order[:count]]), order[count:]
                rows["train"] = np.setdiff1d(rows["train"], rows[split])

    def cross_validate(self, rows: dict[str, Ints], usable: Ints, classes: NDArray[np.str_], same: Ints) -> None:
        """Make the test of one part of the usable rows, and the validation of some of the others.

        Args:
            rows: of each split; what cannot be used is put into training, where it is counted.
            usable: [N] rows of all splits.
            classes: N names.
            same: [N] for each of them the place of the first with the same content.

        Raises:
            BadInput: there are fewer rows than parts.
        """
        count = len(usable)
        check(count >= self.folds, f"data.folds={self.folds}, but only {count} images can be used; set fewer")
        order = np.random.default_rng(self.split_seed).permutation(count)
        order = order[np.argsort(classes[order], kind="stable")]
        part = np.empty(count, dtype=np.int64)
        part[order] = np.arange(count) % self.folds
        is_test = part[same] == self.fold
        rest = order[~is_test[order]]  # by class, so every so many of them are of all classes
        places = np.linspace(0, len(rest) - 1, math.ceil(self.holdout.get("val", 0.0) * len(rest)))
        is_val = np.isin(same, rest[places.round().astype(int)]) & ~is_test
        every = np.sort(np.concatenate([*rows.values()]))
        rows |= {"val": np.sort(usable[is_val]), "test": np.sort(usable[is_test])}
        rows["train"] = np.setdiff1d(every, np.concatenate([rows["val"], rows["test"]]))


@dataclass(frozen=True)
class Selection:
    """Which images and objects are used."""

    # `single` keeps images with exactly one object, `largest` takes each image's object of largest area. A mapping says
    # so for the splits that it names; the others are `single`
    select: Select | Mapping[str, Select]
    include_difficult: bool  # whether objects marked difficult count at all
    ids: Sequence[str] | None  # keep only these images; None keeps all
    # keep at most this many images of each split, or of those that a mapping names; None keeps all
    limit: int | Mapping[str, int] | None
    # what is done with a listed image that cannot be used (a file is missing, unreadable or cut off; a box, class or
    # size is wrong): `raise` an error, or `skip` it and say so
    on_error: Literal["raise", "skip"]

    def __post_init__(self) -> None:
        selects = self.select if isinstance(self.select, Mapping) else {"train": self.select}
        is_right = all(word in ("single", "largest") for word in selects.values()) and {*selects} <= {*SPLITS}
        told = f"data.select must be single, largest, or of splits such as {{train: largest}}, not {self.select}"
        check(is_right, told)
        check(not isinstance(self.ids, str | int), f"data.ids must be a list, such as ['000028'], not {self.ids}")
        limits = self.limit if isinstance(self.limit, Mapping) else {"train": self.limit}
        is_right = all(number is None or is_integer(number, 1) for number in limits.values()) and {*limits} <= {*SPLITS}
        told = f"data.limit must be a number >= 1, null, or of splits such as {{train: 100}}, not {self.limit}"
        check(is_right, told)
        check(self.on_error in ("raise", "skip"), f"data.on_error must be raise or skip, not {self.on_error}")

    def of(self, split: str) -> "Selection":
        """The same for one split: its `select` is a word, its `limit` a number or None."""
        select = self.select.get(split, "single") if isinstance(self.select, Mapping) else self.select
        limit = self.limit.get(split) if isinstance(self.limit, Mapping) else self.limit
        return replace(self, select=select, limit=limit)


def check_disjoint(splits: Mapping[str, Iterable[str]]) -> None:
    """Refuse splits (the ids of each) that share an image.

    Raises:
        BadInput: an id stands in two splits.
    """
    owner: dict[str, str] = {}
    for split, ids in splits.items():
        for image_id in ids:
            if owner.setdefault(image_id, split) != split:
                raise BadInput(
                    f"data.splits: image {image_id} is in both {owner[image_id]} and {split}; "
                    "a metric on images that are also in another split measures nothing: name disjoint lists"
                )
