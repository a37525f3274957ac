"""Memory of a fit of 20 epochs, in this process (Linux): `python -m benchmarks.memory`.

ratio   peak of the fit beyond what the imports take ÷ (decoded images + 4 x parameters + activations of a step)
growth  resident memory at the end of the last epochs ÷ that of the first ones, minus 1, in %

Prints one line of JSON: lists of one number.
"""

import json
import logging
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from torch import Tensor

from benchmarks.training import config, ready
from onebox.build import build_module, build_trainer
from onebox.lightning_setup import IRRELEVANT_WARNINGS

EPOCHS = 20


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


class Watch(Callback):
    """Resident bytes at the end of each epoch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def on_train_epoch_end(self, *args: Any) -> None:
        self.sizes.append(resident())


def activations(module: Any, batch: Any) -> int:
    """Bytes that one step keeps for its backward pass, each storage counted once, without the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        localizer = module.localizer
        module.loss(localizer(batch.images), localizer.encode(batch.boxes, batch.labels))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def measure(folder: Path, *overrides: str) -> dict[str, list[float]]:
    cfg = config(folder, EPOCHS, *overrides)
    build_module(cfg, ready(cfg)), build_trainer(cfg), import_module("torch.utils.tensorboard")  # what a fit imports
    Path("/proc/self/clear_refs").write_text("5")  # the highest size counts from here
    before = resident()
    data = ready(cfg)
    seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data)
    trainer = build_trainer(cfg)
    watch = Watch()
    trainer.callbacks.append(watch)
    trainer.fit(module, datamodule=data)
    peak = resident("VmHWM") - before
    images = len(data.indexes["train"]) * cfg.image_size**2 * 3
    parameters = 4 * sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    step = activations(module, next(iter(data.train_dataloader())))
    print(
        {
            "before": before,
            "peak": peak,
            "images": images,
            "parameters": parameters,
            "activations": step,
            "epochs": watch.sizes,
        }
    )
    growth = median(watch.sizes[-4:]) / median(watch.sizes[1:5]) - 1
    return {"ratio": [peak / (images + parameters + step)], "growth": [100 * growth]}


def main() -> None:
    for text in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", text)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    stdout, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), *sys.argv[1:])
    print(json.dumps(measured), file=stdout)


if __name__ == "__main__":
    main()
