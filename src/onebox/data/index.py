"""From the annotations of listed images to one object for each image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onebox.data.image import Picture
from onebox.data.listed import Listed
from onebox.data.selection import Selection, Splits
from onebox.data.table import Ints, Table
from onebox.errors import BadInput, check

if TYPE_CHECKING:
    from torch import Tensor

TURNED = "pictures have an EXIF rotation, which is not applied; see that their boxes fit, or set data.exif=apply"
DEEP = "pictures have more than 8 bits a channel, of which the upper 8 are read: they may look dark; convert them"

# When an index is empty, by the reason why most images are not in it.
WHAT_TO_DO = {
    "no annotation": "set data.annotations to the folder that has them",
    "no object": "their annotations have no box that counts; see what `onebox data check` says",
    "several objects": "set data.select=largest to use the largest of each image",
    "not in data.ids": "name others in data.ids",
    "bad sample": "see what `onebox data check` says",
    "over data.limit": "set a larger data.limit",
    "below augment.min_area": "set a smaller augment.min_area",
}


@dataclass(frozen=True)
class Skipped:
    """An image that cannot be used, the file that is at fault, and why."""

    id: str
    file: str
    reason: str


@dataclass(frozen=True, eq=False)
class Index:
    """One object for each of N images."""

    rows: Ints  # [N] which of the listed images they are
    ids: tuple[str, ...]  # N names of images
    image_paths: tuple[str, ...]  # N files
    digests: tuple[bytes, ...]  # N hashes of the files' content
    lengths: Ints  # [N] int64, of the files in bytes
    sizes: Tensor  # [N, 2] int64, height and width of the image in px
    boxes: Tensor  # [N, 4] float32, xyxy in [0, 1]
    labels: Tensor  # [N] int64
    left_out: Mapping[str, Ints]  # reason -> which listed images are not in the index for it
    skipped: tuple[Skipped, ...]  # those with the reason "bad sample"
    # what -> to how many objects of the listed images it happened
    slips: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)  # what looks odd -> in how many of them, pictures or objects

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dropped(self) -> dict[str, int]:
        """Reason -> how many listed images are not in the index for it."""
        return {why: len(rows) for why, rows in self.left_out.items()}

    def where(self, kept: NDArray[np.bool_], why_not: str) -> Index:
        """The rows that are kept ([N] bool); the others are left out for a reason."""
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
            left_out={**self.left_out, why_not: self.rows[~kept]},
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

    every, rows = rows, _wanted_rows(listed, rows, selection)
    chosen = _choose(listed, rows, selection, label_of)
    pictures, problems, end = _usable_images(listed, rows, chosen, selection, undecodable)
    wrong = {row: (listed.image_file(int(rows[row])), text) for row, text in problems.items()}
    wrong |= {row: (listed.annotation_file(int(rows[row])), text) for row, text in chosen.problems.items()}
    bad = sorted(row for row in wrong if row < end)
    skipped = tuple(Skipped(str(listed.ids[rows[row]]), *wrong[row]) for row in bad)
    if skipped and selection.on_error == "raise":
        raise BadInput(f"{skipped[0].file}: {skipped[0].reason}")
    table, kept = chosen.table, np.array(list(pictures), dtype=np.int64)
    sizes = torch.from_numpy(table.sizes[kept])
    boxes_px = table.corners[chosen.objects[kept]].reshape(-1, 4).astype(np.float32)
    is_good = np.ones(end, dtype=bool)
    is_good[bad] = False
    annotated, counts, seen = listed.is_annotated[rows][:end], chosen.counts[:end], rows[:end]
    is_several = (counts > 1) & (selection.select == "single")
    left_out = {
        "no annotation": seen[is_good & ~annotated],
        "no object": seen[is_good & annotated & (counts == 0)],
        "several objects": seen[is_good & is_several],
        "not in data.ids": np.setdiff1d(every, rows),
        "over data.limit": rows[end:],
        "bad sample": rows[bad],
    }
    return Index(
        rows=rows[kept],
        ids=tuple(listed.ids[rows[kept]].tolist()),
        image_paths=tuple(map(listed.image_file, rows[kept].tolist())),
        digests=tuple(picture.digest for picture in pictures.values()),
        lengths=np.array([picture.length for picture in pictures.values()], dtype=np.int64),
        sizes=sizes,
        boxes=torch.from_numpy(boxes_px) / sizes[:, [1, 0, 1, 0]].to(torch.float32),
        labels=torch.tensor([label_of[name] for name in table.names[chosen.objects[kept]].tolist()], dtype=torch.int64),
        left_out=left_out,
        skipped=skipped,
        slips={what: int(counts[rows].sum()) for what, counts in listed.understood.slips.items()},
        notes=_notes(listed, rows, pictures.values()),
    )


def _wanted_rows(listed: Listed, rows: Ints, selection: Selection) -> Ints:
    if selection.ids is None:
        return rows
    return rows[np.isin(listed.ids[rows], [str(image_id) for image_id in selection.ids])]


def _notes(listed: Listed, rows: Ints, pictures: Iterable[Picture]) -> dict[str, int]:
    notes = {text: int(counts[rows].sum()) for text, counts in listed.understood.notes}
    notes["annotations have no size; that of the image is used"] = int(listed.without_size[rows].sum())
    headers = [picture.header for picture in pictures if not isinstance(picture.header, str)]
    notes[TURNED] = sum(header.turn > 1 for header in headers) if listed.conventions.exif == "ignore" else 0
    notes[DEEP] = sum(header.is_deep for header in headers)
    return {text: count for text, count in notes.items() if count}


class _Chosen(NamedTuple):
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
            name = listed.ids[rows[row]]
            problems[row] = f"no such annotation, nor an image; take {name} out of its list, or set data.on_error=skip"
    is_selected = (counts == 1) | ((counts > 1) & (selection.select == "largest"))
    is_selected[list(problems)] = False
    return _Chosen(table, counts, chosen, problems, is_selected)


def _usable_images(
    listed: Listed, rows: Ints, chosen: _Chosen, selection: Selection, undecodable: Mapping[int, str]
) -> tuple[dict[int, Picture], dict[int, str], int]:
    """The first selected rows, up to the limit, whose images can be used: a bad image makes room for another.

    Returns:
        Row -> its image, in the order of the rows; row -> what is wrong with its image; and the row from which on
        nothing was looked at, as the limit is reached before it.
    """
    candidates = np.flatnonzero(chosen.is_selected).tolist()
    limit = selection.limit if isinstance(selection.limit, int) else len(candidates)
    problems: dict[int, str] = {}
    usable: dict[int, Picture] = {}
    while candidates and len(usable) < limit:
        taken, candidates = candidates[: limit - len(usable)], candidates[limit - len(usable) :]
        pictures = listed.pictures(rows[taken].tolist())
        for row, number in zip(taken, rows[taken].tolist(), strict=True):
            picture = pictures.get(number)
            if number in undecodable:
                problems[row] = undecodable[number]
            elif picture is None:
                ways = f"add it, take {listed.ids[number]} out of its list, remove its annotation"
                problems[row] = f"no such image; {ways}, or set data.on_error=skip"
            elif problem := listed.image_problem(number, picture.header):
                problems[row] = problem
            else:
                usable[row] = picture
    is_full = selection.limit is not None and len(usable) == limit
    return usable, problems, max(usable) + 1 if is_full else len(rows)


def draw_splits(
    listed: Listed, rows: dict[str, Ints], splits: Splits, selection: Selection, label_of: Mapping[str, int]
) -> None:
    """Change the `rows` of each split to what `splits` draws from those that the test can use.

    That is known as far as it is without opening their images.

    Raises:
        BadInput: there are too few, or val and test are drawn from the same images and are to use others.
    """
    if splits.only_train:
        return
    is_mixed = isinstance(selection.select, Mapping)  # training may use what is not drawn from
    is_drawn = splits.fold is not None or not (splits.lists("val") and splits.lists("test"))
    are_alike = selection.of("val").select == selection.of("test").select
    told = "data.select: val and test are drawn from the same images; name both of them, or neither"
    check(are_alike or not is_drawn, told)
    selection = selection.of("test")
    some = rows["train"] if splits.fold is None else np.arange(len(listed))
    some = _wanted_rows(listed, some, selection)
    chosen = _choose(listed, some, selection, label_of)
    at = [row for row in np.flatnonzero(chosen.is_selected).tolist() if listed.has_image(int(some[row]))]
    if splits.fold is None:
        splits.hold_out(rows, some[at])
        return
    digests = [picture.digest for picture in listed.pictures(some[at].tolist()).values()]
    _, first, same = np.unique(digests, return_index=True, return_inverse=True)
    splits.cross_validate(rows, some[at], chosen.table.names[chosen.objects[at]], first[same])
    if is_mixed:  # then a copy of a measured image, with other annotations, could be trained on
        measured = {digests[place] for place in np.flatnonzero(~np.isin(some[at], rows["train"])).tolist()}
        pictures = listed.pictures(rows["train"].tolist())
        copies = [row for row, picture in pictures.items() if picture.digest in measured]
        rows["train"] = np.setdiff1d(rows["train"], copies)


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
