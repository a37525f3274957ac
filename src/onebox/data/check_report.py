"""What a check of data found, as tables for a terminal, as plain data for a program, and as a picture."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onebox.data.check import Checked, Survey
from onebox.data.image import read_image
from onebox.draw import TRUE_COLOUR, Mark, draw_grid, draw_marks

SCHEMA = 1  # of the JSON document
QUANTILES = (5, 25, 50, 75, 95)  # percent
SHOWN = 5  # files of each kind of problem in the table; the JSON document has all
MONTAGE, COLUMNS, TILE = 24, 6, 320  # tiles, tiles a row, width of a tile in px


def as_json(survey: Survey) -> dict[str, Any]:
    """Counts, sizes and all problems, for `json.dumps`; the list `*` is that of all images."""
    return {
        "schema": SCHEMA,
        "root": str(survey.root),
        "box_origin": survey.box_origin,
        "lists": {name: _counts(images) for name, images in (survey.lists | {"*": survey.images}).items()},
        "box_quantiles": _box_quantiles(survey.images),
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
    _print(console, "Images, and how many of them have 0, 1, ... objects (wrong ones do not count)", headers, rows)
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
    _print(console, "Objects of each class (in brackets: in images with no other object)", headers, rows)
    rows = [[name, *(f"{x:.3f}" for x in values.values())] for name, values in document["box_quantiles"].items()]
    _print(console, "Boxes, as shares of their image", ["quantile", *(f"{q} %" for q in QUANTILES)], rows)

    for (level, kind), group in groupby(survey.problems, key=lambda problem: (problem.level, problem.kind)):
        problems = list(group)
        console.print(f"[bold {'red' if level == 'error' else 'yellow'}]{level}: {kind}[/] ({len(problems):,})")
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
    levels = Counter(problem.level for problem in survey.problems)
    errors, warnings = (f"{levels[level]:,} {level}{'s' * (levels[level] != 1)}" for level in ("error", "warning"))
    verdict = "training would stop, or measure something false" if survey.has_errors else "training accepts this"
    console.print(f"{errors}, {warnings}: {verdict}", style="bold red" if survey.has_errors else "bold green")


def montage(survey: Survey) -> Image.Image:
    """Some images with all their boxes and names, evenly chosen from those with objects."""
    usable = [image for image in survey.images if image.objects and image.digest is not None]
    tiles = []
    for row in np.linspace(0, len(usable) - 1, min(MONTAGE, len(usable))).round().astype(int).tolist():
        image = usable[row]
        assert image.size is not None  # else it had no objects
        sides = np.array(image.size * 2)
        marks = [Mark((item.box_px / sides).tolist(), item.name, TRUE_COLOUR) for item in image.objects]
        tiles.append(draw_marks(read_image(image.tree.image_path(image.image_id)), marks, width=TILE))
    title = f"{len(tiles)} of {len(survey.images):,} images in {survey.root}"
    return draw_grid(tiles, columns=COLUMNS, legend=[("annotated box and class", TRUE_COLOUR)], title=title)


def _print(console: Console, title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; its first column holds words, the others numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, header in enumerate(headers):
        table.add_column(escape(header), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    if table.row_count:
        console.print(title, style="bold", highlight=False)
        console.print(table)


def _counts(images: Sequence[Checked]) -> dict[str, Any]:
    objects = [item for image in images for item in image.objects]
    per_image = Counter(len(image.objects) for image in images)
    single = Counter(image.objects[0].name for image in images if len(image.objects) == 1)
    return {
        "images": len(images),
        "objects": len(objects),
        "difficult": sum(item.difficult for item in objects),
        "objects_per_image": {str(count): number for count, number in sorted(per_image.items())},
        "classes": dict(sorted(Counter(item.name for item in objects).items())),
        "classes_of_single": dict(sorted(single.items())),  # what data.select=single keeps
    }


def _box_quantiles(images: Sequence[Checked]) -> dict[str, dict[str, float]]:
    """Width, height and area of all boxes, as shares of their images' in [0, 1], at QUANTILES."""
    boxes = np.array([(*item.box_px, *(image.size or ())) for image in images for item in image.objects])
    if not len(boxes):
        return {}
    x1, y1, x2, y2, image_width, image_height = boxes.T
    width, height = (x2 - x1) / image_width, (y2 - y1) / image_height
    return {
        name: {f"{q}%": round(float(np.percentile(shares, q)), 4) for q in QUANTILES}
        for name, shares in (("width", width), ("height", height), ("area", width * height))
    }
