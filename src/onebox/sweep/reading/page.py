"""sweep.html: a sweep as one file that can be sent to somebody."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

import onebox
from onebox.errors import is_finite, printable
from onebox.files import finite, write_text
from onebox.page import PLOTLY, render
from onebox.runs.reading.find import logged_tag
from onebox.runs.reading.noise import lower_is_better
from onebox.runs.reading.report import read_epochs
from onebox.runs.reading.table import Listing
from onebox.sweep.reading.strips import drawn, floor, strips
from onebox.sweep.reading.sweep import WAITED_FOR, Sweep
from onebox.sweep.reading.table import list_sweep
from onebox.sweep.reading.trials import drawn_trials, importances, parallel_coordinates

PAGE = "sweep.html"
MAX_CURVES, MAX_EPOCHS = 8, 200  # settings whose curves are drawn, and points of each
MAX_LINKS = 12  # to jobs, in one place
CURVES = ("val/acc", "val/iou", "val/loss", "train/loss")  # beside the objective
UNENDED = ("failed", "died", "pruned", "interrupted")


def write_page(sweep: Sweep, *, metrics: Sequence[str] = (), where: str | None = None) -> Path:
    """Write the page of a sweep into its folder.

    Args:
        sweep: the sweep.
        metrics: see `list_sweep`.
        where: the expression that has chosen its jobs, to be shown.

    Raises:
        BadInput: see `list_sweep`.
    """
    rows, jobs = (list_sweep(sweep, metrics=metrics, seeds=seeds) for seeds in (False, True))
    tags, shown, curves, trials = rows.metrics, drawn(sweep), _curves(sweep, rows), drawn_trials(sweep)
    without = sweep.jobs[sweep.jobs["status"].isin(UNENDED)].groupby(["status", "note"], sort=False)
    data = {
        "objective": dict(sweep.mode),
        "metrics": tags,
        "lower": [tag for tag in tags if sweep.mode.get(tag, "min" if lower_is_better(tag) else "max") == "min"],
        "floors": {tag: floor(sweep, tag) for tag in dict.fromkeys([*tags, *curves["tags"]])},
        "rows": rows.columns,
        "jobs": jobs.columns,
        "names": {number: printable(sweep.name(number)) for number in sweep.jobs.index},
        "links": dict(_links(sweep)),
        "drawn": shown.index.tolist(),
        "strips": [vars(strip) for strip in strips(sweep, tags)],
        "curves": curves,
        "parallel": parallel_coordinates(sweep, trials),
        "importances": importances(sweep, trials),
    }
    text = render(
        "onebox.sweep.reading",
        PAGE,
        scripts=[PLOTLY, ("onebox.sweep.reading", "sweep.js")],
        data=finite(data),
        version=onebox.__version__,
        sweep=sweep,
        name=sweep.folder.resolve().name,
        where=where,
        now=f"{datetime.now():%Y-%m-%d %H:%M}" if sweep.jobs["status"].isin(WAITED_FOR).any() else None,
        best=rows,
        num_results=sum(map(is_finite, rows.columns[next(iter(sweep.mode))])),
        best_name=_setting(sweep, rows.columns["number"][0]) if len(sweep.jobs) else "",
        tables={"rows": rows, "jobs": jobs} if max(rows.columns["jobs"], default=1) > 1 else {"jobs": jobs},
        max_links=MAX_LINKS,
        failures=[(status, note, group.index.tolist()) for (status, note), group in without],
        # Failures have a list of their own, in full.
        notes=["".join(piece for piece, _ in line) for line in rows.notes if line[0][0] not in ("failed ", "died ")],
        num_stale=sum((sweep.jobs["status"] == "stale") & ~sweep.jobs.index.isin(shown.index)),
        **{key: data[key] for key in ("floors", "links", "drawn", "strips", "curves", "parallel", "importances")},
    )
    path = sweep.folder / PAGE
    write_text(path, text)
    return path


def _setting(sweep: Sweep, numbers: object) -> str:
    """What the jobs of a row have in common that others do not."""
    return printable(sweep.name(int(str(numbers).split()[0]), seed=False)) or "all jobs"


def _links(sweep: Sweep) -> Iterator[tuple[int, str]]:
    """Number of a job -> its report, or else what it has printed, from the sweep's folder."""
    for number in sweep.jobs.index:
        folder = sweep.every[number].path
        name = next((name for name in ("report.html", "job.log") if (folder / name).is_file()), None)
        if name is not None:
            yield number, quote(os.path.relpath(folder / name, sweep.folder))


def _curves(sweep: Sweep, rows: Listing) -> dict[str, Any]:
    """Metrics by epoch of the first rows that have any: mean over seeds, lowest and highest."""
    tags, lines = list(dict.fromkeys([*map(logged_tag, sweep.mode), *CURVES])), list[dict[str, Any]]()
    for numbers in rows.columns["number"]:
        if len(lines) < MAX_CURVES:
            runs = [sweep.every[int(number)].path for number in str(numbers).split()]
            logged = [read_epochs(run / "metrics.csv") for run in runs]
            line = {tag: points for tag in tags if any(logged) and (points := _over_epochs(logged, tag))}
            lines += [{"name": _setting(sweep, numbers), "points": line}] if line else []
    shown = [tag for tag in tags if any(tag in line["points"] for line in lines)]
    return {"tags": shown, "lines": lines, "left_out": len(rows.columns["number"]) - len(lines)}


def _over_epochs(logged: Sequence[Sequence[Mapping[str, float]]], tag: str) -> list[tuple[int, float, float, float]]:
    """Epoch from 1, mean, lowest and highest value over runs; of many epochs every so many."""
    runs = [{int(row["epoch"]): row[tag] for row in epochs if is_finite(row.get(tag))} for epochs in logged]
    table = pd.DataFrame(dict(enumerate(runs))).sort_index()
    table = table.iloc[:: math.ceil(len(table) / MAX_EPOCHS) or 1]
    columns = (table.index + 1, table.mean(axis=1), table.min(axis=1), table.max(axis=1))
    return list(zip(*(column.tolist() for column in columns), strict=True))
