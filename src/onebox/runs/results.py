"""metrics.json, and the table that a run ends with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onebox.data.index import Index
from onebox.files import read_json
from onebox.runs.reading.report import balance_line, read_metrics

SCHEMA = 1
SAME = 1e-6  # what differs by less differs only in the rounding of float32

Row = Mapping[str, float]

# What the table shows, and whether more is better.
SHOWN = {
    "acc": True,
    "iou": True,
    "loc_acc": True,
    "loc_acc70": True,
    "joint_acc": True,
    "joint_acc_top5": True,
    "joint_acc_50_95": True,
    "loc_l1": False,
}


def best_row(rows: Mapping[int, Row], monitor: str, mode: str) -> dict[str, float]:
    """The epoch whose checkpoint was kept as the best: its tags, and its number (from 0) as `epoch`.

    Empty when no epoch logged `monitor` as a number.
    """
    sign = 1 if mode == "max" else -1
    # A value that is not a number compares false with everything, itself included.
    candidates = [
        epoch for epoch in sorted(rows) if monitor in rows[epoch] and rows[epoch][monitor] == rows[epoch][monitor]
    ]
    if not candidates:
        return {}
    best = max(candidates, key=lambda epoch: sign * rows[epoch][monitor])  # the first of equals, as the checkpoint
    return {**rows[best], "epoch": best}


def floor_metrics(train: Index, test: Index, class_names: list[str], num_images: int) -> dict[str, float]:
    """Metrics of the prediction that ignores the image: median box and most frequent class of `train`.

    Args:
        train: the training images.
        test: the test images.
        class_names: the name that belongs to each logit.
        num_images: the first so many of `test` count.
    """
    from onebox.metrics import LocalizationMetrics, floor_prediction

    metrics = LocalizationMetrics(class_names)
    boxes, logits = floor_prediction(train.boxes, train.labels, len(class_names), num_images)
    metrics.update(boxes, logits, test.boxes[:num_images], test.labels[:num_images])
    return metrics.compute().tags()


def metrics_json(
    rows: Mapping[int, Row], best: Row, test: Row, floor: Row, per_class: Mapping[str, Row]
) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        rows: what each epoch logged.
        best: the best epoch's tags.
        test: metrics of the best checkpoint on the test split, empty without one.
        floor: the same of the prediction that ignores the image.
        per_class: the test metrics of each class.
    """
    return {
        "schema": SCHEMA,
        "final": rows[max(rows)] if rows else {},
        "best": best,
        "test": test,
        "floor": floor,
        "per_class": per_class,
    }


def print_results(run_dir: Path) -> None:
    """Print test metrics beside the floor, and where to look next."""
    console = Console()
    metrics = read_metrics(run_dir)
    test, floor, final = metrics["test"], metrics["floor"], metrics["final"]
    if test:
        which = "last weights"
        if (run_dir / "checkpoints" / "best.ckpt").exists():  # also when no epoch was the best, as none had a number
            epoch = metrics["best"].get("epoch")
            which = "best checkpoint" if epoch is None else f"best checkpoint (epoch {epoch + 1})"
        table = Table(title=f"test, {which}")
        for column in ("", "result", "floor"):
            table.add_column(column, justify="left" if not column else "right")
        for name, more_is_better in SHOWN.items():
            value, low = test[name], floor[name]
            gain = value - low if more_is_better else low - value
            style = "bold" if name == "joint_acc" else ""
            colour = "green" if gain > SAME else "red"
            table.add_row(name, f"[{colour}]{value:.3f}[/]", f"{low:.3f}", style=style)
        table.caption = "floor: the median box and the most frequent class, whatever the image"
    else:
        table = Table("", "result", title="training images, last epoch (there is no test split)")
        for tag, value in final.items():
            if tag.startswith("train/"):
                table.add_row(tag, f"{value:.4f}")
    console.print(table)
    balance = read_json(run_dir / "run.json").get("balance")
    if balance:
        console.print(f"balance  {balance_line(balance)}", soft_wrap=True, highlight=False)
    where = {"run": str(run_dir), "report": str(run_dir / "report.html")}
    if any(run_dir.rglob("events.out.tfevents.*")):
        where["curves"] = f"tensorboard --logdir {run_dir}"
    for what, place in where.items():
        console.print(f"{what:9}{place}", soft_wrap=True, highlight=False)
