"""`onebox runs`, `sweep`, `diff` and `explain`: they only read. Nothing heavy is imported at the top."""

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated

import typer

from onebox.cli.reproduce import Json, Outputs
from onebox.errors import BadInput, check, print_json, print_lines, printable

if TYPE_CHECKING:
    from onebox.sweep.reading.sweep import Sweep

Metric = Annotated[
    list[str] | None,
    typer.Option(metavar="TAG", help="A metric such as test/iou, in place of the usual ones; may be repeated."),
]
Csv = Annotated[str | None, typer.Option(metavar="FILE|-", help="Write CSV to a file, or print it.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
Log = Annotated[
    str | None,
    typer.Option("--log", metavar="N", help="Print the log of one: its number in the table, or its fingerprint."),
]
Folder = Annotated[str | None, typer.Option("--folder", metavar="N", help="Print the run directory of one.")]

DIFF_EPILOG = (
    "Exit codes: 0 nothing that can change a result differs, nor do the metrics; 1 something does; 2 bad input."
)


def runs(
    where: Annotated[str | None, typer.Option(metavar="EXPR", help="Only runs that match this expression.")] = None,
    metric: Metric = None,
    sort: Annotated[
        str | None, typer.Option(metavar="KEY", help="Sort by this, the largest first, instead of the newest first.")
    ] = None,
    ascending: Annotated[
        bool, typer.Option("--ascending", help="Reverse the order: the smallest or the oldest first.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="Show at most this many; 0 shows all.")] = 30,
    log: Log = None,
    folder: Folder = None,
    csv: Csv = None,
    markdown: Markdown = False,
    json_: Json = False,
    outputs: Outputs = Path("outputs"),
) -> None:
    """List runs, the newest first, and find some of them.

    --where compares metrics (best/joint_acc of the best epoch, val/joint_acc of the last, test/iou), values of the
    config (optimizer.lr), choices of groups (model/backbone) and facts of run.json (status, seed, started, git.branch)
    by == != < <= > >=, by ~ with a pattern, or by in [A, B]; with and, or, not and parentheses. The number of a row, or
    latest~NUMBER, names its run for every other command too.

    \b
    Examples
      onebox runs
      onebox runs --log 0
      onebox runs --where 'best/joint_acc > .3 and model/backbone == tiny_cnn' --sort test/joint_acc
      onebox runs --where 'status in [failed, interrupted] and started > 2026-11-01' --limit 0
      onebox runs --where 'name ~ base* and not seed == 0' --metric test/loc_l1 --csv runs.csv
    """
    from onebox.runs.reading.find import find_run
    from onebox.runs.reading.table import list_runs

    if (handle := _one(log, folder)) is not None:
        return _show(find_run(handle, outputs).path, is_log=log is not None)
    gc.disable()  # of thousands of records none is dropped: looking for garbage would take a quarter of the time
    found = list_runs(outputs, where=where, sort=sort, ascending=ascending, limit=limit, metrics=metric or [])
    if not found.columns["run"] and not (json_ or csv or markdown):
        print(printable(f"no run in {outputs.resolve()}" + (f" matches {where}" if where else "")))
    else:
        found.print(csv=csv, markdown=markdown, as_json=json_)
    return None


Sort = Annotated[str | None, typer.Option(metavar="KEY", help="A metric, a varied key, seed, status, number or time.")]
Seeds = Annotated[bool, typer.Option("--seeds", help="One row for each seed.")]
Jobs = Annotated[
    str | None, typer.Option(metavar="EXPR", help="Only jobs that match this expression, as for onebox runs.")
]
Follow = Annotated[bool, typer.Option("--follow", help="Show it again until all jobs have ended.")]
Orphans = Annotated[
    bool, typer.Option("--orphans", help="List the folders of jobs that the plan no longer has instead.")
]
Html = Annotated[bool, typer.Option("--html", help="Write the page of the sweep, sweep.html, into its folder instead.")]
Study = Annotated[
    Path | None,
    typer.Option(metavar="FILE.db", help="Write the jobs as a study that optuna-dashboard opens instead."),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png|pdf", help="Draw what each varied key did to --metric or the objective instead."),
]
Sweeps = Annotated[
    Path, typer.Option(metavar="FOLDER", help="The folder in whose subfolder sweeps they are looked for.")
]


TABLE_ONLY = "--html, --study and --plot write files and print no table: leave the options of the table out"


def sweep(
    name: Annotated[
        str | None, typer.Argument(metavar="DIR", help="A sweep. [default: the newest one]", show_default=False)
    ] = None,
    metric: Metric = None,
    sort: Sort = None,
    seeds: Seeds = False,
    where: Jobs = None,
    log: Log = None,
    folder: Folder = None,
    follow: Follow = False,
    orphans: Orphans = False,
    csv: Csv = None,
    markdown: Markdown = False,
    json_: Json = False,
    html: Html = False,
    study: Study = None,
    force: Annotated[bool, typer.Option("--force", help="Let --study overwrite a file.")] = False,
    plot: Plot = None,
    outputs: Sweeps = Path("outputs"),
) -> None:
    """Show the table of a sweep: what varied, how each job ended, what it reached, the best first.

    It is made from what is on disk, also while the sweep runs or after it died. DIR is a folder, or a name below
    outputs/sweeps; without it the newest sweep is shown. Jobs that differ by the seed alone are one row: mean ± 95 %
    interval. A job that completed under other code or data is stale. The numbers in the first column are those of the
    jobs, and stay theirs however the table is sorted.

    \b
    Examples
      onebox sweep
      onebox sweep loss_weights --follow
      cd $(onebox sweep loss_weights --folder 3)
      onebox sweep loss_weights --where 'status == failed or loss.weights.loc > 3'
      onebox sweep loss_weights --metric test/loc_l1 --metric test/loss --markdown >> notes.md
      onebox sweep loss_weights --html
      onebox sweep loss_weights --metric test/iou --plot loss_weights.pdf
    """
    from onebox.sweep.reading.orphans import list_orphans
    from onebox.sweep.reading.table import list_sweep

    gc.disable()  # see runs
    place = _sweep_folder(name, outputs)
    if orphans:
        return list_orphans(place).print(csv=csv, markdown=markdown, as_json=json_)
    if (handle := _one(log, folder)) is not None:
        return _show_job(_read(place, where), handle, is_log=log is not None)
    if html or study or plot:
        check(not (follow or csv or markdown or json_ or seeds or sort), TABLE_ONLY)
        found = _read(place, where)
        for line in _written(found, metric or [], where, html=html, study=study, force=force, plot=plot):
            print(printable(line))
        return None
    read, listing = partial(_read, place, where), partial(list_sweep, metrics=metric or [], seeds=seeds, sort=sort)
    if not follow:
        return listing(read()).print(csv=csv, markdown=markdown, as_json=json_)
    from onebox.sweep.reading.follow import follow as follow_sweep

    on_terminal = sys.stdout.isatty() and not (csv or markdown or json_)
    return follow_sweep(read, listing, on_terminal=on_terminal).print(csv=csv, markdown=markdown, as_json=json_)


def _read(place: Path, where: str | None) -> "Sweep":
    from onebox.sweep.reading.table import read_sweep

    found = read_sweep(place)
    return found.where(where) if where else found


def _written(
    found: "Sweep",
    metrics: Sequence[str],
    where: str | None,
    *,
    html: bool,
    study: Path | None,
    force: bool,
    plot: Path | None,
) -> Iterator[str]:
    """Write what is asked for instead of the table, and say where it is."""
    if html:
        from onebox.sweep.reading.page import write_page

        yield str(write_page(found, metrics=metrics, where=where))
    if study:
        from onebox.sweep.reading.trials import write_study

        left_out = write_study(found, study, force=force)
        yield f"{study}" + f"; {left_out:,} jobs have not ended and are left out" * bool(left_out)
    if plot:
        from onebox.sweep.reading.strips import plot as draw

        draw(found, metrics[0] if metrics else next(iter(found.mode)), plot)
        yield str(plot)


def _one(log: str | None, folder: str | None) -> str | None:
    check(log is None or folder is None, "--log and --folder: choose one")
    return folder if log is None else log


def _show_job(found: "Sweep", handle: str, *, is_log: bool) -> None:
    job = found.job(handle)
    check(job.path.is_dir(), f"{handle}: {job.record['status']}, so it has no folder yet")
    _show(job.path, is_log=is_log)


def _show(folder: Path, *, is_log: bool) -> None:
    """Print the path of a run directory, or what the run printed, without what would steer the terminal."""
    from onebox.files import read_file
    from onebox.trust import stored_file

    if not is_log:
        print(printable(str(folder)))
        return
    # job.log has all that a job of the default launcher printed, the others only what was logged.
    name = next((name for name in ("job.log", "train.log") if os.path.lexists(folder / name)), None)
    check(name is not None, f"{folder}: has no log yet")
    remedy = "remove it"
    for line in read_file(stored_file(folder, str(name)), lambda file: file.read(), remedy=remedy).splitlines():
        print(printable(line.decode(errors="replace")))


def _sweep_folder(name: str | None, outputs: Path) -> Path:
    sweeps = outputs / "sweeps"
    known = sorted((path for path in sweeps.glob("[!.]*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    if name is None:
        if not known:
            raise BadInput(f"{sweeps}: there is no sweep yet; give a folder, or look elsewhere with --outputs")
        return known[-1]  # its time changes when a job is begun in it
    for folder in (Path(name), sweeps / name):
        if folder.is_dir():
            return folder
    there = ", ".join(path.name for path in known[:-6:-1])
    raise BadInput(
        f"{name}: no such folder, nor a sweep of that name in {sweeps}"
        + (f"; the newest there: {there}" if there else "")
    )


def diff(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", show_default=False, help="Two or more.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also what cannot change a result, all metrics, hosts and times.")
    ] = False,
    markdown: Markdown = False,
    outputs: Outputs = Path("outputs"),
    json_: Json = False,
) -> None:
    """Say what differs between runs: config, code, environment, data, and what it did to the metrics.

    A RUN is a run directory, latest, latest~1, or the first digits of a fingerprint. Each run after the first is
    compared with the first. A choice (loss/loc: l1 → giou) stands above the keys that it brought along; defaults that
    moved with the code stand apart. Where other seeds of the same configs are found, a difference of metrics is held
    against their noise.

    \b
    Examples
      onebox diff latest~1 latest
      onebox diff outputs/baseline/2026-11-23_16-27-44-386692 3f2a --all
      onebox diff 3f2a 77c0 --markdown >> notes.md
    """
    from onebox.runs.reading import diff_view
    from onebox.runs.reading.diff import diff as compare
    from onebox.runs.reading.find import find_run

    gc.disable()  # see runs
    if len(names) < 2:
        raise BadInput(f"{names[0]}: name two runs or more, such as latest~1 latest")
    if len(names) > len(ascii_uppercase):
        raise BadInput(f"{len(names)} runs: a diff has a letter for each, so it takes at most {len(ascii_uppercase)}")
    if markdown and json_:
        raise BadInput("--json and --markdown: choose one")
    document = compare([find_run(name, outputs) for name in names], outputs, everything=everything)
    if json_:
        print_json(document)
    elif markdown:
        print(diff_view.markdown(document, everything=everything))
    else:
        print_lines(diff_view.lines(document, everything=everything))
    raise typer.Exit(0 if document["same"] else 1)


def explain(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUNS...", show_default=False, help="Folders of runs, runs, or two KEY=VALUE."),
    ],
    metric: Metric = None,
    outputs: Outputs = Path("outputs"),
    json_: Json = False,
) -> None:
    """Say what each key did to the metrics, from pairs of runs that differ in nothing else.

    RUNS are folders of runs (a sweep), or runs named as for onebox diff. A choice counts with all that it brings along,
    the seed counts as noise. Each change of a value is given with its mean effect, the 95 % interval over the pairs and
    their number, what mattered most first. What never changed alone is named, as its effect cannot be told from that
    of others.

    Two settings are compared on the same seeds and test images: two runs or folders of one setting each, or two
    selections of --where's kind. Over seeds by Student's interval of the paired differences, over images by McNemar's
    test, with the number of seeds that would tell them apart: better, worse, or cannot tell.

    \b
    Examples
      onebox explain outputs/sweeps/loss_weights
      onebox explain outputs/sweeps/loss_weights loss.weights.loc=1 loss.weights.loc=10
      onebox explain 3f2a 77c0
      onebox explain outputs/baseline outputs/giou --metric test/iou --metric test/loc_l1
      onebox explain outputs --json
    """
    from onebox.runs.reading import explain as effects
    from onebox.runs.reading import pairs
    from onebox.runs.reading.find import find_all

    gc.disable()  # see runs
    settings = pairs.find_settings(names, outputs)
    if settings is not None:
        document, lines = pairs.compare_settings(settings, metric or []), pairs.lines
    else:
        document, lines = effects.explain(find_all(names, outputs), metric or []), effects.lines
    if json_:
        print_json(document)
    else:
        print_lines(lines(document))
