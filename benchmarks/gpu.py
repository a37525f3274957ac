"""Speed on one GPU: `python -m benchmarks.gpu`; `--device cpu --quick` tries the code where there is none.

For each network images/s of the whole fit (loading, augmentation on the device, Lightning, metrics, TensorBoard, CSV;
no checkpoints) and of the bare step: forward, loss, backward and optimizer over batches that lie on the device, in the
same precision. Then a sweep of 16 jobs one after the other, and four at once on the one device (`gpus_per_job: 0.25`).

Prints a table, and one line of JSON: lists of figures, a ratio for each epoch but the first.
"""

import argparse
import copy
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from rich.console import Console
from rich.table import Table

from benchmarks.sweep import sweep
from benchmarks.training import NO_CHECKPOINTS, config, ready
from onebox.build import build_module, build_trainer
from onebox.lightning_setup import IRRELEVANT_WARNINGS

NETWORKS = {
    "tiny_cnn": ["data.batch_size=256"],
    "resnet50": ["model/backbone=resnet50", "image_size=224", "data.batch_size=128"],
    "efficientnet_lite0": ["model/backbone=efficientnet_lite0", "image_size=224", "data.batch_size=128"],
}
# The embedded data set, as large as the training images of VOC 2007 and 2012.
DATA = ["data=shapes", "data.source.num_train=16384", "data.source.num_val=64", "data.source.num_test=64"]
PAINTED = ["augment=batched_affine", "augment.painter=torch", "data.drop_last=true"]
QUICK = ["data.source.num_train=12", "data.batch_size=4", "image_size=32"]
SHARE, SHARE_TARGET = 0.95, 2.5


def wait() -> float:
    """The time, s, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(Callback):
    """Seconds of each epoch of a fit, with what it does until the next one begins."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.times.append(wait())

    def on_train_end(self, *args: Any) -> None:
        self.times.append(wait())

    def epochs(self) -> list[float]:
        """Without the first, in which libraries choose what they use."""
        return [end - start for start, end in zip(self.times[1:], self.times[2:], strict=False)]


class Keep(Callback):
    """Keeps the first batches of a fit where they are, as the network was given them."""

    def __init__(self, most: int) -> None:
        self.batches: list[Any] = []
        self.most = most

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0 and len(self.batches) < self.most:
            self.batches.append(batch)


def bare_seconds(module: Any, batches: list[Any], steps: int, epochs: int) -> list[float]:
    """Seconds of so many steps over batches on the device, for each epoch but the first."""
    device = batches[0].boxes.device
    model, loss = module.localizer.to(device).train(), module.loss.to(device).train()
    optimizer = module.make_optimizer(model.parameters())
    seconds = []
    for _ in range(epochs):
        start = wait()
        for step in range(steps):
            batch = batches[step % len(batches)]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                total, _ = loss(model(batch.images), model.encode(batch.boxes, batch.labels))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        seconds.append(wait() - start)
    return seconds[1:]


def network(folder: Path, name: str, device: str, epochs: int, overrides: list[str]) -> tuple[list[float], list[float]]:
    """Images/s of the fit and of the bare step, for each epoch but the first."""
    trainer_options = [f"trainer={device}", f"trainer.accelerator={device}"]
    data_dir = f"data_dir={folder / 'data'}"
    cfg = config(
        folder / name, epochs, *NETWORKS[name], *DATA, *PAINTED, *NO_CHECKPOINTS, data_dir, *trainer_options, *overrides
    )
    data = ready(cfg)
    seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data)
    bare = copy.deepcopy(module)
    trainer, clock, keep = build_trainer(cfg, module=module), Clock(), Keep(8)
    trainer.callbacks += [clock, keep]
    trainer.fit(module, datamodule=data)
    torch.use_deterministic_algorithms(False)  # the trainer's choice, which may cost time
    steps = int(trainer.num_training_batches)
    images = steps * cfg.data.batch_size
    bare_s = bare_seconds(bare, keep.batches, steps, epochs)
    return [images / s for s in clock.epochs()], [images / s for s in bare_s]


def sweeps(folder: Path, device: str, jobs: int, epochs: int) -> float:
    """Wall time of a sweep one after the other, over that of the same sweep with four jobs at once."""
    folder = folder / "sweeps"  # with data of its own
    folder.mkdir()
    options = [f"trainer={device}", f"trainer.accelerator={device}"]
    shared = "hydra.launcher.gpus_per_job=0.25" if device == "gpu" else "hydra.launcher.threads_per_job=1"
    sweep(folder, "first", 1, 1, *options)  # writes the data and fills the cache
    one = sweep(folder, "one", jobs, epochs, *options)
    return one / sweep(folder, "shared", jobs, epochs, *options, "hydra.launcher.n_jobs=4", shared)


def main() -> None:
    for text in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", text)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--quick", action="store_true", help="a few small images and jobs: tries the code")
    arguments = parser.parse_args()
    if arguments.device == "gpu" and not torch.cuda.is_available():
        print("no GPU here that torch can use; --device cpu --quick tries the code without one", file=sys.stderr)
        sys.exit(2)
    quick, device = arguments.quick, arguments.device
    stdout, sys.stdout = sys.stdout, sys.stderr  # the progress bar is part of the work, not of the answer
    figures: dict[str, list[float]] = {}
    table = Table("", "end to end", "bare step", "ratio", "target", title="images/s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network_name in NETWORKS:
            epochs, overrides = (2, QUICK) if quick else (6, [])
            fit, bare = network(folder, network_name, device, epochs, overrides)
            ratios = [one / other for one, other in zip(fit, bare, strict=True)]
            figures[network_name] = ratios
            speeds = (f"{median(fit):,.0f}", f"{median(bare):,.0f}")
            table.add_row(network_name, *speeds, f"{median(ratios):.3f}", f">= {SHARE}")
        jobs, epochs = (2, 1) if quick else (16, 20)
        figures["sweep"] = [sweeps(folder, device, jobs, epochs)]
        table.add_row(f"sweep of {jobs}, 4 at once", "", "", f"{figures['sweep'][0]:.2f}", f">= {SHARE_TARGET}")
    name = torch.cuda.get_device_name() if device == "gpu" else "processor, no measurement of a GPU"
    sys.stdout = stdout
    Console(highlight=False).print(table, f"{name}, torch {torch.__version__}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
