"""Which test images a run got wrong, and how: what its report shows of predictions.csv.

N images, K classes. Neither torch nor pandas, which a run would import for this alone.
"""

import csv
import functools
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebox.data.image import read_image
from onebox.data.processes import num_cores
from onebox.errors import BadInput
from onebox.page import picture
from onebox.runs.predictions import PREDICTIONS

KINDS = {
    "right": "class and box right",
    "error_cls": "only the class wrong",
    "error_loc": "only the box wrong",
    "error_both": "both wrong",
}
NUM_EACH = 24  # of the worst, and of those that are spread over the split
MAX_PICTURES = 240  # as many take about 2 MB
MAX_CLASSES = 30  # of a matrix that can be read
MAX_PAIRS = 60  # of classes, listed where there are more
MAX_DOTS = 1000
NUM_BINS = 10  # of the calibration
BORDER = 0.01  # of the image's side: a box that begins within it touches the border
SIZES = (0.0, 0.2, 0.4, 0.6, 0.8)  # from which side on, as a share of the image's, an object belongs to a group

Box = tuple[float, float, float, float]


@dataclass
class Shot:
    """A test image and what was predicted of it.

    Attributes:
        true_box, box: left, top, width and height in percent of the image, the predicted one cut at its border.
        true_probability: of the true class; where it is not among the five most likely, the most that it can be.
        loss: -ln of it + 1 - IoU; no run's own loss, so it ranks the images of all runs alike.
        sets: "worst" and "spread", if it belongs to them.
        picture: a data URI, if it could be read.
    """

    id: str
    path: str
    ratio: float  # width / height of the image
    true: str
    predicted: str
    true_box: Box
    box: Box
    iou: float
    probability: float
    true_probability: float
    sets: list[str] = field(default_factory=list)
    picture: str | None = None

    @property
    def loss(self) -> float:
        return 1 - self.iou - math.log(max(self.true_probability, 1e-12))

    @property
    def kind(self) -> str:
        return [*KINDS][(self.true != self.predicted) + 2 * (not self.iou >= 0.5)]

    @property
    def side(self) -> float:
        """Square root of the share of the image that the object covers."""
        return math.sqrt(self.true_box[2] * self.true_box[3]) / 100

    @property
    def at_border(self) -> bool:
        left, top, width, height = (value / 100 for value in self.true_box)
        return min(left, top, 1 - left - width, 1 - top - height) < BORDER

    @property
    def ninth(self) -> int:
        """Which ninth of the image holds the object's centre: 0 is the upper left, 8 the lower right."""
        left, top, width, height = self.true_box
        column, row = (min(2, int((start + length / 2) * 3 / 100)) for start, length in ((left, width), (top, height)))
        return 3 * row + column


def find_mistakes(run_dir: Path, upright: bool | None) -> dict[str, Any] | None:
    """What predictions.csv says, as the template takes it; None where there is none, or numbers in it are none.

    Args:
        run_dir: of the run.
        upright: how the images that it names are read, see `read_image`; None: not at all.
    """
    if not (run_dir / PREDICTIONS).is_file():
        return None
    with (run_dir / PREDICTIONS).open(encoding="utf-8", newline="") as file:
        every = [_shot(row) for row in csv.DictReader(file)]
    if not all(math.isfinite(shot.loss) for shot in every):
        return None
    counts = Counter((shot.true, shot.predicted) for shot in every)
    true, either = (Counter(names) for names in zip(*((shot.true, shot.predicted) for shot in every), strict=True))
    classes = sorted({*true, *either}, key=lambda name: (-true[name], name))
    is_small = len(classes) <= MAX_CLASSES
    wrong = [(*pair, count) for pair, count in counts.most_common() if pair[0] != pair[1]]
    right, probabilities = (
        np.array(values) for values in ([s.true == s.predicted for s in every], [s.probability for s in every])
    )
    bins = [*_bins(right, probabilities)]
    places = [f"{y} {x}" for y in ("upper", "middle", "lower") for x in ("left", "centre", "right")]
    shots = _gallery(every)
    if upright is not None:
        with ThreadPoolExecutor(num_cores()) as pool:
            list(pool.map(functools.partial(_add_picture, upright=upright), shots))
    return {
        "shots": shots,  # those with a place in the gallery, the worst first
        "num_images": len(every),
        "classes": classes,  # the most frequent first; `matrix` has a row for each, of how often each was predicted
        "matrix": [[counts[one, other] for other in classes] for one in classes] if is_small else [],
        "pairs": [] if is_small else wrong[:MAX_PAIRS],
        "dots": [(s.side, s.iou, s.kind, s.id) for s in every[:: math.ceil(len(every) / MAX_DOTS)]],
        "by_size": _groups(every, _size_names(), lambda shot: bisect_right(SIZES, shot.side) - 1),
        "by_border": _groups(every, ["inside", "at border"], lambda shot: shot.at_border),
        "ninths": _groups(every, places, lambda shot: shot.ninth),
        "bins": bins,
        # Guo et al. 2017, equation 3.
        "calibration_error": sum(one["images"] * abs(one["acc"] - one["probability"]) for one in bins) / len(every),
        "mean_probability": float(probabilities.mean()),
        "acc": float(right.mean()),
    }


def _shot(row: dict[str, str]) -> Shot:
    width, height = float(row["width"]), float(row["height"])
    boxes = []
    for which in ("true", "predicted"):
        x1, y1, x2, y2 = (
            min(max(100 * float(row[f"{which}_{edge}"]) / side, 0.0), 100.0)
            for edge, side in zip(("x1", "y1", "x2", "y2"), (width, height) * 2, strict=True)
        )
        boxes.append((x1, y1, max(0.0, x2 - x1), max(0.0, y2 - y1)))
    top = [(row[f"top{n}"], float(row[f"top{n}_probability"])) for n in range(1, 6) if row.get(f"top{n}")]
    rest = min(top[-1][1], max(0.0, 1 - sum(share for _, share in top)))
    return Shot(
        id=row["id"],
        path=row["path"],
        ratio=width / height,
        true=row["true_label"],
        predicted=row["predicted_label"],
        true_box=boxes[0],
        box=boxes[1],
        iou=float(row["iou"]),
        probability=float(row["probability"]),
        true_probability=dict(top).get(row["true_label"], rest),
    )


def _gallery(every: Sequence[Shot]) -> list[Shot]:
    """The worst, some spread evenly over the split, and of each pair of true and predicted class the worst in turn."""
    ranked = sorted(every, key=lambda shot: -shot.loss)
    spread = [every[n] for n in np.unique(np.linspace(0, len(every) - 1, NUM_EACH).round().astype(int))]
    pairs = defaultdict[tuple[str, str], list[Shot]](list)
    for shot in ranked:
        pairs[shot.true, shot.predicted].append(shot)
    turns = (shot for turn in zip_longest(*pairs.values()) for shot in turn if shot is not None)
    chosen: dict[int, Shot] = {}
    for name, some in (("worst", ranked[:NUM_EACH]), ("spread", spread), ("", turns)):
        for shot in some:
            if name:
                shot.sets.append(name)
            elif len(chosen) >= MAX_PICTURES:
                break
            chosen[id(shot)] = shot
    return [shot for shot in ranked if id(shot) in chosen]


def _add_picture(shot: Shot, upright: bool) -> None:
    with suppress(BadInput):  # it was there when it was tested; the page shows the boxes alone
        shot.picture = picture(read_image(shot.path, upright=upright))


def _size_names() -> list[str]:
    ends = [*(f"{100 * size:.0f}" for size in SIZES[1:]), "100"]
    return [f"{100 * start:.0f}\N{EN DASH}{end}\N{NO-BREAK SPACE}%" for start, end in zip(SIZES, ends, strict=True)]


def _groups(every: Sequence[Shot], names: Sequence[str], number: Callable[[Shot], int]) -> list[dict[str, Any]]:
    """A group for each name, in their order; `number` says which one an image belongs to."""
    members: list[list[Shot]] = [[] for _ in names]
    for shot in every:
        members[number(shot)].append(shot)
    return [_group(name, some) for name, some in zip(names, members, strict=True)]


def _group(name: str, some: Sequence[Shot]) -> dict[str, Any]:
    """How many images have something in common, and means over them; `half` is of the IoU's 95 % interval."""
    n = len(some)
    iou, loc, right = (
        np.array(values, dtype=float)
        for values in ([s.iou for s in some], [s.iou >= 0.5 for s in some], [s.kind == "right" for s in some])
    )
    if not n:
        return {"name": name, "images": 0}
    half = 1.96 * float(iou.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    means = {"iou": float(iou.mean()), "loc_acc": float(loc.mean()), "joint_acc": float(right.mean())}
    return {"name": name, "images": n, "half": half, **means}


def _bins(right: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> Iterator[dict[str, float]]:
    """For the tenths of the predicted class's probability that hold an image: its mean, and how many are right."""
    places = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    for place in np.unique(places).tolist():
        is_in = places == place
        means = {"probability": float(probabilities[is_in].mean()), "acc": float(right[is_in].mean())}
        yield {"low": place / NUM_BINS, "high": (place + 1) / NUM_BINS, "images": int(is_in.sum()), **means}
