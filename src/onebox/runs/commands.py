"""`onebox runs`, `onebox diff` and `onebox explain`: how they are called. Nothing heavy is imported at the top."""

from pathlib import Path
from typing import Annotated

import typer

from onebox.errors import BadInput

Outputs = Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs are looked for.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

RUNS_HELP = """List runs, the newest first, and find some of them.

--where compares metrics (val/joint_acc of the best epoch, test/iou), values of the config (optimizer.lr), choices of
groups (model.backbone) and facts of run.json (status, seed, started, git.branch) by == != < <= > >=, by ~ with a
pattern, or by in [A, B]; with and, or, not and parentheses.

\b
Examples
  onebox runs
  onebox runs --where 'val/joint_acc > .3 and model.backbone == tiny_cnn' --sort test/joint_acc
  onebox runs --where 'status in [failed, interrupted] and started > 2026-11-01' --limit 0
  onebox runs --where 'name ~ base* and not seed == 0' --json
"""


DIFF_HELP = """Say what differs between runs: config, code, environment, data, and what it did to the metrics.

A RUN is a run directory, latest, latest~1, or the first digits of a fingerprint. Each run after the first is compared
with the first. A choice (loss/loc: l1 → giou) stands above the keys that it brought along; defaults that moved with the
code stand apart. Where other seeds of the same configs are found, a difference of metrics is held against their noise.

\b
Examples
  onebox diff latest~1 latest
  onebox diff outputs/baseline/2026-11-23_16-27-44-386692 3f2a --all
  onebox diff 3f2a 77c0 --markdown >> notes.md
"""
EXPLAIN_HELP = """Say what each key did to the metrics, from pairs of runs that differ in nothing else.

RUNS are folders of runs (a sweep), or runs named as for onebox diff. A choice counts with all that it brings along, the
seed counts as noise. Each change of a value is given with its mean effect, the 95 % interval over the pairs and their
number, what mattered most first. What never changed alone is named, as its effect cannot be
told from that of others.

\b
Examples
  onebox explain outputs/sweeps/loss_weights
  onebox explain outputs/baseline outputs/giou --metric test/iou --metric test/loc_l1
  onebox explain outputs --json
"""
DIFF_EPILOG = (
    "Exit codes: 0 nothing that can change a result differs, nor do the metrics; 1 something does; 2 bad input."
)


def register(app: typer.Typer, epilog: str) -> None:
    """Add the commands to `onebox`."""
    app.command("runs", help=RUNS_HELP, epilog=epilog)(runs)
    app.command("diff", help=DIFF_HELP, epilog=DIFF_EPILOG)(diff)
    app.command("explain", help=EXPLAIN_HELP, epilog=epilog)(explain)


def diff(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", show_default=False, help="Two or more.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also what cannot change a result, all metrics, hosts and times.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    outputs: Outputs = Path("outputs"),
    json_: Json = False,
) -> None:
    """Compare them."""
    import gc

    from onebox.runs import diff_view
    from onebox.runs.diff import diff as compare
    from onebox.runs.find import find_run

    if len(names) < 2:
        raise BadInput(f"{names[0]}: name two runs or more, such as latest~1 latest")
    if markdown and json_:
        raise BadInput("--json and --markdown: choose one")
    gc.disable()  # see runs
    document = compare([find_run(name, outputs) for name in names], outputs, everything=everything)
    if json_:
        import json

        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif markdown:
        print(diff_view.markdown(document, everything=everything))
    else:
        from rich.console import Console

        diff_view.show(document, Console(highlight=False), everything=everything)
    raise typer.Exit(0 if document["same"] else 1)


def explain(
    names: Annotated[
        list[str], typer.Argument(metavar="RUNS...", show_default=False, help="Folders of runs, or runs.")
    ],
    metric: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Such as test/iou; may be given several times.")
    ] = None,
    outputs: Outputs = Path("outputs"),
    json_: Json = False,
) -> None:
    """Explain them."""
    from onebox.runs.explain import explain as explain_runs
    from onebox.runs.explain import lines
    from onebox.runs.find import find_all

    document = explain_runs(find_all(names, outputs), metric or [])
    if json_:
        import json

        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in lines(document):
        console.print(Text.assemble(*line), soft_wrap=True)


def runs(
    where: Annotated[str | None, typer.Option(metavar="EXPR", help="Only runs that meet this.")] = None,
    sort: Annotated[str | None, typer.Option(metavar="KEY", help="The largest first, instead of the newest.")] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="The smallest or oldest first.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0 shows all.")] = 30,
    outputs: Outputs = Path("outputs"),
    json_: Json = False,
) -> None:
    """List them."""
    import gc

    from onebox.runs import listing

    gc.disable()  # thousands of records are read, none is dropped: looking for garbage takes a quarter of the time
    found, keys = listing.select(outputs, where, sort, ascending=ascending)
    shown = found[:limit] if limit else found
    if json_:
        import json

        print(json.dumps(listing.as_json(shown, keys), indent=2, ensure_ascii=False))
    elif not found:
        print(f"no run in {outputs.resolve()}" + (f" meets {where}" if where else ""))
    else:
        listing.show(shown, keys, outputs=outputs, total=len(found))
