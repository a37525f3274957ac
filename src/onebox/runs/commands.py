"""`onebox runs`, `onebox diff` and `onebox explain`: how they are called. Nothing heavy is imported at the top."""

from pathlib import Path
from typing import Annotated

import typer

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


def register(app: typer.Typer, epilog: str) -> None:
    """Add the commands to `onebox`."""
    app.command("runs", help=RUNS_HELP, epilog=epilog)(runs)


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
