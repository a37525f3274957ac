"""Run records without training."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from onebox.files import write_json
from onebox.runs.fingerprint import fingerprint

CONFIG = {
    "name": "base",
    "seed": 0,
    "image_size": 100,
    "monitor": "val/joint_acc",
    "monitor_mode": "max",
    "fingerprint_ignore": ["name", "fingerprint_ignore", "data.num_workers", "data.root if data.source", "logger"],
    "data": {"root": "data/shapes", "source": {"num_train": 2000}, "num_workers": 0, "seed": 0, "limit": None},
    "augment": {"resize": {"height": 100}},
    "model": {"backbone": {"_target_": "TinyCnn", "dropout": 0.0, "image_size": 100}},
    "loss": {
        "loc": {"_target_": "CodeLoss", "criterion": {"_target_": "L1Loss"}},
        "weights": {"loc": 10.0, "cls": 1.0},
    },
    "optimizer": {"_target_": "Adam", "lr": 1e-3, "weight_decay": 0.0},
    "trainer": {"max_epochs": 30},
    "logger": {"csv": {"path": "x"}},
}
CHOICES = {"data": "shapes", "model/backbone": "tiny_cnn", "loss/loc": "l1", "optimizer": "adam", "logger": "default", "experiment": None, "sweep": None}  # fmt: skip
INTERPOLATED = {"data.seed": "${seed}", "augment.resize.height": "${image_size}", "model.backbone.image_size": "${image_size}"}  # fmt: skip
OPTIONS = {
    "loss/loc=giou": {"loss.loc._target_": "BoxLoss", "loss.loc.criterion": {"_target_": "GIoU", "eps": 1e-7}},
    "optimizer=sgd": {"optimizer": {"_target_": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}},
    "logger=csv": {"logger": {"csv": {"path": "y"}}},
    "experiment=baseline": {"name": "baseline", "model.backbone.dropout": 0.2, "trainer.max_epochs": 100},
}
SETS = {"experiment": {"keys": ["name", "model.backbone.dropout", "trainer.max_epochs"], "groups": ["optimizer"]}}

MakeRun = Callable[..., Path]


def put(config: dict, key: str, value: object) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run directory as `onebox-train OVERRIDES` would; its name below outputs/ comes first.

    `defaults` are values that the code had otherwise, `last` the metrics of the last epoch where not those of the best; `interpolations` follow what they are made of.
    """
    count = 0

    def make(
        name: str, *overrides: str, metrics=None, test=None, defaults=None, by_experiment=(), last=None, **facts
    ) -> Path:
        nonlocal count
        count += 1
        config, choices = copy.deepcopy(CONFIG), dict(CHOICES)
        for key, value in (defaults or {}).items():
            put(config, key, value)
        for override in [*by_experiment, *overrides]:
            key, _, text = override.partition("=")
            if key in choices:
                choices[key] = text
                for inner, value in OPTIONS.get(override, {}).items():
                    put(config, inner, copy.deepcopy(value))
            else:
                put(config, key, eval(text))
        given = {override.partition("=")[0] for override in overrides}
        for key, text in INTERPOLATED.items():
            if key not in given:
                put(config, key, config[text[2:-1]])
        folder = tmp_path / "outputs" / name
        record = {
            "schema": 1,
            "status": "completed",
            "name": config["name"],
            "seed": config["seed"],
            "started": f"2026-11-23T10:{count // 60:02d}:{count % 60:02d}.000+00:00",
            "seconds": 12.0,
            "fingerprint": fingerprint(config, config["fingerprint_ignore"]),
            "fingerprint_seedless": fingerprint(
                config, [*config["fingerprint_ignore"], "seed", *(() if "data.seed" in given else ["data.seed"])]
            ),
            "choices": choices,
            "overrides": list(overrides),
            "config": config,
            "interpolated": {key: text for key, text in INTERPOLATED.items() if key not in given},
            "sets": SETS if choices["experiment"] else {},
            "source": "aaaaaaaaaaaa",
            "git": {"sha": "1" * 40, "branch": "main", "dirty": False, "changed": [], "left_out": [], "patch": None},
            "packages": {"torch": "2.14.1", "numpy": "2.2.0"},
            "python": "3.11.7",
            "system": "Linux",
            "host": "vm",
            "environment": {},
            "hardware": {"cpu": "Xeon", "cores": 2, "threads": 2, "gpus": [], "driver": None},
            "data_fingerprint": {"classes": "c", "pixels": "p", "train": "t", "val": "v", "test": "e"},
            **facts,
        }
        write_json(folder / "run.json", record)
        if metrics is not None:
            best = {f"val/{key}": value for key, value in metrics.items()} | {"epoch": 1}
            final = {f"val/{key}": value for key, value in (last or metrics).items()}
            parts = {"final": final, "best": best, "test": test or metrics, "floor": {"joint_acc": 0.01}}
            write_json(folder / "metrics.json", parts)
        return folder

    return make


@pytest.fixture
def outputs(make_run: MakeRun, tmp_path: Path) -> Path:
    """Four runs: two alone, two of a sweep."""
    make_run("base/first", metrics={"joint_acc": 0.3, "iou": 0.5})
    make_run("base/second", "optimizer.lr=0.01", "seed=1", metrics={"joint_acc": 0.6})
    make_run("sweeps/x/0", "loss/loc=giou", metrics={"joint_acc": 0.7})
    make_run("sweeps/x/1", "loss/loc=giou", "data.limit=5", status="failed", error={"type": "ValueError"})
    return tmp_path / "outputs"
