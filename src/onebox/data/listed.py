"""The images that lists name, with their annotations."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onebox.data.annotations import Conventions, Understood, understand
from onebox.data.image import Header
from onebox.data.layout import Tree
from onebox.data.pictures import Picture, read_pictures
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
        self.ids = np.array([image_id for _, image_id in images], dtype=np.str_)
        table = self._raw_table(trees, np.array([name for name, _ in images], dtype=np.str_))
        self.is_annotated = np.char.str_len(table.ids) > 0 if len(table) else np.zeros(0, bool)
        no_size = (table.sizes == 0).any(axis=1) & self.is_annotated
        no_size[list(table.problems)] = False
        self.without_size = no_size & np.array([tree.has_sizes for tree in self._trees], dtype=bool)
        rows = [row for row in np.flatnonzero(no_size).tolist() if self.has_image(row)]
        sizes, problems = table.sizes.copy(), dict(table.problems)
        for row, (_, _, header) in zip(rows, self.pictures(rows), strict=True):
            if isinstance(header, str):
                problems[row] = f"gives no size, nor does its image: {header}"
            else:
                shown = self.shown(header)
                sizes[row] = shown.height, shown.width
        try:
            self.understood: Understood = understand(replace(table, sizes=sizes, problems=problems), conventions)
        except BadInput as error:
            raise BadInput(f"{', '.join(str(tree.folder) for tree in trees.values())}: {error}") from error
        self.table = self.understood.table

    def _raw_table(self, trees: Mapping[str, Tree], names: NDArray[np.str_]) -> Table:
        absent = Table.from_records([""], np.zeros((1, 3), np.int64), [(0, 0, [])])
        tables, places = [absent.take(np.zeros(0, np.int64))], [np.zeros(0, np.int64)]
        for name, tree in trees.items():
            table = join([tree.table(), absent])
            row_of = {annotation_id: row for row, annotation_id in enumerate(table.ids[:-1].tolist())}
            mine = np.flatnonzero(names == name)
            ids = [tree.annotation_id(image_id) for image_id in self.ids[mine].tolist()]
            rows = [len(table) - 1 if annotation_id is None else row_of[annotation_id] for annotation_id in ids]
            tables.append(table.take(np.array(rows, dtype=np.int64)))
            places.append(mine)
        return join(tables).take(np.argsort(np.concatenate(places)))

    def __len__(self) -> int:
        return len(self.ids)

    def tree(self, row: int) -> Tree:
        """The tree of one row."""
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
