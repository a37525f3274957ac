"""What a tree of images and annotations is, whatever their form, and where its parts usually lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from onebox.data.table import Table
from onebox.data.voc import RawObject
from onebox.data.walk import Files
from onebox.errors import BadInput, check

IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "pictures", "photos", "jpgs")  # in any case
FORMS = ("voc", "coco", "yolo", "csv")


@dataclass(frozen=True)
class Layout:
    """What a tree's files are, and where they lie.

    Attributes:
        form: of the annotations: `voc`, `coco`, `yolo` or `csv`.
        images: the folder of the images, below the tree's; None looks for one of the usual names.
        annotations: the folder of the annotations, or for COCO and CSV perhaps one file; None as before.
        names: for YOLO, the file of the class names, below the tree's; None looks for one.
        columns: for CSV, what is in which column; see `onebox.data.csv_file`.
    """

    form: Literal["voc", "coco", "yolo", "csv"] = "voc"
    images: str | None = None
    annotations: str | None = None
    names: str | None = None
    columns: Mapping[str, str | int] | None = None

    def image_folder(self, folder: Path) -> Path:
        """Where the images of a tree are: the folder that is given, one of a usual name, or the tree's own."""
        usual = (
            path for path in sorted(folder.glob("[!.]*")) if path.name.casefold() in IMAGE_FOLDERS and path.is_dir()
        )
        return self._below(folder, "images") or next(usual, folder)

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


class OtherForm(BadInput):
    """A file is no list of annotations of this form, though it can be read."""


class Labelled(NamedTuple):
    """One image as it is written in another form.

    Attributes:
        name: its id with the suffix of its file.
        width, height: of the image in px.
        objects: class, difficult, and xmin ymin xmax ymax as edges in px; None without an annotation.
    """

    name: str
    width: int
    height: int
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


class Tree(Protocol):
    """Images and their annotations, in whatever form.

    Attributes:
        folder: where it is.
        images: the image files.
        remarks: what looks odd in it -> in how many places.
        has_sizes: whether an annotation of this form says the size of its image.
    """

    folder: Path
    images: Files
    remarks: dict[str, int]
    has_sizes: bool

    def list_names(self) -> list[str]:
        """The lists that there are, sorted."""

    def list_file(self, name: str) -> Path:
        """The file of a list, or where it would be."""

    def ids(self, list_name: str) -> tuple[list[str], int]:
        """The images that a list names, in its order, and how many of its lines were left out; for `*` all.

        Raises:
            BadInput: there is no such list, or it cannot be read in one way.
        """

    def annotation_id(self, image_id: str) -> str | None:
        """The id in `table` of an image's annotation; None when it has none."""

    def annotation_file(self, image_id: str) -> str:
        """Where an image's annotation stands, or would."""

    def table(self) -> Table:
        """All annotations, sorted by id."""


def called_like_splits(places: Mapping[str, str]) -> dict[str, int]:
    """A remark on lists (name -> its name in `data.splits`) that are called like splits, if train and another are."""
    usual = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
    found = {usual[name]: places[name] for name in sorted(places) if name in usual}
    if "train" not in found or len(found) < 2:
        return {}
    pairs = ",".join(f"{split}:[{place}]" for split, place in found.items())
    return {f"lists or folders are called like splits; to take them so, set data.splits={{{pairs}}}": len(found)}
