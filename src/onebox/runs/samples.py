"""samples.npz: which images a run was trained and tested on, with their boxes and labels. N = images of a split."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebox.errors import BadInput, check
from onebox.files import replacing
from onebox.trust import stored_file

if TYPE_CHECKING:
    from onebox.data.index import Index

FILE = "samples.npz"
MAX_SAMPLES = 200_000  # 4.5 MB, written in a second; of more, the fingerprints must do
MAX_BYTES = 2**28  # unpacked
COLUMNS = {
    "labels": "relabelled",  # [N] int32
    "boxes": "box moved",  # [N, 4] float32, xyxy in [0, 1]
    "sizes": "other image size",  # [N, 2] int32, height and width in px
    "bytes": "other image file",  # [N] int64, sizes of the files
}

Split = dict[str, NDArray[Any]]  # `ids`, [N] of text, and `COLUMNS`; labels by name


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
            f"{split}/bytes": index.lengths,
        }
    words = to_bytes(json.dumps({"schema": 1, "class_names": list(class_names)}))
    with replacing(run_dir / FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, words=words, **columns)  # type: ignore[arg-type]  # none is called allow_pickle
    return True


def read_samples(run_dir: Path) -> dict[str, Split] | None:
    """The splits of a run; None when it keeps no table of them.

    Raises:
        BadInput: the file is not that of a run.
    """
    if not (run_dir / FILE).exists():
        return None
    path = stored_file(run_dir, FILE)
    try:
        with zipfile.ZipFile(path) as file:
            check(sum(item.file_size for item in file.infolist()) <= MAX_BYTES, f"{path}: unpacks to a giant")
        with np.load(path, allow_pickle=False) as file:
            columns = dict(file.items())
        names = np.array(read_words(columns)["class_names"], dtype=np.str_)
        splits: dict[str, Split] = {}
        for split in dict.fromkeys(name.partition("/")[0] for name in columns if "/" in name):
            splits[split] = {name: columns[f"{split}/{name}"] for name in COLUMNS}
            # By name, as a class that was added moves the numbers of the others.
            splits[split]["labels"] = names[splits[split]["labels"]]
            splits[split]["ids"] = np.array(to_ids(columns[f"{split}/ids"]), dtype=np.str_)
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: not the samples of a run ({error})") from error
    return splits


def compare_samples(one: Path, other: Path) -> dict[str, dict[str, list[str]]] | None:
    """For each split in which two runs differ, what happened -> the images it happened to.

    None when one of the two has no table of its samples.
    """
    before, after = read_samples(one), read_samples(other)
    if before is None or after is None:
        return None
    found: dict[str, dict[str, list[str]]] = {}
    for split in [name for name in before if name in after]:
        a, b = before[split], after[split]
        common, at_a, at_b = np.intersect1d(a["ids"], b["ids"], return_indices=True)
        changes = {"added": b["ids"][~np.isin(b["ids"], common)], "removed": a["ids"][~np.isin(a["ids"], common)]}
        for column, what in COLUMNS.items():
            unequal = a[column][at_a] != b[column][at_b]
            changes[what] = common[unequal if unequal.ndim == 1 else unequal.any(axis=1)]
        if not any(map(len, changes.values())) and not np.array_equal(a["ids"], b["ids"]):
            changes["other order"] = np.array(["all"])
        if any(map(len, changes.values())):
            found[split] = {what: ids.tolist() for what, ids in changes.items() if len(ids)}
    return found


def read_words(file: Mapping[str, Any]) -> dict[str, Any]:
    """What a table's file says besides its columns."""
    words: dict[str, Any] = json.loads(bytes(file["words"]))
    return words


def to_bytes(text: str) -> NDArray[np.uint8]:
    """A text as a column of a file; ids are joined by NUL."""
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)


def to_ids(column: NDArray[np.uint8]) -> tuple[str, ...]:
    """The ids that `to_bytes` was given."""
    text = bytes(column).decode("utf-8", "surrogateescape")
    return tuple(text.split("\0")) if text else ()
