"""A sweep's table for people and for other programs."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from onebox.runs.diff_view import value_text
from onebox.runs.find import MISSING
from onebox.runs.listing import STYLES as RUN_STYLES
from onebox.sweep.table import Job, Row, Sweep, rows

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {**RUN_STYLES, "pending": "dim", "stale": "yellow"}
MAX_NOTES = 10  # jobs that did not complete; the rest is counted
MAX_NOTE = 160  # characters
MIN_VARIED = 14  # characters of what varied


def show(
    sweep: Sweep,
    console: "Console",
    *,
    metrics: Sequence[str] = (),
    seeds: bool = False,
    sort: str | None = None,
) -> None:
    """Print the table, what became of the jobs that did not complete, and the totals. For the options see `rows`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    tags = sweep.metrics(metrics)
    found = rows(sweep, tags, seeds=seeds, sort=sort)
    header, cells, floor = _table(sweep, found, tags, seeds=seeds)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{sweep.folder}", title_justify="left")
    for number, name in enumerate(header):
        text = name in ("status", "fingerprint") or name in sweep.varied
        title = name.replace("/", "/\n") if name in tags else name.replace(".", ".\n") if name in sweep.varied else name
        # Where the terminal is narrow, an interval goes below its mean first; what varied is never left out.
        wraps = name in tags or name in sweep.varied
        longest = max(map(len, title.split("\n")))
        if name not in tags:
            longest = max(longest, *(len(line[number]) for line in cells)) if cells else longest
        least = min(MIN_VARIED, longest) if name in sweep.varied else longest
        table.add_column(title, justify="left" if text else "right", no_wrap=not wraps, min_width=least)
    for row, line in zip(found, cells, strict=True):
        worst = [*row.statuses][-1]
        styles = {"status": STYLES.get(worst, ""), "fingerprint": "dim"}
        texts = [Text(text, style=styles.get(name, "")) for name, text in zip(header, line, strict=True)]
        table.add_row(*texts, style="bold" if row.is_best else "")
    if floor:
        table.add_section()
        table.add_row(*(Text(text, style="dim") for text in floor))
    console.print(table)
    for pieces in [_order(sweep, found, sort), *_notes(sweep)]:
        console.print(Text.assemble(*pieces), soft_wrap=True, highlight=False)
    console.print(Text(_footer(sweep)), soft_wrap=True, highlight=False)


def markdown(
    sweep: Sweep, *, metrics: Sequence[str] = (), seeds: bool = False, sort: str | None = None
) -> Iterator[str]:
    """The same as lines of Markdown."""
    tags = sweep.metrics(metrics)
    found = rows(sweep, tags, seeds=seeds, sort=sort)
    header, cells, floor = _table(sweep, found, tags, seeds=seeds)
    lines = [*cells, *([floor] if floor else [])]
    yield f"| {' | '.join(header)} |"
    yield "|" + "|".join("---" if name in sweep.varied or name == "status" else "---:" for name in header) + "|"
    yield from (f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)
    yield ""
    yield "".join(text for text, _ in _order(sweep, found, sort))
    yield from ("- " + "".join(text for text, _ in line) for line in _notes(sweep))
    yield ""
    yield _footer(sweep)


def write_csv(
    sweep: Sweep,
    file: TextIO,
    *,
    metrics: Sequence[str] = (),
    seeds: bool = False,
    sort: str | None = None,
    delimiter: str = ",",
) -> None:
    """Write one line a row, with all digits."""
    tags = sweep.metrics(metrics)
    found = rows(sweep, tags, seeds=seeds, sort=sort)
    floors = [tag for tag in tags if any(row.floor(tag) is not None for row in found)]
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    results = [name for tag in tags for name in ((tag,) if seeds else (tag, f"{tag}_interval", f"{tag}_seeds"))]
    one = ["seed", "fingerprint", "note", "run"] if seeds else ["jobs", "fingerprints"]
    floor_names = [f"floor/{tag.partition('/')[2]}" for tag in floors]
    writer.writerow([*sweep.varied, "status", *results, *floor_names, "seconds", "best", *one])
    for row in found:
        values: list[Any] = []
        for tag in tags:
            value = row.values.get(tag)
            columns = (value.mean, value.interval, value.seeds) if value else (None, None, 0)
            values += columns[:1] if seeds else columns
        job = row.jobs[0]
        path = job.run.path if job.run is not None else None
        fingerprints = " ".join(job.fingerprint for job in row.jobs)
        writer.writerow(
            [
                *(_plain(row.varied[key]) for key in sweep.varied),
                _status(row),
                *values,
                *(row.floor(tag) for tag in floors),
                row.seconds,
                int(row.is_best),
                *([job.seed, job.fingerprint, job.note, path] if seeds else [len(row.jobs), fingerprints]),
            ]
        )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03; below ten seconds with tenths."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _table(
    sweep: Sweep, found: Sequence[Row], tags: Sequence[str], *, seeds: bool
) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows and the floor, which is empty when there is none or when it stands in the rows."""
    several = any(len(row.jobs) > 1 for row in found)
    floors = {tag: {f"{floor:.3f}" for row in found if (floor := row.floor(tag)) is not None} for tag in tags}
    vary = any(len(texts) > 1 for texts in floors.values())  # rows of several data sets

    def metric(row: Row, tag: str) -> str:
        value = row.values.get(tag)
        if value is None:
            return "-"
        low = row.floor(tag) if vary else None
        spread = "" if value.interval is None else f" ± {value.interval:.3f}"
        return f"{value.mean:.3f}{spread}" + (f" (floor {low:.3f})" if low is not None else "")

    columns = {key: [_text(row.varied[key]) for row in found] for key in sweep.varied}
    if several:
        columns["seeds"] = [_seeds(row) for row in found]
    elif seeds or len({job.seed for job in sweep.jobs}) > 1:
        columns["seed"] = [str(row.jobs[0].seed) for row in found]
    if any([*row.statuses] != ["completed"] for row in found):
        columns["status"] = [_status(row) for row in found]
    if len(sweep.objective) > 1:
        columns["front"] = ["●" if row.is_best else "" for row in found]
    columns |= {tag: [metric(row, tag) for row in found] for tag in tags}
    columns["time"] = ["-" if row.seconds is None else duration(row.seconds) for row in found]
    if not several:
        columns["fingerprint"] = [row.jobs[0].fingerprint for row in found]
    header = list(columns)
    last = [next(iter(floors[name]), "") if name in floors else "" for name in header]
    last[header.index("status") if "status" in header else 0] = "floor"
    return (
        header,
        [list(line) for line in zip(*columns.values(), strict=True)],
        last if any(floors.values()) and not vary else [],
    )


def _seeds(row: Row) -> str:
    counted = sum(bool(job.tags) for job in row.jobs)
    return f"{counted}" if counted == len(row.jobs) else f"{counted} of {len(row.jobs)}"


def _status(row: Row) -> str:
    statuses = row.statuses
    return next(iter(statuses)) if len(statuses) == 1 else ", ".join(f"{n} {status}" for status, n in statuses.items())


def _order(sweep: Sweep, found: Sequence[Row], sort: str | None) -> list[tuple[str, str]]:
    objective = ", ".join(f"{tag} ({'min' if sweep.lower_is_better(tag) else 'max'})" for tag in sweep.objective)
    if len(sweep.objective) > 1:
        text = f"● on the Pareto front of {objective}" + (f"; sorted by {sort}" if sort else "")
    else:
        text = f"sorted by {sort}" if sort else f"best first by {objective}"
    if any(value.interval is not None for row in found for value in row.values.values()):
        text += "; mean ± 95 % interval over seeds"
    return [(text, "dim")]


def _notes(sweep: Sweep) -> Iterator[list[tuple[str, str]]]:
    """One line for each job that failed or died, and one for each way in which others are stale."""
    ended = [job for job in sweep.jobs if job.status in ("failed", "died")]
    for job in ended[:MAX_NOTES]:
        path = job.run.path.relative_to(sweep.folder) if job.run is not None else ""
        note = job.note if len(job.note) <= MAX_NOTE else f"{job.note[: MAX_NOTE - 1]}…"
        yield [(f"{job.status} ", STYLES[job.status]), (f"{_name(sweep, job)}: {note} ({path})", "")]
    if len(ended) > MAX_NOTES:
        yield [(f"and {len(ended) - MAX_NOTES} more that failed or died (--seeds shows them)", "dim")]
    stale: dict[str, int] = {}
    for job in sweep.jobs:
        if job.status == "stale":
            stale[job.note] = stale.get(job.note, 0) + 1
    for note, count in stale.items():
        yield [("stale ", STYLES["stale"]), (f"{_jobs(count)} completed under {note}; rerun=stale runs them again", "")]


def _name(sweep: Sweep, job: Job) -> str:
    parts: Mapping[str, Any] = {**job.varied, "seed": job.seed}
    seeds = len({other.seed for other in sweep.jobs}) > 1
    shown = [
        f"{key}={_text(value)}" for key, value in parts.items() if value is not MISSING and (key != "seed" or seeds)
    ]
    return " ".join(shown) or job.fingerprint


def _footer(sweep: Sweep) -> str:
    totals = ", ".join(f"{count} {status}" for status, count in sweep.totals.items())
    left = sweep.seconds_left
    end = f"; about {duration(left)} left" if left is not None else ""
    return f"{_jobs(len(sweep.jobs))}: {totals}; {duration(sweep.seconds)} of work{end}"


def _jobs(count: int) -> str:
    return f"{count:,} job{'s' if count != 1 else ''}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is MISSING else value_text(value)


def _plain(value: Any) -> Any:
    return "" if value is MISSING else value if isinstance(value, int | float | str) else value_text(value)
