"""What a run would be trained on: its splits, classes and boxes, what the selection left out, and what is drawn of it.

All of it comes from the data module, so it is what training sees.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

import onebox
from onebox.data.annotations import BACKGROUND
from onebox.data.check_report import QUANTILES, plain, print_table, quantiles
from onebox.data.datamodule import VocDataModule
from onebox.data.image import read_image
from onebox.data.index import WHAT_TO_DO
from onebox.data.processes import thread_map
from onebox.data.selection import SPLITS
from onebox.errors import BadInput
from onebox.files import write_text
from onebox.page import picture, render

SCHEMA = 1  # of the JSON document
EACH = 6  # pictures of a class, and of a reason why images are left out
MAX_PICTURES = 240  # of all classes together; the most frequent ones have some
MAX_ROWS, MAX_CLASSES = 25, 1000  # classes in the table of the terminal, and in that of the page
DRAWS = 12  # of the augmentation
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
    text: str = ""


Later = Callable[[], Sample]


def facts(data: VocDataModule) -> dict[str, Any]:
    """Counts of images, classes and boxes, for `json.dumps`; a split without images has no `boxes`.

    Boxes are shares of their images: `side` is the square root of `area`, `aspect` width / height in px, and `place`
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
    values = {"width": width, "height": height, "area": width * height, "aspect": aspect}
    return {
        "quantiles": quantiles(values),
        "bins": {
            name: np.histogram(column, EDGES[name])[0].tolist() for name, column in (("side", side), ("aspect", aspect))
        },
        "place": np.bincount(3 * rows + columns, minlength=9).tolist(),
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the counts as tables, and for what was left out what to do."""
    splits, classes = found["splits"], [*found["classes"].items()]
    reasons = dict.fromkeys(why for split in splits.values() for why in split["left_out"])
    rows = [["listed", *(split["listed"] for split in splits.values())]]
    rows += [[f"left out: {why}", *(split["left_out"].get(why, 0) for split in splits.values())] for why in reasons]
    rows += [["used", *(split["used"] for split in splits.values())]]
    _print_counts(console, "Images", ["", *splits], rows)
    for why in reasons:
        console.print(f"  {plain(why)}: {plain(WHAT_TO_DO[why])}", highlight=False)
    rows = [[name, *counts.values()] for name, counts in classes[:MAX_ROWS]]
    _print_counts(console, "\nUsed images of each class", ["class", *splits], rows)
    if len(classes) > MAX_ROWS:
        console.print(f"  and {len(classes) - MAX_ROWS:,} more classes; --html and --json have them\n", highlight=False)
    values = [
        [f"{split} {name}", *(f"{value:.3f}" for value in row.values())]
        for split, boxes in found["boxes"].items()
        for name, row in boxes["quantiles"].items()
    ]
    title = "Boxes, as shares of their image; aspect is width / height in px"
    print_table(console, title, ["quantile", *(f"{q} %" for q in QUANTILES)], values)
    for text, count in found["notes"].items():
        console.print(f"note: {count:,} {plain(text)}", highlight=False)


def _print_counts(console: Console, title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print_table(console, title, headers, [[name, *(f"{count:,}" for count in counts)] for name, *counts in rows])


def write_page(data: VocDataModule, found: Mapping[str, Any], path: Path, *, name: str, command: str) -> None:
    """Write the page of some data, one file that loads nothing.

    Args:
        data: the data, read.
        found: the `facts` on them.
        path: of the page.
        name: what the data are called.
        command: how the page was asked for.
    """
    names = [name for name, counts in found["classes"].items() if any(counts.values())][:MAX_PICTURES]
    shown_of = {name: next(split for split in SPLITS if found["classes"][name][split]) for name in names}
    each = min(EACH, MAX_PICTURES // max(1, len(names)))
    counts: Counter[str] = Counter()
    for split in found["splits"].values():
        counts.update(split["left_out"])
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
        shown_of=shown_of,
        each=each,
        samples=_made({name: _samples(data, split, name, each) for name, split in shown_of.items()}),
        left_out=_made({why: _left_out(data, why) for why in counts}),
        counts=counts,
        what_to_do=WHAT_TO_DO,
        draws=_draws(data) if len(data.indexes["train"]) else [],
        views=data.views,
    )
    write_text(path, text)


def _made(groups: Mapping[str, Sequence[Later]]) -> dict[str, list[Sample]]:
    """The samples of each group; images are read in threads."""
    every = [sample for group in groups.values() for sample in group]
    made = iter(list(thread_map(lambda sample: sample(), every, description="drawing images")))
    return {name: [*islice(made, len(group))] for name, group in groups.items()}


def _samples(data: VocDataModule, split: str, name: str, some: int) -> list[Later]:
    """Some images of a class, spread evenly over the split."""
    index = data.indexes[split]
    rows = np.flatnonzero(index.labels == data.class_names.index(name))
    rows = rows[_spread(len(rows), some)]
    return [partial(_sample, data, int(index.rows[row]), index.boxes[row][None].numpy()) for row in rows.tolist()]


def _left_out(data: VocDataModule, why: str) -> list[Later]:
    """Some of the images that are left out for a reason, spread evenly over those of each split."""
    found = []
    for index in data.indexes.values():
        rows = index.left_out.get(why, np.empty(0, int))
        reasons = {item.id: item.reason for item in index.skipped}
        for row in rows[_spread(len(rows), EACH)].tolist():
            found.append(partial(_sample, data, row, text=reasons.get(str(data.listed.ids[row]), "")))
    return [found[place] for place in _spread(len(found), EACH)]


def _sample(data: VocDataModule, row: int, boxes: NDArray[Any] | None = None, text: str = "") -> Sample:
    """A listed image with boxes, [N, 4] xyxy in [0, 1]; without any, with all that it has and their classes."""
    table, image = data.listed.table, None
    with suppress(BadInput, OSError):
        image = read_image(data.listed.image_file(row), upright=data.is_upright)
    height, width = table.sizes[row].tolist() if image is None else image.shape[:2]
    has_size = height > 0 and width > 0
    if boxes is None:
        objects = slice(*table.first[row : row + 2])
        boxes = table.corners[objects] / ([width, height] * 2) if has_size else np.empty((0, 4))
        names = Counter(table.names[objects].tolist())
        text = text or ", ".join(f"{count} {name}" if count > 1 else name for name, count in names.items())
    uri = None if image is None else picture(image)
    ratio = min(max(width / height, 0.2), 5) if has_size else 1.0
    return Sample(uri, ratio, [*_percent(boxes)], str(data.listed.ids[row]), text)


def _percent(boxes: NDArray[Any]) -> Iterator[tuple[str, Box]]:
    for x1, y1, x2, y2 in (np.clip(np.nan_to_num(boxes), 0, 1) * 100).round(2).tolist():
        yield "true", (x1, y1, round(max(0.0, x2 - x1), 2), round(max(0.0, y2 - y1), 2))


def _draws(data: VocDataModule) -> list[Sample]:
    """One training image as it is, then as the network sees it in the first epochs or views.

    It is that of which the box has the median area: on a tiny one nothing is seen, on a large one nothing moves.
    """
    index = data.indexes["train"]
    boxes = index.boxes.numpy()
    row = int(np.argsort((boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable")[len(boxes) // 2])
    count = 1 if data.views == 1 else min(DRAWS, data.views or DRAWS)
    batch = data.dataset("train").__getitems__([(draw, row) for draw in range(count)])
    assert batch.images is not None
    images = batch.images.permute(0, 2, 3, 1).numpy()
    what = "in every epoch" if data.views == 1 else "epoch" if data.views is None else "view"
    return [_sample(data, int(index.rows[row]), boxes[row][None])] + [
        Sample(picture(image), 1.0, [box], what if data.views == 1 else f"{what} {draw + 1}")
        for draw, (image, box) in enumerate(zip(images, _percent(batch.boxes.numpy()), strict=True))
    ]


def _spread(count: int, some: int) -> NDArray[np.int64]:
    """At most `some` of the numbers below `count`, evenly apart."""
    return np.unique(np.linspace(0, count - 1, min(count, some)).round().astype(int))
