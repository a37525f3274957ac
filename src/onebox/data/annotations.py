"""How annotations are to be understood: their numbers as edges in px, slips among them, and what looks odd.

Training and `onebox data check` both decide by what is here. N = number of images, M = number of their objects.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onebox.data.table import Ints, Table
from onebox.errors import check

BACKGROUND = "background"  # what logit 0 is called with data.background_class
SMALL = 3  # px; a side below it is hardly an object
UNITS = {"pixels": 0.0, "relative": 1.0, "percent": 100.0}  # the number that stands for the image's whole side
SAME = 0.1  # a convention is named as the right one when it leaves at most this share of the wrong boxes

Columns = tuple[Any, Any, Any, Any]  # xmin, ymin, xmax, ymax: numbers or arrays


@dataclass(frozen=True)
class Conventions:
    """What the numbers of annotations mean, and what becomes of a box that is wrong.

    Attributes:
        box_origin: the first pixel is number 1, as in VOC, or 0.
        box_end: whether xmax and ymax are the last pixel inside the box (`inclusive`) or the edge behind it
            (`exclusive`); None: inclusive when pixels count from 1, as in VOC, else exclusive.
        box_units: `pixels`; `relative`, where the image is 1 wide and high; or `percent`. The last two count from 0.
        boxes: a box that is outside of its image or has no area: `refuse` makes its image a bad sample, `clip` cuts it
            at the image's edge, `drop` leaves it out. What has no area after clipping is left out as well.
        exif: `ignore` the turn that an image's EXIF data ask for, as VOC does; `apply` it; or `refuse` such images.
        rename: name of a class in the annotations -> its name here.
    """

    box_origin: Literal[0, 1] = 1
    box_end: Literal["inclusive", "exclusive"] | None = None
    box_units: Literal["pixels", "relative", "percent"] = "pixels"
    boxes: Literal["refuse", "clip", "drop"] = "refuse"
    exif: Literal["ignore", "apply", "refuse"] = "ignore"
    rename: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for key, choices in {
            "box_origin": (1, 0),
            "box_end": (None, "inclusive", "exclusive"),
            "box_units": tuple(UNITS),
            "boxes": ("refuse", "clip", "drop"),
            "exif": ("ignore", "apply", "refuse"),
        }.items():
            value = getattr(self, key)
            texts = ", ".join("null" if choice is None else str(choice) for choice in choices)
            check(value in choices and value is not True, f"data.{key} must be one of {texts}, not {value}")
        check(self.rename is None or isinstance(self.rename, Mapping), f"data.rename maps names, not {self.rename}")

    def edges(self, corners: Iterable[Any], width: Any, height: Any) -> Columns:
        """xmin, ymin, xmax, ymax (numbers or arrays, as the file has them) as 0-based edges in px.

        The one place where VOC's 1-based, inclusive pixels are changed.
        """
        x1, y1, x2, y2 = corners
        if self.box_units != "pixels":
            whole = UNITS[self.box_units]
            # Files keep some six digits: what was a whole pixel is one again, and the image's edge is met.
            x1, x2 = (np.round(x / whole * width, 2) for x in (x1, x2))
            y1, y2 = (np.round(y / whole * height, 2) for y in (y1, y2))
            return x1, y1, x2, y2
        is_inclusive = self.box_end == "inclusive" or (self.box_end is None and self.box_origin == 1)
        end = self.box_origin - 1 if is_inclusive else self.box_origin
        return x1 - self.box_origin, y1 - self.box_origin, x2 - end, y2 - end


def is_inside(x1: Any, y1: Any, x2: Any, y2: Any, width: Any, height: Any) -> Any:
    """Whether boxes (edges in px) have an area and lie inside their images; numbers or arrays."""
    return (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)


@dataclass(frozen=True, eq=False)
class Understood:
    """Annotations after the conventions.

    Attributes:
        table: its corners are edges in px, its names the renamed ones; what is wrong or was left out is not in it.
        slips: what -> [N] how many objects of each image it happened to.
        wrong: (row, what is wrong and what to do) of every box that is refused, in the order of the rows.
        notes: (what looks odd and what to do, [N] at how many objects of each image).
    """

    table: Table
    slips: Mapping[str, Ints]
    wrong: Sequence[tuple[int, str]]
    notes: Sequence[tuple[str, Ints]]


def understand(table: Table, conventions: Conventions) -> Understood:
    """Apply conventions to annotations whose sizes are those of the images.

    Raises:
        BadInput: the numbers are not in the units that the conventions say.
    """
    owners = table.owners
    height, width = table.sizes[owners].T
    has_numbers = ~np.isnan(table.corners[:, 0]) if len(table.corners) else np.zeros(0, bool)
    has_size = (width > 0) & (height > 0)
    _check_units(table.corners[has_numbers], conventions)
    x1, y1, x2, y2 = conventions.edges(table.corners.T, width, height)
    is_right = np.asarray(is_inside(x1, y1, x2, y2, width, height), bool)
    is_wrong = has_numbers & has_size & ~is_right
    slips = {"empty objects left out": ~has_numbers}
    wrong: list[tuple[int, str]] = []
    if conventions.boxes == "refuse" and is_wrong.any():
        remedy = _remedy(table.corners, width, height, has_numbers & has_size, conventions)
        for item in np.flatnonzero(is_wrong).tolist():
            row, sides = int(owners[item]), (int(width[item]), int(height[item]))
            wrong.append(
                (row, _wrong_box(table.corners[item], (x1[item], y1[item], x2[item], y2[item]), sides, remedy))
            )
    elif conventions.boxes == "clip":
        x1, x2 = np.clip(x1, 0, width), np.clip(x2, 0, width)
        y1, y2 = np.clip(y1, 0, height), np.clip(y2, 0, height)
        is_cut = is_wrong & (x1 < x2) & (y1 < y2)
        slips |= {"boxes cut at the edge": is_cut, "boxes without area left out": is_wrong & ~is_cut}
        is_wrong &= ~is_cut
    elif conventions.boxes == "drop":
        slips["wrong boxes left out"] = is_wrong
    kept = has_numbers & has_size & ~is_wrong
    counts = {what: np.bincount(owners[at], minlength=len(table)) for what, at in slips.items() if at.any()}
    # Adding 0 makes 0 of -0, which would be another fingerprint.
    edges = np.stack([x1, y1, x2, y2], axis=1) + 0.0 if len(owners) else table.corners
    renamed = {str(old): str(new) for old, new in (conventions.rename or {}).items()}
    names = table.names[kept]
    if renamed:
        names = np.array([renamed.get(name, name) for name in names.tolist()], dtype=np.str_)
    found = replace(
        table,
        first=np.concatenate([[0], np.cumsum(np.bincount(owners[kept], minlength=len(table)))]).astype(np.int64),
        names=names,
        difficult=table.difficult[kept],
        corners=edges[kept],
        problems={**{row: text for row, text in reversed(wrong)}, **table.problems},
    )
    return Understood(found, counts, wrong, _notes(table, found, has_numbers, conventions))


def _check_units(corners: NDArray[np.float64], conventions: Conventions) -> None:
    check(
        not len(corners) or conventions.box_units != "pixels" or float(corners.max()) > 1,
        f"all numbers of the {len(corners):,} boxes are at most 1: they are relative to the image, not pixels; "
        "set data.box_units=relative",
    )
    whole = UNITS[conventions.box_units]
    check(
        not len(corners) or not whole or float(np.median(corners)) <= whole,
        f"data.box_units={conventions.box_units}, but half of the numbers of the {len(corners):,} boxes are above "
        f"{whole:g}; set data.box_units=pixels",
    )


def _wrong_box(corners: Any, edges: Columns, size: tuple[int, int], remedy: str) -> str:
    """What to say of a box (as the file has it, and its edges in px) that is not inside its image."""
    shown = " ".join(
        f"{name}={number:g}" for name, number in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    x1, y1, x2, y2 = edges
    ways = {
        "xmax < xmin": corners[2] < corners[0],
        "ymax < ymin": corners[3] < corners[1],
        "no width": corners[2] >= corners[0] and x2 <= x1,
        "no height": corners[3] >= corners[1] and y2 <= y1,
        f"outside the image of {size[0]}x{size[1]}": min(x1, y1, x2, y2) < 0
        or max(x1, x2) > size[0]
        or max(y1, y2) > size[1],
    }
    return f"box {shown}: {', '.join(text for text, is_so in ways.items() if is_so)}; {remedy}"


def _remedy(corners: NDArray[np.float64], width: Ints, height: Ints, judged: Any, conventions: Conventions) -> str:
    """What to do about wrong boxes: the convention by which nearly all are right, found by trying, or to clip them."""

    def num_wrong(tried: Conventions) -> int:
        edges = tried.edges(corners[judged].T, width[judged], height[judged])
        return int((~np.asarray(is_inside(*edges, width[judged], height[judged]))).sum())

    now = num_wrong(conventions)
    ways: list[dict[str, Any]] = [
        {"box_origin": 1, "box_end": None},
        {"box_origin": 0, "box_end": None},
        {"box_origin": 1, "box_end": "exclusive"},
        {"box_origin": 0, "box_end": "inclusive"},
    ]
    if conventions.box_units == "pixels":
        counts = [num_wrong(replace(conventions, **way)) for way in ways]
        least = min(range(len(ways)), key=counts.__getitem__)
        if counts[least] <= SAME * now:
            given = " ".join(
                f"data.{key}={'null' if value is None else value}"
                for key, value in ways[least].items()
                if value != getattr(conventions, key)
            )
            return (
                f"set {given}, with which {counts[least]:,} boxes are wrong instead of {now:,} of {int(judged.sum()):,}"
            )
    return "correct it, or set data.boxes=clip to cut such boxes at the edge, data.boxes=drop to leave them out"


def _notes(
    raw: Table, found: Table, has_numbers: NDArray[np.bool_], conventions: Conventions
) -> list[tuple[str, Ints]]:
    """What looks odd in annotations, though training takes it."""
    notes: list[tuple[str, NDArray[np.bool_], Ints]] = []
    corners, owners = raw.corners[has_numbers], raw.owners[has_numbers]
    height, width = raw.sizes[owners].T
    is_large = np.minimum(width, height) >= 200
    if conventions.box_units == "pixels" and is_large.any() and float(corners[is_large].max()) <= 100:
        text = "boxes have no number above 100: if they are percent of the image, set data.box_units=percent"
        notes.append((text, is_large, owners))
    if conventions.box_units == "pixels":
        notes.append(("boxes have fractions of pixels", (corners % 1 != 0).any(axis=1), owners))
    x1, y1, x2, y2 = found.corners.T
    is_small = (np.minimum(x2 - x1, y2 - y1) < SMALL) & (x2 > x1) & (y2 > y1)
    notes.append((f"boxes are less than {SMALL} px wide or high", is_small, found.owners))
    _, codes = np.unique(found.names, return_inverse=True)
    keys = np.column_stack([found.owners, codes, found.corners])
    order = np.lexsort(keys.T)
    again = np.zeros(len(keys), dtype=bool)
    again[order[1:]] = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    notes.append(("objects are repeated: the same class and box in one image", again, found.owners))
    return [(text, np.bincount(who[at], minlength=len(raw))) for text, at, who in notes if at.any()]


def odd_classes(names: Iterable[str]) -> str | None:
    """What to say of classes that differ in case only; None when there are none."""
    alike: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        alike.setdefault(name.casefold(), []).append(name)
    groups = [group for group in alike.values() if len(group) > 1]
    if not groups:
        return None
    shown = "; ".join(", ".join(group) for group in groups)
    pairs = ", ".join(f"{name}: {group[-1]}" for group in groups for name in group[:-1])
    return f"classes differ only in case ({shown}); if they are the same class, set data.rename={{{pairs}}}"
