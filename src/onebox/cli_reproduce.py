"""`onebox reproduce`: a run once more, and whether the same comes out."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebox.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, BadInput

if TYPE_CHECKING:
    from rich.table import Table

    from onebox.runs.reproduce import Comparison, Difference, Recorded
    from onebox.trace import Divergence, Value

EXIT_DIVERGES = 1
MAX_SHOWN = 12  # rows of a table

HELP = """Run a run again and prove that the same comes out.

Says what differs in code, environment and machine, trains with the recorded config and number of threads into a new
directory, and compares every step, the metrics and the final weights.

\b
Examples
  onebox reproduce latest
  onebox reproduce outputs/baseline/2026-01-31_12-00-00-000000
  onebox reproduce RUN --steps 20           a proof in seconds: the first steps only
  onebox reproduce RUN --checkout           with the code of the run instead of the one installed
  onebox reproduce RUN --tolerance 1e-4     on other hardware, where the last bits differ
  onebox reproduce RUN data.root=/data/voc  the data have moved
  onebox reproduce RUN optimizer.lr=0.002   where does this make a difference first?
"""
EPILOG = (
    "Exit codes: 0 identical (or within the tolerance), 1 it diverges, 2 something to put right, 130 stopped by hand."
)


def reproduce(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run directory, latest, latest~1, or the first digits of a fingerprint.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Changes to the recorded config; other keys do not follow.", show_default=False
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Make only so many steps and compare those.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, metavar="REL", help="Accept losses and metrics that deviate by no more than this share."),
    ] = None,
    checkout: Annotated[
        bool, typer.Option("--checkout", help="Run the recorded commit and changes, in a temporary git worktree.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also when the data are not those of the run.")] = False,
    outputs: Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs are looked for.")] = Path("outputs"),
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the new run. [default: outputs/reproduced/RUN/<date>_<time>]", file_okay=False),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Run again, compare, print."""
    from rich.console import Console

    from onebox.runs.find import REPRODUCED, find_run
    from onebox.runs.reproduce import Recorded, compare, differences

    recorded = Recorded.read(Path(run) if Path(run, "run.json").exists() else find_run(run, outputs).path)
    _check(recorded, steps)
    folder = out or outputs / REPRODUCED / recorded.folder.resolve().name / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    try:
        with _stdout_is_stderr() if json_ else contextlib.nullcontext():
            found = _run_again(
                recorded, folder, overrides or [], steps=steps, checkout=checkout, force=force, console=Console()
            )
    except KeyboardInterrupt:
        print("stopped by hand", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    again = Recorded.read(folder)
    found += [item for item in differences(recorded.record, again.record) if item.what.startswith("data ")]
    result = compare(recorded, again, steps=steps, tolerance=tolerance)
    if json_:
        import json

        print(json.dumps(_as_json(recorded, again, result, found), indent=2, ensure_ascii=False))
    else:
        _show(recorded, again, result, Console())
    raise typer.Exit(EXIT_DIVERGES if result.verdict == "diverges" else 0)


def _check(recorded: "Recorded", steps: int | None) -> None:
    made = 0 if recorded.trace is None else len(recorded.trace)
    status = recorded.record.get("status")
    if steps is None and status != "completed":
        advice = f"--steps {made} compares those" if made else "there is nothing to compare with"
        raise BadInput(f"{recorded.folder}: the run is {status} after {made} steps; {advice}")
    if steps is not None and not made:
        raise BadInput(f"{recorded.folder}: has no trace.bin (callbacks.trace=null?), so that steps cannot be compared")


def _run_again(
    recorded: "Recorded",
    folder: Path,
    overrides: Sequence[str],
    *,
    steps: int | None,
    checkout: bool,
    force: bool,
    console: Any,
) -> "list[Difference]":
    """Train into `folder`; returns what is not as it was."""
    from onebox.replay import Replay, replay, replay_with
    from onebox.runs.checkout import checkout as checked_out
    from onebox.runs.reproduce import config_again, differences, facts_now

    if (folder / "run.json").exists():
        raise BadInput(f"{folder}: holds a run already; choose another --out")
    config = config_again(recorded, folder.resolve(), steps=steps, force=force, overrides=overrides)
    now = facts_now()
    threads = recorded.record.get("hardware", {}).get("threads", now["hardware"]["threads"])
    what: Replay = {
        "config": config,
        "choices": recorded.record.get("choices", {}),
        "overrides": recorded.record.get("overrides", []),
        "threads": threads,
    }
    found = [*_changed(recorded, config, overrides), *differences(recorded.record, now)]
    found = [item for item in found if not (checkout and item.what == "code")]
    console.print(f"{recorded.folder} again, in {folder}", highlight=False, soft_wrap=True)
    for line in map(str, found) if found else ["code, packages and machine are those of the run"]:
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    if threads != now["hardware"]["threads"]:
        console.print(f"  {threads} threads are used, as then: their number changes the last bits of sums")
    if not checkout:
        replay(what)
        return found
    with checked_out(recorded.record, recorded.folder) as code:
        console.print(f"  code: commit {recorded.record['git']['sha'][:9]} in {code}", highlight=False, soft_wrap=True)
        exit_code = replay_with(code, what)
    if exit_code:
        raise typer.Exit(exit_code if exit_code == EXIT_INTERRUPTED else EXIT_BAD_INPUT)
    return found


def _changed(recorded: "Recorded", config: dict[str, Any], overrides: Sequence[str]) -> "Iterator[Difference]":
    """What the overrides change."""
    from omegaconf import OmegaConf

    from onebox.runs.reproduce import Difference

    for override in overrides:
        key = override.partition("=")[0]
        before, after = (str(OmegaConf.select(OmegaConf.create(part), key)) for part in (recorded.config, config))
        yield Difference(f"config {key}", before, after)


@contextlib.contextmanager
def _stdout_is_stderr() -> Iterator[None]:
    """What is printed on the way is not to be in the JSON."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    handlers = [handler for handler in handlers if handler.stream is sys.stdout]
    with contextlib.redirect_stdout(sys.stderr):
        before = [(handler, handler.setStream(sys.stderr)) for handler in handlers]
        try:
            yield
        finally:
            for handler, stream in before:
                handler.setStream(stream)


def _show(recorded: "Recorded", again: "Recorded", result: "Comparison", console: Any) -> None:
    if result.divergence is not None:
        console.print(_step_table(result.divergence))
    console.print(_summary(recorded, again, result))
    if result.verdict == "identical":
        console.print("[bold green]identical")
        return
    largest = result.largest
    far = f"largest deviation {largest.relative:.1e} ({largest.where})" if largest else "no losses to compare"
    if result.verdict == "within tolerance":
        console.print(f"[bold green]within tolerance[/], {far}", highlight=False, soft_wrap=True)
        return
    where = "diverges" if result.divergence is None else f"diverges {_describe(result.divergence)}"
    console.print(f"[bold red]{where}[/]; {far}", highlight=False, soft_wrap=True)


def _describe(divergence: "Divergence") -> str:
    if divergence.step is None:
        return f"before the first step, first in {divergence.name}"
    step = f"at step {divergence.step} (epoch {divergence.epoch}, batch {divergence.batch})"
    if not divergence.values:
        return f"{step}, which only one of the runs has made"
    return f"{step}, first in {divergence.name}"


def _step_table(divergence: "Divergence") -> "Table":
    """What differs in the first step that does."""
    from rich.table import Table

    title = "initial weights" if divergence.step is None else f"step {divergence.step}, in the order it is made"
    table = Table(title=title, title_justify="left")
    for column in ("what differs", "recorded", "again"):
        table.add_column(column, justify="left" if column == "what differs" else "right")
    for name, values in list(divergence.values.items())[:MAX_SHOWN]:
        table.add_row(name, *map(_text, values), style="bold" if name == divergence.name else "")
    if len(divergence.values) > MAX_SHOWN:
        table.add_row(f"and {len(divergence.values) - MAX_SHOWN} more", "", "")
    return table


def _summary(recorded: "Recorded", again: "Recorded", result: "Comparison") -> "Table":
    from rich.table import Table

    def mark(same: bool) -> str:
        return "[green]identical" if same else "[red]differs"

    table = Table()
    for column in ("", "recorded", "again", "bit for bit"):
        table.add_column(column, justify="right" if column in ("recorded", "again") else "left")
    if recorded.trace is not None and again.trace is not None:
        made = [str(result.steps if result.metrics is None else len(run.trace or ())) for run in (recorded, again)]
        table.add_row("steps", *made, mark(result.divergence is None))
    if result.weights is not None:
        table.add_row("final weights", *map(_text, result.weights), mark(result.weights[0] == result.weights[1]))
    if result.metrics is not None:
        table.add_row(
            "metrics.json", "", f"{len(result.metrics)} differ" if result.metrics else "", mark(not result.metrics)
        )
        for metric in result.metrics[:MAX_SHOWN]:
            table.add_row(f"  {metric.where}", _text(metric.recorded), _text(metric.again))
    return table


def _text(value: "Value") -> str:
    return "none" if value is None else str(value)


def _as_json(
    recorded: "Recorded", again: "Recorded", result: "Comparison", differences: "Sequence[Difference]"
) -> dict[str, Any]:
    from dataclasses import asdict

    def deviation(item: Any) -> dict[str, Any]:
        relative = item.relative if item.relative < float("inf") else None
        return {"where": item.where, "recorded": item.recorded, "again": item.again, "relative": relative}

    return {
        "schema": 1,
        "run": str(recorded.folder),
        "again": str(again.folder),
        "verdict": result.verdict,
        "differences": [asdict(item) for item in differences],
        "steps": result.steps,
        "divergence": None if result.divergence is None else asdict(result.divergence),
        "final_weights": result.weights,
        "metrics": None if result.metrics is None else [deviation(item) for item in result.metrics],
        "largest_deviation": None if result.largest is None else deviation(result.largest),
    }
