"""PASCAL VOC on disk: one folder of XML, one of images, lists of ids. The only place that knows its conventions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from onebox.errors import BadInput

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, slots=True)
class VocObject:
    """One annotated object; `box_px` is xyxy, the edges of the box in 0-based pixels."""

    name: str
    box_px: tuple[float, float, float, float]
    difficult: bool

    @property
    def area_px(self) -> float:
        """Area in square pixels."""
        x1, y1, x2, y2 = self.box_px
        return (x2 - x1) * (y2 - y1)


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one XML file says of one image; sizes in px."""

    path: Path
    width: int
    height: int
    objects: tuple[VocObject, ...]


def read_annotation(path: Path, *, box_origin: int) -> Annotation:
    """Read one VOC XML file.

    Args:
        path: the XML file.
        box_origin: 1 for VOC, whose pixels count from 1 and whose xmax, ymax are inside the box; 0 for tools that
            write the edges of the box in pixels from 0.

    Raises:
        BadInput: the file cannot be read, lacks a tag, or has a box that is empty or outside its image.
    """
    try:
        root = parse(path).getroot()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; add the annotation, or take the image out of its list") from None
    except (ParseError, DefusedXmlException, OSError, ValueError, LookupError) as error:  # LookupError: encoding
        raise BadInput(f"{path}: not a readable VOC annotation ({error}); repair or remove the file") from None
    width, height = (_side(root, f"size/{side}", path) for side in ("width", "height"))
    objects = tuple(_read_object(item, path, width, height, box_origin) for item in root.iterfind("object"))
    return Annotation(path, width, height, objects)


def labels_and_boxes(
    annotation: Annotation, label_of: Mapping[str, int]
) -> tuple[list[int], list[tuple[float, float, float, float]]]:
    """Class indices and boxes (xyxy, px) of all objects of one annotation, in file order.

    Args:
        annotation: the parsed file.
        label_of: the label of each class name.

    Raises:
        BadInput: an object's class is not in `label_of`.
    """
    for item in annotation.objects:
        if item.name not in label_of:
            raise BadInput(
                f"{annotation.path}: class '{item.name}' is not in data.classes ({', '.join(label_of)}); "
                "correct the annotation or add the class to data.classes"
            )
    return [label_of[item.name] for item in annotation.objects], [item.box_px for item in annotation.objects]


class VocTree:
    """A folder with `Annotations/`, `JPEGImages/` and perhaps `ImageSets/Main/`.

    Args:
        folder: where it is.
        strict: whether two images of one id are refused; otherwise the first by name is taken.

    Attributes:
        ambiguous: the images of each id that has several, sorted.

    Raises:
        BadInput: the folder or one of the two sub-folders is missing, or two images have one id.
    """

    def __init__(self, folder: Path, *, strict: bool = True) -> None:
        self.folder = folder
        for path in (folder, folder / "Annotations", folder / "JPEGImages"):
            if not path.is_dir():
                raise BadInput(
                    f"{path}: no such folder; point data.root (or ONEBOX_VOC_ROOT, the folder that holds VOCdevkit) "
                    "at a tree with Annotations/ and JPEGImages/"
                )
        self._images: dict[str, Path] = {}
        self.ambiguous: dict[str, list[Path]] = {}
        for path in sorted((folder / "JPEGImages").iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                first = self._images.setdefault(path.stem, path)
                if first != path:
                    self.ambiguous.setdefault(path.stem, [first]).append(path)
        for one, other, *_ in self.ambiguous.values() if strict else ():
            raise BadInput(f"{other}: {one.name} has the same id; keep one of the two")

    def ids(self, list_name: str) -> list[str]:
        """Ids that `ImageSets/Main/<list_name>.txt` names, in its order; for `*` every image or annotation here.

        Raises:
            BadInput: there is no such list.
        """
        if list_name == "*":
            return sorted({path.stem for path in (self.folder / "Annotations").glob("*.xml")} | set(self._images))
        path = self.folder / "ImageSets" / "Main" / f"{list_name}.txt"
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

    def annotation_path(self, image_id: str) -> Path:
        """Where the XML of one image is."""
        return self.folder / "Annotations" / f"{image_id}.xml"

    def image_path(self, image_id: str) -> Path:
        """Where the pixels of one image are.

        Raises:
            BadInput: there is no image of that id.
        """
        try:
            return self._images[image_id]
        except KeyError:
            path = self.folder / "JPEGImages" / f"{image_id}.jpg"
            raise BadInput(f"{path}: no such image; add it, or take {image_id} out of its list") from None


def _read_object(item: Element, path: Path, width: int, height: int, box_origin: int) -> VocObject:
    x1, y1, x2, y2 = (_number(item, f"bndbox/{edge}", path) for edge in ("xmin", "ymin", "xmax", "ymax"))
    # The one place where VOC's 1-based, inclusive pixels become 0-based edges.
    box_px = (x1 - box_origin, y1 - box_origin, x2, y2)
    if not (0 <= box_px[0] < box_px[2] <= width and 0 <= box_px[1] < box_px[3] <= height):
        raise BadInput(
            f"{path}: box xmin={x1:g} ymin={y1:g} xmax={x2:g} ymax={y2:g} is empty or outside the image of "
            f"{width}x{height}; correct it (if its pixels count from 0, set data.box_origin=0)"
        )
    name = _text(item, "name", path)
    if not name:
        raise BadInput(f"{path}: <name> is empty; name the object's class")
    return VocObject(
        name=name,
        box_px=box_px,
        difficult=(item.findtext("difficult") or "0").strip() == "1",
    )


def _side(root: Element, tag: str, path: Path) -> int:
    number = _number(root, tag, path)
    if not (number.is_integer() and 1 <= number < 2**31):
        raise BadInput(f"{path}: <{tag}> is {number:g}, not a number of pixels; correct it to the image's size")
    return int(number)


def _number(element: Element, tag: str, path: Path) -> float:
    text = _text(element, tag, path)
    try:
        # Python would also read 1_0 and the digits of other scripts.
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{path}: <{tag}> is '{text}', not a number; correct or remove the annotation")
    return number


def _text(element: Element, tag: str, path: Path) -> str:
    """The text of the one element at `tag`: of several, nobody knows which is meant."""
    found = element.findall(tag)
    if len(found) != 1 or len(found[0]):
        problem = f"is there {len(found)} times" if len(found) > 1 else "holds other tags" if found else "is missing"
        raise BadInput(f"{path}: <{tag}> {problem}; correct or remove the annotation")
    return (found[0].text or "").strip()
