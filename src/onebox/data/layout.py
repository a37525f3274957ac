"""A tree of images and annotations, whatever their form: its files by id, where they lie, and how they are written.

An id is the path of a file below its folder, without the suffix: `000028`, `n01440764/n01440764_10026`. It is only
ever looked up among the files that are there, so a list cannot point outside of them.
"""

import os
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from onebox.data.table import Table, read_table
from onebox.data.voc import RawObject, Record
from onebox.errors import BadInput, check

IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "pictures", "photos", "jpgs")  # in any case
FORMS = ("voc", "coco", "yolo", "csv")
# In any case. The last ones are not read, but a picture that is there is not to be called missing.
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "heic", "avif"})


class Files:
    """The files of certain suffixes below some folders, by id. Names that begin with a dot are no data.

    Args:
        folders: where to look; one that does not exist holds none.
        suffixes: without the dot, in lower case, an empty one for files without; a file's may be in any case.
        short: whether an id is only the last part of the path, where no other file has the same.

    Attributes:
        paths: id (in Unicode's NFC) -> file.
        ambiguous: id -> the files of that id, sorted, where there are several; the first is in `paths`.

    Raises:
        BadInput: a folder cannot be read.
    """

    def __init__(self, folders: Sequence[Path], suffixes: Collection[str], *, short: bool = False) -> None:
        self.folders = folders
        self.suffixes = frozenset(suffixes)
        self.paths: dict[str, str] = {}
        several: dict[str, set[str]] = {}
        for folder in folders:
            for name, path in walk(folder, suffixes):
                first = self.paths.setdefault(name, path)
                if first != path:
                    several.setdefault(name, {first}).add(path)
        self.ambiguous = {name: sorted(map(Path, several[name])) for name in sorted(several)}
        self.paths |= {name: str(files[0]) for name, files in self.ambiguous.items()}
        self._short: dict[str, str] = {}  # path below the folder -> id, where they differ
        if short:
            self._short = {name: stem for stem, name in self.by_stem.items()}
            self.paths = {self._short.get(name, name): path for name, path in self.paths.items()}
            del self.by_stem  # it is of the ids

    @cached_property
    def by_stem(self) -> dict[str, str]:
        """Last part of the ids -> id, where only one has it."""
        stems = Counter(name.rpartition("/")[2] for name in self.paths)
        return {stem: name for name in self.paths if stems[stem := name.rpartition("/")[2]] == 1}

    def __contains__(self, name: str) -> bool:
        return name in self.paths

    def file(self, name: str) -> str:
        """The file of an id, or where it would be; as a string, which is quicker than a path."""
        suffix = "jpg" if "jpg" in self.suffixes else min(self.suffixes)
        return self.paths.get(name) or f"{self.folders[0]}/{name}.{suffix}"

    def find(self, text: str) -> str | None:
        """The id that a text means: an id, a file's name, the end of a path, or a name that only one folder has."""
        if text in self.paths:
            return text
        text = unicodedata.normalize("NFC", text.replace("\\", "/"))
        stem = without_suffix(text)
        for name in dict.fromkeys([text, stem]):
            parts = name.split("/")
            for start in range(len(parts)):
                end = "/".join(parts[start:])
                if (found := self._short.get(end, end)) in self.paths:
                    return found
        return self.by_stem.get(stem.rpartition("/")[2])


def without_suffix(name: str) -> str:
    """A file's name without the suffix of an image or an annotation; other dots stay."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and (suffix.lower() in IMAGE_SUFFIXES or suffix.lower() == "xml") else name


def walk(folder: Path, suffixes: Collection[str]) -> Iterator[tuple[str, str]]:
    """Id and path of all files below a folder that end so; each folder once, wherever links lead."""
    pending, seen = [""], set()
    while pending:
        below = pending.pop()
        try:
            place = os.path.join(folder, below)
            state = os.stat(place)
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    stem, _, suffix = entry.name.rpartition(".")
                    if entry.name.startswith("."):
                        continue
                    name, suffix = (stem, suffix.lower()) if stem else (entry.name, "")
                    if suffix in suffixes and entry.is_file():
                        yield unicodedata.normalize("NFC", below + name), entry.path
                    elif entry.is_dir():
                        pending.append(f"{below}{entry.name}/")
        except FileNotFoundError:
            continue  # of ILSVRC's folders one may be missing
        except OSError as error:
            raise BadInput(f"{folder / below}: cannot be read ({error.strerror}); make it readable") from error


@dataclass(frozen=True)
class Layout:
    """What a tree's files are, and where they lie."""

    form: Literal["voc", "coco", "yolo", "csv"] = "voc"  # of the annotations: `voc`, `coco`, `yolo` or `csv`
    images: str | None = None  # the folder of the images, below the tree's; None looks for one of the usual names
    # the folder of the annotations, or for COCO and CSV perhaps one file; None as before
    annotations: str | None = None
    names: str | None = None  # for YOLO, the file of the class names, below the tree's; None looks for one
    columns: Mapping[str, str | int] | None = None  # for CSV, what is in which column; see `onebox.data.csv_file`

    def image_folder(self, folder: Path) -> Path:
        """Where the images of a tree are: the folder that is given, one of a usual name, or the tree's own."""
        return self._below(folder, "images") or usual_folder(folder, IMAGE_FOLDERS) or folder

    def annotation_place(self, folder: Path) -> Path:
        """Where the annotations are: the folder or file that is given, or the tree's own folder."""
        return self._below(folder, "annotations") or folder

    def _below(self, folder: Path, key: str) -> Path | None:
        check(folder.is_dir(), f"{folder}: no such folder; point data.root at one with images and annotations")
        place = getattr(self, key)
        check(place is None or (folder / place).exists(), f"{folder / str(place)}: not there; correct data.{key}")
        return None if place is None else folder / place

    def __post_init__(self) -> None:
        check(self.form in FORMS, f"data.form must be one of {', '.join(FORMS)}, not {self.form}")
        is_mapping = self.columns is None or isinstance(self.columns, Mapping)
        check(is_mapping, f"data.columns must map what to columns, such as {{image: filename}}, not {self.columns}")


VOC = Layout()


def usual_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder below another one that has the first of some names, in any case, that there is; None without one."""
    below = {path.name.casefold(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_dir()}
    return next((below[name] for name in names if name in below), None)


class OtherForm(BadInput):
    """A file is no list of annotations of this form, though it can be read."""


class Labelled(NamedTuple):
    """One image as it is written in another form."""

    name: str  # its id with the suffix of its file
    # width, height: of the image in px
    width: int
    height: int
    # class, difficult, and xmin ymin xmax ymax as edges in px; None without an annotation
    objects: Sequence[RawObject] | None

    @property
    def id(self) -> str:
        """The name without the suffix."""
        return self.name.rpartition(".")[0]


Lists = Mapping[str, Sequence[Labelled]]  # name of a list -> its images; each is in one of them


def decimal(number: float) -> str:
    """A number of px, to a hundredth."""
    return f"{round(number, 2) + 0.0:.2f}".rstrip("0").rstrip(".")  # + 0.0: not -0


def put(path: Path, text: str) -> None:
    """Write a text of a folder that is new as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


class Tree(ABC):
    """Images and their annotations, in whatever form; this base has an annotation file for each image.

    Args:
        folder: where it is.
        layout: its parts, where they have no usual name.
        cache_dir: folder that keeps what was read; None keeps nothing.
        strict: whether two images of one id are refused; otherwise the first by name is taken.

    Attributes:
        folder: where it is.
        images: the image files, by id.
        annotations: the annotation files, by id.
        read: what one of these says, or what is wrong with it.
        remarks: what looks odd in it -> in how many places.
        has_sizes: whether an annotation of this form says the size of its image.

    Raises:
        BadInput: there is no such tree, one of its files cannot be read, or two images have one id.
    """

    images: Files
    annotations: Files
    read: Callable[[str], Record | str]
    has_sizes = False

    def __init__(
        self, folder: Path, layout: Layout = VOC, *, cache_dir: Path | None = None, strict: bool = True
    ) -> None:
        self.folder = folder
        self.cache_dir = cache_dir
        self.remarks: dict[str, int] = {}
        self._open(layout)
        for one, other, *_ in self.images.ambiguous.values() if strict else ():
            raise BadInput(f"{other}: {one.name} has the same id; keep one of the two")

    @abstractmethod
    def _open(self, layout: Layout) -> None:
        """Find the files."""

    @abstractmethod
    def list_names(self) -> list[str]:
        """The lists that there are, sorted."""

    @abstractmethod
    def list_file(self, name: str) -> Path:
        """The file of a list, or where it would be."""

    @abstractmethod
    def ids(self, list_name: str) -> tuple[list[str], int]:
        """The images that a list names, in its order, and how many of its lines were left out; for `*` all.

        Raises:
            BadInput: there is no such list, or it cannot be read in one way.
        """

    @abstractmethod
    def annotation_id(self, image_id: str) -> str | None:
        """The id in `table` of an image's annotation; None when it has none."""

    def annotation_file(self, image_id: str) -> str:
        """Where an image's annotation stands, or would."""
        return self.annotations.file(self.annotation_id(image_id) or image_id)

    def table(self) -> Table:
        """All annotations, sorted by id."""
        return read_table(self, self.cache_dir)

    def no_list(self, name: str) -> BadInput:
        """What to raise when a list is not there."""
        there = ", ".join(self.list_names()) or "none"
        return BadInput(f"{self.folder}: no list {name} (there are: {there}); name another one in data.splits")


def open_tree(folder: Path, layout: Layout, cache_dir: Path | None, *, strict: bool = True) -> Tree:
    """The tree of a layout's form; see `Tree`."""
    from onebox.data.tree import VocTree

    if layout.form == "voc":  # as in most runs, which import no other reader
        return VocTree(folder, layout, cache_dir=cache_dir, strict=strict)
    from onebox.data.manifest import ManifestTree
    from onebox.data.yolo import YoloTree

    kind = YoloTree if layout.form == "yolo" else ManifestTree
    return kind(folder, layout, cache_dir=cache_dir, strict=strict)


def called_like_splits(places: Mapping[str, str]) -> dict[str, int]:
    """A remark on lists (name -> its name in `data.splits`) that are called like splits, if train and another are."""
    usual = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
    found = {usual[name]: places[name] for name in sorted(places) if name in usual}
    if "train" not in found or len(found) < 2:
        return {}
    pairs = ",".join(f"{split}:[{place}]" for split, place in found.items())
    return {f"lists or folders are called like splits; to take them so, set data.splits={{{pairs}}}": len(found)}
