"""What a step of a fit costs beyond its network: `python -m benchmarks.profile`.

Fits of tiny_cnn at 100 px, batch 64, on the embedded data in one thread, without validation. Counted is the processor's
time, so what else the machine does matters little; the median over rounds counts, in milliseconds a step.

step by hand     the network, its loss and its optimizer, over batches that lie ready
Lightning alone  the same step in `Trainer(barebones=True)`: neither logger, callback nor bar
whole            as `onebox-train` fits; below it each part by the time spent in it, and what is left
"""

import argparse
import gc
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from benchmarks.training import BareModule, ByHand, config, ready
from onebox.build import build_module, build_trainer
from onebox.lightning_setup import IRRELEVANT_WARNINGS

HOOKS = ("on_", "setup", "teardown", "log_", "save", "finalize", "state_dict")
SHOWN = 0.005  # ms; what costs less is left out


class Ready:
    """Batches that lie ready; a list would be several loaders to Lightning."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def timed(spent: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose time is added to what was spent under a name, but for that of others within it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        before, start = spent.total(), time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.thread_time() - start - (spent.total() - before)

    return call


def watch(spent: Counter[str], name: str, thing: Any) -> None:
    """Count the time of an object's hooks."""
    for hook in dir(type(thing)):
        if hook.startswith(HOOKS) and callable(function := getattr(thing, hook)):
            object.__setattr__(thing, hook, timed(spent, name, function))


def fit(folder: Path, epochs: int) -> dict[str, float]:
    """Seconds of a fit, and of each part of it."""
    cfg = config(folder, epochs, "data=shapes", "threads=1")
    data = ready(cfg)
    seed_everything(cfg.seed, verbose=False)
    module, trainer = build_module(cfg, data), build_trainer(cfg)
    spent: Counter[str] = Counter()
    for callback in trainer.callbacks:
        watch(spent, f"callback {type(callback).__name__}", callback)
    for logger in trainer.loggers:
        watch(spent, f"logger {type(logger).__name__}", logger)
    watch(spent, "hooks of the module: seeding, metrics, what is logged", module)
    dataset = data.dataset("train")
    fetch = type("Fetch", (type(dataset),), {"__getitems__": timed(spent, "fetch", type(dataset).__getitems__)})
    dataset.__class__ = fetch
    steps, start = epochs * len(data.train_dataloader()), time.process_time()
    trainer.fit(module, datamodule=data)
    whole = time.process_time() - start
    return {"whole": whole / steps} | {name: seconds / steps for name, seconds in spent.most_common()}


def by_hand(folder: Path, epochs: int) -> dict[str, float]:
    """Seconds of a step by hand, and of Lightning's loop around it."""
    cfg = config(folder, epochs, "data=shapes", "threads=1")
    data = ready(cfg)
    seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data)
    batches = list(data.train_dataloader())
    hand, bare = ByHand(module), BareModule(ByHand(module))
    options: dict[str, Any] = {"accelerator": "cpu", "deterministic": cfg.trainer.deterministic}
    trainer = Trainer(max_epochs=epochs, barebones=True, **options)
    work = {
        "step by hand": lambda: [hand.step(iter([batch])) for _ in range(epochs) for batch in batches],
        "Lightning alone": lambda: trainer.fit(bare, Ready(batches)),
    }
    found = {}
    for name, function in work.items():
        gc.collect()
        start = time.process_time()
        function()
        found[name] = (time.process_time() - start) / (epochs * len(batches))
    return found


def main() -> None:
    for text in (*IRRELEVANT_WARNINGS, ".*barebones.*", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", text)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stdout, sys.stdout = sys.stdout, sys.stderr  # the bar is part of the work
    found: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):  # the first is to warm up
        with tempfile.TemporaryDirectory() as name:
            each = by_hand(Path(name), arguments.epochs) | fit(Path(name), arguments.epochs)
        for what, seconds in each.items() if number else ():
            found.setdefault(what, []).append(1000 * seconds)
    table = Table("ms a step", "median", "min", "max")
    for what, values in found.items():
        if median(values) >= SHOWN:
            table.add_row(what, *(f"{value:.2f}" for value in (median(values), min(values), max(values))))
    middle = {what: median(values) for what, values in found.items()}
    parts = sum(value for what, value in middle.items() if what not in ("whole", "step by hand", "Lightning alone"))
    rest = middle["whole"] - middle["step by hand"] - parts
    table.add_row("what is left: Lightning's loop", f"{rest:.2f}", "", "")
    Console(file=stdout, width=100).print(table)


if __name__ == "__main__":
    main()
