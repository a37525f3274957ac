"""A sweep as it lies on disk: its jobs, what was varied, how each ended and what it reached."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from onebox.errors import BadInput, is_number
from onebox.runs.changes import compare
from onebox.runs.find import MISSING, Run, find_runs, near_keys
from onebox.runs.noise import interval, lower_is_better
from onebox.runs.provenance import source_fingerprint
from onebox.sweep.job import is_stale
from onebox.sweep.plan_file import FILE, read_plan

METRICS = ("test/joint_acc", "test/acc", "test/iou")  # shown beside the objective
STATUSES = ("completed", "running", "pending", "interrupted", "died", "failed", "stale")


@dataclass(frozen=True, eq=False)
class Job:
    """One job of a sweep.

    Attributes:
        run: what it left; None while it has no directory.
        number: in the order of the plan, from 0; after the planned ones, by start.
        status: that of run.json, where `running` is `died` when no process holds the directory; `stale` for a run that
            completed under other code or data; `pending` for one that is planned only.
        note: why it failed, or what is other about a stale one; else empty.
        fingerprint: of its config.
        group: equal for jobs that differ by the seed alone.
        seed: its seed.
        varied: each varied key -> its value, `MISSING` where it has none or it is not known.
        seconds: spent on it in all attempts, until now for a running one; None when it was not begun.
    """

    run: Run | None
    number: int
    status: str
    note: str
    fingerprint: str
    group: str
    seed: Any
    varied: Mapping[str, Any]
    seconds: float | None

    @property
    def tags(self) -> Mapping[str, float]:
        """Its metrics; empty when it did not complete."""
        return self.run.tags if self.run is not None and self.status in ("completed", "stale") else {}

    def floor(self, tag: str) -> float | None:
        """See `onebox.runs.find.Run.floor`."""
        return self.run.floor(tag) if self.run is not None else None


@dataclass(frozen=True, eq=False)
class Sweep:
    """All jobs of a sweep.

    Attributes:
        folder: where they lie.
        objective: the tags that it optimises, the first one sorts the table.
        mode: tag -> `max` or `min`.
        varied: keys and groups that differ between the jobs, without the seed.
        jobs: in the order of their numbers.
    """

    folder: Path
    objective: tuple[str, ...]
    mode: Mapping[str, str]
    varied: tuple[str, ...]
    jobs: tuple[Job, ...]

    @property
    def totals(self) -> dict[str, int]:
        """How many jobs have each status that occurs."""
        count = Counter(job.status for job in self.jobs)
        return {status: count[status] for status in sorted(count, key=_status_order)}

    @property
    def seconds(self) -> float:
        """Time of all jobs together, as if they had run one after another."""
        return sum(job.seconds or 0.0 for job in self.jobs)

    @property
    def seconds_left(self) -> float | None:
        """What the rest takes at the pace until now; None when no job is running or none has completed."""
        known = [job.seconds for job in self.jobs if job.status == "completed" and job.seconds]
        running = [job.seconds or 0.0 for job in self.jobs if job.status == "running"]
        if not known or not running:
            return None
        waiting = sum(job.status == "pending" for job in self.jobs) * mean(known)
        return (waiting + sum(max(0.0, mean(known) - spent) for spent in running)) / len(running)

    def lower_is_better(self, tag: str) -> bool:
        """Whether a smaller value of a metric is the better one."""
        return self.mode[tag] == "min" if tag in self.mode else lower_is_better(tag)

    def metrics(self, wanted: Sequence[str] = ()) -> list[str]:
        """The tags to show: the objective, and those that are wanted or else the usual ones.

        Raises:
            BadInput: jobs completed, but none has a metric that is wanted.
        """
        done = [job for job in self.jobs if job.tags]
        for tag in wanted:
            if done and not any(tag in job.tags for job in done):
                raise BadInput(near_keys(tag, [job.run for job in done if job.run is not None]))
        usual = [tag for tag in METRICS if any(tag in job.tags for job in done)]
        return list(dict.fromkeys([*self.objective, *(wanted or usual)]))


@dataclass(frozen=True)
class Value:
    """A metric over the seeds of a row.

    Attributes:
        mean: of those that completed.
        interval: half-width of the 95 % interval of the mean; None for a single seed.
        seeds: how many.
    """

    mean: float
    interval: float | None
    seeds: int


@dataclass(frozen=True, eq=False)
class Row:
    """One row of the table: a job, or the jobs that differ by the seed alone.

    Attributes:
        jobs: one for each seed.
        values: tag -> value, without those that no job has.
        is_best: whether no other row is better: in the objective, or with several of them on the Pareto front.
    """

    jobs: tuple[Job, ...]
    values: Mapping[str, Value]
    is_best: bool = False

    @property
    def varied(self) -> Mapping[str, Any]:
        """Each varied key -> its value; of a job that ran, if there is one, as then all are known."""
        return next((job for job in self.jobs if job.run is not None), self.jobs[0]).varied

    @property
    def statuses(self) -> dict[str, int]:
        """How many of its jobs have each status that occurs."""
        count = Counter(job.status for job in self.jobs)
        return {status: count[status] for status in sorted(count, key=_status_order)}

    @property
    def seconds(self) -> float | None:
        """Mean time of a job that was begun."""
        known = [job.seconds for job in self.jobs if job.seconds is not None]
        return mean(known) if known else None

    def floor(self, tag: str) -> float | None:
        """See `Job.floor`."""
        return next((floor for job in self.jobs if (floor := job.floor(tag)) is not None), None)


def read_sweep(folder: Path) -> Sweep:
    """Read the plan, if there is one, and the run directories below a folder; also while the sweep runs.

    Raises:
        BadInput: there are neither, or the plan cannot be read.
    """
    plan = read_plan(folder)
    # The same config twice, in folders of other layouts: the one that completed counts, else the newest.
    found: dict[str, Run] = {}
    for one in sorted(find_runs(folder), key=lambda run: run.record.get("status") != "completed"):
        found.setdefault(str(one.record.get("fingerprint") or one.path), one)
    planned = {str(job["fingerprint"]): job for job in plan.get("jobs", [])}
    if not found and not planned:
        raise BadInput(f"{folder}: holds neither runs nor {FILE}, so it is no sweep")
    by_start = sorted(found.values(), key=lambda run: run.started)
    columns = _varied(by_start, list(planned.values()))
    positions = {run: position for position, run in enumerate(by_start)}
    source = source_fingerprint()
    jobs = []
    others = [name for name, run in sorted(found.items(), key=lambda item: item[1].started) if name not in planned]
    for number, name in enumerate([*planned, *others]):
        job = planned.get(name, {})
        run = found.get(name)
        if run is None:
            typed = _typed(job)
            values = {key: typed.get(key, MISSING) for key in columns}
        else:
            values = {key: column[positions[run]] if column else run.value(key) for key, column in columns.items()}
        jobs.append(_job(run, job, number, values, source))
    objective, mode = _objective(plan, by_start)
    return Sweep(folder, objective, mode, tuple(columns), tuple(jobs))


def rows(sweep: Sweep, tags: Iterable[str], *, seeds: bool = False, sort: str | None = None) -> list[Row]:
    """The rows of the table, the best first.

    Args:
        sweep: the sweep.
        tags: which metrics.
        seeds: one row a job, instead of one for all jobs that differ by the seed alone.
        sort: a metric (the best first), a varied key, `seed`, `status`, `number` or `time` instead of the objective.

    Raises:
        BadInput: nothing is called `sort`.
    """
    tags = list(dict.fromkeys([*tags, *([sort] if sort and any(sort in job.tags for job in sweep.jobs) else [])]))
    groups: dict[Any, list[Job]] = {}
    for job in sweep.jobs:
        groups.setdefault(job.number if seeds else job.group, []).append(job)
    found = [Row(tuple(jobs), _values(jobs, tags)) for jobs in groups.values()]
    best = _front(sweep, found)
    found = [replace(row, is_best=row in best) for row in found]
    return sorted(found, key=lambda row: _rank(sweep, row, sort))


def as_json(sweep: Sweep, found: Sequence[Row], tags: Sequence[str]) -> dict[str, Any]:
    """The table as one document."""

    def plain(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: None if value is MISSING else value for key, value in values.items()}

    return {
        "schema": 1,
        "sweep": str(sweep.folder),
        "objective": list(sweep.objective),
        "mode": dict(sweep.mode),
        "jobs": len(sweep.jobs),
        "totals": sweep.totals,
        "seconds": sweep.seconds,
        "seconds_left": sweep.seconds_left,
        "rows": [
            {
                "varied": plain(row.varied),
                "best": row.is_best,
                "statuses": row.statuses,
                "metrics": {tag: vars(value) for tag, value in row.values.items()},
                "floor": {tag: floor for tag in tags if (floor := row.floor(tag)) is not None},
                "seconds": row.seconds,
                "jobs": [
                    {
                        "run": str(job.run.path) if job.run is not None else None,
                        **{name: getattr(job, name) for name in ("number", "fingerprint", "seed", "status", "note")},
                        "metrics": {tag: job.tags[tag] for tag in tags if tag in job.tags},
                        "seconds": job.seconds,
                    }
                    for job in row.jobs
                ],
            }
            for row in found
        ],
    }


def _objective(plan: Mapping[str, Any], runs: Sequence[Run]) -> tuple[tuple[str, ...], dict[str, str]]:
    config = runs[-1].config if runs else {}
    objective = plan.get("objective") or config.get("objective") or config.get("monitor") or METRICS[0]
    modes = {str(config["monitor"]): str(config["monitor_mode"])} if "monitor_mode" in config else {}
    return tuple([objective] if isinstance(objective, str) else objective), {**modes, **plan.get("mode", {})}


def _varied(runs: Sequence[Run], planned: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Varied key or group -> the value of each run; none for one that only differs in the plan until now."""
    changes = {
        item.key: item.values
        for item in compare(runs)
        if item.key != "seed" and (item.matters or item.origin == "override")
    }
    typed = [_typed(job) for job in planned]
    columns = {}
    for key in dict.fromkeys(key for one in typed for key in one):
        several = len({repr(one.get(key, MISSING)) for one in typed}) > 1
        if key != "seed" and (several or key in changes):
            columns[key] = changes.get(key, ())
    return {**columns, **changes}


def _typed(planned: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value of each override."""
    found = {}
    for text in planned.get("overrides", ()):
        key, _, value = text.partition("=")
        try:
            found[key.lstrip("+~")] = json.loads(value)
        except ValueError:
            found[key.lstrip("+~")] = value.strip("'")
    return found


def _job(run: Run | None, planned: Mapping[str, Any], number: int, varied: Mapping[str, Any], source: str) -> Job:
    record = run.record if run is not None else planned
    status = str(record.get("status", "pending"))
    note = ""
    if status == "completed" and (stale := _stale(record, planned, source)):
        status, note = "stale", stale
    elif status == "died":
        note = "killed, out of memory, or the machine went down"
    elif status == "failed":
        error = record.get("error") or {}
        note = " ".join(f"{error.get('type', 'error')}: {error.get('message', '')}".split())
    fingerprint = str(record.get("fingerprint", ""))
    group = f"{record.get('fingerprint_seedless') or fingerprint} {note if status == 'stale' else ''}"
    return Job(run, number, status, note, fingerprint, group, record.get("seed"), varied, _seconds(record, status))


def _stale(record: Mapping[str, Any], planned: Mapping[str, Any], source: str) -> str:
    if is_stale(record, source, lambda: None):
        return f"other code ({record.get('source')})"
    now, before = planned.get("data_fingerprint") or {}, record.get("data_fingerprint") or {}
    if not is_stale(record, source, lambda: now or None):
        return ""
    return f"other data ({', '.join(part for part, value in now.items() if before.get(part) != value)})"


def _seconds(record: Mapping[str, Any], status: str) -> float | None:
    spent = [attempt.get("seconds") for attempt in record.get("attempts", [])] + [record.get("seconds")]
    if status == "running":
        spent[-1] = (datetime.now(UTC) - datetime.fromisoformat(record["started"])).total_seconds()
    known = [seconds for seconds in spent if seconds is not None]
    return sum(known) if known else None


def _values(jobs: Sequence[Job], tags: Iterable[str]) -> dict[str, Value]:
    found = {tag: [job.tags[tag] for job in jobs if tag in job.tags] for tag in tags}
    return {tag: Value(mean(values), interval(values), len(values)) for tag, values in found.items() if values}


def _front(sweep: Sweep, found: Sequence[Row]) -> list[Row]:
    """The rows that no other beats: at least as good in every objective and better in one."""
    points = {
        row: [row.values[tag].mean * (-1 if sweep.lower_is_better(tag) else 1) for tag in sweep.objective]
        for row in found
        if all(tag in row.values for tag in sweep.objective)
    }
    front: list[Row] = []
    for row in sorted(points, key=points.__getitem__, reverse=True):  # so that what beats a row comes before it
        above = [points[other] for other in front if points[other] != points[row]]
        if not any(all(b >= a for a, b in zip(points[row], point, strict=True)) for point in above):
            front.append(row)
    return front


def _rank(sweep: Sweep, row: Row, sort: str | None) -> tuple[Any, ...]:
    number = row.jobs[0].number
    tag = sort or sweep.objective[0]
    if sort in ("number", "status", "seed", "time"):
        by = {"number": number, "status": -_status_order([*row.statuses][-1]), "time": row.seconds}
        value = by.get(sort, row.jobs[0].seed)
    elif sort in sweep.varied:
        value = row.varied[sort]
    elif sort is not None and not any(sort in job.tags for job in sweep.jobs):
        known = [*sweep.varied, "seed", "status", "number", "time"]
        near = near_keys(sort, [job.run for job in sweep.jobs if job.tags and job.run is not None])
        raise BadInput(f"--sort {sort}: {near}; or one of {', '.join(known)}")
    else:
        value = row.values[tag].mean * (1 if sweep.lower_is_better(tag) else -1) if tag in row.values else None
    on_front = sort is None and len(sweep.objective) > 1 and row.is_best
    missing = value is MISSING or value is None
    return (not on_front, missing, not is_number(value), value if is_number(value) else str(value), number)


def _status_order(status: str) -> int:
    return STATUSES.index(status) if status in STATUSES else len(STATUSES)
