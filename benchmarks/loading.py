"""Speed of loading, in this process: `python -m benchmarks.loading none|flip_jitter|affine`.

w0, best   images/s of the loader alone, with decoded images in the cache, against a usual one: ElementTree, PIL and
           albumentations' transforms of the same kind at each access, with no worker and with the best of 0, 1 and 2
cache      images/s of filling the empty cache against the usual loader with two workers (option none)
reopen_ms  opening the index and the cache again, ms (option none)

All files are in memory for both. Prints one line of JSON: lists of ratios.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import albumentations as A
import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.training import config, ready
from onebox.build import build_data

NUM_IMAGES = 512  # of an epoch of the usual loader
FLIP, JITTER = A.HorizontalFlip(p=0.5), {"brightness": (0.8, 1.2), "contrast": (0.8, 1.2), "saturation": (0.7, 1.3)}
SHIFT = {"x": (-0.15, 0.15), "y": (-0.15, 0.15)}
# Ours, and what does the same kind of thing with albumentations.
OPTIONS: dict[str, tuple[str, list[Any]]] = {
    "none": ("none", []),
    "flip_jitter": ("batched_flip", [FLIP, A.ColorJitter(**JITTER, hue=(0, 0), p=1.0)]),
    "affine": ("batched_affine", [FLIP, A.Affine(scale=(0.8, 1.3), translate_percent=SHIFT, keep_ratio=False, p=1.0)]),
}


class Usual(Dataset[Any]):
    """A sample is parsed, decoded and augmented when it is asked for."""

    def __init__(self, data: Any, transforms: list[Any]) -> None:
        self.images = [Path(file) for file in data.indexes["train"].image_paths[:NUM_IMAGES]]
        self.label_of = {name: label for label, name in enumerate(data.class_names)}
        params = A.BboxParams(format="pascal_voc", label_fields=["labels"], clip=True)
        self.pipeline = A.Compose([A.Resize(100, 100), *transforms], bbox_params=params)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        path = self.images[row]
        image = np.array(Image.open(path).convert("RGB"))
        item = ElementTree.parse(path.parent.parent / "Annotations" / f"{path.stem}.xml").find("object")
        assert item is not None
        box = [float(item.findtext(f"bndbox/{side}") or 0) for side in ("xmin", "ymin", "xmax", "ymax")]
        box = [box[0] - 1, box[1] - 1, box[2], box[3]]
        out = self.pipeline(image=image, bboxes=[box], labels=[self.label_of[item.findtext("name") or ""]])
        boxes = [list(kept[:4]) for kept in out["bboxes"]] or [[0.0] * 4]  # the usual loader loses a box now and then
        label = torch.tensor(int(([*out["labels"], 0])[0]))
        return torch.from_numpy(out["image"]).permute(2, 0, 1), torch.tensor(boxes[0]) / 100, label


def images_per_s(loader: Any, epochs: int) -> float:
    """After a first epoch, which starts the workers."""
    for epoch in range(epochs + 1):
        if epoch == 1:
            start = time.perf_counter()
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        images = sum(len(batch[0]) if isinstance(batch, list) else len(batch) for batch in loader)
        assert images == len(loader.dataset)
    return epochs * images / (time.perf_counter() - start)


def check_same_samples(ours: Any, usual: Usual) -> None:
    """Without augmentation both give the same boxes and labels, and pictures that look the same."""
    mine = ours.__getitems__([(0, row) for row in range(32)])
    images, boxes, labels = torch.utils.data.default_collate([usual[row] for row in range(32)])
    assert (mine.labels == labels).all()
    torch.testing.assert_close(mine.boxes, boxes.float(), atol=0.011, rtol=0)  # the origin of pixels is one of taste
    difference = (mine.images.float() - images.float()).abs().mean().item()
    assert difference < 12, f"pictures differ by {difference} levels"  # other decoder and resampling


def measure(folder: Path, option: str) -> dict[str, list[float]]:
    augment, transforms = OPTIONS[option]
    overrides = [f"augment={augment}", f"data.cache_dir={folder}/cache"]
    data = ready(config(folder, 1, *overrides))
    usual = Usual(data, transforms)
    if option == "none":
        check_same_samples(data.dataset("train"), usual)
    ours = images_per_s(data.train_dataloader(), epochs=10)
    others = []
    for workers in (0, 1, 2):
        loader = DataLoader(
            usual, batch_size=64, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=False
        )
        others.append(images_per_s(loader, epochs=1))
        del loader
    measured = {"w0": [ours / others[0]], "best": [ours / max(others)], "images_per_s": [ours]}
    if option == "none":
        builds, reopens = [], []
        for number in range(3):
            cfg = config(folder, 1, *overrides, f"data.cache_dir={folder}/cache{number}")
            data = opened(cfg)
            start = time.perf_counter()
            data.dataset("train")
            builds.append(len(data.indexes["train"]) / (time.perf_counter() - start) / others[2])
            data.decode()
            again = build_data(cfg)
            start = time.perf_counter()
            again.setup()
            again.decode()
            reopens.append(1000 * (time.perf_counter() - start))
        measured |= {"cache": builds, "reopen_ms": reopens}
    return measured


def opened(cfg: DictConfig) -> Any:
    """The data module with its index and no images."""
    data = build_data(cfg)
    data.setup()
    return data


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading")
    parser.add_argument("option", choices=OPTIONS)
    option = parser.parse_args().option
    logging.getLogger().setLevel(logging.WARNING)
    stdout, sys.stdout = sys.stdout, sys.stderr  # progress bars
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), option)
    print(json.dumps(measured), file=stdout)


if __name__ == "__main__":
    main()
