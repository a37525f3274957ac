"""COCO's annotations: one JSON file for many images. Boxes are x, y, width and height in px, counted from 0.

The format: https://cocodataset.org/#format-data
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onebox.data.layout import Lists, OtherForm, put
from onebox.data.voc import MAX_NAME, MAX_SIDE, RawObject, Record
from onebox.errors import BadInput, is_finite
from onebox.files import MAX_LONG, read_file


def read_coco(path: Path) -> tuple[list[str], list[Record | str]]:
    """File names of the images of a JSON file, and what it says of each, or what is wrong.

    A crowd (`iscrowd`) is given as difficult. An object without a box has NaN for its corners.

    Raises:
        OtherForm: it is no COCO file.
        BadInput: it cannot be read, or an annotation is of an image or a class that it does not list.
    """
    remedy = "not a readable JSON file; repair it, or move it away"
    document = read_file(path, lambda file: json.loads(file.read()), remedy=remedy, max_bytes=MAX_LONG)
    parts = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(part), list) for part in parts):
        raise OtherForm(f"{path}: not COCO's, which has {', '.join(parts)}; name the right file in data.annotations")
    try:
        names = {one["id"]: str(one["name"]).strip() for one in document["categories"]}
        images = {one["id"]: one for one in document["images"]}
        texts = [str(one["file_name"]) for one in document["images"]]
        by_image: dict[Any, list[Any]] = {key: [] for key in images}
        for one in document["annotations"]:
            by_image[one["image_id"]].append(one)
    except KeyError as error:
        what = f"has no {error}, or an annotation is of an image {error} that is not among its images"
        raise BadInput(f"{path}: something {what}; repair it") from None
    except TypeError:
        raise BadInput(f"{path}: its images, annotations or categories are not as COCO has them; repair it") from None
    if len(images) < len(texts):
        raise BadInput(f"{path}: two images have one id; give each an id of its own")
    return texts, [_record(images[key], found, names) for key, found in by_image.items()]


def _record(image: dict[str, Any], annotations: list[dict[str, Any]], names: dict[Any, str]) -> Record | str:
    sides = [image.get(key) or 0 for key in ("width", "height")]
    if not all(isinstance(side, int | float) and 0 <= side <= MAX_SIDE and side == int(side) for side in sides):
        return f"its width and height are {sides}, not numbers of pixels; correct them"
    objects = []
    for one in annotations:
        found = _object(one, names)
        if isinstance(found, str):
            return f"annotation {one.get('id')}: {found}"
        objects.append(found)
    return int(sides[0]), int(sides[1]), objects


def _object(annotation: dict[str, Any], names: dict[Any, str]) -> RawObject | str:
    category = annotation.get("category_id")
    name = names.get(category) if isinstance(category, int | str) else None
    if not name or len(name) > MAX_NAME:
        return f"its category_id is {category!r}, for which categories have no name; correct it"
    box = annotation.get("bbox") or [math.nan] * 4
    if not isinstance(box, list) or len(box) != 4 or not all(is_finite(number) or number != number for number in box):
        return f"its bbox is {box!r}, not four numbers; correct or remove it"
    x, y, width, height = map(float, box)
    difficult = bool(annotation.get("iscrowd") or annotation.get("difficult"))
    if math.isnan(x + y + width + height):
        return name, difficult, math.nan, math.nan, math.nan, math.nan
    return name, difficult, x, y, x + width, y + height


def write_coco(folder: Path, lists: Lists, classes: Sequence[str]) -> None:
    """Write a JSON file for each list, `annotations/LIST.json`; the images are in `images/`."""
    number_of = {name: number for number, name in enumerate(classes, 1)}
    for list_name, images in lists.items():
        annotations: list[dict[str, Any]] = []
        for number, image in enumerate(images, 1):
            for name, difficult, x1, y1, x2, y2 in image.objects or ():
                box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
                about = {"id": len(annotations) + 1, "image_id": number, "category_id": number_of[name], "bbox": box}
                annotations.append(
                    {**about, "area": round(box[2] * box[3], 2), "iscrowd": 0, "difficult": int(difficult)}
                )
        document = {
            "images": [
                {"id": number, "file_name": image.name, "width": image.width, "height": image.height}
                for number, image in enumerate(images, 1)
            ],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in number_of.items()],
        }
        put(folder / "annotations" / f"{list_name}.json", json.dumps(document, ensure_ascii=False))
