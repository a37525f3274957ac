"""PASCAL VOC's XML: what one file says, as plain numbers. The only place that knows the format."""

import math
import re
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

from onebox.files import read_bytes

MAX_BYTES = 32 << 20  # of one file; a folder of wrong files is not to fill the memory
MAX_SIDE = 1 << 24  # px; float32 counts pixels exactly up to here
MAX_NAME = 200  # letters of a class

RawObject = tuple[str, bool, float, float, float, float]  # class, difficult, xmin ymin xmax ymax as the file has them
Record = tuple[int, int, list[RawObject]]  # width and height in px, objects in file order

_ENCODING = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z][\w.-]*)["'][^>]*\?>""")
_EXPATS_OWN = {"utf-8", "utf8", "utf-16", "utf16", "iso-8859-1", "us-ascii"}


def read_record(path: str) -> Record | str:
    """What one VOC XML file says, numbers as they stand in it; or, as a string, the first thing that is wrong with it.

    It never names another file: <filename> and <folder> are not looked at. A side that is missing or 0 is given as 0;
    an object without numbers (its box is missing, empty or NaN) has NaN for its corners. Boxes are not judged.
    """
    try:
        root = _parse(read_bytes(path, MAX_BYTES))
        if root.tag.lower() != "annotation":
            raise ValueError(f"its first tag is <{root.tag[:40]}>, not <annotation>")
    except OSError as error:
        return f"cannot be read ({error.strerror}); restore the file"
    except (ExpatError, ParseError, ValueError, LookupError) as error:  # LookupError: of an unknown encoding
        return f"not a readable VOC annotation ({error}); repair or remove the file"
    try:
        sizes = root.findall("size")
        width, height = (_side(sizes, tag) for tag in ("width", "height"))
        return width, height, [_read_object(item) for item in root.findall("object")]
    except _Wrong as error:
        return str(error)


def _parse(data: bytes) -> Element:
    """The tree of an XML file that declares no entities, as defusedxml builds it, but by the C parser: 7 times faster.

    Raises:
        ExpatError, ParseError, ValueError, LookupError: it is no such file.
    """
    declared = _ENCODING.match(data)
    if declared and declared[1].decode().lower() not in _EXPATS_OWN:  # such as gb2312, which expat does not know
        if b"escape" in declared[1].lower():
            raise LookupError(f"{declared[1].decode()} is Python's own encoding")
        data = data[declared.end() :].decode(declared[1].decode()).encode()

    def refuse_entity(*_: object) -> int:
        raise ValueError("it declares or uses entities, which are not expanded")

    builder, parser = TreeBuilder(), ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = parser.SkippedEntityHandler = parser.ExternalEntityRefHandler = refuse_entity
    parser.Parse(data, True)
    root: Element = builder.close()
    if b":" in data:
        for element in root.iter():
            element.tag = element.tag.rpartition(":")[2]  # a prefix is a namespace, which says nothing here
    return root


class _Wrong(Exception):
    """What is wrong with a tag, and what to do."""


def _read_object(item: Element) -> RawObject:
    boxes = item.findall("bndbox")
    x1, y1, x2, y2 = [_number(boxes, "bndbox", tag) for tag in ("xmin", "ymin", "xmax", "ymax")]
    difficult = (item.findtext("difficult") or "").strip() == "1"
    name = _text([item], "name", "name")
    if math.isnan(x1 + y1 + x2 + y2):
        return name[:MAX_NAME], difficult, math.nan, math.nan, math.nan, math.nan
    if not 0 < len(name) <= MAX_NAME:
        raise _Wrong(f"<name> {f'has {len(name):,} letters' if name else 'is empty'}; name the object's class")
    return name, difficult, x1, y1, x2, y2


def _side(sizes: list[Element], tag: str) -> int:
    number = _number(sizes, "size", tag)
    if math.isnan(number) or number == 0:
        return 0
    if not (number.is_integer() and 1 <= number <= MAX_SIDE):
        raise _Wrong(f"<size/{tag}> is '{number:g}', not a number of pixels; correct it to the image's size")
    return int(number)


def plain_number(text: str) -> float:
    """The number that a text is: NaN for an empty one, infinite for what is none, as 1_0 and other scripts' digits."""
    try:
        return float(text or "nan") if text.isascii() and "_" not in text else math.inf
    except ValueError:
        return math.inf


def _number(parents: list[Element], parent_tag: str, tag: str) -> float:
    """NaN where there is none."""
    text = _text(parents, f"{parent_tag}/{tag}", tag)
    number = plain_number(text)
    if math.isinf(number):
        raise _Wrong(f"<{parent_tag}/{tag}> is '{text}', not a number; correct or remove the annotation")
    return number


def _text(parents: list[Element], path: str, tag: str) -> str:
    """The text of the one element of a tag below some parents, empty without one: of several, which is meant?

    Raises:
        _Wrong: there are several, or it holds other tags.
    """
    found = [child for parent in parents for child in parent.findall(tag)]
    if len(found) > 1 or any(map(len, found)):
        problem = f"is there {len(found)} times" if len(found) > 1 else "holds other tags"
        raise _Wrong(f"<{path}> {problem}; correct or remove the annotation")
    return (found[0].text or "").strip() if found else ""
