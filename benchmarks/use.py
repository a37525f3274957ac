"""What a trained network costs when it is used: `python -m benchmarks.use speed|predict|parity`.

speed    ONNX Runtime as many times as fast as PyTorch, of one image and of 64: BACKBONE_1, BACKBONE_64
predict  whole       `detect_files` of 1,000 photographs ÷ the longer of decoding them and of the network alone
         memory      its highest memory with 10,000 photographs ÷ that with 100
parity   the table of docs/export.md: how far the exported files are from the network, for every backbone and head

The networks have drawn weights. All but `parity` print one line of JSON: lists of ratios.
"""

import argparse
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console

from onebox.runs.reading.export import export
from onebox.runs.reading.load import LoadedRun
from onebox.runs.reading.onnx_model import OnnxModel
from onebox.runs.reading.predict import BATCH, detect_files, image_files, read_any

BACKBONES = ("tiny_cnn", "mobilenet_v3_small", "resnet18", "efficientnet_lite0", "resnet50", "convnext_tiny")
LOC_HEADS = ("linear", "mlp", "spatial", "attention_pool", "dense", "edges", "per_class_box")
CLS_HEADS = ("linear", "mlp", "attention_pool")


def network(backbone: str, *overrides: str) -> LoadedRun:
    """A localizer as a run would be loaded, with drawn weights, in evaluation mode."""
    drawn = [] if backbone == "tiny_cnn" else ["model.backbone.pretrained=false"]
    torch.manual_seed(0)
    with initialize_config_module("onebox.conf", version_base="1.3"):
        cfg = compose(
            "train",
            overrides=["run_dir=none", f"model/backbone={backbone}", "model.num_classes=20", *drawn, *overrides],
        )
    model, augment = (hydra.utils.instantiate(part, _convert_="all") for part in (cfg.model, cfg.augment))
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return LoadedRun(model.eval(), augment, [f"class {number}" for number in range(20)], config, Path())


def noise(number: int, side: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (number, side, side, 3), dtype=np.uint8)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(folder: Path) -> dict[str, list[float]]:
    found = {}
    for backbone in BACKBONES[:4]:
        run = network(backbone)
        side = run.transform.resize.size
        export(run, folder / "model.onnx", any_size=False, images=list(noise(4, side)), about={})
        model = OnnxModel(folder / "model.onnx")
        for number in (1, 64):
            images = noise(number, side)
            works = [partial(run.run, images), partial(model.run, images)]
            rounds = [[seconds(work) for work in works] for _ in range(16 if number == 1 else 6)]
            found[f"{backbone}_{number}"] = [median(one / other for one, other in rounds[1:])]
    return found


def predict(folder: Path) -> dict[str, list[float]]:
    paths = image_files([f"{os.environ['ONEBOX_VOC_ROOT']}/VOCdevkit/VOC2007/JPEGImages"])
    paths = list(itertools.islice(itertools.cycle(paths), 1000))
    run = network("mobilenet_v3_small")
    batch = noise(BATCH, run.transform.resize.size)

    def whole() -> None:
        for _ in detect_files(run, paths):
            pass

    def decoding() -> None:
        from concurrent.futures import ThreadPoolExecutor

        from onebox.data.processes import num_cores

        with ThreadPoolExecutor(num_cores()) as pool:
            list(pool.map(lambda path: run.resize(read_any(path)[0]) is None, paths))

    def computing() -> None:
        for _ in range(len(paths) // BATCH):
            run.run(batch)

    run.run(batch)
    rounds = [[seconds(work) for work in (whole, decoding, computing)] for _ in range(3)]
    print([[round(value, 2) for value in row] for row in rounds], file=sys.stderr)
    sizes = [peak(number) for number in (100, 10_000)]
    return {"whole": [max(rest) / first for first, *rest in rounds], "memory": [sizes[1] / sizes[0]]}


def peak(number: int) -> int:
    """The highest memory of a process that predicts `number` photographs, bytes."""
    code = f"from benchmarks.use import many; many({number})"
    return int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)


def many(number: int) -> None:
    from benchmarks.memory import resident

    paths = image_files([f"{os.environ['ONEBOX_VOC_ROOT']}/VOCdevkit/VOC2007/JPEGImages"])
    for _ in detect_files(network("tiny_cnn"), list(itertools.islice(itertools.cycle(paths), number))):
        pass
    print(resident("VmHWM"))


def rows(folder: Path) -> Iterator[list[str]]:
    yield [
        "backbone",
        "loc_head",
        "cls_head",
        *(f"{form}: box, probability, size, time" for form in ("ONNX", "program")),
    ]
    yield [*["---"] * 3, *["---:"] * 2]
    heads = [(loc, CLS_HEADS[number % 3]) for number, loc in enumerate(LOC_HEADS)]
    for backbone, (loc, cls) in itertools.product(BACKBONES, heads):
        if backbone == "tiny_cnn" and (loc in LOC_HEADS[2:6] or cls == "attention_pool"):
            continue  # it has no map
        run = network(backbone, f"model/loc_head={loc}", f"model/cls_head={cls}", "model.flip_average=true")
        images = list(noise(16, run.transform.resize.size))
        cells = []
        for name in ("model.onnx", "model.pt2"):
            start = time.perf_counter()
            report = export(run, folder / name, any_size=False, images=images, about={})
            took, size = time.perf_counter() - start, (folder / name).stat().st_size / 1e6
            cells.append(f"{report.box:.0e}, {report.probability:.0e}, {size:.1f} MB, {took:.0f} s")
        yield [backbone, loc, cls, *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "predict", "parity"))
    what = parser.parse_args().what
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if what == "parity":
            for row in rows(Path(folder)):
                Console(width=200, highlight=False).print("|", " | ".join(row), "|", sep=" ")
            return
        print(json.dumps({"speed": speed, "predict": predict}[what](Path(folder))))


if __name__ == "__main__":
    main()
