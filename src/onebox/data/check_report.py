"""What a check of data found, as tables for a terminal, as plain data for a program, and as a picture."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onebox.data.check import Survey
from onebox.data.image import read_image
from onebox.data.table import Table as Annotations
from onebox.draw import TRUE_COLOUR, Mark, draw_grid, draw_marks
from onebox.errors import printable

SCHEMA = 1  # of the JSON document
QUANTILES = (5, 25, 50, 75, 95)  # percent
SHOWN = 5  # files of each kind of problem in the table; the JSON document has all
MONTAGE, COLUMNS, TILE = 24, 6, 320  # tiles, tiles a row, width of a tile in px


def as_json(survey: Survey) -> dict[str, Any]:
    """Counts, sizes and all problems, for `json.dumps`; the list `*` is that of all images."""
    lists = {**survey.lists, "*": np.arange(len(survey.listed))}
    return {
        "schema": SCHEMA,
        "root": str(survey.root),
        "box_origin": survey.listed.conventions.box_origin,
        "lists": {name: _counts(survey.listed.table.take(rows)) for name, rows in lists.items()},
        "box_quantiles": _box_quantiles(survey.listed.table),
        "problems": [asdict(problem) | {"file": str(problem.file)} for problem in survey.problems],
    }


def show(survey: Survey, console: Console) -> None:
    """Print the tables, then the problems, one block a kind: some files with what is wrong, then what to do."""
    document = as_json(survey)
    lists = {"all (*)" if name == "*" else name: counts for name, counts in document["lists"].items()}
    rows = []
    for name, counts in lists.items():
        few = [counts["objects_per_image"].get(count, 0) for count in "0123"]
        numbers = (counts["images"], *few, counts["images"] - sum(few), counts["objects"], counts["difficult"])
        rows.append([name, *(f"{number:,}" for number in numbers)])
    headers = ["list", "images", "0", "1", "2", "3", "4+", "objects", "difficult"]
    print_table(console, "Images, and how many of them have 0, 1, ... objects (wrong ones do not count)", headers, rows)
    # trainval says nothing that train and val do not say.
    shown = {
        name: counts
        for name, counts in lists.items()
        if not (name.endswith("trainval") and {name[:-3], f"{name[:-8]}val"} <= lists.keys())
    }
    rows = [
        [name, *(f"{c['classes'].get(name, 0):,} ({c['classes_of_single'].get(name, 0):,})" for c in shown.values())]
        for name in lists["all (*)"]["classes"]
    ]
    headers = ["class", *(name.replace("/", "/\n") for name in shown)]
    print_table(console, "Objects of each class (in brackets: in images with no other object)", headers, rows)
    rows = [[name, *(f"{x:.3f}" for x in values.values())] for name, values in document["box_quantiles"].items()]
    print_table(console, "Boxes, as shares of their image", ["quantile", *(f"{q} %" for q in QUANTILES)], rows)

    for (level, kind), group in groupby(survey.problems, key=lambda problem: (problem.level, problem.kind)):
        problems = list(group)
        console.print(f"[bold {'red' if level == 'error' else 'yellow'}]{level}: {kind}[/] ({len(problems):,})")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        table.add_column(overflow="fold", max_width=max(30, console.width // 2))
        table.add_column(overflow="fold")
        for problem in problems[:SHOWN]:
            table.add_row(plain(str(problem.file)), plain(problem.message))
        if len(problems) > SHOWN:
            table.add_row(f"and {len(problems) - SHOWN:,} more", "--json lists all")
        console.print(table)
        for remedy in dict.fromkeys(problem.remedy for problem in problems):
            console.print(f"  [bold]to do:[/] {plain(remedy)}", highlight=False)
        console.print()
    levels = Counter(problem.level for problem in survey.problems)
    errors, warnings = (f"{levels[level]:,} {level}{'s' * (levels[level] != 1)}" for level in ("error", "warning"))
    verdict = "training would stop, or its metrics would be wrong" if survey.has_errors else "training accepts this"
    console.print(f"{errors}, {warnings}: {verdict}", style="bold red" if survey.has_errors else "bold green")


def plain(text: str) -> str:
    """A text as it is, in the markup of rich."""
    return escape("\n".join(map(printable, text.split("\n"))))


def montage(survey: Survey) -> Image.Image:
    """Some images with all their boxes and names, evenly chosen from those with objects."""
    table = survey.listed.table
    usable = [row for row, count in enumerate(np.diff(table.first)) if count and survey.pixels[row] is not None]
    tiles = []
    for place in np.linspace(0, len(usable) - 1, min(MONTAGE, len(usable))).round().astype(int).tolist():
        row = usable[place]
        objects = range(table.first[row], table.first[row + 1])
        boxes = table.corners[objects] / table.sizes[row][[1, 0, 1, 0]]
        marks = [
            Mark(box, str(table.names[item]), TRUE_COLOUR) for box, item in zip(boxes.tolist(), objects, strict=True)
        ]
        image = read_image(survey.listed.image_file(row), upright=survey.listed.conventions.exif == "apply")
        tiles.append(draw_marks(image, marks, width=TILE))
    title = f"{len(tiles)} of {len(survey.listed):,} images in {survey.root}"
    return draw_grid(tiles, columns=COLUMNS, legend=[("annotated box and class", TRUE_COLOUR)], title=title)


def print_table(console: Console, title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; its first column holds words, the others numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, header in enumerate(headers):
        table.add_column(plain(header), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    if table.row_count:
        console.print(title, style="bold", highlight=False)
        console.print(table)


def _counts(table: Annotations) -> dict[str, Any]:
    per_image = np.diff(table.first)
    is_single = (per_image == 1)[table.owners]
    return {
        "images": len(table),
        "objects": len(table.names),
        "difficult": int(table.difficult.sum()),
        "objects_per_image": {str(count): number for count, number in sorted(Counter(per_image.tolist()).items())},
        "classes": dict(sorted(Counter(table.names.tolist()).items())),
        # What data.select=single keeps.
        "classes_of_single": dict(sorted(Counter(table.names[is_single].tolist()).items())),
    }


def _box_quantiles(table: Annotations) -> dict[str, dict[str, float]]:
    """Width, height and area of all boxes, as shares of their images' in [0, 1], at QUANTILES."""
    if not len(table.names):
        return {}
    x1, y1, x2, y2 = table.corners.T
    image_height, image_width = table.sizes[table.owners].T
    width, height = (x2 - x1) / image_width, (y2 - y1) / image_height
    return quantiles({"width": width, "height": height, "area": width * height})


def quantiles(columns: Mapping[str, NDArray[np.floating[Any]]]) -> dict[str, dict[str, float]]:
    """Each column, with numbers in it, at QUANTILES."""
    return {
        name: {f"{q}%": round(float(np.percentile(column, q)), 4) for q in QUANTILES}
        for name, column in columns.items()
    }
