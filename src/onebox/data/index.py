"""From lists of ids to a table with one object per image."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebox.boxes import norm
from onebox.data.voc import Annotation, VocObject, VocTree, labels_and_boxes, read_annotation
from onebox.errors import BadInput

Select = Literal["single", "largest"]


@dataclass(frozen=True)
class Index:
    """One row an image, N rows: which file, which object.

    Attributes:
        ids: the images' names in their tree.
        image_paths: the images' files.
        sizes: [N, 2] int64, (height, width) in px as the annotation gives them.
        boxes: [N, 4] float32, xyxy in [0, 1].
        labels: [N] int64.
        dropped: reason -> number of listed images that selection left out.
    """

    ids: tuple[str, ...]
    image_paths: tuple[Path, ...]
    sizes: Tensor
    boxes: Tensor
    labels: Tensor
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, kept: NDArray[np.bool_], why_not: str) -> "Index":
        """The rows that are kept ([N] bool); the others are counted as dropped for a reason."""
        if kept.all():
            return self
        rows = np.flatnonzero(kept).tolist()
        return Index(
            ids=tuple(self.ids[row] for row in rows),
            image_paths=tuple(self.image_paths[row] for row in rows),
            sizes=self.sizes[rows],
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            dropped={**self.dropped, why_not: len(self) - len(rows)},
        )

    def fingerprint(self) -> str:
        """Hash of which images are in, where their objects are and of which class."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        for column in (self.sizes, self.boxes, self.labels):
            digest.update(column.numpy().tobytes())
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        kept = f"{len(self):,} of {len(self) + sum(self.dropped.values()):,} images"
        return kept + "".join(f", {count:,} dropped ({why})" for why, count in self.dropped.items() if count)


def build_index(
    entries: Sequence[tuple[VocTree, str]],
    *,
    label_of: Mapping[str, int],
    select: Select,
    include_difficult: bool,
    box_origin: int,
    ids: Sequence[str] | None,
    limit: int | None,
) -> Index:
    """Read the annotations of some images and choose one object of each.

    Args:
        entries: (tree, id) of each listed image.
        label_of: the label of each class name.
        select: `single` keeps images with exactly one object, `largest` takes each image's object of largest area.
        include_difficult: whether objects marked difficult count at all.
        box_origin: see `read_annotation`.
        ids: keep only these; None keeps all.
        limit: keep only the first so many; None keeps all.

    Raises:
        BadInput: an annotation or image is missing or wrong; the message names the file.
    """
    dropped = {"no object": 0, "several objects": 0, "not in data.ids": 0, "over data.limit": 0}
    wanted = None if ids is None else set(ids)
    kept: list[tuple[str, Path, Annotation, VocObject]] = []
    for tree, image_id in entries:
        if wanted is not None and image_id not in wanted:
            dropped["not in data.ids"] += 1
            continue
        if limit is not None and len(kept) == limit:
            dropped["over data.limit"] += 1
            continue
        annotation = read_annotation(tree.annotation_path(image_id), box_origin=box_origin)
        labels_and_boxes(annotation, label_of)  # an unknown class is an error also in an object that is not chosen
        objects = [item for item in annotation.objects if include_difficult or not item.difficult]
        if not objects:
            dropped["no object"] += 1
        elif len(objects) > 1 and select == "single":
            dropped["several objects"] += 1
        else:
            chosen = max(objects, key=lambda item: item.area_px)
            kept.append((image_id, tree.image_path(image_id), annotation, chosen))

    sizes = torch.tensor([(row.height, row.width) for _, _, row, _ in kept], dtype=torch.int64).reshape(-1, 2)
    boxes = [norm(torch.tensor(chosen.box_px), (row.height, row.width)) for _, _, row, chosen in kept]
    return Index(
        ids=tuple(image_id for image_id, *_ in kept),
        image_paths=tuple(path for _, path, *_ in kept),
        sizes=sizes,
        boxes=torch.stack(boxes) if boxes else torch.zeros(0, 4),
        labels=torch.tensor([label_of[chosen.name] for *_, chosen in kept], dtype=torch.int64),
        dropped=dropped,
    )


def class_names(entries: Sequence[tuple[VocTree, str]], *, box_origin: int) -> list[str]:
    """All class names that some images' annotations use, sorted."""
    annotations = (read_annotation(tree.annotation_path(image_id), box_origin=box_origin) for tree, image_id in entries)
    return sorted({item.name for annotation in annotations for item in annotation.objects})


def check_disjoint(splits: Mapping[str, Sequence[tuple[VocTree, str]]]) -> None:
    """Refuse splits that share an image.

    Raises:
        BadInput: an id stands in two splits.
    """
    owner: dict[str, str] = {}
    for split, entries in splits.items():
        for _, image_id in entries:
            if owner.setdefault(image_id, split) != split:
                raise BadInput(
                    f"data.splits: image {image_id} is in both {owner[image_id]} and {split}; "
                    "a split that shares images with another measures nothing: name disjoint lists"
                )
