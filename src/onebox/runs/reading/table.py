"""Runs as a pandas table; and how tables are shown to people and given to programs."""

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebox.errors import BadInput, Line, check, duration, print_json, print_lines, printable
from onebox.files import write_text
from onebox.runs.fingerprint import flatten
from onebox.runs.reading.find import MISSING, Run, best_tag, find_runs, near_keys
from onebox.runs.reading.where import select
from onebox.runs.record import why_no_checkpoint

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

SCHEMA = 2
METRICS = (
    "test/joint_acc",
    "test/acc",
    "test/iou",
    "best/joint_acc",
    "val/joint_acc",
)  # shown beside what runs monitor
FACTS = ("name", "status", "started", "seconds", "fingerprint", "fingerprint_seedless", "seed")
STYLES = {
    **{"completed": "green", "pruned": "blue", "running": "cyan", "submitted": "cyan", "pending": "dim"},
    **{"interrupted": "yellow", "died": "red", "failed": "red", "stale": "yellow"},
}
PLACES = ("run_dir=", "hydra", "data_dir=", "like.run=", "init={", "extend={")  # overrides that say where runs lie
GAP = 2  # characters between two columns
MIN_TEXT = 32  # characters of a column of texts, which are wrapped, but not to less than this


def runs(folder: str | Path = "outputs") -> "pd.DataFrame":
    """All runs below a folder as a table, the newest first.

    Returns:
        One row for each run, indexed by its path. The columns are facts of run.json (`status`, `started`, `seconds`,
        `seed`, ...), values of the config (`optimizer.lr`; lists as JSON), the option of each group (`loss/loc`),
        metrics of the last epoch (`val/joint_acc`), the best one (`best/joint_acc`) and the test (`test/iou`), and the
        floor of the latter (`floor/iou`). What a run does not have is missing.

    Example:
        >>> onebox.runs("outputs").query("`test/joint_acc` > .3").groupby("optimizer.lr")["test/joint_acc"].mean()
    """
    import pandas as pd  # which takes longer than to read a thousand runs

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
        values = sortable([scalar(run.value(sort)) for run in found])
        known = [pair for pair in zip(values, found, strict=True) if pair[0] is not None]
        known.sort(key=lambda pair: pair[0], reverse=not ascending)
        unknown = [run for value, run in zip(values, found, strict=True) if value is None]
        found = [run for _, run in known] + unknown
    elif ascending:
        found = found[::-1]
    parent = [key for key in ("parent_how", "parent") if any(run.record.get(key) for run in found)]
    keys = list(dict.fromkeys([*keys, *parent]))
    numbers = {run.path: number for number, run in enumerate(every)}
    total, found = len(found), found[: limit or None]
    tags = choose_metrics(metrics, every, found)
    columns: dict[str, Any] = {"number": [numbers[run.path] for run in found], "run": [str(run.path) for run in found]}
    columns |= {key: [run.record.get(key, math.nan) for run in found] for key in FACTS}
    columns |= {key: [scalar(run.value(key)) for run in found] for key in keys if key not in (*columns, *tags)}
    typed = [[text for text in run.record.get("overrides", []) if not text.startswith(PLACES)] for run in found]
    columns["overrides"] = [" ".join(texts) for texts in typed]
    columns |= {tag: [run.tags.get(tag, math.nan) for run in found] for tag in tags}
    bare = [numbers[run.path] for run in found if why_no_checkpoint(run.record)]
    without: Line = [(f"no checkpoints, as onebox prune removed them: #{ranges(sorted(bare))}", "dim")]
    more: Line = [(f"{total - len(found):,} more (--limit 0 shows all {total:,})", "")]
    return Listing(
        columns,
        shown=list(dict.fromkeys(["number", "run", "started", "status", "fingerprint", *tags, *keys, "overrides"])),
        metrics=tags,
        notes=[*nonfinite_notes(found), *([without] if bare else []), *([more] if len(found) < total else [])],
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
    monitored = sorted({str(run.config.get("monitor")) for run in found})
    usual = dict.fromkeys([*METRICS, *(name for tag in monitored for name in (best_tag(tag), tag))])
    return list(wanted) or [tag for tag in usual if any(tag in run.tags for run in found)]


@dataclass(frozen=True, eq=False)
class Listing:
    """A table to be printed."""

    # name -> all values, for programs. Beside a metric there may be `TAG_interval` and `floor/NAME`; rows are printed
    # in bold where `best` is true
    columns: Mapping[str, Sequence[Any]]
    shown: Sequence[str]  # the columns for people, in order; the first one stands again where the others go on below
    metrics: Sequence[str]  # those of them that are metrics
    title: str = ""  # stands above it on a terminal
    notes: Sequence[Line] = ()  # lines that stand below it
    facts: Mapping[str, Any] = field(default_factory=dict)  # what JSON says beside the rows

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
            rows = [dict(zip(self.columns, row, strict=True)) for row in self._rows()]
            print_json({"schema": SCHEMA, **self.facts, "rows": rows})
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
        file = io.StringIO()
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(map(printable, self.columns))
        for row in self._rows():
            writer.writerow(
                [printable(str(value)) if not isinstance(value, int | float | None) else value for value in row]
            )
        return file.getvalue()

    def _rows(self) -> Iterator[list[Any]]:
        """All values, None for what is missing."""
        for row in zip(*self.columns.values(), strict=True):
            yield [None if value != value else value for value in row]

    def markdown(self) -> str:
        marks = ["---:" if name in self.numeric else "---" for name in self.shown]
        rows, floor = self.texts()
        cells = [[text.replace("|", r"\|") for text in row] for row in [*rows, *([floor] if any(floor) else [])]]
        names = [heading(name).replace("|", r"\|") for name in self.shown]
        table = [f"| {' | '.join(names)} |", f"|{'|'.join(marks)}|", *(f"| {' | '.join(row)} |" for row in cells)]
        return "\n".join([*table, "", *("- " + printable("".join(text for text, _ in line)) for line in self.notes)])

    def show(self, console: "Console") -> None:
        for part in self.parts(console.width):
            console.print(part)
            console.print()
        print_lines(self.notes, console)

    def parts(self, room: int) -> Iterator["Table"]:
        """As many tables below each other as it takes to hide nothing in `room` characters."""
        from rich.box import SIMPLE_HEAD
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        rows, floor = self.texts()
        headings = [heading(name).replace("/", "/\n").replace(".", ".\n") for name in self.shown]
        longest, least = [], []
        for place, name in enumerate(self.shown):
            head = max(map(cell_len, headings[place].split("\n")))
            longest.append(max(head, *(cell_len(row[place]) for row in [*rows, floor])))
            least.append(longest[-1] if name in self.numeric else min(longest[-1], max(head, MIN_TEXT)))
        title = Text(printable(self.title)) if self.title else None
        for places in _side_by_side(least, room):
            table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
            table.title, table.title_justify = title, "left"
            title, spare = None, room - sum(least[place] + GAP for place in places) + GAP
            for place in places:
                whole = heading(self.shown[place])
                is_whole = (needed := max(longest[place], cell_len(whole))) <= min(least[place] + max(0, spare), room)
                width = needed if is_whole else min(longest[place], least[place] + max(0, spare), room)
                spare -= width - least[place]
                justify: Any = "right" if self.shown[place] in self.numeric else "left"
                above = Text(whole if is_whole else headings[place])  # broken only where there is no room
                table.add_column(above, justify=justify, width=width, overflow="fold")
            best = self.columns.get("best") or [False] * len(rows)
            for row, is_best in zip(rows, best, strict=True):
                # Of several statuses the last one is the worst.
                styles = [STYLES.get(row[i].rpartition(" ")[2], "") * (self.shown[i] == "status") for i in places]
                table.add_row(*map(Text, [row[i] for i in places], styles), style="bold" if is_best else "")
            if any(floor[place] for place in places[1:]):
                table.add_row(*(Text(floor[place]) for place in places), style="dim")
            yield table

    @cached_property
    def numeric(self) -> list[str]:
        """The columns for people that hold numbers only."""
        return [
            name
            for name in self.shown
            if name in self.metrics or all(isinstance(value, int | float) for value in self.columns[name])
        ]

    def texts(self) -> tuple[list[list[str]], list[str]]:
        """The rows for people, and the floor of the metrics, which has empty texts where there is none."""
        columns = [[printable(text) for text in self._column(name)] for name in self.shown]
        floor = [self._floor(name) for name in self.shown]
        return list(map(list, zip(*columns, strict=True))), ["floor", *floor[1:]] if any(floor) else floor

    def _floor(self, name: str) -> str:
        """The floor of a metric, or its range where the rows have different data."""
        key = name.replace("test/", "floor/")
        known = [value for value in self.columns.get(key, ()) if not math.isnan(value)] if key != name else []
        return " to ".join(dict.fromkeys(f"{value:.3f}" for value in (min(known), max(known)))) if known else ""

    def _column(self, name: str) -> list[str]:
        values = self.columns[name]
        if name in self.metrics:
            halves = self.columns.get(f"{name}_interval", [math.nan] * len(values))
            intervals = ["" if math.isnan(half) else f" ± {half:.3f}" for half in halves]
            return [
                "-" if math.isnan(mean) else f"{mean:.3f}" + half for mean, half in zip(values, intervals, strict=True)
            ]
        if name == "seconds":
            return ["-" if math.isnan(value) else duration(value) for value in values]
        if name == "number":
            return [ranges(map(int, str(value).split())) for value in values]
        if name == "started":
            return [cell(value)[:19].replace("T", " ") for value in values]
        return ["●" if value else "" for value in values] if name == "best" else [cell(value) for value in values]


def heading(name: str) -> str:
    """What stands above a column for people."""
    return "#" if name == "number" else printable(name)


def _side_by_side(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """The places of the columns that are printed beside each other, the first column at the front of each group."""
    groups = [[0]]
    for place in range(1, len(widths)):
        if len(groups[-1]) > 1 and _width(widths, [*groups[-1], place]) > room:
            groups.append([0])
        groups[-1].append(place)
    # A column that would stand alone in the end takes one from the group before.
    if len(groups) > 1 and len(groups[-1]) == 2 and len(groups[-2]) > 3:
        last = [0, groups[-2][-1], groups[-1][1]]
        if _width(widths, last) <= room:
            groups[-2:] = [groups[-2][:-1], last]
    yield from groups


def _width(widths: Sequence[int], places: Sequence[int]) -> int:
    return sum(widths[place] for place in places) + GAP * (len(places) - 1)


def ranges(numbers: Iterable[int]) -> str:
    """Ascending whole numbers as a short text: `0-2 7` for 0, 1, 2, 7; of more than three parts only the first."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return " ".join(["-".join(map(str, part)) for part in parts[:3]] + ["…"] * (len(parts) > 3))


def nonfinite_notes(found: Sequence[Run]) -> list[Line]:
    """One line for each run whose loss was no finite number."""
    return [[("NaN ", "red"), (f"{run.path}: {run.nonfinite}", "")] for run in found if run.nonfinite]


def sortable(values: Sequence[Any]) -> list[Any]:
    """The same as numbers, or else as texts; None for what is missing."""
    known = [None if value != value else value for value in values]
    try:
        return [None if value is None else float(value) for value in known]
    except (ValueError, OverflowError):
        return [None if value is None else str(value) for value in known]


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
