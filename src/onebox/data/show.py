"""What a run would be trained on: its splits, classes and boxes, what the selection left out, and what is drawn of it.

All of it comes from the data module, so it is what training sees.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import onebox
from onebox.data.annotations import BACKGROUND
from onebox.data.datamodule import VocDataModule
from onebox.data.image import read_image
from onebox.data.index import WHAT_TO_DO
from onebox.data.selection import SPLITS
from onebox.errors import BadInput, printable
from onebox.files import write_text
from onebox.page import picture, render

SCHEMA = 1  # of the JSON document
EACH = 6  # pictures of a class, and of a reason why images are left out
MAX_PICTURES, MAX_CLASSES = 240, 120  # of all classes together; classes that are shown, the most frequent
DRAWS = 12  # of the augmentation
QUANTILES = (5, 25, 50, 75, 95)  # percent
PLACES = [f"{row} {column}" for row in ("upper", "middle", "lower") for column in ("left", "centre", "right")]
EDGES: Mapping[str, Sequence[float]] = {  # of bins; the last one is closed
    "side": [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
    "aspect": [0, 1 / 3, 1 / 2, 2 / 3, 1, 1.5, 2, 3, math.inf],
}

Box = tuple[float, float, float, float]  # left, top, width and height, percent of the image


class Sample(NamedTuple):
    """An image with its boxes, and what is written below it: a heading, and more."""

    picture: str | None
    ratio: float  # width / height
    boxes: list[tuple[str, Box]]  # each with how it is drawn
    title: str
    text: str


def facts(data: VocDataModule) -> dict[str, Any]:
    """Counts of images, classes and boxes, for `json.dumps`; a split without images has no `boxes`.

    Boxes are shares of their images: `side` is the square root of the area, `aspect` width / height in px, and `place`
    counts centres by ninths of the image, row by row.
    """
    counts = {split: np.bincount(index.labels, minlength=data.num_classes) for split, index in data.indexes.items()}
    has_background = data.class_names[0] == BACKGROUND and not any(count[0] for count in counts.values())
    labels = range(has_background, data.num_classes)
    order = sorted(labels, key=lambda label: (-counts["train"][label], data.class_names[label]))
    return {
        "schema": SCHEMA,
        "splits": {
            split: {
                "listed": len(index) + sum(index.dropped.values()),
                "used": len(index),
                "left_out": {why: count for why, count in index.dropped.items() if count},
            }
            for split, index in data.indexes.items()
        },
        "classes": {data.class_names[n]: {split: int(counts[split][n]) for split in SPLITS} for n in order},
        "boxes": {split: _boxes(data, split) for split in SPLITS if len(data.indexes[split])},
        "notes": data.notes,
    }


def _boxes(data: VocDataModule, split: str) -> dict[str, Any]:
    index = data.indexes[split]
    boxes, sizes = index.boxes.numpy().astype(float), index.sizes.numpy()
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    side, aspect = np.sqrt(width * height), width * sizes[:, 1] / (height * sizes[:, 0])
    columns, rows = np.clip((boxes[:, :2] + boxes[:, 2:]).T * 1.5, 0, 2).astype(int)
    values = {"width": width, "height": height, "side": side, "aspect": aspect}
    return {
        "quantiles": {
            name: {f"{q}%": round(float(np.percentile(column, q)), 4) for q in QUANTILES}
            for name, column in values.items()
        },
        "bins": {name: np.histogram(values[name], edges)[0].tolist() for name, edges in EDGES.items()},
        "place": np.bincount(3 * rows + columns, minlength=9).tolist(),
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the counts as tables, and for what was left out what to do."""
    splits = found["splits"]
    table = Table(title="images", title_justify="left")
    for column in ("", *splits):
        table.add_column(column, justify="right" if column else "left")
    reasons = dict.fromkeys(why for split in splits.values() for why in split["left_out"])
    for what in ("listed", "used"):
        table.add_row(what, *(f"{split[what]:,}" for split in splits.values()), style="bold" if what == "used" else "")
    for why in reasons:
        table.add_row(f"  left out: {why}", *(f"{split['left_out'].get(why, 0):,}" for split in splits.values()))
    console.print(table)
    for why in reasons:
        console.print(f"  {why}: {WHAT_TO_DO[why]}", markup=False, highlight=False)
    table = Table(title="classes", title_justify="left")
    for column in ("", *splits):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for name, counts in [*found["classes"].items()][:MAX_CLASSES]:
        table.add_row(printable(name), *(f"{counts[split]:,}" for split in splits), style="")
    console.print(table, markup=False)
    if len(found["classes"]) > MAX_CLASSES:
        console.print(f"  and {len(found['classes']) - MAX_CLASSES:,} more classes; --json lists all")
    table = Table(title="boxes, as shares of their image (aspect: width / height in px)", title_justify="left")
    for column in ("", *(f"{q} %" for q in QUANTILES)):
        table.add_column(column, justify="right" if column else "left")
    for split, boxes in found["boxes"].items():
        for name, values in boxes["quantiles"].items():
            table.add_row(f"{split} {name}", *(f"{value:.3f}" for value in values.values()))
    console.print(table)
    for text, count in found["notes"].items():
        console.print(f"note: {count:,} {printable(text)}", markup=False, highlight=False)


def write_page(data: VocDataModule, found: Mapping[str, Any], path: Path, *, name: str, command: str) -> None:
    """Write the page of some data, one file that loads nothing.

    Args:
        data: the data, read.
        found: the `facts` on them.
        path: of the page.
        name: what the data are called.
        command: how the page was asked for.
    """
    draws, before = _draws(data)
    text = render(
        "onebox.data",
        "show.html",
        version=onebox.__version__,
        name=name,
        command=command,
        root=str(data.root),
        found=found,
        max_classes=MAX_CLASSES,
        edges=EDGES,
        places=PLACES,
        samples=_samples(data, [*found["classes"]]),
        left_out={
            why: _left_out(data, why)
            for why in WHAT_TO_DO
            if any(index.dropped.get(why) for index in data.indexes.values())
        },
        what_to_do=WHAT_TO_DO,
        before=before,
        draws=draws,
        views=data.views,
    )
    write_text(path, text)


def _samples(data: VocDataModule, names: Sequence[str]) -> dict[str, list[Sample]]:
    """Some images of each class, spread evenly over the split: of training, or else of the first split that has any."""
    shown = names[:MAX_CLASSES]
    each = max(1, min(EACH, MAX_PICTURES // max(1, len(shown))))
    found = {}
    for name in shown:
        split, rows = next(
            (
                (split, rows)
                for split in SPLITS
                if len(rows := np.flatnonzero(data.indexes[split].labels == data.class_names.index(name)))
            ),
            ("train", np.empty(0, int)),
        )
        some = rows[_spread(len(rows), each)].tolist()
        if some:
            found[name] = [_sample(data, int(data.indexes[split].rows[row]), split, chosen=row) for row in some]
    return found


def _left_out(data: VocDataModule, why: str) -> list[Sample]:
    """Some of the images that are left out for a reason, spread evenly over those of each split."""
    found = []
    for split, index in data.indexes.items():
        rows = index.left_out.get(why, np.empty(0, int))
        reasons = {item.id: item.reason for item in index.skipped}
        for row in rows[_spread(len(rows), EACH)].tolist():
            found.append(_sample(data, row, split, text=reasons.get(str(data.listed.ids[row]), "")))
    return [found[place] for place in _spread(len(found), EACH)]


def _sample(data: VocDataModule, row: int, split: str, *, chosen: int | None = None, text: str = "") -> Sample:
    """A listed image with the box that is used, of row `chosen` of the split, or else with all that it has."""
    table, image = data.listed.table, None
    objects = slice(*table.first[row : row + 2])
    with suppress(BadInput, OSError):
        image = read_image(data.listed.image_file(row), upright=data.is_upright)
    height, width = table.sizes[row].tolist() if image is None else image.shape[:2]
    boxes = table.corners[objects] / ([width, height] * 2) if height and width else np.empty((0, 4))
    if chosen is not None:
        boxes = data.indexes[split].boxes[chosen][None].numpy()
    elif not text:
        names = Counter(table.names[objects].tolist())
        text = ", ".join(f"{count} {name}" if count > 1 else name for name, count in names.items())
    uri = None if image is None else picture(image)
    ratio = min(max(width / height, 0.2), 5) if height and width else 1.0
    return Sample(uri, ratio, [*_percent(boxes)], str(data.listed.ids[row]), text)


def _percent(boxes: NDArray[Any]) -> Iterator[tuple[str, Box]]:
    for x1, y1, x2, y2 in (np.clip(np.nan_to_num(boxes), 0, 1) * 100).round(2).tolist():
        yield "true", (x1, y1, round(max(0.0, x2 - x1), 2), round(max(0.0, y2 - y1), 2))


def _draws(data: VocDataModule) -> tuple[list[Sample], Sample]:
    """One training image as the network sees it in the first epochs or views, and as it is.

    It is that of which the box has the median area: on a tiny one nothing is seen, on a large one nothing moves.
    """
    index = data.indexes["train"]
    boxes = index.boxes.numpy()
    row = int(np.argsort((boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable")[len(boxes) // 2])
    count = 1 if data.views == 1 else min(DRAWS, data.views or DRAWS)
    batch = data.dataset("train").__getitems__([(draw, row) for draw in range(count)])
    assert batch.images is not None
    images = batch.images.permute(0, 2, 3, 1).numpy()
    what = "epoch" if data.views is None else "view"
    draws = [
        Sample(picture(image), 1.0, [box], f"{what} {draw + 1}", "")
        for draw, (image, box) in enumerate(zip(images, _percent(batch.boxes.numpy()), strict=True))
    ]
    return draws, _sample(data, int(index.rows[row]), "train", chosen=row)


def _spread(count: int, some: int) -> NDArray[np.int64]:
    """At most `some` of the numbers below `count`, evenly apart."""
    return np.unique(np.linspace(0, count - 1, min(count, some)).round().astype(int))
