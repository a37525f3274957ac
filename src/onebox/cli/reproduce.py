"""`onebox reproduce`: a run once more, and whether the same comes out."""

import contextlib
import logging
import math
import re
import shlex
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebox.errors import BadInput, Preempted, check, own_complaint, print_json, printable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from onebox.runs.reading.reproduce import Recorded

EXIT_DIVERGES = 1
MAX_SHOWN = 12  # rows of a table

EPILOG = "Exit codes: 0 identical (or within the tolerance), 1 it diverges, 2 bad input, 130 stopped by Ctrl-C."


Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory, latest, latest~1, or the first digits of a fingerprint.")
]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the config, as onebox-train takes them.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to the recorded config; keys that were derived from these stay as recorded.",
        show_default=False,
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Train only this many steps and compare those.")]
Tolerance = Annotated[
    float | None,
    typer.Option(min=0, metavar="REL", help="Accept losses and metrics that deviate by at most this fraction."),
]
Checkout = Annotated[
    bool, typer.Option("--checkout", help="Only print the commands that check out the run's commit and changes.")
]
Force = Annotated[bool, typer.Option("--force", help="Train even if the data are not those of the run.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(metavar="PACKAGE", help="A package of your own whose classes the run's config may name."),
]
Outputs = Annotated[Path, typer.Option(metavar="FOLDER", help="The folder in which runs are looked for.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Directory of the new run. [default: outputs/reproduced/RUN/<date>_<time>]", file_okay=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def reproduce(
    run: Run,
    overrides: Overrides = None,
    steps: Steps = None,
    tolerance: Tolerance = None,
    checkout: Checkout = False,
    force: Force = False,
    trust: Trust = None,
    outputs: Outputs = Path("outputs"),
    out: Out = None,
    json_: Json = False,
) -> None:
    """Run a run again and prove that the same comes out.

    Trains with the recorded config and number of threads into a new directory, compares every step's losses, the
    metrics and the final weights, and says what differs in code, environment and machine.

    \b
    Examples
      onebox reproduce latest
      onebox reproduce outputs/baseline/2026-01-31_12-00-00-000000
      onebox reproduce RUN --steps 20           a proof in seconds: the first steps only
      onebox reproduce RUN --checkout           print how to get the code of the run
      onebox reproduce RUN --tolerance 1e-4     on other hardware, where the last bits differ
      onebox reproduce RUN data.root=/data/voc  the data have moved
      onebox reproduce RUN optimizer.lr=0.002   where does this make a difference first?
    """
    from onebox.runs.reading.find import REPRODUCED, find_run
    from onebox.runs.reading.reproduce import Recorded, compare, config_again, differences, parts
    from onebox.trust import check_config

    recorded = Recorded.read(Path(run) if Path(run, "run.json").exists() else find_run(run, outputs).path)
    if checkout:
        print("\n".join(map(printable, _checkout(recorded))))
        return
    folder = out or outputs / REPRODUCED / recorded.folder.resolve().name / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    _check(recorded, steps, folder)
    chain, given, place = parts(recorded), overrides or [], folder
    for part in chain:
        check_config(part.config, part.folder / "config.yaml", trust or [])
    print(printable(f"reproducing {recorded.folder} in {folder}"), file=sys.stderr if json_ else sys.stdout)
    with on_stderr() if json_ else contextlib.nullcontext():
        for number, part in enumerate(chain):
            after = place if number else None
            place = (folder if part is recorded else folder / f"part{number + 1}").resolve()
            texts = [text for text in given if part is recorded or text.startswith("data.")]
            kept: Any = {"steps": steps, "force": force, "after": after, "is_part": len(chain) > 1}
            if _is_stopped(part, config_again(part, place, overrides=texts, **kept)):
                break
    again = Recorded.read(place)
    found = differences(recorded.record, again.record)
    result = compare(recorded, again, steps=steps, tolerance=tolerance)
    if json_:
        places = {"schema": 2, "run": str(recorded.folder), "again": str(folder), "differences": found}
        print_json(places | result)
    else:
        _print(recorded, found, result)
    raise typer.Exit(EXIT_DIVERGES if result["verdict"] == "diverges" else 0)


def _check(recorded: "Recorded", steps: int | None, folder: Path) -> None:
    """Refuse what there is nothing to compare with, and a folder that is taken."""
    check(not (folder / "run.json").exists(), f"{folder}: already holds a run; choose another --out")
    made = 0 if recorded.trace is None else len(recorded.trace)
    status = recorded.record.get("status")
    advice = f"--steps {made} compares those" if made else "there is nothing to compare with"
    check(
        steps is not None or status == "completed",
        f"{recorded.folder}: the run is {status} after {made} steps; {advice}",
    )
    check(
        steps is None or made > 0,
        f"{recorded.folder}: has no trace.csv (callbacks.trace=null, or an older version), so its steps cannot be "
        "compared; without --steps metrics and weights are",
    )


def composed(*overrides: str) -> "DictConfig":
    """The config of some overrides, not checked; what Hydra says against them is `BadInput`."""
    from hydra import compose, initialize_config_module

    from onebox.hydra_setup import register_plugins
    from onebox.overrides import as_meant
    from onebox.validation import told_as_bad_input

    register_plugins()
    typed = [*map(as_meant, overrides)]
    with told_as_bad_input(typed), initialize_config_module("onebox.conf", version_base="1.3"):
        return compose("train", overrides=typed)


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """What is printed on the way is not to be in the JSON."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _is_stopped(recorded: "Recorded", config: dict[str, Any]) -> bool:
    """Train a config as it stands, with as many threads as the run had: their number changes the last bits of sums.

    True where it was stopped after as many steps as were asked for.
    """
    import torch
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from onebox.runs.fingerprint import set_hydra_config
    from onebox.train import train

    set_hydra_config(recorded.record.get("choices", {}), recorded.record.get("overrides", []))
    threads = torch.get_num_threads()
    torch.set_num_threads(recorded.record.get("hardware", {}).get("threads", threads))
    cfg = OmegaConf.create(config)
    OmegaConf.set_struct(cfg, True)
    try:
        train(cfg)
        return False
    except Preempted as stop:
        if "as asked" not in str(stop):
            raise
        return True
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(str(own_complaint(error))) from error
    finally:
        torch.set_num_threads(threads)
        HydraConfig.instance().cfg = None


def _print(recorded: "Recorded", differences: list[dict[str, Any]], result: dict[str, Any]) -> None:
    rows: list[tuple[str, Any, Any]] = [("", "recorded", "again")]
    first, largest, line = result["divergence"], result["largest_deviation"], result["verdict"]
    if first:
        rows += [(name, *values) for name, values in first["values"].items()]
        what = f"first in {rows[1][0]}" if first["values"] else "which only one of the runs made"
        line += f" at step {first['step']} (epoch {first['epoch']}), {what}" if line == "diverges" else ""
    if result["final_weights"]:
        rows += [("final weights", *result["final_weights"])]
        rows += [(row["where"], row["recorded"], row["again"]) for row in result["metrics"][:MAX_SHOWN]]
    if largest and line != "identical":
        far = math.inf if largest["relative"] is None else largest["relative"]
        line += f"; largest deviation {far:.1e} ({largest['where']})"
    for item in differences:
        print(printable(f"{item['what']}: {item['recorded'] or 'none'} → {item['again'] or 'none'}"))
    if recorded.trace is None:
        print("steps: not compared, as the run has no trace.csv (older versions wrote another file)")
    for name, *values in rows if len(rows) > 1 else []:
        print(
            printable("  ".join([f"  {name:32}", *(f"{'none' if value is None else value!s:>16}" for value in values)]))
        )
    if len(result["metrics"] or []) > MAX_SHOWN:
        print(f"  and {len(result['metrics']) - MAX_SHOWN} more metrics")
    made = f" in the first {result['steps']} steps" if not result["final_weights"] and line == "identical" else ""
    print(printable(line + made))


def _checkout(recorded: "Recorded") -> list[str]:
    """The commands that check out the code of a run.

    Raises:
        BadInput: the run does not say which commit that is.
    """
    git = recorded.record.get("git") or {}
    sha = str(git.get("sha"))
    # git takes options where it expects a commit.
    check(bool(re.fullmatch("[0-9a-f]{7,64}", sha)), f"{recorded.folder}: the run was not made from a git checkout")
    lost = f"{recorded.folder}: the run's uncommitted changes were too large to be stored; commit {sha} is not its code"
    check(not git.get("patch_too_large"), lost)
    code, run = f"onebox-{sha[:9]}", recorded.folder.resolve()
    lines = [f"git worktree add --detach {code} {sha}"]
    if git.get("patch"):
        patch = shlex.quote(f"{run}/changes.patch.gz")
        lines.append(f"gzip -dc {patch} | git -C {code} apply --whitespace=nowarn --exclude='.own/*'")
    lines.append(f"cd {code} && make setup && .venv/bin/onebox reproduce {shlex.quote(str(run))}")
    return lines
