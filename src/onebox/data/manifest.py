"""Images whose annotations stand in files for many images each: COCO's JSON, and tables of text."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from onebox.data.coco import read_coco
from onebox.data.csv_file import read_csv
from onebox.data.layout import IMAGE_SUFFIXES, Files, Layout, OtherForm, Tree, called_like_splits, without_suffix
from onebox.data.table import Table, join, kept_table
from onebox.data.voc import Record
from onebox.errors import check

Read = Callable[[Path], tuple[list[str], list[Record | str]]]


class ManifestTree(Tree):
    """Images, and files that each list many of them with their annotations: these files are its lists.

    A list is called like its file, without the suffix, or like the file's folder where several files are called alike.
    An image is looked for beside the file that names it, below the tree's folder of images, and by its name alone.
    COCO's files have the sizes of images, most tables do not; those of the images themselves are as good.
    """

    def _open(self, layout: Layout) -> None:
        folder, suffix = self.folder, layout.form if layout.form == "csv" else "json"
        self._read: Read = partial(read_csv, columns=layout.columns) if suffix == "csv" else read_coco
        self.images = Files([layout.image_folder(folder)], IMAGE_SUFFIXES, short=True)
        place = layout.annotation_place(folder)
        self._files = _named([place] if place.is_file() else sorted(map(Path, Files([place], {suffix}).paths.values())))
        self._tables: dict[str, Table] = {}
        self._list_of: dict[str, str] = {}
        check(
            bool(self._files), f"{place}: no .{suffix} file with annotations; name it or its folder in data.annotations"
        )
        self.remarks = called_like_splits({name: name for name in self._files})

    def list_names(self) -> list[str]:
        return sorted(self._files)

    def list_file(self, name: str) -> Path:
        return self._files.get(name, self.folder / name)

    def ids(self, list_name: str) -> tuple[list[str], int]:
        if list_name != "*":
            if list_name not in self._files:
                raise self.no_list(list_name)
            return list(self._load(list_name).ids.tolist()), 0
        others = []
        for name in self._files:
            try:
                self._load(name)
            except OtherForm as error:
                others.append(error)
        if not self._tables:
            raise others[0]
        return sorted({*self.images.paths, *self._list_of}), 0

    def annotation_id(self, image_id: str) -> str | None:
        return image_id if image_id in self._list_of else None

    def annotation_file(self, image_id: str) -> str:
        """The file that names an image, with the image."""
        return f"{self.list_file(self._list_of.get(image_id, ''))}: {image_id}"

    def table(self) -> Table:
        """What the lists that were read say, sorted by id."""
        table = join(list(self._tables.values()))
        return table.take(np.argsort(table.ids, kind="stable"))

    def _load(self, name: str) -> Table:
        """What a list says, its images by their ids; read at the first call."""
        if name not in self._tables:
            path = self._files[name]
            table = kept_table(path, self._read, self.cache_dir)
            ids = [self._id(text, path) for text in table.ids.tolist()]
            for image_id, count in Counter(ids).items():
                check(count == 1, f"{path}: names {image_id} {count} times; leave one")
                other = self._list_of.setdefault(image_id, name)
                check(
                    other == name,
                    f"{path}: {image_id} is also in {self._files[other].name}; name the lists to use in data.splits "
                    f"(there are: {', '.join(self._files)}), or one file in data.annotations",
                )
            self._tables[name] = replace(table, ids=np.array(ids, dtype=np.str_))
        return self._tables[name]

    def _id(self, text: str, path: Path) -> str:
        """The id of an image that a file names."""
        near = path.parent.relative_to(self.folder) if path.is_relative_to(self.folder) else Path()
        if found := self.images.find(f"{near}/{text}") or self.images.find(text):
            return found
        name = without_suffix(text.replace("\\", "/")).rpartition("/")[2]
        alike = [other for other in self.images.paths if other.rpartition("/")[2] == name]
        meant = [other for other in alike if other.split("/")[-2] in path.stem]  # train2017 of instances_train2017
        if len(meant) == 1:
            return meant[0]
        files = ", ".join(self.images.paths[other] for other in alike[:3])
        check(not alike, f"{path}: '{text}' may be any of {files}; set data.images to the folder of the images")
        return without_suffix(text)


def _named(files: list[Path]) -> dict[str, Path]:
    """Files by their stems; those that are called alike by their folders."""
    stems = Counter(path.name.partition(".")[0] for path in files)
    named: dict[str, Path] = {}
    for path in files:
        stem = path.name.partition(".")[0]
        name = stem if stems[stem] == 1 else path.parent.name
        named[name if name not in named else "_".join(path.with_suffix("").parts[-3:])] = path
    return named
