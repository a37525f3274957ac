"""Annotations as a table of text: one line an object, with its image, its class and its box.

Columns are found by their usual names, or named in `data.columns`:

- `image`: the file's name or path; `class`: the name.
- `xmin`, `ymin` with `xmax`, `ymax` or `box_width`, `box_height`; or `bbox`, a text such as `[x, y, width, height]`.
- optional: `width` and `height` of the image in px, `difficult` (1 or 0).

A line without class and numbers is an image without objects.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from onebox.data.layout import Lists, OtherForm, decimal
from onebox.data.voc import MAX_NAME, MAX_SIDE, RawObject, Record, plain_number
from onebox.errors import BadInput, check
from onebox.files import MAX_LONG, read_text

USUAL = {
    "image": ("image", "filename", "file_name", "file", "path", "image_path", "image_name", "image_id", "imageid"),
    "class": ("class", "class_name", "label", "label_name", "labelname", "category", "category_name", "name"),
    "xmin": ("xmin", "x_min", "x1", "left", "bbox_xmin", "bbox_x", "x"),
    "ymin": ("ymin", "y_min", "y1", "top", "bbox_ymin", "bbox_y", "y"),
    "xmax": ("xmax", "x_max", "x2", "right", "bbox_xmax"),
    "ymax": ("ymax", "y_max", "y2", "bottom", "bbox_ymax"),
    "box_width": ("box_width", "bbox_width", "bbox_w", "w"),
    "box_height": ("box_height", "bbox_height", "bbox_h", "h"),
    "bbox": ("bbox", "box"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
    "difficult": ("difficult", "iscrowd"),
}  # in any case
BOXES = (("xmin", "ymin", "xmax", "ymax"), ("xmin", "ymin", "box_width", "box_height"), ("bbox",))


class _Columns(NamedTuple):
    """Where in a line something stands, and of which of `BOXES` the box is made."""

    places: Mapping[str, int]
    box: Sequence[str]
    has_header: bool


def read_csv(path: Path, *, columns: Mapping[str, str | int] | None = None) -> tuple[list[str], list[Record | str]]:
    """Images that a file names, and what it says of each, or what is wrong.

    Args:
        path: a text in UTF-8, separated by comma, semicolon or tab.
        columns: what -> the name of its column, where that is not usual; or its place, from 0, without a header.

    Raises:
        OtherForm: it has no columns of image, class and box.
        BadInput: it cannot be read, or has not the columns that are given.
    """
    text = read_text(path, remedy="save it as a table in UTF-8", max_bytes=MAX_LONG)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise BadInput(f"{path}: not a table ({error}); repair it") from None
    found = _find_columns(path, rows[0] if rows else [], columns or {})
    records: dict[str, Record | str] = {}
    for number, row in enumerate(rows[found.has_header :], 1 + found.has_header):
        if row:
            check(len(row) > max(found.places.values()), f"{path}: line {number} has {len(row)} columns; repair it")
            words = {what: row[place].strip() for what, place in found.places.items()}
            check(bool(words["image"]), f"{path}: line {number} names no image; repair it")
            _add(records, words, found.box, number)
    return list(records), list(records.values())


def _find_columns(path: Path, first: Sequence[str], columns: Mapping[str, str | int]) -> _Columns:
    unknown = sorted(map(str, set(columns) - set(USUAL)))
    check(not unknown, f"data.columns has {', '.join(unknown)}, but it can have {', '.join(USUAL)}")
    header = {name.strip().casefold(): place for place, name in reversed(list(enumerate(first)))}
    has_header = not columns or not all(isinstance(column, int) for column in columns.values())
    places: dict[str, int] = {}
    for what, usual in USUAL.items():
        names = [columns[what]] if what in columns else usual if has_header else ()
        for name in names:
            place = name if isinstance(name, int) else header.get(str(name).casefold())
            if place is not None and 0 <= place < max(1, len(first)):
                places.setdefault(what, place)
        if what in columns and what not in places:
            raise BadInput(f"{path}: has no column {columns[what]} (it has: {', '.join(first)}); correct data.columns")
    if "xmin" in places and not {"xmax", "box_width", "bbox"} & places.keys() and {"width", "height"} <= places.keys():
        places |= {"box_width": places.pop("width"), "box_height": places.pop("height")}
    box = next((box for box in BOXES if set(box) <= places.keys()), None)
    if box is None or not {"image", "class"} <= places.keys():
        raise OtherForm(
            f"{path}: which columns are image, class, xmin, ymin, xmax and ymax? There are: {', '.join(first)}; set "
            "data.columns={image: NAME, ...}, with places from 0 as names where this is no header"
        )
    return _Columns(places, box, has_header)


def _add(records: dict[str, Record | str], words: Mapping[str, str], box: Sequence[str], number: int) -> None:
    """Put what a line says to what the lines before it said of its image."""
    known = records.setdefault(words["image"], (0, 0, []))
    if isinstance(known, str):
        return
    try:
        sides = [_number(words, key) if words.get(key) else 0.0 for key in ("width", "height")]
        if not all(0 <= side <= MAX_SIDE and side.is_integer() for side in sides):
            raise ValueError(f"has a width and height of {sides}, not numbers of pixels; correct them")
        objects = [*known[2], *_objects(words, box)]
        records[words["image"]] = (known[0] or int(sides[0]), known[1] or int(sides[1]), objects)
    except ValueError as error:
        records[words["image"]] = f"line {number} {error}"


def _objects(words: Mapping[str, str], box: Sequence[str]) -> list[RawObject]:
    if box == ("bbox",):
        numbers = re.findall(r"[^\s,;()\[\]]+", words["bbox"])
        box = tuple(f"bbox {key}" for key in ("x", "y", "width", "height", "and more")[: len(numbers)])
        words = {**words, **dict(zip(box, numbers, strict=False))}
    if not words["class"] and not any(words[key] for key in box):
        return []
    if not 0 < len(words["class"]) <= MAX_NAME:
        raise ValueError(f"has a class of {len(words['class'])} letters; correct it")
    if len(box) not in (0, 4):
        raise ValueError(f"has a bbox of {len(box)} numbers; give x, y, width, height")
    x1, y1, x2, y2 = [_number(words, key) for key in box] if box else [math.nan] * 4
    if not box[2:3] or "width" in box[2]:
        x2, y2 = x1 + x2, y1 + y2
    if math.isnan(x1 + y1 + x2 + y2):
        x1 = y1 = x2 = y2 = math.nan
    return [(words["class"], words.get("difficult", "").lower() in ("1", "true", "yes"), x1, y1, x2, y2)]


def _number(words: Mapping[str, str], key: str) -> float:
    number = plain_number(words[key])
    if math.isinf(number):
        raise ValueError(f"has '{words[key][:40]}' for {key}, not a number; correct it")
    return number


def write_csv(folder: Path, lists: Lists, classes: Sequence[str]) -> None:
    """Write a table for each list, `LIST.csv`, with boxes as edges in px from 0; the images are in `images/`."""
    for list_name, images in lists.items():
        with (folder / f"{list_name}.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["image", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "difficult"])
            for image in images:
                about = (image.name, image.width, image.height)
                for name, difficult, *box in image.objects or ():
                    table.writerow([*about, name, *map(decimal, box), int(difficult)])
                if not image.objects:
                    table.writerow([*about, *[""] * 6])
