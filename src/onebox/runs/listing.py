"""The table of `onebox runs`."""

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from onebox.errors import BadInput
from onebox.runs.find import MISSING, Run, find_runs, near_keys
from onebox.runs.where import parse

COLUMNS = ("test/joint_acc", "test/acc", "test/iou", "val/joint_acc")
STYLES = {"completed": "green", "failed": "red", "interrupted": "yellow", "running": "cyan", "died": "red"}


def select(outputs: Path, where: str | None, sort: str | None, *, ascending: bool) -> tuple[list[Run], list[str]]:
    """The runs below a folder that meet an expression, the newest or the largest in `sort` first.

    Returns:
        The runs, and the keys that `where` and `sort` name.

    Raises:
        BadInput: the expression cannot be parsed, or no run has one of its keys.
    """
    parsed = parse(where) if where else None
    runs = find_runs(outputs)
    keys = list(dict.fromkeys([*(parsed.keys if parsed else ()), *([sort] if sort else [])]))
    for key in keys:
        if runs and all(run.value(key) is MISSING for run in runs):
            raise BadInput(near_keys(key, runs))
    if parsed:
        runs = [run for run in runs if parsed.test(run)]
    if sort:
        known = [run for run in runs if run.value(sort) is not MISSING and run.value(sort) is not None]
        rest = [run for run in runs if run not in known]
        numbers = all(isinstance(run.value(sort), int | float) for run in known)
        known.sort(key=lambda run: run.value(sort) if numbers else str(run.value(sort)), reverse=not ascending)
        return known + rest, keys
    return runs[::-1] if ascending else runs, keys


def changes_by_hand(run: Run) -> list[str]:
    """The overrides of a run that say what it is, without those that say where it lies."""
    return [text for text in run.record.get("overrides", []) if not text.startswith(("run_dir=", "hydra", "data_dir="))]


def as_json(runs: Sequence[Run], keys: Sequence[str]) -> list[dict[str, Any]]:
    """What `--json` prints of each run."""
    facts = (
        "name",
        "status",
        "started",
        "seconds",
        "fingerprint",
        "fingerprint_seedless",
        "seed",
        "overrides",
        "choices",
    )
    return [
        {"run": str(run.path), **{key: run.record.get(key) for key in facts}, "metrics": run.tags}
        | {"keys": {key: None if run.value(key) is MISSING else run.value(key) for key in keys}}
        for run in runs
    ]


def show(runs: Sequence[Run], keys: Sequence[str], *, outputs: Path, total: int) -> None:
    """Print one row a run: a table on a terminal, tab-separated lines into a pipe."""
    metrics = [tag for tag in COLUMNS if any(tag in run.tags for run in runs)]
    values = [*metrics, *(key for key in keys if key not in (*metrics, "status", "fingerprint", "started"))]
    header = ["run", "started", "status", "fingerprint", *values, "by hand"]
    by_hand = [changes_by_hand(run) for run in runs]
    if not sys.stdout.isatty():
        print(*header, sep="\t")
        for run, changes in zip(runs, by_hand, strict=True):
            print(*_facts(run, outputs), *(_cell(run.value(key)) for key in values), " ".join(changes), sep="\t")
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    # What was typed for all of them says nothing of any.
    shared = [text for text in by_hand[0] if all(text in changes for changes in by_hand)] if len(runs) > 1 else []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        is_value = name in values
        title = name.replace("/", "/\n") if name in metrics else name
        table.add_column(title, justify="right" if is_value else "left", no_wrap=name not in ("run", "by hand"))
    for run, changes in zip(runs, by_hand, strict=True):
        path, started, status, fingerprint = _facts(run, outputs)
        own = " ".join(text for text in changes if text not in shared)
        styled = (Text(status, style=STYLES.get(status, "")), Text(fingerprint, style="dim"))
        table.add_row(Text(path), started, *styled, *(_cell(run.value(key)) for key in values), Text(own))
    console.print(table)
    if shared:
        console.print(Text(f"all of them: {' '.join(shared)}", style="dim"))
    if len(runs) < total:
        console.print(f"{total - len(runs):,} more (--limit 0 shows all {total:,})")


def _facts(run: Run, outputs: Path) -> tuple[str, str, str, str]:
    path = str(run.path.relative_to(outputs)) if run.path.is_relative_to(outputs) else str(run.path)
    return path, _local(run.started), str(run.record.get("status", "?")), str(run.record.get("fingerprint", ""))


def _local(started: str) -> str:
    try:
        return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return started


def _cell(value: Any) -> str:
    return "-" if value is MISSING else f"{value:.4g}" if isinstance(value, float) else str(value)
