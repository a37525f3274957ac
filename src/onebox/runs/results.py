"""The results of a run, the table that it ends with, and samples.npz: the images that it was trained and tested on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebox.errors import print_lines
from onebox.files import npz_columns, read_file, read_json, replacing
from onebox.trust import stored_file

if TYPE_CHECKING:
    from onebox.data.index import Index
    from onebox.module import Predicted

SHOWN = ("acc", "iou", "loc_acc", "loc_acc70", "joint_acc", "joint_acc_top5", "joint_acc_50_95", "loc_l1")
VERDICTS = {"better": "green", "worse": "red", "cannot tell": "yellow"}  # with styles of rich
RESAMPLES = 1000  # of the bootstrap
MIN_IMAGES = 20  # of fewer a bootstrap says too much
SAMPLES = "samples.npz"
MAX_SAMPLES = 200_000  # 4.5 MB, written in a second; beyond that, only fingerprints are compared
MAX_BYTES = 2**28  # unpacked
COLUMNS = {
    "labels": "relabelled",  # [N] int32
    "boxes": "box moved",  # [N, 4] float32, xyxy in [0, 1]
    "sizes": "other image size",  # [N, 2] int32, height and width in px
    "bytes": "other image file",  # [N] int64, sizes of the files
}

Split = dict[str, NDArray[Any]]  # `ids`, [N] of text, and `COLUMNS`; N images, labels by name


def floor_metrics(train: "Index", test: "Index", class_names: list[str], num_images: int) -> dict[str, float]:
    """Metrics of the prediction that ignores the image: median box and most frequent class of `train`.

    The first `num_images` of `test` count; `class_names` are in the order of the logits.
    """
    from onebox.metrics import LocalizationMetrics, floor_prediction

    metrics = LocalizationMetrics(class_names)
    boxes, logits = floor_prediction(train.boxes, train.labels, len(class_names), num_images)
    metrics.update(boxes, logits, test.boxes[:num_images], test.labels[:num_images])
    return metrics.compute().tags()


def against_floor(train: "Index", test: "Index", num_classes: int, tested: "Predicted") -> dict[str, dict[str, Any]]:
    """For each metric how much the result is above the floor, its 95 % interval over test images, and a verdict.

    The interval is a bootstrap of the differences on each image; `better`, `worse` or, where it holds 0 or the images
    are fewer than `MIN_IMAGES`, `cannot tell`.
    """
    import torch

    from onebox.metrics import NAMES, floor_prediction, per_image
    from onebox.runs.reading.noise import SAME, lower_is_better

    true, n = (test.boxes[tested.rows], test.labels[tested.rows]), len(tested.rows)
    predicted, top = tested.classes[:, :1], tested.classes[:, 1:]
    logits = torch.zeros(n, num_classes).scatter(1, top, torch.arange(top.shape[1], 0, -1.0).expand(n, -1))
    logits = logits.scatter(1, predicted, num_classes + 1.0)  # of equals the first one, as in the test
    floor = floor_prediction(train.boxes, train.labels, num_classes, n)
    gains = (per_image(tested.boxes, logits, *true) - per_image(*floor, *true)).double().numpy()
    found = {}
    for name, gain, (low, high) in zip(NAMES, gains.mean(0).tolist(), bootstrap(gains).tolist(), strict=True):
        sign = -1 if lower_is_better(name) else 1
        is_told = n >= MIN_IMAGES and (low > SAME or high < -SAME)
        verdict = "cannot tell" if not is_told else "better" if gain * sign > 0 else "worse"
        found[name] = {"difference": gain, "interval": [low, high], "verdict": verdict}
    return found


def bootstrap(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M, 2] the 95 % intervals of the means of [N, M] values over draws of the rows."""
    random, n = np.random.default_rng(0), len(values)
    draws = (np.bincount(random.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))
    return np.percentile([draw @ values / n for draw in draws], (2.5, 97.5), axis=0).T


def print_results(run_dir: Path) -> None:
    """Print test metrics beside the floor, and where to look next."""
    from rich.console import Console
    from rich.table import Table

    from onebox.runs.reading.report import balance_line, read_metrics

    console = Console()
    metrics, run = read_metrics(run_dir), read_json(run_dir / "run.json")
    test, floor = metrics["test"], metrics["floor"]
    if test:
        which = "last weights"
        if (run_dir / "checkpoints" / "best.ckpt").exists():  # also when no epoch was the best, as none had a number
            epoch = metrics["best"].get("epoch")
            which = "best checkpoint" if epoch is None else f"best checkpoint (epoch {epoch + 1})"
        table = Table(title=f"test, {which}")
        for column in ("", "result", "floor", "difference, 95 %", "is"):
            table.add_column(column, justify="right" if column not in ("", "is") else "left")
        for name in SHOWN:
            judged, style = metrics["against_floor"][name], "bold" if name == "joint_acc" else ""
            low, high = ("-" if bound is None else f"{bound:+.3f}" for bound in judged["interval"])
            cells = f"{test[name]:.3f}", f"{floor[name]:.3f}", f"{low} to {high}"
            table.add_row(name, *cells, f"[{VERDICTS[judged['verdict']]}]{judged['verdict']}[/]", style=style)
        table.caption = "floor: median box and most frequent class, whatever the image"
    else:
        why = f"pruned {run['pruned']}, so not tested" if "pruned" in run else "there is no test split"
        table = Table("", "result", title=f"training images, last epoch ({why})")
        for name in ("loss", "loss_loc", "loss_cls", *SHOWN):
            if (value := metrics["final"].get(f"train/{name}")) is not None:
                table.add_row(f"train/{name}", f"{value:.4f}")
    console.print(table)
    where = {"run": str(run_dir), "report": str(run_dir / "report.html")}
    balance = run.get("balance")
    if balance:
        where = {"balance": balance_line(balance), **where}
    if any(run_dir.rglob("events.out.tfevents.*")):
        where["curves"] = f"tensorboard --logdir {run_dir}"
    print_lines(([(f"{what:9}{place}", "")] for what, place in where.items()), console)


def write_samples(run_dir: Path, indexes: "Mapping[str, Index]", class_names: Sequence[str]) -> bool:
    """Write `SAMPLES`, unless there are more than `MAX_SAMPLES`; returns whether it was written."""
    if sum(map(len, indexes.values())) > MAX_SAMPLES:
        return False
    columns = {"words": _bytes(json.dumps({"schema": 1, "class_names": list(class_names)}))}
    for split, index in indexes.items():
        columns |= {
            f"{split}/ids": _bytes("\0".join(index.ids)),
            f"{split}/labels": index.labels.numpy().astype(np.int32),
            f"{split}/boxes": index.boxes.numpy(),
            f"{split}/sizes": index.sizes.numpy().astype(np.int32),
            f"{split}/bytes": index.lengths,
        }
    with replacing(run_dir / SAMPLES) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]  # none is called allow_pickle
    return True


def read_samples(run_dir: Path) -> dict[str, Split] | None:
    """The splits of a run; None when it keeps no table of them.

    Raises:
        BadInput: the file is not that of a run.
    """
    if not (run_dir / SAMPLES).exists():
        return None
    return read_file(stored_file(run_dir, SAMPLES), _splits, remedy="not the samples of a run; remove it")


def _splits(file: IO[bytes]) -> dict[str, Split]:
    columns = npz_columns(file, MAX_BYTES)
    names = np.array(json.loads(bytes(columns["words"]))["class_names"], dtype=np.str_)
    splits: dict[str, Split] = {}
    for split in dict.fromkeys(name.partition("/")[0] for name in columns if "/" in name):
        found = {name: columns[f"{split}/{name}"] for name in COLUMNS}
        # By name, as a class that was added moves the numbers of the others.
        found["labels"] = names[found["labels"]]
        ids = bytes(columns[f"{split}/ids"]).decode("utf-8", "surrogateescape")
        found["ids"] = np.array(ids.split("\0") if ids else [], dtype=np.str_)
        n = len(found["ids"])
        if [found[name].shape for name in (*COLUMNS, "ids")] != [(n,), (n, 4), (n, 2), (n,), (n,)]:
            raise ValueError(f"its columns of {split} do not belong together")
        splits[split] = found
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
        changes = {"added": np.setdiff1d(b["ids"], common), "removed": np.setdiff1d(a["ids"], common)}
        for column, what in COLUMNS.items():
            unequal = a[column][at_a] != b[column][at_b]
            changes[what] = common[unequal if unequal.ndim == 1 else unequal.any(axis=1)]
        if not any(map(len, changes.values())) and not np.array_equal(a["ids"], b["ids"]):
            changes["other order"] = np.array(["all"])
        if any(map(len, changes.values())):
            found[split] = {what: ids.tolist() for what, ids in changes.items() if len(ids)}
    return found


def _bytes(text: str) -> NDArray[Any]:
    """A text as a column of a file; ids are joined by NUL."""
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)
