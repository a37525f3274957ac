"""PASCAL VOC on disk: XML, images, lists of ids, and ILSVRC's folders of the same. The only place that knows them."""

import math
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

from onebox.errors import BadInput

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp"})  # in small letters; files may have any
MAX_SIDE = 1 << 24  # px; float32 counts pixels exactly up to here
MAX_NAME = 200  # letters of a class

NO_ANNOTATION = "no such file; add the annotation, or take the image out of its list"

RawObject = tuple[str, bool, float, float, float, float]  # class, difficult, xmin ymin xmax ymax as the file has them
Record = tuple[int, int, list[RawObject]]  # width and height in px, objects in file order


@dataclass(frozen=True, slots=True)
class VocObject:
    """One annotated object; `box_px` is xyxy, the edges of the box in 0-based pixels."""

    name: str
    box_px: tuple[float, float, float, float]
    difficult: bool


def read_record(path: str) -> Record | str:
    """What one VOC XML file says, numbers as they stand in it; or, as a string, the first thing that is wrong with it.

    It never names another file: <filename> and <folder> are not looked at.
    """
    width, height, objects, problems = read_parts(path)
    return problems[0] if problems else (width, height, objects)


def read_parts(path: str) -> tuple[int, int, list[RawObject], list[str]]:
    """All that can be read of one VOC XML file, and all that is wrong with it; see `read_record`.

    Returns:
        Width and height in px, 0 where wrong; the objects that can be read; and the problems. Boxes are not judged.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            root = _parse(file.read())
    except FileNotFoundError:
        return 0, 0, [], [NO_ANNOTATION]
    except (ExpatError, ParseError, OSError, ValueError, LookupError) as error:  # LookupError: encoding
        return 0, 0, [], [f"not a readable VOC annotation ({error}); repair or remove the file"]
    sizes = root.findall("size")
    sides, objects, problems = [0, 0], [], []
    for place, tag in enumerate(("width", "height")):
        try:
            sides[place] = _side(sizes, tag)
        except _Wrong as error:
            problems.append(str(error))
    for item in root.findall("object"):
        try:
            objects.append(_read_object(item))
        except _Wrong as error:
            problems.append(str(error))
    return sides[0], sides[1], objects, problems


def edges(corners: Iterable[Any], box_origin: int) -> tuple[Any, Any, Any, Any]:
    """xmin, ymin, xmax, ymax (numbers or arrays) as 0-based edges.

    The one place where VOC's 1-based, inclusive pixels are changed.

    Args:
        corners: as the file has them.
        box_origin: 1 for VOC, whose pixels count from 1 and whose xmax, ymax are inside the box; 0 for tools that
            write the edges of the box in pixels from 0.
    """
    xmin, ymin, xmax, ymax = corners
    return xmin - box_origin, ymin - box_origin, xmax, ymax


def is_inside(x1: Any, y1: Any, x2: Any, y2: Any, width: Any, height: Any) -> Any:
    """Whether boxes (edges in px) have an area and lie inside their images; numbers or arrays."""
    return (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)


def wrong_box(corners: Any, width: int, height: int) -> str:
    """What to say of a box (as the file has it) that is not inside its image."""
    x1, y1, x2, y2 = corners
    return (
        f"box xmin={x1:g} ymin={y1:g} xmax={x2:g} ymax={y2:g} is empty or outside the image of {width}x{height}; "
        "correct it (if its pixels count from 0, set data.box_origin=0)"
    )


def no_image(image_id: str) -> str:
    """What to say of a listed image whose file is missing."""
    return f"no such image; add it, or take {image_id} out of its list"


def unknown_class(name: str, known: Mapping[str, int]) -> str:
    """What to say of an object whose class is not known."""
    shown = list(known) if len(known) <= 50 else [*list(known)[:50], f"and {len(known) - 50} more"]
    return (
        f"class '{name}' is not in data.classes ({', '.join(shown)}); "
        "correct the annotation or add the class to data.classes"
    )


class VocTree:
    """A folder with `Annotations/`, `JPEGImages/` and perhaps `ImageSets/Main/`; or ILSVRC's folder, with
    `Annotations/CLS-LOC/{train,val}/`, `Data/CLS-LOC/{train,val,test}/` and `ImageSets/CLS-LOC/`.

    An id is the path of an image below its folder, without the suffix: `000028`, `n01440764/n01440764_10026`. It is
    only ever looked up among the files that are there, so a list cannot point outside the tree.

    Args:
        folder: where it is.
        strict: whether two images of one id are refused; otherwise the first by name is taken.

    Attributes:
        lists: the folder of its lists.
        ambiguous: the images of each id that has several, sorted.

    Raises:
        BadInput: the folder or one of the two sub-folders is missing, or two images have one id.
    """

    def __init__(self, folder: Path, *, strict: bool = True) -> None:
        self.folder = folder
        annotations, images, lists, parts = folder / "Annotations", folder / "JPEGImages", "Main", [""]
        if (annotations / "CLS-LOC").is_dir():
            annotations, images, lists = annotations / "CLS-LOC", folder / "Data/CLS-LOC", "CLS-LOC"
            parts = ["train", "val", "test"]
        for path in (folder, annotations, images):
            if not path.is_dir():
                raise BadInput(
                    f"{path}: no such folder; point data.root (or ONEBOX_VOC_ROOT, the folder that holds VOCdevkit) "
                    "at a tree with Annotations/ and JPEGImages/"
                )
        self.lists = folder / "ImageSets" / lists
        self._annotation_folders = [annotations / part for part in parts]
        self._image_folders = [images / part for part in parts]
        self._images: dict[str, str] = {}  # id -> file
        several: dict[str, set[str]] = {}
        for _, image_id, entry in _files(self._image_folders, IMAGE_SUFFIXES):
            first = self._images.setdefault(image_id, entry.path)
            if first != entry.path:
                several.setdefault(image_id, {first}).add(entry.path)
        self.ambiguous = {image_id: sorted(map(Path, several[image_id])) for image_id in sorted(several)}
        for image_id, (one, other, *_) in self.ambiguous.items():
            if strict:
                raise BadInput(f"{other}: {one.name} has the same id; keep one of the two")
            self._images[image_id] = str(one)

    def ids(self, list_name: str) -> list[str]:
        """Ids that `ImageSets/Main/<list_name>.txt` names, in its order; for `*` every image or annotation here.

        Raises:
            BadInput: there is no such list.
        """
        if list_name == "*":
            annotated = {image_id for _, image_id, _ in _files(self._annotation_folders, ("xml",))}
            return sorted(annotated | set(self._images))
        path = self.lists / f"{list_name}.txt"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise BadInput(f"{path}: not a list of ids in UTF-8; write it anew, one id a line") from None
        except OSError:
            lists = sorted(item.stem for item in path.parent.glob("*.txt")) or ["none"]
            raise BadInput(
                f"{path}: no such list (there are: {', '.join(lists)}); name another one in data.splits"
            ) from None
        return [line.split()[0] for line in lines if line.strip()]

    def annotation_files(self) -> Iterator[tuple[str, str, int, int, int]]:
        """Of every XML file, in no order: id, the folder that ids count from, size in bytes, and when content and state
        changed, in ns.
        """
        for top, image_id, entry in _files(self._annotation_folders, ("xml",)):
            state = entry.stat()
            yield image_id, top, state.st_size, state.st_mtime_ns, state.st_ctime_ns

    def annotation_path(self, image_id: str) -> Path:
        """Where the XML of one image is, or would be."""
        paths = [folder / f"{image_id}.xml" for folder in self._annotation_folders]
        return next((path for path in paths if path.exists()), paths[0])

    def has_image(self, image_id: str) -> bool:
        """Whether there are pixels for this id."""
        return image_id in self._images

    def image_path(self, image_id: str) -> Path:
        """Where the pixels of one image are.

        Raises:
            BadInput: there is no image of that id.
        """
        if not self.has_image(image_id):
            raise BadInput(f"{self.image_file(image_id)}: {no_image(image_id)}")
        return Path(self.image_file(image_id))

    def image_file(self, image_id: str) -> str:
        """Where the pixels of one image are, or would be; as a string, which is quicker than a path."""
        return self._images.get(image_id) or f"{self._image_folders[0]}/{image_id}.jpg"


def _files(folders: list[Path], suffixes: Container[str]) -> Iterator[tuple[str, str, "os.DirEntry[str]"]]:
    """Folder, path below it without suffix, and entry of all files below some folders that end so."""
    for folder in folders:
        pending = [""] if folder.is_dir() else []
        while pending:
            below = pending.pop()
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    stem, _, suffix = entry.name.rpartition(".")
                    if stem and (suffix in suffixes or suffix.lower() in suffixes):
                        # A folder called so is said to be none when it is read.
                        yield str(folder), below + stem, entry
                    elif entry.is_dir():
                        pending.append(f"{below}{entry.name}/")


def _parse(data: bytes) -> Element:
    """The tree of an XML file that declares no entities, as defusedxml builds it, but by the C parser: 7 times faster.

    Raises:
        ExpatError, ParseError, ValueError, LookupError: it is no such file.
    """

    def refuse_entity(*_: object) -> int:
        raise ValueError("it declares or names entities, which are not expanded")

    builder, parser = TreeBuilder(), ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = parser.SkippedEntityHandler = parser.ExternalEntityRefHandler = refuse_entity
    parser.Parse(data, True)
    return builder.close()


class _Wrong(Exception):
    """What is wrong with a tag, and what to do."""


def _read_object(item: Element) -> RawObject:
    boxes = item.findall("bndbox")
    difficult = (item.findtext("difficult") or "").strip() == "1"
    x1, y1, x2, y2 = [_number(boxes, "bndbox", tag) for tag in ("xmin", "ymin", "xmax", "ymax")]
    name = _text([item], "name", "name")
    if not 0 < len(name) <= MAX_NAME:
        problem = f"has {len(name):,} letters" if name else "is empty"
        raise _Wrong(f"<name> {problem}; name the object's class")
    return name, difficult, x1, y1, x2, y2


def _side(sizes: list[Element], tag: str) -> int:
    number = _number(sizes, "size", tag)
    if not (number.is_integer() and 1 <= number <= MAX_SIDE):
        raise _Wrong(f"<size/{tag}> is '{number:g}', not a number of pixels; correct it to the image's size")
    return int(number)


def _number(parents: list[Element], parent_tag: str, tag: str) -> float:
    text = _text(parents, f"{parent_tag}/{tag}", tag)
    try:
        # Python would also read 1_0 and the digits of other scripts.
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _Wrong(f"<{parent_tag}/{tag}> is '{text}', not a number; correct or remove the annotation")
    return number


def _text(parents: list[Element], path: str, tag: str) -> str:
    """The text of the one element of a tag below some parents: of several, nobody knows which is meant.

    Raises:
        _Wrong: there is none, there are several, or it holds other tags.
    """
    found = [child for parent in parents for child in parent.findall(tag)]
    if len(found) != 1 or len(found[0]):
        problem = f"is there {len(found)} times" if len(found) > 1 else "holds other tags" if found else "is missing"
        raise _Wrong(f"<{path}> {problem}; correct or remove the annotation")
    return (found[0].text or "").strip()
