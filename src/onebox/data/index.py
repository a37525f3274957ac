"""From rows of a catalog to a table with one object per image."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebox.data.catalog import Catalog
from onebox.data.table import Ints, Table
from onebox.data.voc import edges, is_inside, unknown_class, wrong_box
from onebox.errors import BadInput

Select = Literal["single", "largest"]
OnError = Literal["raise", "skip"]


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
        rows: [N] int64, the images' rows in the catalog.
        ids: the images' names in their tree.
        image_paths: the images' files, as strings: a fifth of the memory of paths.
        image_stamps: [N, 2] int64, size in bytes and time of change in ns of those files.
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

    def where(self, kept: NDArray[np.bool_], why_not: str) -> "Index":
        """The rows that are kept ([N] bool); the others are counted as dropped for a reason."""
        if kept.all():
            return self
        rows = np.flatnonzero(kept).tolist()
        return Index(
            rows=self.rows[rows],
            ids=tuple(self.ids[row] for row in rows),
            image_paths=tuple(self.image_paths[row] for row in rows),
            image_stamps=self.image_stamps[rows],
            sizes=self.sizes[rows],
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            dropped={**self.dropped, why_not: len(self) - len(rows)},
            skipped=self.skipped,
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
    catalog: Catalog,
    rows: Ints,
    *,
    label_of: Mapping[str, int],
    select: Select,
    include_difficult: bool,
    box_origin: int,
    ids: Sequence[str] | None,
    limit: int | None,
    on_error: OnError,
) -> Index:
    """Choose one object of each of some images, and check that their files can be used.

    Args:
        catalog: what is known of the images.
        rows: [L] the listed images, as rows of the catalog.
        label_of: the label of each class name.
        select: `single` keeps images with exactly one object, `largest` takes each image's object of largest area.
        include_difficult: whether objects marked difficult count at all.
        box_origin: see `onebox.data.voc.edges`.
        ids: keep only these; None keeps all.
        limit: keep only the first so many; None keeps all.
        on_error: what to do with images that cannot be used: `raise` an error or `skip` them.

    Raises:
        BadInput: an annotation or image is missing or wrong; the message names the file.
    """
    listed = len(rows)
    if ids is not None:
        wanted = set(ids)
        rows = rows[[catalog.table.ids[row] in wanted for row in rows.tolist()]]
    table = catalog.table.take(rows)
    counts, chosen = _choose(table, include_difficult=include_difficult, box_origin=box_origin)
    problems = annotation_problems(table, label_of=label_of, box_origin=box_origin)
    usable = np.ones(len(rows), dtype=bool)
    usable[list(problems)] = False
    selected = (counts == 1) | ((counts > 1) & (select == "largest"))
    image_problems: dict[int, str] = {}
    while True:  # a bad image makes room for another below the limit
        kept = np.flatnonzero(usable & selected)[:limit]
        stamps, found = catalog.check_images(rows[kept])
        bad = {int(kept[position]): text for position, text in found.items()}
        if not bad:
            break
        image_problems |= bad
        usable[list(bad)] = False
        if on_error == "raise":
            break
    # What comes after the last one that the limit allows was not looked at.
    end = len(rows) if limit is None or len(kept) < limit else int(kept[-1]) + 1 if len(kept) else 0
    skipped = []
    for row in sorted(row for row in {*problems, *image_problems} if row < end):
        at_fault = catalog.annotation_file if row in problems else catalog.image_file
        skipped.append(Skipped(table.ids[row], at_fault(int(rows[row])), problems.get(row) or image_problems[row]))
    if skipped and on_error == "raise":
        raise BadInput(f"{skipped[0].file}: {skipped[0].reason}")

    sizes = torch.from_numpy(table.sizes[kept])
    boxes_px = np.stack(edges(table.corners[chosen[kept]].T, box_origin), axis=1)
    boxes = torch.from_numpy(boxes_px.astype(np.float32)) / sizes[:, [1, 0, 1, 0]].to(torch.float32)
    labels = np.array([label_of.get(name, -1) for name in table.class_names], dtype=np.int64)
    before = usable[:end]
    return Index(
        rows=rows[kept],
        ids=tuple(table.ids[row] for row in kept.tolist()),
        image_paths=tuple(map(catalog.image_file, rows[kept].tolist())),
        image_stamps=stamps,
        sizes=sizes,
        boxes=boxes,
        labels=torch.from_numpy(labels[table.names[chosen[kept]]]),
        dropped={
            "no object": int((before & (counts[:end] == 0)).sum()),
            "several objects": int((before & (counts[:end] > 1)).sum()) if select == "single" else 0,
            "not in data.ids": listed - len(rows),
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
        unknown = np.array([name not in label_of for name in table.class_names], dtype=bool)
        for item in np.flatnonzero(unknown[table.names])[
            ::-1
        ].tolist():  # the first object of a row comes last and stays
            problems[int(owners[item])] = unknown_class(table.class_names[table.names[item]], label_of)
    for item in np.flatnonzero(outside)[::-1].tolist():
        problems[int(owners[item])] = wrong_box(table.corners[item].tolist(), int(width[item]), int(height[item]))
    return problems | dict(table.problems)


def class_names(catalog: Catalog, rows: Ints, *, box_origin: int) -> list[str]:
    """All class names that the annotations of some rows use, sorted; what is wrong is not asked."""
    table = catalog.table.take(np.unique(rows))
    bad = np.zeros(len(table), dtype=bool)
    bad[list(annotation_problems(table, label_of=None, box_origin=box_origin))] = True
    return [table.class_names[name] for name in np.unique(table.names[~bad[table.owners]]).tolist()]


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


def _choose(table: Table, *, include_difficult: bool, box_origin: int) -> tuple[Ints, Ints]:
    """How many objects each row has that count, and which of them is the largest; the first one, when several are."""
    objects = np.flatnonzero(include_difficult | ~table.difficult)
    owners = table.owners[objects]
    x1, y1, x2, y2 = edges(table.corners[objects].T, box_origin)
    order = np.lexsort((objects, -(x2 - x1) * (y2 - y1), owners))
    rows, first = np.unique(owners[order], return_index=True)
    chosen = np.zeros(len(table), dtype=np.int64)  # a row without objects is never kept
    chosen[rows] = objects[order[first]]
    return np.bincount(owners, minlength=len(table)), chosen
