"""Runs as a pandas table; and how such a table is shown to people and given to programs."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pandas as pd

from onebox.errors import BadInput
from onebox.runs.diff_view import Line, value_text
from onebox.runs.find import MISSING, Run, find_runs, near_keys
from onebox.runs.fingerprint import flatten
from onebox.runs.where import select
from onebox.text import duration, printable

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 2
METRICS = ("test/joint_acc", "test/acc", "test/iou", "val/joint_acc")  # shown beside what runs monitor
FACTS = ("name", "status", "started", "seconds", "fingerprint", "fingerprint_seedless", "seed")
STYLES = {
    **{"completed": "green", "running": "cyan", "pending": "dim", "interrupted": "yellow"},
    **{"died": "red", "failed": "red", "stale": "yellow"},
}
TITLES = {"seconds": "time", "best": "front"}
PLACES = ("run_dir=", "hydra", "data_dir=")  # overrides that say where a run lies, not what it is
MIN_WIDTH = 14  # characters of a column that may take several lines


def runs(folder: str | Path = "outputs") -> pd.DataFrame:
    """All runs below a folder as a table, the newest first.

    Args:
        folder: where runs are looked for.

    Returns:
        One row for each run, indexed by its path. The columns are facts of run.json (`status`, `started`, `seconds`,
        `seed`, ...), values of the config (`optimizer.lr`; lists as JSON), the option of each group (`loss/loc`),
        metrics of the best epoch and of the test (`val/joint_acc`, `test/iou`), and the floor of the latter
        (`floor/iou`). What a run does not have is missing.
    """
    cells = [
        {key: scalar(value) for key, value in flatten(dict(run.config))}
        | run.record.get("choices", {})
        | run.tags
        | {f"floor/{name}": value for name, value in run.metrics.get("floor", {}).items()}
        | {key: run.record.get(key) for key in FACTS}
        | {"run": str(run.path)}
        for run in find_runs(Path(folder))
    ]
    frame = pd.DataFrame(cells, columns=None if cells else ["run", *FACTS]).set_index("run")
    return frame[[*FACTS, *frame.columns.difference(list(FACTS), sort=False)]]


@dataclass(frozen=True, eq=False)
class Listing:
    """A table to be printed.

    Attributes:
        frame: all values. Beside the column of a metric there may be `TAG_interval` and `floor/NAME`; rows are printed
            in bold where `best` is true.
        shown: the columns for people, in order; programs get all.
        metrics: those of them that are metrics.
        wrapped: those that may take several lines of a narrow terminal.
        title: stands above it on a terminal.
        notes: lines that stand below it.
        facts: what JSON says beside the rows.
    """

    frame: pd.DataFrame
    shown: Sequence[str]
    metrics: Sequence[str]
    wrapped: Sequence[str]
    title: str = ""
    notes: Sequence[Line] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def print(self, *, csv: str | None = None, markdown: bool = False, as_json: bool = False) -> None:
        """Print it: on a terminal for people, into a pipe as tab-separated values, or as is asked for.

        Args:
            csv: a file that receives comma-separated values, or `-` to print them.
            markdown: print Markdown.
            as_json: print one JSON document.

        Raises:
            BadInput: more than one of them is asked for.
        """
        if (csv is not None) + markdown + as_json > 1:
            raise BadInput("--csv, --markdown and --json: choose one")
        if as_json:
            rows = self.frame.astype(object).where(self.frame.notna(), None).to_dict("records")
            print(json.dumps({"schema": SCHEMA, **self.facts, "rows": rows}, indent=2, ensure_ascii=False))
        elif markdown:
            print(*self.markdown(), sep="\n")
        elif csv not in (None, "-"):
            from onebox.files import replacing

            with replacing(str(csv)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                self.write(file, ",")
        elif csv == "-" or not sys.stdout.isatty():
            self.write(sys.stdout, "," if csv == "-" else "\t")
        else:
            from rich.console import Console

            self.show(Console(highlight=False))

    def write(self, file: IO[str], delimiter: str) -> None:
        """Write a line for each row, with all digits."""
        texts = self.frame.map(lambda value: value if isinstance(value, int | float) else printable(value_text(value)))
        texts.where(self.frame.notna()).to_csv(file, sep=delimiter, index=False, lineterminator="\n")

    def markdown(self) -> list[str]:
        """Lines of Markdown."""
        columns = self._texts()
        floor = self._floor()
        rows = [
            [TITLES.get(name, name) for name in columns],
            *zip(*columns.values(), strict=True),
            *([floor] if floor else []),
        ]
        lines = [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows]
        lines.insert(1, "|" + "|".join("---:" if self._is_number(name) else "---" for name in self.shown) + "|")
        return [
            *lines,
            *(["", *("- " + "".join(text for text, _ in line) for line in self.notes)] if self.notes else []),
        ]

    def show(self, console: "Console") -> None:
        """Print it for people."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        def styled(name: str, text: str) -> Text:
            colour = STYLES.get(text.rpartition(" ")[2], "") if name == "status" else ""
            return Text(text, "dim" if name == "fingerprint" else colour)

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        table.title = Text(printable(self.title)) if self.title else None
        columns = self._texts()
        for name, cells in columns.items():
            wraps = name in (*self.metrics, *self.wrapped)
            title = TITLES.get(name, name.replace("/", "/\n").replace(".", ".\n") if wraps else name)
            # Where a terminal is narrow, an interval goes below its mean.
            width = max(map(len, [*title.split("\n"), *(cells if name not in self.metrics else [])]))
            table.add_column(
                Text(title),
                justify="right" if self._is_number(name) else "left",
                no_wrap=not wraps,
                min_width=min(MIN_WIDTH, width) if name in self.wrapped else width,
            )
        bold = self.frame["best"] if "best" in self.frame else [False] * len(self.frame)
        for is_best, *row in zip(bold, *columns.values(), strict=True):
            texts = [styled(name, text) for name, text in zip(columns, row, strict=True)]
            table.add_row(*texts, style="bold" if is_best else "")
        if floor := self._floor():
            table.add_section()
            table.add_row(*(Text(text, "dim") for text in floor))
        console.print(table)
        for line in self.notes:
            console.print(Text.assemble(*((printable(text), style) for text, style in line)), soft_wrap=True)

    def _is_number(self, name: str) -> bool:
        return name in self.metrics or pd.api.types.is_numeric_dtype(self.frame[name])

    def _texts(self) -> dict[str, list[str]]:
        """The column for people -> its cells."""
        return {name: [printable(text) for text in self._column(name)] for name in self.shown}

    def _column(self, name: str) -> Iterable[str]:
        values = self.frame[name]
        if name in self.metrics:
            empty = pd.Series(math.nan, self.frame.index)
            floors = self._floors(name)
            low = floors if floors.nunique() > 1 else empty  # of several data sets
            return map(_metric, values, self.frame.get(f"{name}_interval", empty), low)
        if name == "seeds":
            jobs = self.frame["jobs"]
            return [
                f"{done}" if done == count else f"{done} of {count}" for done, count in zip(values, jobs, strict=True)
            ]
        if name in ("seconds", "started"):
            text = duration if name == "seconds" else _local
            return ["-" if pd.isna(value) else text(value) for value in values]
        if name == "best":
            return ["●" if is_best else "" for is_best in values]
        return map(str if name in ("run", "by hand") else cell, values)

    def _floors(self, name: str) -> "pd.Series[float]":
        """The floor of a metric in each row; only those of the test have one."""
        split, _, metric = name.partition("/")
        empty = pd.Series(math.nan, self.frame.index)
        return self.frame.get(f"floor/{metric}", empty) if split == "test" else empty

    def _floor(self) -> list[str]:
        """A row with the floor of each metric; empty when no column has one that is the same for all rows."""
        row = []
        for name in self.shown:
            known = self._floors(name).dropna().unique()
            row.append(f"{known[0]:.3f}" if len(known) == 1 else "")
        if any(row):
            row[self.shown.index("status") if "status" in self.shown else 0] = "floor"
            return row
        return []


def list_runs(
    outputs: Path, *, where: str | None, sort: str | None, ascending: bool, limit: int, metrics: Sequence[str]
) -> Listing:
    """The runs below a folder that meet an expression, the newest or the largest in `sort` first.

    Args:
        outputs: the folder.
        where: see `onebox.runs.where`.
        sort: a key of `Run.value`; runs that have no such value come last.
        ascending: the oldest or the smallest first.
        limit: how many at most; 0 for all.
        metrics: which to show in place of the usual ones.

    Raises:
        BadInput: the expression cannot be read, or no run has one of the keys or metrics.
    """
    every = find_runs(outputs)
    check_metrics(metrics, every)
    found, keys = select(every, where) if where else (every, [])
    if sort:
        keys = list(dict.fromkeys([*keys, sort]))
        if every and all(run.value(sort) is MISSING for run in every):
            raise BadInput(f"--sort: {near_keys(sort, every)}")
        values = ordered(pd.Series([scalar(run.value(sort)) for run in found], dtype=object))
        places = values.sort_values(ascending=ascending, na_position="last", kind="stable").index
        found = [found[place] for place in places]
    elif ascending:
        found = found[::-1]
    total, found = len(found), found[: limit or None]
    tags = list(metrics) or usual_metrics(found)
    typed = [[text for text in run.record.get("overrides", []) if not text.startswith(PLACES)] for run in found]
    # What was typed for all of them says nothing of any.
    shared = [text for text in typed[0] if all(text in texts for texts in typed)] if len(found) > 1 else []
    facts = {key: [run.record.get(key, math.nan) for run in found] for key in FACTS}
    columns = {"run": [str(run.path) for run in found], **facts}
    columns |= {key: [scalar(run.value(key)) for run in found] for key in keys if key not in (*columns, *tags)}
    columns["overrides"] = [" ".join(run.record.get("overrides", [])) for run in found]
    columns["by hand"] = [" ".join(text for text in texts if text not in shared) for texts in typed]
    frame = pd.DataFrame(columns, dtype=object)
    results = pd.DataFrame([[run.tags.get(tag, math.nan) for tag in tags] for run in found], columns=tags, dtype=float)
    notes: list[Line] = [[(f"all of them: {' '.join(shared)}", "dim")]] if shared else []
    if len(found) < total:
        notes.append([(f"{total - len(found):,} more (--limit 0 shows all {total:,})", "")])
    return Listing(
        frame.join(results),
        shown=[
            "run",
            "started",
            "status",
            "fingerprint",
            *tags,
            *(key for key in keys if key not in (*tags, "started", "status", "fingerprint")),
            "by hand",
        ],
        metrics=tags,
        wrapped=("run", "by hand"),
        notes=notes,
        facts={"outputs": str(outputs), "runs": total},
    )


def usual_metrics(found: Sequence[Run]) -> list[str]:
    """The metrics that any of the runs has, of `METRICS` and of those that runs monitor."""
    monitored = {str(run.config.get("monitor")) for run in found}
    return [tag for tag in dict.fromkeys([*METRICS, *sorted(monitored)]) if any(tag in run.tags for run in found)]


def check_metrics(tags: Iterable[str], found: Sequence[Run]) -> None:
    """Raise `BadInput` for a metric that none of the runs has, if there are any runs."""
    for tag in tags:
        if found and not any(tag in run.tags for run in found):
            raise BadInput(near_keys(tag, found))


def ordered(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """The same in a type that can be sorted: numbers, or else texts; what is missing stays missing."""
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers if numbers.notna().equals(values.notna()) else values.map(str, na_action="ignore")


def scalar(value: Any) -> Any:
    """A value as a cell: a list as JSON, NaN for one that is `MISSING`."""
    if value is MISSING:
        return math.nan
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def cell(value: Any) -> str:
    """A value as people read it; `-` for NaN, which stands for what a run does not have."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:g}"
    return value_text(value)


def _metric(mean: float, interval: float, floor: float) -> str:
    spread = "" if math.isnan(interval) else f" ± {interval:.3f}"
    return "-" if math.isnan(mean) else f"{mean:.3f}{spread}" + ("" if math.isnan(floor) else f" (floor {floor:.3f})")


def _local(started: str) -> str:
    try:
        return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return started
