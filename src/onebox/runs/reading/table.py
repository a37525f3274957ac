"""Runs as a pandas table; and how such a table is shown to people and given to programs."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from onebox.errors import BadInput, Line, check, duration, print_lines, printable
from onebox.files import write_text
from onebox.runs.fingerprint import flatten
from onebox.runs.reading.find import MISSING, Run, find_runs, near_keys
from onebox.runs.reading.where import select

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 2
METRICS = ("test/joint_acc", "test/acc", "test/iou", "val/joint_acc")  # shown beside what runs monitor
FACTS = ("name", "status", "started", "seconds", "fingerprint", "fingerprint_seedless", "seed")
STYLES = {
    **{"completed": "green", "running": "cyan", "pending": "dim", "interrupted": "yellow"},
    **{"died": "red", "failed": "red", "stale": "yellow"},
}
PLACES = ("run_dir=", "hydra", "data_dir=")  # overrides that say where a run lies, not what it is


def runs(folder: str | Path = "outputs") -> pd.DataFrame:
    """All runs below a folder as a table, the newest first.

    Returns:
        One row for each run, indexed by its path. The columns are facts of run.json (`status`, `started`, `seconds`,
        `seed`, ...), values of the config (`optimizer.lr`; lists as JSON), the option of each group (`loss/loc`),
        metrics of the best epoch and of the test (`val/joint_acc`, `test/iou`), and the floor of the latter
        (`floor/iou`). What a run does not have is missing.
    """
    rows = {
        str(run.path): {key: run.record.get(key) for key in FACTS}
        | {key: scalar(value) for key, value in flatten(dict(run.config)) if key not in FACTS}
        | run.record.get("choices", {})
        | run.tags
        | run.floors
        for run in find_runs(Path(folder))
    }
    frame = pd.DataFrame(list(rows.values()), index=pd.Index(rows, name="run", dtype=object))
    return frame if rows else frame.reindex(columns=list(FACTS))


def list_runs(
    outputs: Path, *, where: str | None, sort: str | None, ascending: bool, limit: int, metrics: Sequence[str]
) -> "Listing":
    """The runs below a folder that meet an expression, the newest or the largest in `sort` first.

    Args:
        outputs: the folder.
        where: see `onebox.runs.reading.where`.
        sort: a key of `Run.value`; runs that have no such value come last.
        ascending: the oldest or the smallest first.
        limit: how many at most; 0 for all.
        metrics: which to show in place of the usual ones.

    Raises:
        BadInput: the expression cannot be read, or no run has one of the keys or metrics.
    """
    every = find_runs(outputs)
    found, keys = select(every, where) if where else (every, [])
    if sort:
        if every and all(run.value(sort) is MISSING for run in every):
            raise BadInput(f"--sort: {near_keys(sort, every)}")
        keys = list(dict.fromkeys([*keys, sort]))
        values = sortable(pd.Series([scalar(run.value(sort)) for run in found], dtype=object))
        found = [found[place] for place in values.sort_values(ascending=ascending, kind="stable").index]
    elif ascending:
        found = found[::-1]
    total, found = len(found), found[: limit or None]
    tags = choose_metrics(metrics, every, found)
    columns: dict[str, Any] = {"run": [str(run.path) for run in found]}
    columns |= {key: [run.record.get(key, math.nan) for run in found] for key in FACTS}
    columns |= {key: [scalar(run.value(key)) for run in found] for key in keys if key not in (*columns, *tags)}
    typed = [[text for text in run.record.get("overrides", []) if not text.startswith(PLACES)] for run in found]
    columns["overrides"] = [" ".join(texts) for texts in typed]
    results = pd.DataFrame([[run.tags.get(tag, math.nan) for tag in tags] for run in found], columns=tags, dtype=float)
    more: Line = [(f"{total - len(found):,} more (--limit 0 shows all {total:,})", "")]
    return Listing(
        pd.DataFrame(columns, dtype=object).join(results),
        shown=list(dict.fromkeys(["run", "started", "status", "fingerprint", *tags, *keys, "overrides"])),
        metrics=tags,
        notes=[more] if len(found) < total else [],
        facts={"outputs": str(outputs), "runs": total},
    )


def choose_metrics(wanted: Sequence[str], every: Sequence[Run], found: Sequence[Run]) -> list[str]:
    """The metrics to show: those wanted, or what any of `found` has of `METRICS` and of what the runs monitor.

    Raises:
        BadInput: there are runs, but none has one that is wanted.
    """
    for tag in wanted:
        if every and not any(tag in run.tags for run in every):
            raise BadInput(near_keys(tag, every))
    usual = dict.fromkeys([*METRICS, *sorted({str(run.config.get("monitor")) for run in found})])
    return list(wanted) or [tag for tag in usual if any(tag in run.tags for run in found)]


@dataclass(frozen=True, eq=False)
class Listing:
    """A table to be printed.

    Attributes:
        frame: all values, for programs. Beside a metric there may be `TAG_interval` and `floor/NAME`; rows are printed
            in bold where `best` is true.
        shown: the columns for people, in order.
        metrics: those of them that are metrics.
        title: stands above it on a terminal.
        notes: lines that stand below it.
        facts: what JSON says beside the rows.
    """

    frame: pd.DataFrame
    shown: Sequence[str]
    metrics: Sequence[str]
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
        check((csv is not None) + markdown + as_json <= 1, "--csv, --markdown and --json: choose one")
        if as_json:
            rows = self.frame.astype(object).where(self.frame.notna(), None).to_dict("records")
            print(json.dumps({"schema": SCHEMA, **self.facts, "rows": rows}, indent=2, ensure_ascii=False))
        elif markdown:
            print(self.markdown())
        elif csv not in (None, "-"):
            write_text(str(csv), self.csv(","))
        elif csv == "-" or not sys.stdout.isatty():
            print(self.csv("," if csv == "-" else "\t"), end="")
        else:
            from rich.console import Console

            self.show(Console(highlight=False))

    def csv(self, delimiter: str) -> str:
        """A line for each row, with all digits."""
        texts = self.frame.map(lambda value: value if isinstance(value, int | float) else printable(str(value)))
        return texts.where(self.frame.notna()).to_csv(sep=delimiter, index=False, lineterminator="\n")

    def markdown(self) -> str:
        """The table and its notes as Markdown."""
        marks = ["---:" if self._is_number(name) else "---" for name in self.shown]
        cells = [[text.replace("|", r"\|") for text in row] for row in self._texts()]
        table = [f"| {' | '.join(self.shown)} |", f"|{'|'.join(marks)}|", *(f"| {' | '.join(row)} |" for row in cells)]
        return "\n".join([*table, "", *("- " + printable("".join(text for text, _ in line)) for line in self.notes)])

    def show(self, console: "Console") -> None:
        """Print it for people."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        table.title = Text(printable(self.title)) if self.title else None
        for name in self.shown:
            title = name.replace("/", "/\n").replace(".", ".\n")
            table.add_column(
                Text(title),
                justify="right" if self._is_number(name) else "left",
                no_wrap=name not in (*self.metrics, "run", "overrides"),
                min_width=max(map(len, title.split("\n"))) if name in self.metrics else None,
                overflow="fold",
            )
        weights = ["bold" if best else "" for best in self.frame.get("best", [False] * len(self.frame))]
        for number, row in enumerate(self._texts()):
            # Of several statuses the last one is the worst.
            styles = [
                STYLES.get(row[i].rpartition(" ")[2], "") * (name == "status") for i, name in enumerate(self.shown)
            ]
            weight = weights[number] if number < len(weights) else "dim"  # the last row is the floor
            table.add_row(*map(Text, row, styles), style=weight)
        console.print(table)
        print_lines(self.notes, console)

    def _is_number(self, name: str) -> bool:
        return name in self.metrics or pd.api.types.is_numeric_dtype(self.frame[name])

    def _texts(self) -> list[list[str]]:
        """The rows for people, and if any metric of the test has a floor a last row with it."""
        columns = [[printable(text) for text in self._column(name)] for name in self.shown]
        floors = [self._floor(name) for name in self.shown]
        rows = list(map(list, zip(*columns, strict=True)))
        if any(floors):
            floors[self.shown.index("status") if "status" in self.shown else 0] = "floor"
            rows.append(floors)
        return rows

    def _floor(self, name: str) -> str:
        """The floor of a metric, or its range where the rows have different data."""
        key = name.replace("test/", "floor/")
        if key == name or key not in self.frame:
            return ""
        return " to ".join(dict.fromkeys(f"{value:.3f}" for value in self.frame[key].agg(["min", "max"])))

    def _column(self, name: str) -> list[str]:
        values = self.frame[name]
        if name in self.metrics:
            halves = self.frame.get(f"{name}_interval", [math.nan] * len(values))
            intervals = ["" if math.isnan(half) else f" ± {half:.3f}" for half in halves]
            return [
                "-" if math.isnan(mean) else f"{mean:.3f}" + half for mean, half in zip(values, intervals, strict=True)
            ]
        if name == "seconds":
            return ["-" if math.isnan(value) else duration(value) for value in values]
        if name == "started":
            return [cell(value)[:19].replace("T", " ") for value in values]
        return ["●" if value else "" for value in values] if name == "best" else [cell(value) for value in values]


def sortable(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """The same as numbers, or else as texts; what is missing stays missing."""
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
    return value if isinstance(value, str) else json.dumps(value)
