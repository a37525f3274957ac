"""From the annotations of listed images to one object for each image."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from onebox.data.annotations import Conventions, Understood, understand
from onebox.data.image import Header
from onebox.data.pictures import Picture, read_pictures
from onebox.data.table import Ints, Table, join, read_table
from onebox.data.tree import VocTree
from onebox.errors import BadInput, check, is_integer, is_number

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
TURNED = (
    "pictures ask for a turn by their EXIF data, which is not made; see that their boxes fit, or set data.exif=apply"
)
DEEP = "pictures have more than 8 bits a channel, of which the upper 8 are read: they may look dark; convert them"


class Listed:
    """The images that lists name, a row each, with their annotations as `conventions` say that they are meant.

    Args:
        trees: where the images are, by name.
        images: [N] tree and id of each.
        cache_dir: folder that keeps what was read; see `read_table` and `read_pictures`.
        conventions: how the annotations are to be understood.

    Attributes:
        ids: [N] str.
        is_annotated: [N] whether there is an annotation.
        table: [N] rows, see `Understood`; the size of an image whose annotation has none is that of the picture.
        understood: what happened to the boxes on the way.
        without_size: [N] whether the annotation has no size.

    Raises:
        BadInput: the numbers of the boxes are not in the units that the conventions say.
    """

    def __init__(
        self,
        trees: Mapping[str, VocTree],
        images: Sequence[tuple[str, str]],
        cache_dir: Path,
        conventions: Conventions = Conventions(),  # noqa: B008  it is frozen
    ) -> None:
        self.conventions = conventions
        self._cache_dir = cache_dir
        self._trees = [trees[name] for name, _ in images]
        self.ids = np.array([image_id for _, image_id in images], dtype=np.str_)
        table = self._raw_table(trees, np.array([name for name, _ in images], dtype=np.str_))
        self.is_annotated = np.char.str_len(table.ids) > 0 if len(table) else np.zeros(0, bool)
        no_size = (table.sizes == 0).any(axis=1) & self.is_annotated
        no_size[list(table.problems)] = False
        self.without_size = no_size
        rows = [row for row in np.flatnonzero(no_size).tolist() if self.has_image(row)]
        sizes, problems = table.sizes.copy(), dict(table.problems)
        for row, (_, _, header) in zip(rows, self.pictures(rows), strict=True):
            if isinstance(header, str):
                problems[row] = f"says no size, nor does its image: {header}"
            else:
                shown = self.shown(header)
                sizes[row] = shown.height, shown.width
        try:
            self.understood: Understood = understand(replace(table, sizes=sizes, problems=problems), conventions)
        except BadInput as error:
            raise BadInput(f"{', '.join(str(tree.folder) for tree in trees.values())}: {error}") from error
        self.table = self.understood.table

    def _raw_table(self, trees: Mapping[str, VocTree], names: NDArray[np.str_]) -> Table:
        absent = Table.from_records([""], np.zeros((1, 3), np.int64), [(0, 0, [])])
        tables, places = [absent.take(np.zeros(0, np.int64))], [np.zeros(0, np.int64)]
        for name, tree in trees.items():
            table = join([read_table(tree, self._cache_dir), absent])
            row_of = {annotation_id: row for row, annotation_id in enumerate(table.ids[:-1].tolist())}
            mine = np.flatnonzero(names == name)
            ids = [tree.annotation_id(image_id) for image_id in self.ids[mine].tolist()]
            rows = [len(table) - 1 if annotation_id is None else row_of[annotation_id] for annotation_id in ids]
            tables.append(table.take(np.array(rows, dtype=np.int64)))
            places.append(mine)
        return join(tables).take(np.argsort(np.concatenate(places)))

    def __len__(self) -> int:
        return len(self.ids)

    def tree(self, row: int) -> VocTree:
        """The tree of one row."""
        return self._trees[row]

    def annotation_file(self, row: int) -> str:
        """The XML file of one row, or where it would be."""
        return self._trees[row].annotation_file(str(self.ids[row]))

    def image_file(self, row: int) -> str:
        """The image file of one row, or where it would be."""
        return self._trees[row].image_file(str(self.ids[row]))

    def has_image(self, row: int) -> bool:
        """Whether there is an image file for this row."""
        return self._trees[row].has_image(str(self.ids[row]))

    def pictures(self, rows: Sequence[int]) -> list[Picture]:
        """What the image files of some rows are."""
        if not rows:
            return []
        folder = str(self._trees[rows[0]].folder.resolve())
        name = hashlib.sha256(folder.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return read_pictures([self.image_file(row) for row in rows], self._cache_dir / "index" / f"{name}.pictures")

    def shown(self, header: Header) -> Header:
        """An image as it is decoded: turned where EXIF data ask for it and `data.exif` says so."""
        return header.upright if self.conventions.exif == "apply" else header

    def image_problem(self, row: int, header: Header | str) -> str | None:
        """What is wrong with the image file of a row, and what to do; None if nothing is."""
        if isinstance(header, str):
            return header
        if self.conventions.exif == "refuse" and header.turn > 1:
            return f"its EXIF data ask for a turn (orientation {header.turn}), and data.exif is refuse; turn its pixels"
        shown = self.shown(header)
        height, width = self.table.sizes[row].tolist()
        if (shown.height, shown.width) == (height, width) or not (height and width):  # what has no size is told already
            return None
        text = f"the image is {shown.width}x{shown.height} px but its annotation says {width}x{height}"
        turned = header if self.conventions.exif == "apply" else header.upright
        if (turned.height, turned.width) == (height, width):
            other = "ignore" if self.conventions.exif == "apply" else "apply"
            agree = f"set data.exif={other}, by which they agree, or turn its pixels"
            return f"{text} (EXIF orientation {header.turn}); {agree}"
        return f"{text}; correct the <size> of the annotation (and its boxes), or take the image out of its list"


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


@dataclass(frozen=True)
class Skipped:
    """An image that cannot be used, the file that is at fault, and why."""

    id: str
    file: str
    reason: str


@dataclass(frozen=True, eq=False)
class Index:
    """One object for each of N images.

    Attributes:
        rows: [N] which of the listed images they are.
        ids: N names of images.
        image_paths: N files.
        digests: N hashes of the files' content.
        lengths: [N] int64, of the files in bytes.
        sizes: [N, 2] int64, height and width of the image in px.
        boxes: [N, 4] float32, xyxy in [0, 1].
        labels: [N] int64.
        dropped: reason -> how many listed images are not in the index for it.
        skipped: those with the reason "bad sample".
        slips: what -> to how many objects of the listed images it happened.
        notes: what looks odd -> in how many of them, pictures or objects.
    """

    rows: Ints
    ids: tuple[str, ...]
    image_paths: tuple[str, ...]
    digests: tuple[bytes, ...]
    lengths: Ints
    sizes: Tensor
    boxes: Tensor
    labels: Tensor
    dropped: Mapping[str, int]
    skipped: tuple[Skipped, ...]
    slips: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

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
            digests=tuple(self.digests[row] for row in rows),
            lengths=self.lengths[rows],
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
        digest.update(self.lengths.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        kept = f"{len(self):,} of {len(self) + sum(self.dropped.values()):,} images"
        kept += "".join(f", {count:,} dropped ({why})" for why, count in self.dropped.items() if count)
        return kept + "".join(f", {count:,} {what}" for what, count in self.slips.items() if count)


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
        rows = rows[np.isin(listed.ids[rows], [str(image_id) for image_id in selection.ids])]
    chosen = _choose(listed, rows, selection, label_of)
    images = _usable_images(listed, rows, chosen, selection, undecodable)
    table, kept = chosen.table, np.array(list(images.pictures), dtype=np.int64)
    bad = sorted(row for row in {*chosen.problems, *images.problems} if row < images.end)
    skipped = []
    for row in bad:
        at_fault = listed.annotation_file if row in chosen.problems else listed.image_file
        reason = chosen.problems.get(row) or images.problems[row]
        skipped.append(Skipped(str(listed.ids[rows[row]]), at_fault(int(rows[row])), reason))
    if skipped and selection.on_error == "raise":
        raise BadInput(f"{skipped[0].file}: {skipped[0].reason}")
    sizes = torch.from_numpy(table.sizes[kept])
    boxes_px = table.corners[chosen.objects[kept]].reshape(-1, 4).astype(np.float32)
    end = images.end
    is_good = np.ones(end, dtype=bool)
    is_good[bad] = False
    annotated, counts = listed.is_annotated[rows][:end], chosen.counts[:end]
    return Index(
        rows=rows[kept],
        ids=tuple(listed.ids[rows[kept]].tolist()),
        image_paths=tuple(map(listed.image_file, rows[kept].tolist())),
        digests=tuple(picture.digest for picture in images.pictures.values()),
        lengths=np.array([picture.length for picture in images.pictures.values()], dtype=np.int64),
        sizes=sizes,
        boxes=torch.from_numpy(boxes_px) / sizes[:, [1, 0, 1, 0]].to(torch.float32),
        labels=torch.tensor([label_of[name] for name in table.names[chosen.objects[kept]].tolist()], dtype=torch.int64),
        dropped={
            "no annotation": int((is_good & ~annotated).sum()),
            "no object": int((is_good & annotated & (counts == 0)).sum()),
            "several objects": int((is_good & (counts > 1)).sum()) if selection.select == "single" else 0,
            "not in data.ids": num_listed - len(rows),
            "over data.limit": len(rows) - end,
            "bad sample": len(skipped),
        },
        skipped=tuple(skipped),
        slips={what: int(counts[rows].sum()) for what, counts in listed.understood.slips.items()},
        notes={text: int(counts[rows].sum()) for text, counts in listed.understood.notes if counts[rows].any()}
        | images.notes
        | (
            {"annotations have no size, which the picture gives": n}
            if (n := int(listed.without_size[rows].sum()))
            else {}
        ),
    )


@dataclass(frozen=True, eq=False)
class _Chosen:
    table: Table
    counts: Ints  # [L] how many objects of each row count
    objects: Ints  # [L] which of them is used
    problems: Mapping[int, str]  # row -> what is wrong with the annotation
    is_selected: NDArray[np.bool_]  # [L]


def _choose(listed: Listed, rows: Ints, selection: Selection, label_of: Mapping[str, int] | None) -> _Chosen:
    """The object of each row: the only one, or the largest, and of equals the first."""
    table = listed.table.take(rows)
    objects = np.flatnonzero(selection.include_difficult | ~table.difficult)
    owners = table.owners[objects]
    x1, y1, x2, y2 = table.corners[objects].T
    order = np.lexsort((objects, -(x2 - x1) * (y2 - y1), owners))
    found, first = np.unique(owners[order], return_index=True)
    chosen = np.zeros(len(table), dtype=np.int64)  # a row without objects is never kept
    chosen[found] = objects[order[first]]
    counts = np.bincount(owners, minlength=len(table))
    problems = annotation_problems(table, label_of=label_of)
    for row in np.flatnonzero(~listed.is_annotated[rows]).tolist():
        if not listed.has_image(int(rows[row])):
            problems[row] = f"no such annotation, nor an image; take {listed.ids[rows[row]]} out of its list"
    is_selected = (counts == 1) | ((counts > 1) & (selection.select == "largest"))
    is_selected[list(problems)] = False
    return _Chosen(table, counts, chosen, problems, is_selected)


@dataclass(frozen=True, eq=False)
class _UsableImages:
    pictures: Mapping[int, Picture]  # row -> its image, where that can be used; in the order of the rows
    problems: Mapping[int, str]  # row -> what is wrong with its image
    end: int  # what comes from this row on was not looked at, as `limit` is reached before it
    notes: dict[str, int]


def _usable_images(
    listed: Listed, rows: Ints, chosen: _Chosen, selection: Selection, undecodable: Mapping[int, str]
) -> _UsableImages:
    """The first selected rows, up to the limit, whose images can be used: a bad image makes room for another."""
    candidates = np.flatnonzero(chosen.is_selected).tolist()
    limit = len(candidates) if selection.limit is None else selection.limit
    problems: dict[int, str] = {}
    pictures: dict[int, Picture] = {}
    while candidates and len(pictures) < limit:
        taken, candidates = candidates[: limit - len(pictures)], candidates[limit - len(pictures) :]
        for row in taken:
            number = int(rows[row])
            if number in undecodable:
                problems[row] = undecodable[number]
            elif not listed.has_image(number):
                problems[row] = f"no such image; add it, or take {listed.ids[number]} out of its list"
        taken = [row for row in taken if row not in problems]
        numbers = rows[taken].tolist()
        for row, number, picture in zip(taken, numbers, listed.pictures(numbers), strict=True):
            problem = listed.image_problem(number, picture.header)
            if problem is None:
                pictures[row] = picture
            else:
                problems[row] = problem
    is_full = selection.limit is not None and len(pictures) == limit
    headers = [picture.header for picture in pictures.values() if not isinstance(picture.header, str)]
    turned = sum(header.turn > 1 for header in headers) if listed.conventions.exif == "ignore" else 0
    notes = {TURNED: turned, DEEP: sum(header.is_deep for header in headers)}
    return _UsableImages(
        pictures, problems, max(pictures) + 1 if is_full else len(rows), {text: n for text, n in notes.items() if n}
    )


def usable_rows(listed: Listed, rows: Ints, selection: Selection, label_of: Mapping[str, int]) -> Ints:
    """Those of some rows that training can use, as far as it is known without opening their images."""
    if selection.ids is not None:
        rows = rows[np.isin(listed.ids[rows], [str(image_id) for image_id in selection.ids])]
    chosen = _choose(listed, rows, selection, label_of)
    return rows[[row for row in np.flatnonzero(chosen.is_selected).tolist() if listed.has_image(int(rows[row]))]]


def annotation_problems(table: Table, *, label_of: Mapping[str, int] | None) -> dict[int, str]:
    """What is wrong with annotations, by row: the file, a box, or (unless `label_of` is None) a class.

    An error in an object that is not chosen counts as well.
    """
    problems: dict[int, str] = {}
    if label_of is not None:
        unknown = np.flatnonzero(~np.isin(table.names, list(label_of)))
        for item in unknown[::-1].tolist():  # the first of a row comes last, and stays
            problems[int(table.owners[item])] = _unknown_class(str(table.names[item]), label_of)
    return problems | dict(table.problems)


def _unknown_class(name: str, known: Mapping[str, int]) -> str:
    shown = list(known) if len(known) <= 50 else [*list(known)[:50], f"and {len(known) - 50} more"]
    return (
        f"class '{name}' is not in data.classes ({', '.join(shown)}); correct the annotation, add the class to "
        f"data.classes, or give it another name with data.rename"
    )


def class_names(listed: Listed) -> list[str]:
    """All class names that the annotations use, sorted; what is wrong is not asked."""
    bad = np.zeros(len(listed.table), dtype=bool)
    bad[list(listed.table.problems)] = True
    names: list[str] = np.unique(listed.table.names[~bad[listed.table.owners]]).tolist()
    return names


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
                    "a split that shares images with another measures nothing: name disjoint lists"
                )
