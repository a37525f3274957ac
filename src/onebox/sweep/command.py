"""`onebox sweep`: how it is called. Nothing heavy is imported at the top."""

from pathlib import Path
from typing import Annotated

import typer

from onebox.errors import BadInput

HELP = """Show the table of a sweep: what varied, how each job ended, what it reached, the best first.

It is made from what is on disk, also while the sweep runs or after it died. DIR is a folder, or a name below
outputs/sweeps; without it the newest sweep is shown. Jobs that differ by the seed alone are one row: mean ± 95 %
interval. A job that completed under other code or data is stale.

\b
Examples
  onebox sweep
  onebox sweep loss_weights --seeds --sort seed
  onebox sweep loss_weights --metric test/loc_l1 --metric test/loss --markdown >> notes.md
  onebox sweep outputs/sweeps/loss_weights --csv loss_weights.csv
"""


def register(app: typer.Typer, epilog: str) -> None:
    """Add the command to `onebox`."""
    app.command("sweep", help=HELP, epilog=epilog)(sweep)


def sweep(
    name: Annotated[
        str | None, typer.Argument(metavar="DIR", help="A sweep. [default: the newest one]", show_default=False)
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="TAG", help="Beside the objective, in place of the usual; may be given several times."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="A metric, a varied key, seed, status, number or time."),
    ] = None,
    seeds: Annotated[bool, typer.Option("--seeds", help="One row for each seed.")] = False,
    csv: Annotated[str | None, typer.Option(metavar="FILE|-", help="Write CSV to a file, or print it.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    outputs: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where sweeps are looked for, in its folder sweeps.")
    ] = Path("outputs"),
) -> None:
    """Read it, then print."""
    import gc
    import sys

    from onebox.sweep import table, table_view

    if (csv is not None) + markdown + json_ > 1:
        raise BadInput("--csv, --markdown and --json: choose one")
    gc.disable()  # as in onebox runs: many records are read, none is dropped
    found = table.read_sweep(_folder(name, outputs))
    wanted = metric or []
    if json_:
        import json

        tags = found.metrics(wanted)
        document = table.as_json(found, table.rows(found, tags, seeds=seeds, sort=sort), tags)
        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif markdown:
        print(*table_view.markdown(found, metrics=wanted, seeds=seeds, sort=sort), sep="\n")
    elif csv not in (None, "-"):
        from onebox.files import replacing

        with replacing(str(csv)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            table_view.write_csv(found, file, metrics=wanted, seeds=seeds, sort=sort)
    elif csv == "-" or not sys.stdout.isatty():
        delimiter = "," if csv == "-" else "\t"
        table_view.write_csv(found, sys.stdout, metrics=wanted, seeds=seeds, sort=sort, delimiter=delimiter)
    else:
        from rich.console import Console

        table_view.show(found, Console(highlight=False), metrics=wanted, seeds=seeds, sort=sort)


def _folder(name: str | None, outputs: Path) -> Path:
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
    raise BadInput(f"{name}: no such folder, nor one in {sweeps}" + (f"; the newest there: {there}" if there else ""))
