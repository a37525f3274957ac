"""Processor time until a frozen network's heads reach a joint_acc on validation: `python -m benchmarks.features`.

first  stored features, of which the computation is counted, ÷ images in every epoch
first_epochs  the same in epochs of the fit on images: it cannot be less than the one that computes the features
again  the same for a run that finds them there, as all but the first of a sweep do

The fits train on the same views from the same weights, `experiment=transfer_lite0` with the backbone frozen, the
spatial head, one level and one view of each image, and stop after the first epoch that reaches the target. Each further
view costs the first fit as much as an epoch costs the fit on images. None pays for decoding, which is done before.
Prints one line of JSON: the ratios, and the minutes and epochs of the three.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, seed_everything
from omegaconf import DictConfig, OmegaConf, open_dict

from benchmarks.training import ready
from onebox.build import build_module, build_trainer
from onebox.frozen_features import store_features
from onebox.lightning_setup import IRRELEVANT_WARNINGS

RECIPE = [
    *("experiment=transfer_lite0", "callbacks.freeze.unfreeze=[]", "image_size=320", "trainer.max_epochs=12"),
    *("model/loc_head=spatial", "model.backbone.levels=[32]", "model.loc_head.dropout=0", "model.cls_head.dropout=0.3"),
]


class StopAt(Callback):
    """Stop after the epoch that reaches `target`."""

    def __init__(self, target: float) -> None:
        self.target = target
        self.reached: list[float] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        value = float(trainer.callback_metrics["val/joint_acc"])
        self.reached.append(value)
        trainer.should_stop = value >= self.target


def config(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_module("onebox.conf", version_base="1.3"):
        common = [*RECIPE, f"run_dir={folder}", "callbacks.pictures=null", "logger.tensorboard=null"]
        cfg = compose("train", overrides=[*common, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def fit(folder: Path, target: float, *overrides: str) -> tuple[float, list[float]]:
    """Minutes of processor time, features included, and joint_acc after each epoch."""
    cfg = config(folder, *overrides)
    data = ready(cfg)
    data.decode()
    seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data)
    trainer = build_trainer(cfg)
    stop = StopAt(target)
    trainer.callbacks.append(stop)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    start = time.process_time()  # of all threads
    store_features(
        trainer, module, data, checkpoint=None, backbone=plain["model"]["backbone"], augment=plain["augment"]
    )
    trainer.fit(module, datamodule=data)
    minutes = (time.process_time() - start) / 60
    assert stop.reached[-1] >= target, f"joint_acc {target} was not reached: {stop.reached}"
    return minutes, stop.reached


def main() -> None:
    for text in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", text)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features")
    parser.add_argument("--joint-acc", type=float, default=0.74)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=16, help="length of the schedule")
    arguments = parser.parse_args()
    common = [f"data.views={arguments.views}", f"trainer.max_epochs={arguments.epochs}"]
    stdout, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        common.append(f"data.cache_dir={folder}/cache")
        first, reached = fit(Path(folder, "first"), arguments.joint_acc, *common)
        again, reached_again = fit(Path(folder, "again"), arguments.joint_acc, *common)
        without, reached_without = fit(Path(folder, "off"), arguments.joint_acc, *common, "data.features=off")
    print(reached, reached_without)
    assert reached == reached_again
    figures = {
        "first": [first / without],
        "first_epochs": [len(reached_without) * first / without],
        "again": [again / without],
        "minutes": [first, again, without],
        "epochs": [len(reached), len(reached_again), len(reached_without)],
    }
    print(json.dumps(figures), file=stdout)


if __name__ == "__main__":
    main()
