"""What a check found, as tables for a terminal, as plain data for a program, and as a picture."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onebox.data.check import Survey
from onebox.data.check_image import Checked
from onebox.data.image import read_image
from onebox.draw import TRUE_COLOUR, Mark, Picture, draw_grid, draw_marks

SCHEMA = 1  # of the JSON document
EVERYTHING = "*"  # the list of all images, as data.splits calls it
QUANTILES = (5, 25, 50, 75, 95)  # percent
SHOWN = 5  # files of each kind of problem in the table; the JSON document has all
MONTAGE, COLUMNS, TILE = 24, 6, 320  # tiles, tiles a row, width of a tile in px


def as_json(survey: Survey) -> dict[str, Any]:
    """Counts, sizes and all problems, for `json.dumps`."""
    return {
        "schema": SCHEMA,
        "root": str(survey.root),
        "box_origin": survey.box_origin,
        "lists": {name: _counts(images) for name, images in _lists(survey).items()},
        "box_quantiles": _box_quantiles(survey.images),
        "problems": [
            {
                "level": problem.level,
                "kind": problem.kind,
                "file": str(problem.file),
                "message": problem.message,
                "remedy": problem.remedy,
            }
            for problem in survey.problems
        ],
    }


def show(survey: Survey, console: Console) -> None:
    """Print the tables."""
    lists = {name: _counts(images) for name, images in _lists(survey).items()}
    for title, table in (
        ("Images, and how many of them have 0, 1, ... objects (wrong ones do not count)", _list_table(lists)),
        ("Objects of each class (in brackets: in images with no other object)", _class_table(lists)),
        ("Boxes, as shares of their image", _size_table(_box_quantiles(survey.images))),
    ):
        if table.row_count:
            console.print(title, style="bold", highlight=False)
            console.print(table)
    _show_problems(survey, console)
    counts = Counter(problem.level for problem in survey.problems)
    errors, warnings = (f"{counts[level]:,} {level}{'s' * (counts[level] != 1)}" for level in ("error", "warning"))
    verdict = "training would stop, or measure something false" if survey.has_errors else "training accepts this"
    console.print(f"{errors}, {warnings}: {verdict}", style="bold red" if survey.has_errors else "bold green")


def montage(survey: Survey) -> Picture:
    """Some images with all their boxes and names, [H, W, 3] uint8 RGB: evenly chosen from those with objects."""
    usable = [image for image in survey.images if image.objects and image.digest is not None]
    rows = np.linspace(0, len(usable) - 1, min(MONTAGE, len(usable))).round().astype(int).tolist()
    tiles = []
    for image in (usable[row] for row in rows):
        assert image.size is not None
        sides = (*image.size, *image.size)
        marks = [
            Mark([edge / side for edge, side in zip(item.box_px, sides, strict=True)], item.name, TRUE_COLOUR)
            for item in image.objects
        ]
        tiles.append(draw_marks(read_image(image.tree.image_path(image.image_id)), marks, width=TILE))
    title = f"{len(tiles)} of {len(survey.images):,} images in {survey.root}"
    return draw_grid(tiles, columns=COLUMNS, legend=[("annotated box and class", TRUE_COLOUR)], title=title)


def _lists(survey: Survey) -> dict[str, Sequence[Checked]]:
    return {**survey.lists, EVERYTHING: survey.images}


def _counts(images: Sequence[Checked]) -> dict[str, Any]:
    objects = [item for image in images for item in image.objects]
    classes = Counter(item.name for item in objects)
    single = Counter(image.objects[0].name for image in images if len(image.objects) == 1)
    per_image = Counter(len(image.objects) for image in images)
    return {
        "images": len(images),
        "objects": len(objects),
        "difficult": sum(item.difficult for item in objects),
        "objects_per_image": {str(count): per_image[count] for count in sorted(per_image)},
        "classes": {name: classes[name] for name in sorted(classes)},
        "classes_of_single": {name: single[name] for name in sorted(single)},  # what data.select=single keeps
    }


def _box_quantiles(images: Sequence[Checked]) -> dict[str, dict[str, float]]:
    """Width, height and area of all boxes, as shares of their images' in [0, 1], at QUANTILES."""
    shares = [
        ((x2 - x1) / image.size[0], (y2 - y1) / image.size[1])
        for image in images
        if image.size is not None
        for x1, y1, x2, y2 in (item.box_px for item in image.objects)
    ]
    if not shares:
        return {}
    width, height = np.array(shares).T
    return {
        name: {
            f"{q}%": round(float(value), 4)
            for q, value in zip(QUANTILES, np.percentile(column, QUANTILES), strict=True)
        }
        for name, column in (("width", width), ("height", height), ("area", width * height))
    }


def _table(*headers: str) -> Table:
    """An empty table; its first column holds words, the others numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place else "left", overflow="fold")
    return table


def _list_table(lists: dict[str, dict[str, Any]]) -> Table:
    several = ("0", "1", "2", "3")
    headers = ("list", "images", *several, "4+", "objects", "difficult")
    table = _table(*headers)
    for name, counts in lists.items():
        per_image = counts["objects_per_image"]
        few = [per_image.get(count, 0) for count in several]
        numbers = (counts["images"], *few, counts["images"] - sum(few), counts["objects"], counts["difficult"])
        table.add_row(_list_name(name), *(f"{number:,}" for number in numbers))
    return table


def _class_table(lists: dict[str, dict[str, Any]]) -> Table:
    # trainval says nothing that train and val do not say.
    shown = {
        name: counts
        for name, counts in lists.items()
        if not (name.endswith("trainval") and {f"{name[:-3]}", f"{name[:-8]}val"} <= lists.keys())
    }
    table = _table("class", *(_list_name(name).replace("/", "/\n") for name in shown))
    for name in lists[EVERYTHING]["classes"]:
        cells = [
            (counts["classes"].get(name, 0), counts["classes_of_single"].get(name, 0)) for counts in shown.values()
        ]
        table.add_row(escape(name), *(f"{number:,} ({single:,})" for number, single in cells))
    return table


def _list_name(name: str) -> str:
    return "all (*)" if name == EVERYTHING else escape(name)


def _size_table(quantiles: dict[str, dict[str, float]]) -> Table:
    table = _table("quantile", *(f"{q} %" for q in QUANTILES))
    for name, values in quantiles.items():
        table.add_row(name, *(f"{value:.3f}" for value in values.values()))
    return table


def _show_problems(survey: Survey, console: Console) -> None:
    """One block a kind, errors first: some files with what is wrong, then what to do."""
    for (level, kind), group in groupby(survey.problems, key=lambda problem: (problem.level, problem.kind)):
        problems = list(group)
        colour = "red" if level == "error" else "yellow"
        console.print(f"[bold {colour}]{level}: {kind}[/] ({len(problems):,})")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        table.add_column(overflow="fold", max_width=max(30, console.width // 2))
        table.add_column(overflow="fold")
        for problem in problems[:SHOWN]:
            table.add_row(escape(str(problem.file)), escape(problem.message))
        if len(problems) > SHOWN:
            table.add_row(f"and {len(problems) - SHOWN:,} more", "--json lists all")
        console.print(table)
        for remedy in dict.fromkeys(problem.remedy for problem in problems):
            console.print(f"  [bold]to do:[/] {escape(remedy)}", highlight=False)
        console.print()
