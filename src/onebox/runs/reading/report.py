"""report.html: what a person looks at first in a run directory."""

import base64
import csv
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import onebox
from onebox.files import read_json, write_text
from onebox.page import render
from onebox.runs.reading.find import BEGAN
from onebox.runs.reading.mistakes import KINDS, NUM_EACH, find_mistakes

# In the order of the table, with what each one says to a reader who does not know it.
METRICS = {
    "joint_acc": "Class and box (IoU ≥ 0.5) right in the same image: the task itself.",
    "acc": "Class right, whatever the box.",
    "iou": "Mean overlap of predicted and true box: intersection over union.",
    "loc_acc": "Box right (IoU ≥ 0.5), whatever the class. Also known as CorLoc.",
    "loc_acc70": "Box right by a stricter measure (IoU ≥ 0.7).",
    "joint_acc_top5": "Box right, and the class among the five most likely.",
    "joint_acc_50_95": "joint_acc, mean over IoU thresholds of 0.50 to 0.95: rewards tight boxes.",
    "loc_l1": "Mean error of a box edge, as a share of the image side. Lower is better.",
}
PER_CLASS = ("joint_acc", "acc", "iou", "loc_acc")
LOSSES = {"loss": "Total loss", "loss_loc": "Box term", "loss_cls": "Class term"}
SCORES = {"joint_acc": "Class and box", "acc": "Class", "iou": "Overlap", "loc_acc": "Box"}

PICTURE = "predictions.jpg"  # where BoxPictures leaves it
MAX_HOVERED_EPOCHS = 60  # more points would make the file large, and lie too close to be pointed at
TOP, BOTTOM, LEFT, RIGHT = 10, 170, 38, 8  # a chart's upper and lower end, left and right margin, px

Values = Mapping[str, float]


def read_metrics(run_dir: Path) -> dict[str, Any]:
    """metrics.json, with NaN again where JSON has null."""

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: numbers(item) for key, item in value.items()}
        return math.nan if value is None else value

    metrics: dict[str, Any] = numbers(read_json(run_dir / "metrics.json"))
    return metrics


def write_report(run_dir: Path, *, upright: bool | None = None) -> Path:
    """Write `report.html`, one file that needs no network, from what lies in a run directory.

    Args:
        run_dir: of a run that has just written its results, and is not closed yet.
        upright: how the test images are read, see `read_image`; None: not at all.
    """
    run = read_json(run_dir / "run.json")
    started = datetime.fromisoformat(run["started"])
    run["seconds"] = (datetime.now(UTC) - started).total_seconds()  # so far
    metrics = read_metrics(run_dir)
    config = (run_dir / "config.yaml").read_text(encoding="utf-8")
    epochs = read_epochs(run_dir / "metrics.csv")
    best, floor = metrics["best"], metrics["floor"]
    found = find_mistakes(run_dir, upright)
    html = render(
        "onebox.runs.reading",
        "report.html",
        scripts=[("onebox.runs.reading", "report.js")] if found else [],
        found=found,
        num_each=NUM_EACH,
        version=onebox.__version__,
        run=run,
        began=BEGAN,
        started=started,
        command=repeat_command(run),
        commands=further_commands(run_dir),
        config=config,
        monitor=OmegaConf.select(OmegaConf.create(config), "monitor"),
        metrics=METRICS,
        losses=LOSSES,
        errors=KINDS,
        class_columns=PER_CLASS,
        **_results(metrics),
        picture=_picture(run_dir),
        epochs=len(epochs),
        balance=balance_line(run["balance"]) if run.get("balance") else None,
        hover=len(epochs) <= MAX_HOVERED_EPOCHS,
        loss_charts=draw_charts(LOSSES, epochs, best, {}, width=344),
        score_charts=draw_charts(SCORES, epochs, best, floor, width=254),
    )
    path = run_dir / "report.html"
    write_text(path, html)
    (run_dir / PICTURE).unlink(missing_ok=True)  # the page has it
    return path


def _results(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the template is told of metrics.json; without a test its sections but `final` and `best` are empty."""
    final, best, test, floor, judged = (metrics[key] for key in ("final", "best", "test", "floor", "against_floor"))
    per_class = sorted(metrics["per_class"].items(), key=lambda item: (-item[1]["images"], item[0]))
    images = sum(values["images"] for _, values in per_class)
    return {
        "final": final,
        "best": best,
        "best_epoch": best["epoch"] + 1 if best else None,
        "test": test,
        "floor": floor,
        # Without a test split, the nearest thing to a result.
        "shown_split": "val" if any(tag.startswith("val/") for tag in final) else "train",
        "judged": judged,
        "level": {"better": "above", "worse": "below"}.get(judged.get("joint_acc", {}).get("verdict"), "near"),
        "interval": wilson(test["joint_acc"], images) if test else None,
        "shares": error_shares(test),
        "floor_shares": error_shares(floor),
        "images": images,
        "per_class": per_class,
    }


def _picture(run_dir: Path) -> str | None:
    """The URI of what BoxPictures has drawn."""
    path = run_dir / PICTURE
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else None


def read_epochs(path: Path) -> list[Values]:
    """The rows of metrics.csv; what an epoch did not log is not in its row."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{tag: float(value) for tag, value in row.items() if value} for row in csv.DictReader(file)]


def repeat_command(run: Mapping[str, Any]) -> str:
    """The shell command that trains this run again, in another directory; of a job of a sweep, this job alone."""
    overrides = [override for override in run["overrides"] if not override.startswith("run_dir=")]
    alone = ["hydra.mode=RUN"] if run["choices"].get("sweep") else []
    return shlex.join(["onebox-train", *overrides, *alone])


def further_commands(run_dir: Path) -> dict[str, str]:
    """What can be done with a run, and the shell command that does it."""
    folder = shlex.quote(str(run_dir))
    return {
        "Repeat it and compare every number": f"onebox reproduce {folder}",
        "Train longer": f"onebox-train extend={folder} trainer.max_epochs=NUMBER",
        "Predict other images": f"onebox predict {folder} IMAGES --out predicted --pictures",
        "Test it on other data": f"onebox evaluate {folder} data=OPTION",
        "Export it": f"onebox export {folder}",
        "Curves": f"tensorboard --logdir {folder}",
    }


def balance_line(balance: Mapping[str, Any]) -> str:
    """What the balance of the heads came to, as run.json has it: the box's weight, and the one it suggests."""
    if not balance["steps"]:
        return str(balance["nothing"])
    low, high = balance["suggested_weight_loc_low"], balance["suggested_weight_loc_high"]
    measured = (
        f"{balance['steps']} steps, the middle half {low:.3g} to {high:.3g}" if balance["steps"] > 1 else "1 step"
    )
    return (
        f"loss.weights.loc is {balance['weight_loc']:.3g}; with {balance['suggested_weight_loc']:.3g} box and class "
        f"would pull alike at the shared features ({measured}; cosine {balance['cosine']:.2f})"
        + ("" if balance["weighting_is_fixed"] else "; this is for loss/weighting=fixed, another one moves the weights")
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` > 0, in [0, 1] (Wilson 1927): of 0 and 1 too, it has a width."""
    z2 = 1.96**2 / count
    middle, half = share + z2 / 2, math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return max(0.0, middle - half) / (1 + z2), min(1.0, (middle + half) / (1 + z2))


def error_shares(values: Values) -> Values:
    """Share of images of each of `KINDS`; empty without values."""
    wrong = {name: values[name] for name in KINDS if name in values}
    return {"right": max(0.0, 1 - sum(wrong.values())), **wrong} if wrong else {}


def draw_charts(
    titles: Mapping[str, str], epochs: Sequence[Values], best: Values, floor: Values, width: int
) -> list[dict[str, Any]]:
    """A chart of `width` px for each name of `titles` that any epoch logged."""
    charts = [_chart(name, title, epochs, best, floor.get(name), width) for name, title in titles.items()]
    return [chart for chart in charts if chart["curves"] or chart["not_numbers"]]


def _chart(
    name: str, title: str, epochs: Sequence[Values], best: Values, floor: float | None, width: int
) -> dict[str, Any]:
    """What the template draws of a metric: places in px, ranges from the left and from the lower end."""
    # Only the ticks are matplotlib's: a chart that the template draws follows the page's colours, light and dark.
    from matplotlib.ticker import MaxNLocator

    logged = [
        (split, row["epoch"], row[f"{split}/{name}"])
        for split in ("train", "val")
        for row in epochs
        if f"{split}/{name}" in row
    ]
    shown = [point for point in logged if math.isfinite(point[2])]
    values = [value for _, _, value in shown] + ([] if floor is None else [floor])
    low, high = min(values, default=0.0), max(values, default=1.0)
    if name in SCORES:
        low, high = 0.0, high or 1.0  # an accuracy without its zero is hard to judge
    elif high == low:
        low, high = low - 0.5, high + 0.5
    y_ticks = [float(tick) for tick in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    low, high = y_ticks[0], y_ticks[-1]
    decimals = max(len(f"{tick:g}".partition(".")[2]) for tick in y_ticks)
    last = max((row["epoch"] for row in epochs), default=0.0)
    x_locator = MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])
    x_ticks = [float(tick) for tick in x_locator.tick_values(1, last + 1) if 1 <= tick <= last + 1]

    def x(epoch: float) -> float:
        return round(LEFT + (epoch / last if last else 0.5) * (width - RIGHT - LEFT), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP), 1)

    curves: dict[str, list[tuple[float, float, int, float]]] = {}
    for split, epoch, value in shown:
        curves.setdefault(split, []).append((x(epoch), y(value), int(epoch) + 1, value))
    return {
        "name": name,
        "title": title,
        "width": width,
        "x_range": (LEFT, width - RIGHT),
        "y_range": (BOTTOM, TOP),
        "curves": curves,  # split -> (x, y, epoch from 1, value)
        "x_ticks": [(x(tick - 1), f"{tick:g}") for tick in x_ticks],
        "y_ticks": [(y(tick), f"{tick:.{decimals}f}") for tick in y_ticks],
        "best_x": x(best["epoch"]) if best else None,
        "floor_y": None if floor is None else y(floor),
        "not_numbers": len(logged) - len(shown),  # NaN or infinite, not among the points
    }
