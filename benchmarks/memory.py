"""Memory of a fit of 20 epochs (Linux): `python -m benchmarks.memory`.

ratio          peak of the fit ÷ peak of a bare loop of the same steps: the network, the loss and the optimizer of the
               module over batches of the same decoded images, which lie in memory
growth         what the fit holds at the end of its last epochs, with the imports, ÷ the same for its first ones, minus
               1, in %
growth_in_use  the same of what malloc has lent, which tells a leak from what the allocator keeps for later (glibc)

Both sides are processes of their own with the same imports, and both peaks are counted from what these take. Counted is
resident memory that is the process's own (RssAnon), and for the fit the images in the cache's file, which is mapped and
shared, where the bare loop has a copy. Files of libraries are not counted, as how much of them is resident depends on
the system's page cache. Images are decoded before. Prints one line of JSON: lists of one number.
`python -m benchmarks.memory fit FOLDER [OVERRIDES]` and `bare` are one side alone, in bytes.
"""

import ctypes
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

from lightning.pytorch import Callback, seed_everything

from benchmarks.training import ByHand, config, ready
from onebox.build import build_module, build_trainer
from onebox.lightning_setup import IRRELEVANT_WARNINGS

EPOCHS = 20


def memory(what: str) -> int:
    """Bytes of this process in /proc/self/status: `RssAnon` are its own resident ones, `VmHWM` the most there were."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{what}:")).split()[1]) * 1024


class MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


def in_use() -> int:
    """Bytes that malloc has lent, of all arenas: `hblkhd` in maps of their own, `uordblks` of the heap."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallInfo
    _, _, _, _, mapped, _, _, of_heap, _, _ = mallinfo().numbers
    return int(mapped + of_heap)


class Watch(Callback):
    """The most private bytes, looked at every few milliseconds, and those at the end of each epoch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.in_use: list[int] = []
        self.peak, self._is_over = 0, Event()
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._is_over.wait(0.005):  # a step takes ten times as long, and the allocator keeps what it had
            self.peak = max(self.peak, memory("RssAnon"))

    def on_train_epoch_end(self, *args: Any) -> None:
        self.sizes.append(memory("RssAnon"))
        self.in_use.append(in_use())

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()


def side(folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    """Bytes of the imports, what one side holds beyond them at its highest, and private bytes after each epoch."""
    cfg = config(folder / name, EPOCHS, f"data.cache_dir={folder}/cache", *overrides)
    build_module(cfg, ready(cfg)), build_trainer(cfg), import_module("torch.utils.tensorboard")  # what a fit imports
    before = memory("RssAnon")
    data = ready(cfg)
    seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data)
    images = 0
    if name == "bare":
        loader = data.train_dataloader()
        loop, batches = ByHand(module), list(loader)
        del data, loader, module  # and with them the cache's file
        watch = Watch()
        for _ in range(EPOCHS):
            rest = iter(batches)
            for _ in batches:
                loop.step(rest)
            loop.loss_sum()
            watch.on_train_epoch_end()
    else:
        images = len(data.indexes["train"]) * cfg.image_size**2 * 3  # all of the cache's pages that are read
        watch = Watch()
        trainer = build_trainer(cfg, module=module)
        trainer.callbacks.append(watch)
        trainer.fit(module, datamodule=data)
    watch.close()
    return {"imports": before, "peak": watch.peak - before + images, "epochs": watch.sizes, "in_use": watch.in_use}


def measure(folder: Path) -> dict[str, list[float]]:
    ready(config(folder, EPOCHS, f"data.cache_dir={folder}/cache"))
    sides = {}
    for name in ("bare", "fit"):
        command = [sys.executable, "-m", "benchmarks.memory", name, str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        sides[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, sides[name])
    growths = {
        name: [100 * (median(sizes[-4:]) / median(sizes[1:5]) - 1)]
        for name, sizes in (("growth", sides["fit"]["epochs"]), ("growth_in_use", sides["fit"]["in_use"]))
    }
    return {"ratio": [sides["fit"]["peak"] / sides["bare"]["peak"]], **growths}


def main() -> None:
    for text in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", text)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    stdout, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        measured = side(Path(sys.argv[2]), sys.argv[1], *sys.argv[3:]) if sys.argv[1:] else measure(Path(folder))
    print(json.dumps(measured), file=stdout)


if __name__ == "__main__":
    main()
