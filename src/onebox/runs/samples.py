"""samples.npz: which images a run was trained and tested on, with their boxes and labels. N = images of a split."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebox.data.table import read_words, to_bytes, to_ids
from onebox.files import replacing

if TYPE_CHECKING:
    from onebox.data.index import Index

FILE = "samples.npz"
MAX_SAMPLES = 200_000  # 4.5 MB, written in a second; of more, the fingerprints must do

COLUMNS = {
    "labels": "relabelled",
    "boxes": "box moved",
    "sizes": "other image size",
    "bytes": "other image file",
}


@dataclass(frozen=True, eq=False)
class Samples:
    """One split.

    Attributes:
        ids: N names.
        labels: [N] int32.
        boxes: [N, 4] float32, xyxy in [0, 1].
        sizes: [N, 2] int32, height and width in px.
        bytes: [N] int64, sizes of the image files.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int32]
    boxes: NDArray[np.float32]
    sizes: NDArray[np.int32]
    bytes: NDArray[np.int64]


def write_samples(run_dir: Path, indexes: "Mapping[str, Index]", class_names: Sequence[str]) -> bool:
    """Write `FILE`, unless there are more than `MAX_SAMPLES`; returns whether it was written."""
    if sum(map(len, indexes.values())) > MAX_SAMPLES:
        return False
    columns: dict[str, NDArray[Any]] = {}
    for split, index in indexes.items():
        columns |= {
            f"{split}/ids": to_bytes("\0".join(index.ids)),
            f"{split}/labels": index.labels.numpy().astype(np.int32),
            f"{split}/boxes": index.boxes.numpy(),
            f"{split}/sizes": index.sizes.numpy().astype(np.int32),
            f"{split}/bytes": index.image_stamps[:, 0],
        }
    words = to_bytes(json.dumps({"schema": 1, "class_names": list(class_names)}))
    with replacing(run_dir / FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, words=words, **columns)  # type: ignore[arg-type]  # none is called allow_pickle
    return True


def read_samples(run_dir: Path) -> tuple[dict[str, Samples], list[str]] | None:
    """The splits and the names of the labels; None when the run has none of it."""
    path = run_dir / FILE
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        columns = dict(file.items())
    splits = {}
    for split in dict.fromkeys(name.partition("/")[0] for name in columns if "/" in name):
        splits[split] = Samples(
            ids=to_ids(columns[f"{split}/ids"]), **{name: columns[f"{split}/{name}"] for name in COLUMNS}
        )
    return splits, read_words(columns)["class_names"]


def compare_samples(one: Path, other: Path) -> dict[str, dict[str, list[str]]] | None:
    """For each split in which two runs differ, what happened -> the images it happened to.

    None when one of the two has no table of its samples.
    """
    table_a, table_b = read_samples(one), read_samples(other)
    if table_a is None or table_b is None:
        return None
    (splits_a, names_a), (splits_b, names_b) = table_a, table_b
    found: dict[str, dict[str, list[str]]] = {}
    for split in dict.fromkeys([*splits_a, *splits_b]):
        a, b = splits_a[split], splits_b[split]
        rows_a = {image_id: row for row, image_id in enumerate(a.ids)}
        rows_b = {image_id: row for row, image_id in enumerate(b.ids)}
        common = [image_id for image_id in a.ids if image_id in rows_b]
        at_a = np.array([rows_a[image_id] for image_id in common], dtype=np.int64)
        at_b = np.array([rows_b[image_id] for image_id in common], dtype=np.int64)
        changes = {
            "added": [image_id for image_id in b.ids if image_id not in rows_a],
            "removed": [image_id for image_id in a.ids if image_id not in rows_b],
        }
        for column, what in COLUMNS.items():
            values_a, values_b = getattr(a, column)[at_a], getattr(b, column)[at_b]
            if column == "labels":  # by name: a class that was added moves the numbers of the others
                values_a, values_b = np.array(names_a)[values_a], np.array(names_b)[values_b]
            unequal = values_a != values_b
            unequal = unequal if unequal.ndim == 1 else unequal.any(axis=1)
            changes[what] = [common[row] for row in np.flatnonzero(unequal).tolist()]
        changes["other order"] = ["all"] if not any(changes.values()) and a.ids != b.ids else []
        if any(changes.values()):
            found[split] = {what: ids for what, ids in changes.items() if ids}
    return found
