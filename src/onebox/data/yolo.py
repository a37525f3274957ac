"""YOLO's labels: a text file an image, in each line the number of a class and a box's centre and size in [0, 1].

The format: https://docs.ultralytics.com/datasets/detect/, with the layouts of Darknet, Label Studio and Roboflow.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from onebox.data.layout import IMAGE_SUFFIXES, Files, Layout, Lists, Tree, called_like_splits, put
from onebox.data.table import Table
from onebox.data.voc import MAX_BYTES, RawObject, Record, plain_number
from onebox.errors import BadInput, check
from onebox.files import MAX_LONG, read_bytes, read_text, read_yaml

NAME_FILES = ("classes.txt", "obj.names", "names.txt", "classes.names", "_darknet.labels")  # one name a line
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def read_labels(path: str, *, is_pose: bool = False) -> Record | str:
    """What one label file says, or the first thing that is wrong with it.

    The size is given as 0, and a class as its number. Of a polygon it is the smallest box around it.

    Args:
        path: a text file.
        is_pose: whether key points follow the box, which are left out; otherwise more than four numbers are a polygon.
    """
    try:
        lines = read_bytes(path, MAX_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        return f"cannot be read ({error.strerror}); restore the file"
    except UnicodeDecodeError:
        return "not a text file; restore it"
    objects = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found = _read_line(line.split(), is_pose)
            if isinstance(found, str):
                return f"line {number} {found}; a line is a class and x, y, width and height of its box, in [0, 1]"
            objects.append(found)
    return 0, 0, objects


def _read_line(words: Sequence[str], is_pose: bool) -> RawObject | str:
    label, *numbers = map(plain_number, words)
    if not all(map(math.isfinite, (label, *numbers))) or not label.is_integer() or label < 0:
        return f"is '{' '.join(words)[:80]}'"
    if len(numbers) == 4 or (is_pose and len(numbers) > 4):
        x, y, width, height = numbers[:4]
        return str(int(label)), False, x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        xs, ys = numbers[::2], numbers[1::2]
        return str(int(label)), False, min(xs), min(ys), max(xs), max(ys)
    return f"has {len(numbers)} numbers behind the class"


class YoloTree(Tree):
    """Images and label files: `images/` and `labels/`, a split's folder with both, or each label file beside its image.

    Lists are those of a `data.yaml`, text files of paths, or the folders of images that are called like splits.
    """

    def _open(self, layout: Layout) -> None:
        folder = self.folder
        self.images = Files([layout.image_folder(folder)], IMAGE_SUFFIXES, short=True)
        self.annotations = Files([layout.annotation_place(folder)], {"txt"})
        self._about = _data_yaml(folder)
        self._names = _class_names(folder, layout.names, self._about)
        self.read = partial(read_labels, is_pose="kpt_shape" in self._about)
        self._labels = {name: label for name in self.images.paths if (label := self._label_of(name))}
        check(
            bool(self._labels) or not self.images.paths,
            f"{folder}: {len(self.images.paths):,} images, but no label file (.txt) is called like one of them; set "
            "data.images and data.annotations to their folders",
        )
        self.remarks = called_like_splits({name: name for name in self.list_names()})
        alone = {name for name in self.annotations.paths if "labels/" in f"/{name}"} - {*self._labels.values()}
        if without := sum(f"{Path(name).name}.txt" not in NAME_FILES for name in alone):
            self.remarks["label files have no image of their name"] = without
        if not self._names:
            text = "classes have no names (no data.yaml, classes.txt or .names file), so their numbers are used; set "
            self.remarks[f"{text}data.names=FILE, with a name a line, to give them some"] = 1

    def _label_of(self, image_id: str) -> str | None:
        """The id of an image's label file: the last folder `images` of its path is `labels` there, or the name is."""
        path = self.images.paths[image_id]
        before, found, after = path.rpartition("/images/")
        stem = after.rpartition(".")[0] if found else ""
        places = [f"{before}/labels/{stem}.txt"] if found else []
        for place in (*places, f"{path.rpartition('.')[0]}.txt"):
            name = place.removeprefix(f"{self.annotations.folders[0]}/").removesuffix(".txt")
            if self.annotations.paths.get(name) == place:
                return name
        return self.annotations.by_stem.get(image_id.rpartition("/")[2])

    def table(self) -> Table:
        """All label files, sorted by id, with the names of the classes."""
        table = super().table()
        if not self._names or not len(table.names):
            return table
        names, problems = [], dict(table.problems)
        for row, number in zip(table.owners.tolist(), table.names.tolist(), strict=True):
            names.append(self._names.get(int(number), number))
            if int(number) not in self._names:
                problems.setdefault(
                    row,
                    f"class {number} is not one of the {len(self._names)} that have names; correct "
                    "it, or set data.names=FILE",
                )
        return replace(table, names=np.array(names, dtype=np.str_), problems=problems)

    def annotation_id(self, image_id: str) -> str | None:
        return self._labels.get(image_id)

    def list_names(self) -> list[str]:
        """The splits that a `data.yaml`, a text file or a folder of images is called like."""
        return sorted(name for name in ("train", "val", "test") if self._members(name) is not None)

    def list_file(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def ids(self, list_name: str) -> tuple[list[str], int]:
        found = sorted(self.images.paths) if list_name == "*" else self._members(list_name)
        if found is None:
            raise self.no_list(list_name)
        return found, 0

    def _members(self, name: str) -> list[str] | None:
        """The images of a list; None if there is no such list."""
        names = SPLIT_FOLDERS.get(name, (name,))
        given = next((self._about[one] for one in names if self._about.get(one)), None)
        places = [given] if isinstance(given, str) else given
        if not isinstance(places, list):
            places = [f"{name}.txt", *(f"images/{one}" for one in names), *names]
        found = [ids for place in places if (ids := self._images_at(str(place))) is not None]
        return list(dict.fromkeys(image_id for ids in found for image_id in ids)) if found else None

    def _images_at(self, place: str) -> list[str] | None:
        """The images that a text file names, or that lie below a folder, whose path is looked for from its end."""
        parts = [part for part in place.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            path = self.folder.joinpath(*parts[start:])
            if path.is_file() and path.suffix.lower() == ".txt":
                lines = [line for line in map(str.strip, _text(path).splitlines()) if line]
                return [self.images.find(line) or line for line in lines]
            if path.is_dir():
                inside = f"{path}/"
                if found := sorted(name for name, file in self.images.paths.items() if file.startswith(inside)):
                    return found
        return None


def _data_yaml(folder: Path) -> dict[str, Any]:
    """The YAML file of a tree that names its classes; empty without one."""
    found = {}
    for path in sorted((*folder.glob("[!.]*.yaml"), *folder.glob("[!.]*.yml"))):
        try:
            about = read_yaml(path, remedy="repair it")
        except BadInput:
            continue  # perhaps something else's
        if isinstance(about, dict) and isinstance(about.get("names"), list | dict):
            found[path] = about
    if len({str(about["names"]) for about in found.values()}) > 1:
        raise BadInput(
            f"{folder}: {' and '.join(path.name for path in found)} name different classes; remove all but one"
        )
    return next(iter(found.values()), {})


def _class_names(folder: Path, file: str | None, about: Mapping[str, Any]) -> dict[int, str]:
    """Number -> name of the classes; empty if no file says them.

    Raises:
        BadInput: the file that was given cannot be read, or its names are none.
    """
    if file is not None:
        path = folder / file
        check(path.is_file(), f"{path}: no such file; correct data.names")
        is_yaml = path.suffix.lower() in (".yaml", ".yml")
        names = read_yaml(path, remedy="correct data.names") if is_yaml else _lines(path)
        names = names.get("names") if isinstance(names, dict) else names
    else:
        places = [folder / part / name for part in ("", "labels") for name in NAME_FILES]
        names = about.get("names") or next((_lines(path) for path in places if path.is_file()), [])
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    try:
        found = {int(number): str(name).strip() for number, name in dict(pairs or {}).items()}
    except (TypeError, ValueError):
        raise BadInput(
            f"{folder}: the names of the classes are no list; set data.names=FILE with a name a line"
        ) from None
    again = [name for name, count in Counter(found.values()).items() if count > 1]
    check(not again, f"{folder}: two classes are called {', '.join(map(repr, again))}; give each a name of its own")
    return found


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).rstrip().splitlines()]


def _text(path: Path) -> str:
    return read_text(path, remedy="rewrite it", max_bytes=MAX_LONG)


def write_yolo(folder: Path, lists: Lists, classes: Sequence[str]) -> None:
    """Write `labels/ID.txt`, `LIST.txt` and `data.yaml`; the images are in `images/`. No mark of difficult."""
    number_of = {name: number for number, name in enumerate(classes)}
    for list_name, images in lists.items():
        put(folder / f"{list_name}.txt", "".join(f"./images/{image.name}\n" for image in images))
        for image in images:
            lines = []
            for name, _, x1, y1, x2, y2 in image.objects or ():
                centre = ((x1 + x2) / 2 / image.width, (y1 + y2) / 2 / image.height)
                numbers = (*centre, (x2 - x1) / image.width, (y2 - y1) / image.height)
                lines.append(" ".join([str(number_of[name]), *(f"{number:.9g}" for number in numbers)]) + "\n")
            if image.objects is not None:
                put(folder / "labels" / f"{image.id}.txt", "".join(lines))
    about = {"path": ".", **{name: f"{name}.txt" for name in lists}, "names": dict(enumerate(classes))}
    put(folder / "data.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
