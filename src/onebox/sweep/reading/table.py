"""A sweep as it lies on disk: its jobs, what was varied, how each ended and what it reached."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from onebox.errors import BadInput, Line, duration
from onebox.runs.fingerprint import changed_parts
from onebox.runs.provenance import source_fingerprint
from onebox.runs.reading.changes import compare, old_data
from onebox.runs.reading.find import MISSING, Run, best_tag, find_runs, near_keys
from onebox.runs.reading.noise import lower_is_better, t95
from onebox.runs.reading.table import STYLES, Listing, cell, choose_metrics, nonfinite_notes, ranges, scalar, sortable
from onebox.sweep.job import PLAN, is_stale, read_plan
from onebox.sweep.queue import queued
from onebox.sweep.reading.orphans import superseded
from onebox.sweep.reading.sweep import Sweep

STATUSES = (  # the worst last
    *("completed", "pruned", "running", "submitted", "pending", "interrupted", "died", "failed", "stale"),
)
FOLD = "data.fold"
MAX_NOTE = 160  # characters


def read_sweep(folder: Path) -> Sweep:
    """Read the plan, if there is one, and the run directories below a folder; also while the sweep runs.

    Raises:
        BadInput: there are neither, or the plan cannot be read.
    """
    plan = read_plan(folder)
    old = superseded(plan)
    planned = {str(job["fingerprint"]): job for job in plan.get("jobs", [])}
    # The same config twice, in folders of other layouts: the one that completed counts, else the newest.
    runs = sorted(find_runs(folder)[::-1], key=lambda run: run.record.get("status") == "completed")
    found = {str(run.record.get("fingerprint") or run.path): run for run in runs}
    if not found and not planned:
        raise BadInput(f"{folder}: holds neither runs nor {PLAN}, so it is no sweep")
    found = dict(sorted(found.items(), key=lambda item: item[1].record.get("started", "")))
    planned = {name: job for name, job in planned.items() if name in found or name not in old}  # the rest never comes
    typed = {name: _typed(job) for name, job in planned.items()}
    varied = _varied(found, typed)
    folds = varied.pop(FOLD, {})  # its jobs are repetitions, as those of other seeds are
    typed = {name: _typed(run.record) for name, run in found.items()} | typed
    names = list(dict.fromkeys([*planned, *found]))
    orphans = [number for number, name in enumerate(names) if plan and (name in old or name not in planned)]
    unlike = [key for key in varied if sum(key in values for values in typed.values()) < len(names) / 2]
    unlike = unlike if len(unlike) > 1 else []
    usual = {key: _usual(key, varied, typed) for key in unlike}
    source = source_fingerprint()
    waiting = queued(folder, {name: run.record for name, run in found.items()})
    changed = dict(zip(found, old_data(list(found.values())), strict=True))
    jobs, every, results = [], [], []
    for number, name in enumerate(names):
        job = _job(found.get(name), planned.get(name, {}), source, changed.get(name, ""))
        if name in waiting and job["status"] in ("pending", "interrupted", "died", "failed"):
            job |= {"status": "submitted", "note": ""}
        values = {key: column.get(name, math.nan) for key, column in varied.items()}
        what = {"what": " ".join(_unlike(name, usual, varied, typed))} if unlike else {}
        if name in folds:
            seed, setting = job["seed"], " ".join(f"{key}={cell(value)}" for key, value in values.items())
            stale = job["note"] if job["status"] == "stale" else ""
            job |= {"seed": f"{cell(seed)} fold={cell(folds[name])}", "group": f"{setting} {stale}"}
        jobs.append(job | values | what)
        every.append(_run(found.get(name), folder / name, planned.get(name, {}), number=number, status=job["status"]))
        has_result = job["status"] in ("completed", "stale")
        results.append({**every[-1].tags, **every[-1].floors} if has_result else {})
    frame = pd.DataFrame(jobs, dtype=object)
    frame["seconds"] = frame["seconds"].astype(float)
    frame = frame.join(pd.DataFrame(results, index=range(len(jobs)), dtype=float))
    config = [*found.values()][-1].config if found else {}
    alike = [key for key in varied if key not in unlike]
    return Sweep(folder, _mode(plan, config), list(varied), alike, every, frame, orphans)


def list_sweep(sweep: Sweep, *, metrics: Sequence[str] = (), seeds: bool = False, sort: str | None = None) -> Listing:
    """The table, the best row first.

    Args:
        sweep: the sweep.
        metrics: to show beside the objective in place of the usual ones.
        seeds: one row a job, instead of one for all jobs that differ by the seed alone.
        sort: a metric (the best first), a varied key, `seed`, `status`, `number` or `time` instead of the objective.

    Raises:
        BadInput: nothing is called `sort`, or no job has one of the metrics.
    """
    tags = list(dict.fromkeys([*sweep.mode, *choose_metrics(metrics, sweep.runs, sweep.runs)]))
    facts = [*sweep.varied, "seed", "status", "number", "time"]
    if sort and sort not in (*facts, *tags):
        if not any(sort in run.tags for run in sweep.runs):
            raise BadInput(f"--sort {sort}: {near_keys(sort, sweep.runs)}; or one of {', '.join(facts)}")
        tags.append(sort)
    rows = _rows(sweep, tags, by="number" if seeds else "group")
    rows = rows.iloc[_order(sweep, rows, sort)]
    several = bool((rows["jobs"] > 1).any())
    counted = ["seeds"] if several else ["seed"] if seeds or sweep.jobs["seed"].nunique() > 1 else []
    status = ["status"] if set(rows["status"]) != {"completed"} else []
    front = ["best"] if len(sweep.mode) > 1 else []
    objective = ", ".join(f"{tag} ({mode})" for tag, mode in sweep.mode.items())
    legend = f"● on the Pareto front of {objective}" if front else "" if sort else f"best first by {objective}"
    legend += "; " * bool(legend and sort) + (f"sorted by {sort}" if sort else "")
    repeated = "seeds and folds" if sweep.jobs["seed"].astype(str).str.contains("fold").any() else "seeds"
    legend += f"; mean ± 95 % interval over {repeated}" if several else ""
    total = len(sweep.jobs)
    totals = f"{total:,} job{'s'[: total != 1]}: {_counted(sweep.jobs['status'])}"
    return Listing(
        {str(name): values.tolist() for name, values in rows.items()},
        shown=[
            *["number", *sweep.columns, *counted, *status, *front, *tags, "seconds"],
            *([] if several else ["fingerprint"]),
        ],
        metrics=tags,
        title=str(sweep.folder),
        notes=[
            *_notes(sweep),
            [(legend, "dim")],
            *nonfinite_notes(sweep.runs),
            [(f"{totals}; {duration(sweep.jobs['seconds'].sum())} of work", "")],
        ],
        facts={
            "sweep": str(sweep.folder),
            "objective": dict(sweep.mode),
            "varied": list(sweep.varied),
            "totals": _counts(sweep.jobs["status"]),
        },
    )


def _varied(found: Mapping[str, Run], typed: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key or group that differs between the jobs -> its value in each job where it is known."""
    changes = {
        item.key: {name: scalar(value) for name, value in zip(found, item.values, strict=True)}
        for item in compare(list(found.values()))
        if item.key != "seed" and (item.matters or item.origin == "override")
    }
    columns = {}
    for key in dict.fromkeys(key for values in typed.values() for key in values):
        several = len({repr(values.get(key, MISSING)) for values in typed.values()}) > 1
        if key != "seed" and (several or key in changes):
            known = changes.get(key) or {name: scalar(run.value(key)) for name, run in found.items()}
            columns[key] = {name: scalar(values[key]) for name, values in typed.items() if key in values} | known
    return columns | {key: values for key, values in changes.items() if key not in columns}


def _usual(key: str, varied: Mapping[str, Mapping[str, Any]], typed: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The value of a varied key that most jobs have, as it is shown; None where some job sets the key."""
    if any(key in job for job in typed.values()):
        return None
    return Counter(map(cell, varied[key].values())).most_common(1)[0][0]


def _unlike(
    name: str,
    usual: Mapping[str, str | None],
    varied: Mapping[str, Mapping[str, Any]],
    typed: Mapping[str, Mapping[str, Any]],
) -> Iterator[str]:
    """`KEY=VALUE` for each of some varied keys that a job sets; of one that none sets, unless the value is usual."""
    for key, common in usual.items():
        value = varied[key].get(name, MISSING)
        if value is not MISSING and (key in typed[name] if common is None else cell(value) != common):
            yield f"{key}={cell(value)}"


def _run(run: Run | None, folder: Path, planned: Mapping[str, Any], **facts: Any) -> Run:
    """A job as an expression of --where sees it."""
    if run is not None:
        return Run(run.path, {**run.record, **facts})
    choices = {key.replace(".", "/"): value for key, value in _typed(planned).items()}
    return Run(folder, {**planned, "choices": choices, **facts})


def _typed(job: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value of each override, of a plan or of run.json."""
    typed = {}
    for text in job.get("overrides", ()):
        key, _, value = text.partition("=")
        try:
            typed[key.lstrip("+~")] = json.loads(value)
        except ValueError:
            typed[key.lstrip("+~")] = value.strip("'")
    return typed


def _job(run: Run | None, planned: Mapping[str, Any], source: str, changed: str) -> dict[str, Any]:
    """The facts of a job, see `Sweep.jobs`; `changed` is what newer jobs say of its data."""
    record = planned if run is None else run.record
    status, note = str(record.get("status", "pending")), ""
    if status == "completed" and (note := _stale(record, planned, source, changed)):
        status = "stale"
    elif status == "died":
        note = "killed, out of memory, or the machine went down"
    elif status == "pruned":
        note = str(record.get("pruned", ""))
    elif status == "failed":
        error = record.get("error", {})
        note = " ".join(f"{error.get('type', 'error')}: {error.get('message', '')}".split())
    spent = [part["seconds"] for part in (record, *record.get("attempts", ())) if part.get("seconds") is not None]
    if status == "running":
        spent.append((pd.Timestamp.now("UTC") - pd.to_datetime(record["started"], errors="coerce")).total_seconds())
    fingerprint = str(record.get("fingerprint", ""))
    return {
        "status": status,
        "note": note,
        "fingerprint": fingerprint,
        "group": f"{record.get('fingerprint_seedless') or fingerprint} {note if status == 'stale' else ''}",
        "seed": scalar(record.get("seed", MISSING)),
        "run": None if run is None else str(run.path),
        "seconds": sum(spent) if spent else math.nan,
    }


def _stale(record: Mapping[str, Any], planned: Mapping[str, Any], source: str, changed: str) -> str:
    if is_stale(record, source, lambda: None):
        return f"other code ({record.get('source')})"
    now, before = planned.get("data_fingerprint") or {}, record.get("data_fingerprint") or {}
    if is_stale(record, source, lambda: now or None):
        changed = ", ".join(changed_parts(before, now))
    return f"other data ({changed})" if changed else ""


def _mode(plan: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Each tag of the objective, as of the best epoch, and its direction: of the plan, the newest run, or the usual."""
    objective = plan.get("objective") or config.get("objective") or config.get("monitor") or "val/joint_acc"
    known = {str(config.get("monitor")): str(config.get("monitor_mode", "max")), **plan.get("mode", {})}
    tags = [objective] if isinstance(objective, str) else objective
    return {best_tag(tag): known.get(tag, "min" if lower_is_better(tag) else "max") for tag in tags}


def _rows(sweep: Sweep, tags: Sequence[str], by: str) -> pd.DataFrame:
    """One row for all jobs that are equal in `by`: means, 95 % intervals of the means, and the facts of all of them."""
    floors = [f"floor/{tag.removeprefix('test/')}" for tag in tags if tag.startswith("test/")]
    jobs = sweep.jobs.rename_axis("number").reset_index()
    jobs = jobs.reindex(columns=list(dict.fromkeys([*jobs, *tags, *floors])))
    done = jobs["status"].isin(["completed", "stale"])
    jobs = jobs.assign(number=jobs["number"].astype(object), seeds=done, jobs=1)
    groups = jobs.groupby(jobs[by], sort=False)
    half = groups[list(tags)].count().map(lambda n: t95(n - 1) / n**0.5 if n > 1 else math.nan)
    texts = ("status", "number", "seed", "fingerprint", "note", "run")
    members = {name: _members(jobs[by], jobs[name]) for name in texts}
    means = groups[list(tags)].mean()
    # Of a job that ran all that varied is known.
    varied = jobs.sort_values("run", key=pd.Series.isna, kind="stable").drop_duplicates(by).set_index(by)
    points = pd.DataFrame({tag: means[tag] * (-1 if mode == "min" else 1) for tag, mode in sweep.mode.items()})
    parts = [
        varied.reindex(means.index)[[*sweep.varied, *(name for name in sweep.columns if name == "what")]],
        members.pop("status").map(lambda values: values[0] if len(set(values)) == 1 else _counted(values)),
        means,
        (groups[list(tags)].std() * half).add_suffix("_interval"),
        groups[floors].mean().dropna(axis=1, how="all"),
        groups["seconds"].mean(),
        groups[["jobs", "seeds"]].sum(),
        _is_best(points).rename("best"),
        pd.DataFrame({name: values.map(_joined) for name, values in members.items()}),
    ]
    return pd.concat(parts, axis=1)


def _members(keys: "pd.Series[Any]", values: "pd.Series[Any]") -> "pd.Series[Any]":
    """The values of each group as a list, in the order of the groups; pandas makes a series of each first."""
    found: dict[Any, list[Any]] = {}
    for key, value in zip(keys, values, strict=True):
        found.setdefault(key, []).append(value)
    return pd.Series(found, name=values.name, dtype=object)


def _is_best(points: pd.DataFrame) -> "pd.Series[bool]":
    """Whether no other row beats it: is at least as large in every column, and larger in one."""
    values = points.to_numpy(dtype=float)
    if values.shape[1] == 1:
        return points.iloc[:, 0] == points.iloc[:, 0].max()
    beaten = [bool(((values >= row).all(axis=1) & (values > row).any(axis=1)).any()) for row in values]
    return points.notna().all(axis=1) & ~np.array(beaten, dtype=bool)


def _order(sweep: Sweep, rows: pd.DataFrame, sort: str | None) -> list[int]:
    """The places of the rows, sorted."""
    key = sort or next(iter(sweep.mode))
    numbers = rows["number"].map(lambda text: int(str(text).partition(" ")[0]))
    if key == "number":
        values = numbers
    elif key == "status":  # the worst first
        values = rows[key].map(lambda text: -_badness(text.rpartition(" ")[2]))
    else:
        values = pd.Series(sortable(rows["seconds" if key == "time" else key].tolist()), rows.index)
    is_metric = f"{key}_interval" in rows
    if is_metric and sweep.mode.get(key, "min" if lower_is_better(key) else "max") == "max":
        values = -values.astype(float)  # None of all jobs would be no number
    later = ~rows["best"] if len(sweep.mode) > 1 and sort is None else pd.Series(False, rows.index)
    table = pd.DataFrame({"later": later, "value": values, "number": numbers}).reset_index(drop=True)
    return table.sort_values(["later", "value", "number"], na_position="last").index.tolist()


def _joined(values: Sequence[Any]) -> Any:
    """The value of a single job, or those of several as a text."""
    if len(values) == 1:
        return values[0]
    return " ".join(str(value) for value in dict.fromkeys(values) if value != "" and not pd.isna(value))


def _badness(status: str) -> int:
    return STATUSES.index(status) if status in STATUSES else len(STATUSES)


def _counts(statuses: Iterable[str]) -> dict[str, int]:
    """How many jobs have each status that occurs, the worst last."""
    return dict(sorted(Counter(statuses).items(), key=lambda item: _badness(item[0])))


def _counted(statuses: Iterable[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in _counts(statuses).items())


def _notes(sweep: Sweep) -> Iterator[Line]:
    """One line for each reason for which jobs failed or died, and one for each way in which others are stale."""
    bad = sweep.jobs[sweep.jobs["status"].isin(["failed", "died"])]
    for status, note in bad[["status", "note"]].drop_duplicates().itertuples(index=False):
        jobs = bad[(bad["status"] == status) & (bad["note"] == note)]
        reason = note if len(note) <= MAX_NOTE else f"{note[: MAX_NOTE - 1]}…"
        numbers = ranges(jobs.index)
        which = f"#{numbers} {sweep.name(jobs.index[0])}" if len(jobs) == 1 else f"{len(jobs):,} jobs: #{numbers}"
        yield [(f"{status} ", STYLES[status]), (f"{reason} ({which.strip()})", "")]
    for note, count in Counter(sweep.jobs["note"][sweep.jobs["status"] == "stale"]).items():
        text = f"{count:,} job{'s'[: count != 1]} completed under {note}; rerun=stale runs them again"
        yield [("stale ", STYLES["stale"]), (text, "")]
    if sweep.orphans:
        yield [(f"the plan no longer has #{ranges(sweep.orphans)}, see --orphans", "")]
