"""What a trained network costs when it is used: `python -m benchmarks.use WHAT`.

speed BACKBONE   batch_1, batch_64  PyTorch ÷ ONNX Runtime, seconds of a batch; each in its own process, in turns
predict NETWORK  whole              the longer of decoding 1,000 photographs and of the network alone ÷ `onebox predict`
                 work               the sum of both ÷ `onebox predict`: each keeps all cores busy, so 1 is the limit
peak             ratio              highest memory of `onebox predict` with 10,000 photographs ÷ that with 100
parity [NAMES]   the table of docs/export.md: how far exported files are from the network, for every backbone and head,
                 or only those that are named

Everything uses all cores: a batch of `speed` with as many threads, `predict` and its parts by a thread a core. The
networks have drawn weights. All but `parity` print one line of JSON: lists of ratios.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import numpy as np
import torch
import typer
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from benchmarks.memory import memory
from onebox.cli.predict import predict as predict_command
from onebox.data.processes import num_cores
from onebox.files import write_json
from onebox.runs.checkpoint import FORMAT
from onebox.runs.reading.export import export
from onebox.runs.reading.load import LoadedRun
from onebox.runs.reading.onnx_model import OnnxModel
from onebox.runs.reading.predict import BATCH, image_files, read_any

SMALL = ("tiny_cnn", "small_cnn")
EFFICIENTNETS = ("efficientnet_lite0", "efficientnet_lite2")
BACKBONES = (*SMALL, "mobilenet_v3_small", "resnet18", *EFFICIENTNETS, "resnet50", "convnext_tiny", "timm")
HEADS = {  # each head for boxes with one for classes
    "linear": "linear",
    "mlp": "mlp",
    "spatial": "attention_pool",
    "attention_pool": "linear",
    "dense": "mlp",
    "edges": "attention_pool",
    "per_class_box": "linear",
    "pyramid_edges": "box_pool",
    "cells": "box_pool",  # with a second look
}
ROUNDS = 7  # of turns
TURN_S = 0.4  # seconds of one
PHOTOGRAPHS = 1000


def network(*overrides: str) -> LoadedRun:
    """A localizer as a run would be loaded, with drawn weights, in evaluation mode."""
    drawn = [] if {f"model/backbone={name}" for name in SMALL} & set(overrides) else ["model.backbone.pretrained=false"]
    torch.manual_seed(0)
    with initialize_config_module("onebox.conf", version_base="1.3"):
        cfg = compose("train", overrides=["run_dir=none", *overrides, "model.num_classes=20", *drawn])
    model, augment = (hydra.utils.instantiate(part, _convert_="all") for part in (cfg.model, cfg.augment))
    config: Any = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("model", "augment")}
    names = [f"class {number}" for number in range(20)]
    return LoadedRun(Path(), {"config": config}, model.eval(), augment, names)


def noise(number: int, side: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (number, side, side, 3), dtype=np.uint8)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turns(form: str, backbone: str, file: str) -> None:
    """What one process of `speed` does: for each size of a batch that it is sent, say how long one takes."""
    model = OnnxModel(Path(file)) if form == "onnx" else network(f"model/backbone={backbone}")
    side = model.about["image_size"] if isinstance(model, OnnxModel) else model.transform.resize.size
    for line in sys.stdin:
        work = partial(model.run, noise(int(line), side))
        work()
        found: list[float] = []
        while len(found) < 3 or sum(found) < TURN_S:
            found.append(seconds(work))
        print(median(found), flush=True)


def speed(folder: Path, backbone: str) -> dict[str, list[float]]:
    run, file = network(f"model/backbone={backbone}"), folder / "model.onnx"
    export(run, file, any_size=False, images=list(noise(4, run.transform.resize.size)), about={})
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    command = [sys.executable, "-m", "benchmarks.use", "turns"]
    forms = [subprocess.Popen([*command, form, backbone, str(file)], **pipes) for form in ("torch", "onnx")]

    def turn(process: Any, size: int) -> float:
        print(size, file=process.stdin)
        return float(process.stdout.readline())

    found = {}
    for name, size in {"batch_1": 1, "batch_64": 64}.items():
        rounds = [[turn(process, size) for process in forms] for _ in range(ROUNDS)]
        found[name] = [one / other for one, other in rounds[1:]]
    for process in forms:
        process.communicate()
    return found


def stored(run: LoadedRun, folder: Path) -> Path:
    """A run directory that holds no more than `onebox predict` reads."""
    (folder / "checkpoints").mkdir(parents=True)
    write_json(folder / "run.json", {"schema": 1, "status": "completed"})
    OmegaConf.save(run.config, folder / "config.yaml")
    weights = {f"localizer.{name}": value for name, value in run.localizer.state_dict().items()}
    about = {"format": FORMAT, "class_names": run.class_names}
    torch.save({"state_dict": weights, "onebox": about}, folder / "checkpoints/best.ckpt")
    return folder


def command(run: Path, images: list[str]) -> None:
    """`onebox predict RUN IMAGES --out FOLDER`."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr), contextlib.suppress(typer.Exit):
        predict_command(str(run), images, out=Path(out, "predicted"), outputs=run)


def photographs(number: int) -> list[Path]:
    paths = image_files([f"{os.environ['ONEBOX_VOC_ROOT']}/VOCdevkit/VOC2007/JPEGImages"])
    return list(itertools.islice(itertools.cycle(paths), number))


def predict(folder: Path, overrides: str) -> dict[str, list[float]]:
    run, paths = network(overrides), photographs(PHOTOGRAPHS)
    place, images = stored(run, folder / "run"), [str(path) for path in paths]
    batch = noise(BATCH, run.transform.resize.size)
    torch.set_num_threads(1)  # as the command does

    def in_threads(work: Callable[[Any], Any], items: list[Any]) -> None:
        with ThreadPoolExecutor(num_cores()) as pool:
            list(pool.map(work, items))

    whole = partial(command, place, images)
    decoding = partial(in_threads, lambda path: run.resize(read_any(path)[0]) is None, paths)
    computing = partial(in_threads, lambda number: run.run(batch) is None, [*range(-(-len(paths) // BATCH))])
    partial(command, place, images[:32])()
    parts = [seconds(work) for work in (whole, decoding, computing)]
    print(f"predict, decoding, network: {parts}", file=sys.stderr)
    return {"whole": [max(parts[1:]) / parts[0]], "work": [sum(parts[1:]) / parts[0]]}


def peak(folder: Path) -> dict[str, list[float]]:
    run = stored(network("model/backbone=tiny_cnn"), folder / "run")
    (folder / "photographs").mkdir()
    for number, path in enumerate(photographs(10_000)):
        (folder / "photographs" / f"{number}.jpg").symlink_to(path.absolute())
    command = [sys.executable, "-m", "benchmarks.use", "many", str(run), str(folder / "photographs")]
    few, many = (
        int(subprocess.run([*command, number], stdout=subprocess.PIPE, check=True).stdout)
        for number in ("100", "10000")
    )
    print(f"{few / 1e6:.0f} and {many / 1e6:.0f} MB", file=sys.stderr)
    return {"ratio": [many / few]}


def many(run: str, folder: str, number: str) -> None:
    """Print the highest memory of this process, which predicts so many photographs, bytes."""
    command(Path(run), [str(path) for path in itertools.islice(Path(folder).iterdir(), int(number))])
    print(memory("VmHWM"))


def rows(folder: Path, backbones: Sequence[str], loc_heads: Sequence[str]) -> Iterator[list[str]]:
    forms = ("ONNX Runtime", "torch.export")
    yield ["backbone", "loc_head", "cls_head", *(f"{form}: box, probability" for form in forms)]
    yield [*["---"] * 3, *["---:"] * len(forms)]
    for backbone, loc in itertools.product(backbones, loc_heads):
        heads = loc, HEADS[loc]
        groups = zip(("backbone", "loc_head", "cls_head"), (backbone, *heads), strict=True)
        parts = [f"model/{group}={name}" for group, name in groups]
        # No second look: what noise shows in a crop that is 1e-7 farther to the right is another image.
        coder = ["model/box_coder=cells"] if loc == "cells" else []
        run = network(*parts, *coder, "model.flip_average=true")
        images = list(noise(16, run.transform.resize.size))
        cells = []
        for name in ("model.onnx", "model.pt2"):
            start = time.perf_counter()
            report = export(run, folder / name, any_size=False, images=images, about={})
            took, size = time.perf_counter() - start, (folder / name).stat().st_size / 1e6
            cells.append(f"{report.box:.0e}, {report.probability:.0e}; {size:.1f} MB, {took:.0f} s")
        yield [backbone, *heads, *cells]


def parity(folder: Path, *names: str) -> None:
    backbones, loc_heads = ([name for name in every if name in names] or [*every] for every in (BACKBONES, HEADS))
    for row in rows(folder, backbones, loc_heads):
        print("|", " | ".join(row), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "predict", "peak", "parity", "turns", "many"))
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if given.what in ("turns", "many"):  # processes of others
        {"turns": turns, "many": many}[given.what](*given.arguments)
        return
    measurements: dict[str, Callable[..., Any]] = {
        "speed": speed,
        "predict": predict,
        "peak": peak,
        "parity": parity,
    }
    with tempfile.TemporaryDirectory() as folder:
        found = measurements[given.what](Path(folder), *given.arguments)
    if found is not None:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
