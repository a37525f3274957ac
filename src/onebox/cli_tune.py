"""`onebox lr-find` and `onebox fit-batch`: short trials of an experiment that end with an override to paste."""

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from onebox.errors import BadInput

LR_FIND_HELP = """Train an experiment for some steps while the learning rate grows, and suggest one.

Prints an override to paste and draws the curve. Each part keeps its share of the rate (param_groups), what is frozen
in the first epoch stays frozen, schedules are left out. Nothing else is written but what data.cache_dir keeps.

\b
Examples
  onebox lr-find experiment=baseline
  onebox lr-find experiment=transfer model/loc_head=spatial --steps 200 --output curve.png
"""
FIT_BATCH_HELP = """Find the largest batch with which training stays within a memory budget.

Takes a few real training steps of each batch size in a process of its own and prints an override to paste. A loader's
worker processes (data.num_workers) are not counted. Nothing is written but what data.cache_dir keeps.

\b
Examples
  onebox fit-batch experiment=baseline --memory 2GB
  onebox fit-batch experiment=transfer data.features=off
"""
FREE_SHARE = 0.8  # of the memory that is free, where no budget is given
UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="The experiment, as onebox-train takes it."),
]


def register(app: typer.Typer, epilog: str) -> None:
    """Add the commands."""
    app.command(help=LR_FIND_HELP, epilog=epilog)(lr_find)
    app.command(help=FIT_BATCH_HELP, epilog=epilog)(fit_batch)


def lr_find(
    overrides: Overrides = None,
    min_lr: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-6,
    max_lr: Annotated[float, typer.Option(help="Of the last step, which is not reached when the loss diverges.")] = 1.0,
    steps: Annotated[int, typer.Option(min=10, help="How many steps from the one to the other.")] = 100,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the curve goes.", dir_okay=False)] = Path(
        "lr_find.png"
    ),
) -> None:
    """Try, draw, print."""
    if not 0 < min_lr < max_lr:
        raise BadInput(f"--min-lr {min_lr:g} must be above 0 and below --max-lr {max_lr:g}")
    if not output.absolute().parent.is_dir():
        raise BadInput(f"{output}: there is no such folder; make it, or choose another --output")
    if output.suffix.lower() != ".png":
        raise BadInput(f"{output}: the curve is a PNG; choose an --output that ends with .png")
    from onebox.trial import compose_trial, run_trial

    with TemporaryDirectory() as folder:
        cfg = compose_trial(overrides or [], Path(folder), progress=sys.stdout.isatty())
        if cfg.optimizer.lr == 0:
            raise BadInput("optimizer.lr is 0, so that parts have no share of it; set it to 1")
        from onebox.lr_find import LrRange

        test = LrRange(min_lr=min_lr, max_lr=max_lr, num_steps=steps, lr=cfg.optimizer.lr)
        run_trial(cfg, steps, [test])
    curve = test.curve()
    curve.draw(output, " ".join(overrides or ["onebox-train"]))
    print(f"{len(curve.rates)} steps; the loss falls fastest at {curve.suggested:.2g}, is lowest at {curve.lowest:.2g}")
    print(f"curve  {output}")
    print(f"\noptimizer.lr={curve.suggested:.1e}")


def fit_batch(
    overrides: Overrides = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The budget, such as 4GB or 500MB. [default: 80 % of what is free]"),
    ] = None,
    at_most: Annotated[int, typer.Option(min=1, help="No larger batch is tried.")] = 1024,
) -> None:
    """Try, print."""
    budget = _bytes(memory) if memory else int(FREE_SHARE * _free())
    from rich.console import Console

    from onebox.fit_batch import largest, peak_memory

    console = Console(stderr=True)
    print(f"{'batch':>6} {'memory':>10}   of {budget / 1e6:,.0f} MB")
    starts: list[int | None] = []  # of each trial, before its first step

    def fits(batch_size: int) -> bool:
        with console.status(f"data.batch_size={batch_size}"):
            used = peak_memory(overrides or [], batch_size, budget)
        if not starts and used.start is not None:
            print(f"{'none':>6} {f'{used.start / 1e6:,.0f} MB':>10}   libraries and data")
        starts.append(used.start)
        print(f"{batch_size:>6} {'too much' if used.peak is None else f'{used.peak / 1e6:,.0f} MB':>10}", flush=True)
        return used.peak is not None

    found = largest(fits, at_most=at_most)
    if not found:
        start, limit = starts[0], f"{budget / 1e6:,.0f} MB"
        if start is None or start > budget:
            raise BadInput(f"libraries and data alone take more than {limit}; give a larger --memory")
        raise BadInput(
            f"not even a batch of one image fits into {limit}, of which libraries and data take {start / 1e6:,.0f} MB; "
            "a smaller image_size may, or a larger --memory"
        )
    print(f"\ndata.batch_size={found}")


def _bytes(text: str) -> int:
    """The number of bytes that `4GB` means.

    Raises:
        BadInput: it means none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG]i?B)\s*", text, re.IGNORECASE)
    if match is None:
        raise BadInput(f"--memory {text}: write a number and MB or GB, such as 4GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _free() -> int:
    """Bytes that are free on the GPU or, without one, in the machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        meminfo = Path("/proc/meminfo").read_text()  # what caches can give back counts as free
        return int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
