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

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Conventions:
    """What the numbers of annotations mean, and what becomes of a box that is wrong."""

    box_origin: Literal[0, 1] = 1  # the first pixel is number 1, as in VOC, or 0
    # whether xmax and ymax are the last pixel inside the box (`inclusive`) or the edge behind it (`exclusive`); None:
    # inclusive when pixels count from 1, as in VOC, else exclusive
    box_end: Literal["inclusive", "exclusive"] | None = None
    # `pixels`; `relative`, where the image is 1 wide and high; or `percent`. The last two count from 0
    box_units: Literal["pixels", "relative", "percent"] = "pixels"
    # a box that is outside of its image or has no area: `refuse` makes its image a bad sample, `clip` cuts it at the
    # image's edge, `drop` leaves it out. What has no area after clipping is left out as well
    boxes: Literal["refuse", "clip", "drop"] = "refuse"
    # `ignore` the turn that an image's EXIF data ask for, as VOC does; `apply` it; or `refuse` such images
    exif: Literal["ignore", "apply", "refuse"] = "ignore"
    rename: Mapping[str, str] | None = None  # name of a class in the annotations -> its name here

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

    def edges(self, corners: Floats, sides: Ints) -> Floats:
        """Corners as the file has them as 0-based edges in px; all are [M, 4], `sides` is that of the image along each.

        The one place where VOC's 1-based, inclusive pixels are changed.
        """
        if self.box_units != "pixels":
            # Files keep some six digits: what was a whole pixel is one again, and the image's edge is met.
            return np.round(corners / UNITS[self.box_units] * sides, 2)
        is_inclusive = self.box_end == "inclusive" or (self.box_end is None and self.box_origin == 1)
        end = self.box_origin - 1 if is_inclusive else self.box_origin
        return corners - np.array([self.box_origin, self.box_origin, end, end])


def is_inside(edges: Floats, sides: Ints) -> NDArray[np.bool_]:
    """[M] whether boxes ([M, 4] edges in px) have an area and lie inside their images."""
    has_area = (edges[:, :2] < edges[:, 2:]).all(axis=1)
    return np.asarray(has_area & ((edges >= 0) & (edges <= sides)).all(axis=1))


@dataclass(frozen=True, eq=False)
class Understood:
    """Annotations after the conventions."""

    table: Table  # its corners are edges in px, its names the renamed ones; what is wrong or was left out is not in it
    slips: Mapping[str, Ints]  # what -> [N] how many objects of each image it happened to
    # (row, what is wrong and what to do) of every box that is refused, in the order of the rows
    wrong: Sequence[tuple[int, str]]
    notes: Sequence[tuple[str, Ints]]  # (what looks odd and what to do, [N] at how many objects of each image)


def understand(table: Table, conventions: Conventions) -> Understood:
    """Apply conventions to annotations whose sizes are those of the images.

    Raises:
        BadInput: the numbers are not in the units that the conventions say.
    """
    owners, corners = table.owners, table.corners
    sides = table.sizes[owners][:, [1, 0, 1, 0]]
    has_numbers = ~np.isnan(corners[:, 0])
    has_size = (sides > 0).all(axis=1)
    _check_units(corners[has_numbers], conventions)
    edges = conventions.edges(corners, sides)
    is_wrong = has_numbers & has_size & ~is_inside(edges, sides)
    slips = {"empty objects left out": ~has_numbers}
    wrong: list[tuple[int, str]] = []
    if conventions.boxes == "refuse" and is_wrong.any():
        remedy = _remedy(corners[has_numbers & has_size], sides[has_numbers & has_size], conventions)
        for item in np.flatnonzero(is_wrong).tolist():
            wrong.append((int(owners[item]), f"{_wrong_box(corners[item], edges[item], sides[item])}; {remedy}"))
    elif conventions.boxes == "clip":
        edges = np.clip(edges, 0, sides)
        is_cut = is_wrong & is_inside(edges, sides)
        slips |= {"boxes cut at the edge": is_cut, "boxes without area left out": is_wrong & ~is_cut}
        is_wrong &= ~is_cut
    elif conventions.boxes == "drop":
        slips["wrong boxes left out"] = is_wrong
    kept = has_numbers & has_size & ~is_wrong
    counts = {what: np.bincount(owners[at], minlength=len(table)) for what, at in slips.items() if at.any()}
    renamed = {str(old): str(new) for old, new in (conventions.rename or {}).items()}
    names = table.names[kept]
    if renamed:
        names = np.array([renamed.get(name, name) for name in names.tolist()], dtype=np.str_)
    found = replace(
        table,
        first=np.concatenate([[0], np.cumsum(np.bincount(owners[kept], minlength=len(table)))]).astype(np.int64),
        names=names,
        difficult=table.difficult[kept],
        corners=edges[kept] + 0.0,  # makes 0 of -0, which would be another fingerprint
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


def _wrong_box(corners: Floats, edges: Floats, sides: Ints) -> str:
    """What to say of a box ([4] as the file has it, and its edges in px) that is not inside its image."""
    shown = " ".join(
        f"{name}={number:g}" for name, number in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    ways = {
        "xmax < xmin": corners[2] < corners[0],
        "ymax < ymin": corners[3] < corners[1],
        "no width": corners[2] >= corners[0] and edges[2] <= edges[0],
        "no height": corners[3] >= corners[1] and edges[3] <= edges[1],
        f"outside the image of {sides[0]}x{sides[1]}": (edges < 0).any() or (edges > sides).any(),
    }
    return f"box {shown}: {', '.join(text for text, is_so in ways.items() if is_so)}"


def _remedy(corners: Floats, sides: Ints, conventions: Conventions) -> str:
    """What to do about wrong boxes: the convention by which nearly all are right, found by trying, or to clip them."""

    def num_wrong(tried: Conventions) -> int:
        return int((~is_inside(tried.edges(corners, sides), sides)).sum())

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
            return f"set {given}, with which {counts[least]:,} boxes are wrong instead of {now:,} of {len(corners):,}"
    return "correct it, or set data.boxes=clip to cut such boxes at the edge, data.boxes=drop to leave them out"


def _notes(
    raw: Table, found: Table, has_numbers: NDArray[np.bool_], conventions: Conventions
) -> list[tuple[str, Ints]]:
    """What looks odd in annotations, though training takes it."""
    notes: list[tuple[str, NDArray[np.bool_], Ints]] = []
    corners, owners = raw.corners[has_numbers], raw.owners[has_numbers]
    if conventions.box_units == "pixels":
        is_large = raw.sizes[owners].min(axis=1) >= 200
        if is_large.any() and float(corners[is_large].max()) <= 100:
            text = "boxes have no number above 100: if they are percent of the image, set data.box_units=percent"
            notes.append((text, is_large, owners))
        notes.append(("boxes have fractions of pixels", (corners % 1 != 0).any(axis=1), owners))
    shorter = (found.corners[:, 2:] - found.corners[:, :2]).min(axis=1)
    is_small = (shorter > 0) & (shorter < SMALL)
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
