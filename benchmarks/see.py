"""What it costs to write to TensorBoard more than scalars: `python -m benchmarks.see`.

overhead    processor time of a fit with all of it, every_n_epochs as configured, over one without
events_mb   size of the events of the fit with all of it
run_dir_mb  size of the run directory of `make demo`

All are `experiment=baseline` on the embedded data for 30 epochs, the fits without a progress bar. Prints one line of
JSON.
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from lightning.pytorch import seed_everything

from benchmarks.training import config, ready
from onebox.build import build_module, build_trainer
from onebox.lightning_setup import IRRELEVANT_WARNINGS

NAMES = (
    "pictures",
    "scalars",
    "worst",
    "augmented",
    "confusion",
    "curves",
    "histograms",
    "graph",
    "projector",
    "texts",
)
EPOCHS = 30


def fit(folder: Path, *overrides: str) -> float:
    """Seconds of processor time."""
    common = ["experiment=baseline", "trainer.limit_val_batches=1.0", "callbacks.progress=null", "data=shapes"]
    cfg = config(folder, EPOCHS, *common, *overrides)
    data = ready(cfg)
    data.decode()
    seed_everything(cfg.seed, verbose=False)
    module, trainer = build_module(cfg, data), build_trainer(cfg)
    start = time.process_time()
    trainer.fit(module, datamodule=data)
    return time.process_time() - start


def main() -> None:
    for text in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", text)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    stdout, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        without = fit(folder / "without", *(f"callbacks.{name}=null" for name in NAMES))
        all_of_it = fit(folder / "all")
        size = sum(path.stat().st_size for path in (folder / "all" / "tensorboard").rglob("events*"))
        demo = ["onebox.train", "experiment=baseline", f"trainer.max_epochs={EPOCHS}"]
        demo += [f"hydra.run.dir={folder / 'demo'}"]
        subprocess.run([sys.executable, "-m", *demo], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        files = [path.stat() for path in (folder / "demo").rglob("*") if path.is_file()]
        whole = sum({file.st_ino: file.st_size for file in files}.values())  # best and last checkpoint may be one file
    figures = {"overhead": [all_of_it / without], "events_mb": [size / 1e6], "run_dir_mb": [whole / 1e6]}
    print(json.dumps(figures), file=stdout)


if __name__ == "__main__":
    main()
