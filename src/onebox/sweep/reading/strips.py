"""What each varied key did, as dots: one for each job, with mean and interval of each value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from onebox.errors import check, is_finite
from onebox.files import replacing
from onebox.runs.reading.noise import interval
from onebox.runs.reading.table import cell
from onebox.sweep.reading.sweep import Sweep

MAX_VALUES = 12  # of numbers; more are drawn on a scale
WIDTH, HEIGHT = 3.3, 2.0  # of a panel in inches: the column of a paper


@dataclass(frozen=True)
class Strip:
    """A varied key."""

    key: str  # its name; empty where nothing but the seed is varied
    values: Mapping[Any, Any]  # of each job that is drawn, by its number: a text, or a number on a scale
    order: list[str]  # the texts as they stand on the axis; empty for a scale
    is_log: bool  # whether the scale is one of logarithms
    # metric -> text -> mean over the jobs, half of its 95 % interval, number of jobs
    means: dict[str, dict[str, tuple[float, float | None, int]]]


def drawn(sweep: Sweep) -> pd.DataFrame:
    """The jobs that charts show: those that completed, or where all results are stale, these."""
    completed = sweep.jobs[sweep.jobs["status"] == "completed"]
    return completed if len(completed) else sweep.jobs[sweep.jobs["status"] == "stale"]


def strips(sweep: Sweep, tags: Sequence[str]) -> list[Strip]:
    """One for each varied key; one of all jobs where nothing but the seed is varied."""
    jobs = drawn(sweep)
    alike = pd.Series("all jobs", jobs.index)
    return [_strip(key, jobs[key], jobs, tags) for key in sweep.varied] or [_strip("", alike, jobs, tags)]


def _strip(key: str, values: "pd.Series[Any]", jobs: pd.DataFrame, tags: Sequence[str]) -> Strip:
    known, texts = [tag for tag in tags if tag in jobs], values.map(cell)
    if values.nunique() > MAX_VALUES and all(map(is_finite, values)):
        is_log = min(values) > 0 and max(values) >= 10 * min(values)
        return Strip(key, values.to_dict(), [], is_log, {tag: {} for tag in tags})
    numbers = {text: value for text, value in zip(texts, values, strict=True) if is_finite(value)}
    order = sorted(set(texts), key=lambda text: (text not in numbers, numbers.get(text, 0), text))
    groups = {tag: jobs[tag].dropna().groupby(texts) for tag in known}
    means = {
        tag: {str(text): (part.mean(), interval(part.tolist()), len(part)) for text, part in parts}
        for tag, parts in groups.items()
    }
    return Strip(key, texts.to_dict(), order, False, {tag: means.get(tag, {}) for tag in tags})


def floor(sweep: Sweep, tag: str) -> list[float]:
    """What a prediction that ignores the image reaches in the test; smallest and largest where the data differ."""
    name = f"floor/{tag.rpartition('/')[2]}"
    known = sweep.jobs[name].dropna().tolist() if name in sweep.jobs else []
    return sorted({min(known), max(known)}) if known else []


def plot(sweep: Sweep, tag: str, file: Path) -> None:
    """Write a picture for a paper: a panel for each varied key.

    Raises:
        BadInput: no job has the metric, or the file is neither a .png nor a .pdf.
    """
    kind = file.suffix.lower().removeprefix(".")
    check(kind in ("png", "pdf"), f"{file}: name a .png or a .pdf")
    jobs = drawn(sweep)
    is_there = tag in jobs and bool(jobs[tag].notna().any())
    check(is_there, f"{sweep.folder}: no job has a {tag} yet, so there is nothing to plot")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = strips(sweep, [tag])
    with rc_context({"font.size": 8, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(WIDTH, HEIGHT * len(panels)), layout="constrained")
        for axes, strip in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            values = strip.values.values()
            places = list(map(strip.order.index, values)) if strip.order else list(values)
            axes.plot(places, jobs[tag], "o", color="#2466ae", alpha=0.45, markersize=3.5, markeredgewidth=0)
            for text, (mean, half, _) in strip.means[tag].items():
                place = strip.order.index(text) + 0.2  # beside the dots
                axes.errorbar(place, mean, half or 0, fmt="D", color="black", markersize=3, lw=1, capsize=2)
            for value in floor(sweep, tag):
                axes.axhline(value, color="0.4", lw=0.8, ls="--")
                axes.text(1, value, "floor", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color="0.4")
            if strip.order:
                axes.set_xticks(range(len(strip.order)), strip.order)
                axes.set_xlim(-0.5, len(strip.order) - 0.5)
            axes.set(xlabel=strip.key, ylabel=tag, **({"xscale": "log"} if strip.is_log else {}))
        with replacing(file) as temporary:
            figure.savefig(temporary, format=kind, dpi=300)
