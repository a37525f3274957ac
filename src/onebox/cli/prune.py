"""`onebox prune`. Nothing heavy is imported at the top."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from onebox.errors import EXIT_FAULT, BadInput, check, printable, say

Place = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FOLDER|NAME]",
        show_default=False,
        help="A folder of runs, or a name below outputs/ or outputs/sweeps/. [default: outputs]",
    ),
]
Outputs = Annotated[Path, typer.Option(metavar="FOLDER", help="The folder that names are looked for in.")]


def prune(
    place: Place = None,
    keep: Annotated[
        str | None, typer.Option(metavar="best:N", help="Keep those of the best N runs of each folder.")
    ] = None,
    older: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only of runs that ended so long ago: 12h, 30d, 4w.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    outputs: Outputs = Path("outputs"),
) -> None:
    """Remove checkpoints of runs by rule. Records, metrics, logs and curves stay.

    Given both rules, a run loses its checkpoints if it is neither among the best nor younger. A running one keeps them;
    without --older one keeps them too that did not complete, as it could be resumed. What onebox did not write is never
    touched, and no link is followed. On a terminal it asks first.

    \b
    Examples
      onebox prune --older 30d --dry-run
      onebox prune loss_weights --keep best:5
      onebox prune outputs/sweeps/lr --keep best:1 --older 2w --yes
    """
    from onebox.runs.reading.find import find_runs
    from onebox.runs.reading.prune import kept, num_bytes, read_rules
    from onebox.runs.record import remove_checkpoints

    rules = read_rules(keep, older)
    places = [outputs] if place is None else [place, outputs / "sweeps" / place, outputs / place]
    folder = next((path for path in places if path.is_dir()), None)
    check(folder is not None, f"{place or outputs}: no such folder, nor a name in {outputs} or {outputs / 'sweeps'}")
    assert folder is not None
    reasons = kept(find_runs(folder), *rules)
    sizes = {run: num_bytes(run) for run, reason in reasons.items() if not reason}
    for run, size in sizes.items():
        print(printable(f"{size / 1e6:10,.1f} MB  {run.record.get('status')}  {run.path}"))
    counts = Counter(reason for reason in reasons.values() if reason)
    rest = "".join(f"; {count} {reason} keep{'s'[: count == 1]} theirs" for reason, count in counts.items())
    print(printable(f"{_size(sum(sizes.values()))} of checkpoints of {len(sizes)} runs in {folder}{rest}"))
    if dry_run or not sizes:
        return
    if sys.stdin.isatty() and not yes and input("Remove them? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing was removed")
        return
    freed = 0
    for run, size in sizes.items():
        try:
            remove_checkpoints(run.path)
            freed += size
        except (BadInput, OSError) as error:  # another process has begun to run it, or it is somebody else's
            say(f"onebox: {error}; it keeps its checkpoints")
    print(f"{_size(freed)} freed")
    if freed < sum(sizes.values()):
        raise typer.Exit(EXIT_FAULT)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.2f} GB"
