"""The images that lists name, with their annotations."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onebox.data.annotations import Conventions, Understood, understand
from onebox.data.image import Header, Picture, read_pictures
from onebox.data.layout import Tree
from onebox.data.table import Table, join
from onebox.errors import BadInput


class Listed:
    """The images that lists name, a row each, with their annotations as `conventions` say that they are meant.

    Args:
        trees: where the images are, by name.
        images: [N] tree and id of each.
        cache_dir: folder that keeps what was read of image files; see `read_pictures`.
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
        trees: Mapping[str, Tree],
        images: Sequence[tuple[str, str]],
        cache_dir: Path,
        conventions: Conventions = Conventions(),  # noqa: B008  it is frozen
    ) -> None:
        self.conventions = conventions
        self._cache_dir = cache_dir
        self._trees = [trees[name] for name, _ in images]
        self.ids = np.array([image_id for _, image_id in images], dtype=object)
        table, self.is_annotated = _raw_table(trees, images)
        no_size = (table.sizes == 0).any(axis=1) & self.is_annotated
        no_size[list(table.problems)] = False
        self.without_size = no_size & np.array([tree.has_sizes for tree in self._trees], dtype=bool)
        sizes, problems = table.sizes.copy(), dict(table.problems)
        for row, (_, _, header) in self.pictures(np.flatnonzero(no_size).tolist()).items():
            if isinstance(header, str):
                problems[row] = f"gives no size, nor does its image: {header}"
            else:
                shown = self.shown(header)
                sizes[row] = shown.height, shown.width
        try:
            self.understood: Understood = understand(
                replace(table, ids=self.ids, sizes=sizes, problems=problems), conventions
            )
        except BadInput as error:
            raise BadInput(f"{', '.join(str(tree.folder) for tree in trees.values())}: {error}") from error
        self.table = self.understood.table

    def __len__(self) -> int:
        return len(self.ids)

    def tree(self, row: int) -> Tree:
        return self._trees[row]

    def annotation_file(self, row: int) -> str:
        """Where the annotation of one row stands, or would."""
        return self._trees[row].annotation_file(str(self.ids[row]))

    def image_file(self, row: int) -> str:
        """The image file of one row, or where it would be."""
        return self._trees[row].images.file(str(self.ids[row]))

    def has_image(self, row: int) -> bool:
        """Whether there is an image file for this row."""
        return str(self.ids[row]) in self._trees[row].images

    def pictures(self, rows: Iterable[int]) -> dict[int, Picture]:
        """What the image files of some rows are; rows without one are left out."""
        rows = [row for row in rows if self.has_image(row)]
        if not rows:
            return {}
        folder = str(self._trees[rows[0]].folder.resolve())
        name = hashlib.sha256(folder.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        path = self._cache_dir / "index" / f"{name}.pictures"
        return dict(zip(rows, read_pictures([self.image_file(row) for row in rows], path), strict=True))

    def shown(self, header: Header) -> Header:
        """An image as it is decoded: turned where EXIF data ask for it and `data.exif` says so."""
        return header.upright if self.conventions.exif == "apply" else header

    def image_problem(self, row: int, header: Header | str) -> str | None:
        """What is wrong with the image file of a row, and what to do; None if nothing is."""
        if isinstance(header, str):
            return header
        if self.conventions.exif == "refuse" and header.turn > 1:
            return f"it has an EXIF rotation (orientation {header.turn}), and data.exif is refuse; rotate its pixels"
        shown = self.shown(header)
        height, width = self.table.sizes[row].tolist()
        if (shown.height, shown.width) == (height, width) or not (height and width):  # what has no size is told already
            return None
        text = f"the image is {shown.width}x{shown.height} px but its annotation says {width}x{height}"
        turned = header if self.conventions.exif == "apply" else header.upright
        if (turned.height, turned.width) == (height, width):
            other = "ignore" if self.conventions.exif == "apply" else "apply"
            agree = f"set data.exif={other}, with which they agree, or rotate its pixels"
            return f"{text} (EXIF orientation {header.turn}); {agree}"
        return f"{text}; correct the <size> of the annotation (and its boxes), or take the image out of its list"


def _raw_table(trees: Mapping[str, Tree], images: Sequence[tuple[str, str]]) -> tuple[Table, NDArray[np.bool_]]:
    """[N] what the annotations of images say, and which have one."""
    tables: list[Table] = []
    row_of: dict[str, dict[str | None, int]] = {}
    num_rows = 0
    for name, tree in trees.items():
        tables.append(tree.table())
        row_of[name] = dict(zip(tables[-1].ids.tolist(), count(num_rows)))
        num_rows += len(tables[-1])
    tables.append(Table.from_records([""], np.zeros((1, 3), np.int64), [(0, 0, [])]))  # of an image without one
    annotation_ids = ((name, trees[name].annotation_id(image_id)) for name, image_id in images)
    rows = np.array([num_rows if item is None else row_of[name][item] for name, item in annotation_ids], dtype=np.int64)
    del row_of
    return join(tables).take(rows), rows < num_rows
