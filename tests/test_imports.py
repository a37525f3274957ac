"""The layout of the package: which layer may import which."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from onebox.runs.provenance import READING

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "onebox"

# Imports point down only, to a lower number or to the layer itself.
LAYERS = {
    "errors": 0,
    "files": 1,
    "page": 0,
    "streams": 1,
    "overrides": 1,
    "project": 2,
    "trust": 3,
    "boxes": 0,
    "trainer_options": 1,
    "draw": 0,
    "data": 2,
    "model": 2,
    "losses": 3,
    "metrics": 3,
    "optim": 3,
    "module": 4,
    "callbacks": 5,
    "runs": 5,
    "validation": 6,
    "ranks": 6,
    "frozen_features": 6,
    "sweep": 7,
    "lightning_setup": 1,
    "hydra_setup": 6,
    "build": 8,
    "like": 8,
    "api": 9,
    "train": 10,
    "cli": 11,
}
CONFIG_LIBRARIES = {"hydra", "omegaconf"}
MAY_IMPORT_CONFIG = {
    "api",
    "hydra_setup",
    "lightning_setup",
    "build",
    "like",
    "train",
    "cli",
    "overrides",
    "ranks",
    "trust",
    "validation",
    "runs",
    "sweep",
}
HEAVY = {"torch", "lightning", "torchvision", "albumentations", "torchmetrics", "matplotlib"}
UNUSED = {
    "albumentations",
    "timm",
    "pandas",
    "plotly",
    "optuna",
    "sqlalchemy",
    "jinja2",
    "onnx",
    "onnxruntime",
    "wandb",
}
UNUSED |= {"mlflow", "ray", "submitit", "joblib", "pooch", "pebble", "IPython", "sklearn", "scipy.signal"}
UNUSED |= {"onebox.runs.reading.report"}
REHEARSAL = """
import sys, onebox.train, onebox.runs.record
cfg = onebox.compose(["experiment=baseline"])
onebox.train.validate(cfg)
import onebox.module, onebox.data.datamodule
print(*sys.modules)
import onebox.hydra_setup, onebox.build, onebox.runs.hparams, onebox.runs.results, onebox.runs.texts
onebox.build.rehearse(cfg)
print(*sys.modules)
"""


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts != ("__init__",):
            yield path, parts[0]


def imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def test_imports_point_down_only():
    for path, layer in modules():
        for name in imported(path):
            if name.startswith("onebox."):
                below = name.split(".")[1]
                assert below == layer or LAYERS[below] < LAYERS[layer], f"{path} imports {name}"


def test_only_the_top_knows_config_objects():
    for path, layer in modules():
        if layer not in MAY_IMPORT_CONFIG:
            assert not CONFIG_LIBRARIES & {name.split(".")[0] for name in imported(path)}, path


def loaded_by(code: str) -> list[set[str]]:
    """The modules that each line of what is printed names."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_a_run_directory_can_be_read_without_torch():
    reading = "onebox.runs.record, onebox.runs.fingerprint, onebox.runs.reading.report, onebox.train"
    (loaded,) = loaded_by(f"import {reading}, sys; print(*sys.modules)")
    assert not HEAVY & loaded


def test_a_run_imports_only_what_it_uses_and_nothing_that_only_reads():
    before, loaded = loaded_by(REHEARSAL)
    assert not UNUSED & loaded
    assert not [name for name in before if name.startswith("onebox.") and {*READING} & {*name.split(".")}]


def test_every_folder_of_the_package_is_in_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(("onebox", *path.parent.relative_to(SOURCE).parts)) for path in SOURCE.rglob("__init__.py")}
    assert listed == folders | {"onebox.conf", "hydra_plugins.onebox"}
