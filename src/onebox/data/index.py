"""From the annotations of listed images to one object for each image."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from onebox.data.table import Ints, Table, join, read_table
from onebox.data.voc import NO_ANNOTATION, VocTree, edges, is_inside, no_image, unknown_class, wrong_box
from onebox.errors import BadInput, check, is_integer, is_number

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "val", "test")


class Listed:
    """The images that lists name, a row each, with their annotations; an image without one has a row that says so.

    Args:
        trees: where the images are, by name.
        images: [N] tree and id of each.
        cache_dir: folder that keeps what was read; see `read_table`.
    """

    def __init__(self, trees: Mapping[str, VocTree], images: Sequence[tuple[str, str]], cache_dir: Path) -> None:
        self._trees = [trees[name] for name, _ in images]
        ids = np.array([image_id for _, image_id in images], dtype=np.str_)
        names = np.array([name for name, _ in images], dtype=np.str_)
        absent = Table.from_records([""], np.zeros((1, 3), np.int64), [NO_ANNOTATION])
        tables, places = [absent.take(np.zeros(0, np.int64))], [np.zeros(0, np.int64)]
        for name, tree in trees.items():
            table = join([read_table(tree, cache_dir), absent])
            row_of = {image_id: row for row, image_id in enumerate(table.ids[:-1].tolist())}
            mine = np.flatnonzero(names == name)
            tables.append(
                table.take(
                    np.array([row_of.get(image_id, -1) % len(table) for image_id in ids[mine].tolist()], dtype=np.int64)
                )
            )
            places.append(mine)
        self.table = replace(join(tables).take(np.argsort(np.concatenate(places))), ids=ids)

    def annotation_file(self, row: int) -> str:
        """The XML file of one row, or where it would be."""
        return str(self._trees[row].annotation_path(str(self.table.ids[row])))

    def image_file(self, row: int) -> str:
        """The image file of one row, or where it would be."""
        return self._trees[row].image_file(str(self.table.ids[row]))

    def has_image(self, row: int) -> bool:
        """Whether there is an image file for this row."""
        return self._trees[row].has_image(str(self.table.ids[row]))


@dataclass(frozen=True)
class Splits:
    """Which images are for training, validation and test.

    Attributes:
        splits: for train, val and test the lists that make it up, as `TREE/LIST` (`VOC2007/train`) or `LIST` when
            root itself is the tree; the list `*` is every image of the tree.
        holdout: for val and test, the share of the training images in [0, 1] that a draw takes away for it when
            `splits` names no list for it.
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
        shares = [self.holdout.get(split, 0.0) for split in ("val", "test")]
        check(
            all(is_number(share, 0, 1) for share in shares) and sum(shares) < 1,
            f"data.holdout must be shares >= 0 that leave something to train, not {dict(self.holdout)}",
        )
        check(is_integer(self.split_seed, 0), f"data.split_seed must be a number >= 0, not {self.split_seed}")

    def lists(self, split: str) -> list[str]:
        """Those of one split."""
        return list(self.splits.get(split, []))

    def hold_out(self, rows: dict[str, Ints]) -> None:
        """Move a share of the training rows to the splits that name no list."""
        train = rows["train"]
        order = np.random.default_rng(self.split_seed).permutation(len(train))
        for split in ("val", "test"):
            if not self.lists(split):
                count = math.floor(self.holdout.get(split, 0.0) * len(train))
                taken, order = np.sort(order[:count]), order[count:]
                rows[split] = train[taken]
        rows["train"] = train[np.sort(order)]


@dataclass(frozen=True)
class Selection:
    """Which images and objects are used.

    Attributes:
        select: `single` keeps images with exactly one object, `largest` takes each image's object of largest area.
        include_difficult: whether objects marked difficult count at all.
        box_origin: 1 for VOC's pixels, which count from 1; 0 for tools that count from 0.
        ids: keep only these images; None keeps all.
        limit: keep at most this many images of each split; None keeps all.
        on_error: what is done with a listed image that cannot be used (a file is missing, unreadable or cut off; a
            box, class or size is wrong): `raise` an error, or `skip` it and say so.
    """

    select: Literal["single", "largest"]
    include_difficult: bool
    box_origin: Literal[0, 1]
    ids: Sequence[str] | None
    limit: int | None
    on_error: Literal["raise", "skip"]

    def __post_init__(self) -> None:
        check(self.select in ("single", "largest"), f"data.select must be single or largest, not {self.select}")
        check(self.box_origin in (0, 1), f"data.box_origin must be 1 or 0, not {self.box_origin}")
        check(not isinstance(self.ids, str | int), f"data.ids must be a list, such as ['000028'], not {self.ids}")
        check(
            self.limit is None or is_integer(self.limit, 1),
            f"data.limit must be a number >= 1 or null, not {self.limit}",
        )
        check(self.on_error in ("raise", "skip"), f"data.on_error must be raise or skip, not {self.on_error}")


@dataclass(frozen=True)
class Skipped:
    """A listed image that cannot be used: its id, the file that is to blame, and why."""

    id: str
    file: str
    reason: str


@dataclass(frozen=True)
class Index:
    """One row an image, N rows: which file, which object.

    Attributes:
        rows: [N] int64, the images' rows in the listed ones.
        ids: the images' names in their tree.
        image_paths: the images' files, as strings: a fifth of the memory of paths.
        image_stamps: [N, 4] int64, of those files: size in bytes, when content and state changed, in ns, and inode.
        sizes: [N, 2] int64, (height, width) in px as the annotation gives them.
        boxes: [N, 4] float32, xyxy in [0, 1].
        labels: [N] int64.
        dropped: reason -> number of listed images that selection left out.
        skipped: what was left out because it cannot be used.
    """

    rows: Ints
    ids: tuple[str, ...]
    image_paths: tuple[str, ...]
    image_stamps: Ints
    sizes: Tensor
    boxes: Tensor
    labels: Tensor
    dropped: Mapping[str, int]
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, kept: NDArray[np.bool_], why_not: str) -> Index:
        """The rows that are kept ([N] bool); the others are counted as dropped for a reason."""
        if kept.all():
            return self
        rows = np.flatnonzero(kept).tolist()
        return replace(
            self,
            rows=self.rows[rows],
            ids=tuple(self.ids[row] for row in rows),
            image_paths=tuple(self.image_paths[row] for row in rows),
            image_stamps=self.image_stamps[rows],
            sizes=self.sizes[rows],
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            dropped={**self.dropped, why_not: len(self) - len(rows)},
        )

    def fingerprint(self) -> str:
        """Hash of which images are in, how long their files are, where their objects are and of which class."""
        digest = hashlib.sha256("\n".join(self.ids).encode("utf-8", "surrogateescape"))
        for column in (self.sizes, self.boxes, self.labels):
            digest.update(column.numpy().tobytes())
        digest.update(self.image_stamps[:, 0].astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        kept = f"{len(self):,} of {len(self) + sum(self.dropped.values()):,} images"
        return kept + "".join(f", {count:,} dropped ({why})" for why, count in self.dropped.items() if count)


def build_index(
    listed: Listed, rows: Ints, selection: Selection, *, label_of: Mapping[str, int], undecodable: Mapping[int, str]
) -> Index:
    """Choose one object of each of some images, and check that their files can be used.

    Args:
        listed: what is known of the images.
        rows: [L] which of them.
        selection: which images and objects are wanted.
        label_of: the label of each class name.
        undecodable: row of `listed` -> what is wrong with its image.

    Raises:
        BadInput: an annotation or image is missing or wrong; the message names the file.
    """
    import torch

    num_listed = len(rows)
    if selection.ids is not None:
        rows = rows[np.isin(listed.table.ids[rows], [str(image_id) for image_id in selection.ids])]
    table = listed.table.take(rows)
    counts, chosen = _choose(table, selection)
    problems = annotation_problems(table, label_of=label_of, box_origin=selection.box_origin)
    usable = np.ones(len(rows), dtype=bool)
    usable[list(problems)] = False
    selected = (counts == 1) | ((counts > 1) & (selection.select == "largest"))
    image_problems = {
        row: undecodable.get(number) or no_image(str(table.ids[row]))
        for row, number in enumerate(rows.tolist())
        if usable[row] and selected[row] and (number in undecodable or not listed.has_image(number))
    }
    usable[list(image_problems)] = False
    kept = np.flatnonzero(usable & selected)[: selection.limit]  # a bad image makes room for another
    # What comes after the last one that the limit allows is not looked at.
    end = int(kept[-1]) + 1 if selection.limit is not None and len(kept) == selection.limit else len(rows)
    skipped = []
    for row in sorted(row for row in {*problems, *image_problems} if row < end):
        at_fault = listed.annotation_file if row in problems else listed.image_file
        skipped.append(Skipped(str(table.ids[row]), at_fault(int(rows[row])), problems.get(row) or image_problems[row]))
    if skipped and selection.on_error == "raise":
        raise BadInput(f"{skipped[0].file}: {skipped[0].reason}")

    files = tuple(map(listed.image_file, rows[kept].tolist()))
    sizes = torch.from_numpy(table.sizes[kept])
    boxes_px = np.stack(edges(table.corners[chosen[kept]].T, selection.box_origin), axis=1)
    before = usable[:end]
    return Index(
        rows=rows[kept],
        ids=tuple(table.ids[kept].tolist()),
        image_paths=files,
        image_stamps=np.array([_stamp(file) for file in files], dtype=np.int64).reshape(-1, 4),
        sizes=sizes,
        boxes=torch.from_numpy(boxes_px.astype(np.float32)) / sizes[:, [1, 0, 1, 0]].to(torch.float32),
        labels=torch.tensor([label_of[name] for name in table.names[chosen[kept]].tolist()], dtype=torch.int64),
        dropped={
            "no object": int((before & (counts[:end] == 0)).sum()),
            "several objects": int((before & (counts[:end] > 1)).sum()) if selection.select == "single" else 0,
            "not in data.ids": num_listed - len(rows),
            "over data.limit": len(rows) - end,
            "bad sample": len(skipped),
        },
        skipped=tuple(skipped),
    )


def annotation_problems(table: Table, *, label_of: Mapping[str, int] | None, box_origin: int) -> dict[int, str]:
    """What is wrong with annotations, by row: the file, a box, or (unless `label_of` is None) a class.

    An error in an object that is not chosen counts as well.
    """
    owners = table.owners
    height, width = table.sizes[owners].T
    outside = ~is_inside(*edges(table.corners.T, box_origin), width, height)
    problems = {}
    if label_of is not None:
        for item in np.flatnonzero(~np.isin(table.names, list(label_of)))[::-1].tolist():  # a row's first comes last
            problems[int(owners[item])] = unknown_class(str(table.names[item]), label_of)
    for item in np.flatnonzero(outside)[::-1].tolist():
        problems[int(owners[item])] = wrong_box(table.corners[item].tolist(), int(width[item]), int(height[item]))
    return problems | dict(table.problems)


def class_names(listed: Listed, *, box_origin: int) -> list[str]:
    """All class names that the annotations use, sorted; what is wrong is not asked."""
    bad = np.zeros(len(listed.table), dtype=bool)
    bad[list(annotation_problems(listed.table, label_of=None, box_origin=box_origin))] = True
    names: list[str] = np.unique(listed.table.names[~bad[listed.table.owners]]).tolist()
    return names


def check_disjoint(splits: Mapping[str, Iterable[str]]) -> None:
    """Refuse splits that share an image.

    Args:
        splits: the ids of each split.

    Raises:
        BadInput: an id stands in two splits.
    """
    owner: dict[str, str] = {}
    for split, ids in splits.items():
        for image_id in ids:
            if owner.setdefault(image_id, split) != split:
                raise BadInput(
                    f"data.splits: image {image_id} is in both {owner[image_id]} and {split}; "
                    "a split that shares images with another measures nothing: name disjoint lists"
                )


def _choose(table: Table, selection: Selection) -> tuple[Ints, Ints]:
    """How many objects each row has that count, and which of them is the largest; the first one, when several are."""
    objects = np.flatnonzero(selection.include_difficult | ~table.difficult)
    owners = table.owners[objects]
    x1, y1, x2, y2 = edges(table.corners[objects].T, selection.box_origin)
    order = np.lexsort((objects, -(x2 - x1) * (y2 - y1), owners))
    rows, first = np.unique(owners[order], return_index=True)
    chosen = np.zeros(len(table), dtype=np.int64)  # a row without objects is never kept
    chosen[rows] = objects[order[first]]
    return np.bincount(owners, minlength=len(table)), chosen


def _stamp(file: str) -> tuple[int, int, int, int]:
    try:
        state = os.stat(file)
    except OSError:  # is said when it is read
        return -1, -1, -1, -1
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
