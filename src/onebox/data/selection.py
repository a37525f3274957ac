"""Which of the listed images are used, and for what: parts of the data module."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onebox.data.table import Ints
from onebox.errors import BadInput, check, is_integer, is_number

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Splits:
    """Which images are for training, validation and test.

    Attributes:
        splits: for train, val and test the lists that make it up, as `TREE/LIST` (`VOC2007/train`) or `LIST` when
            root itself is the tree; the list `*` is every image of the tree.
        holdout: for val and test, the share of the usable training images in [0, 1] that a draw takes away for it when
            `splits` names no list for it; at least one where one can be spared.
        only_train: put the images of all lists into the training split (overfitting checks); val and test are empty.
        split_seed: seed of that draw.
    """

    splits: Mapping[str, Sequence[str]]
    holdout: Mapping[str, float]
    only_train: bool
    split_seed: int

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

    def lists(self, split: str) -> list[str]:
        """Those of one split."""
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


@dataclass(frozen=True)
class Selection:
    """Which images and objects are used.

    Attributes:
        select: `single` keeps images with exactly one object, `largest` takes each image's object of largest area.
        include_difficult: whether objects marked difficult count at all.
        ids: keep only these images; None keeps all.
        limit: keep at most this many images of each split; None keeps all.
        on_error: what is done with a listed image that cannot be used (a file is missing, unreadable or cut off; a
            box, class or size is wrong): `raise` an error, or `skip` it and say so.
    """

    select: Literal["single", "largest"]
    include_difficult: bool
    ids: Sequence[str] | None
    limit: int | None
    on_error: Literal["raise", "skip"]

    def __post_init__(self) -> None:
        check(self.select in ("single", "largest"), f"data.select must be single or largest, not {self.select}")
        check(not isinstance(self.ids, str | int), f"data.ids must be a list, such as ['000028'], not {self.ids}")
        check(
            self.limit is None or is_integer(self.limit, 1),
            f"data.limit must be a number >= 1 or null, not {self.limit}",
        )
        check(self.on_error in ("raise", "skip"), f"data.on_error must be raise or skip, not {self.on_error}")


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
