"""One measurement of training speed, in this process: `python -m benchmarks.training bare|onebox|notebook OPTION`.

bare      the model's step in a plain loop over batches that lie ready in memory: the limit
onebox    the whole fit: loaders, Lightning, metrics, TensorBoard, CSV, checkpoints, progress bar
notebook  the loop as the notebook writes it: VOCDetection, PIL, albumentations, NCHW; OPTION is the number of workers

Prints one line of JSON: images per second after the first epoch, images an epoch, mean loss of first and last epoch.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, seed_everything
from omegaconf import DictConfig, open_dict

from onebox.train import IRRELEVANT_WARNINGS, build_data, build_module, build_trainer

BATCH_SIZE = 64


def config(folder: Path, epochs: int, *overrides: str) -> DictConfig:
    """The tiny CNN at 100 px, batch 64, on VOC 2007 where it is there, otherwise on the embedded data set."""
    data = "voc2007" if "ONEBOX_VOC_ROOT" in os.environ else "shapes"
    common = [f"data={data}", f"run_dir={folder}", f"trainer.max_epochs={epochs}", "trainer.limit_val_batches=0"]
    with initialize_config_module("onebox.conf", version_base="1.3"):
        cfg = compose(
            "train",
            overrides=[*common, "monitor=train/loss", "monitor_mode=min", "trainer.accelerator=cpu", *overrides],
            return_hydra_config=True,
        )
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def ready(cfg: DictConfig) -> Any:
    """The data module, set up, with its images decoded."""
    data = build_data(cfg)
    data.prepare_data()
    data.setup()
    data.dataset("train")
    cfg.model.num_classes = data.num_classes
    return data


class Clock(Callback):
    """Start of the second epoch and end of the last one, s."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            self.start = time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.end = time.perf_counter()


def onebox(folder: Path, epochs: int, overrides: list[str]) -> dict[str, float]:
    cfg = config(folder, epochs, *overrides)
    data = ready(cfg)
    seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data)
    trainer = build_trainer(cfg)
    clock = Clock()
    trainer.callbacks.append(clock)
    trainer.fit(module, datamodule=data)
    images = len(data.indexes["train"])
    (rows,) = [logger.rows for logger in trainer.loggers if hasattr(logger, "rows")]
    losses = [rows[epoch]["train/loss"] for epoch in range(epochs)]
    return result(images, epochs, clock.end - clock.start, losses)


def bare(folder: Path, epochs: int, overrides: list[str]) -> dict[str, float]:
    cfg = config(folder, epochs, *overrides)
    data = ready(cfg)
    seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data)
    model, loss = module.localizer, module.loss
    optimizer = module.make_optimizer(model.parameters())
    loader = data.train_dataloader()
    batches = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        batches.append(list(loader))
    means = []
    for epoch in range(epochs):
        if epoch == 1:
            start = time.perf_counter()
        totals = []
        for batch in batches[epoch]:
            losses = loss(model(batch.images), model.encode(batch.boxes, batch.labels))
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            totals.append(losses.total.detach() * len(batch))
        means.append(float(torch.stack(totals).sum()) / len(data.indexes["train"]))
    return result(len(data.indexes["train"]), epochs, time.perf_counter() - start, means)


def notebook(folder: Path, epochs: int, num_workers: int) -> dict[str, float]:
    """The notebook's functions and names, put into a Dataset and a DataLoader as its closing exercise asks."""
    import albumentations as A
    import torchvision

    classes = list(config(folder, epochs, "data=voc2007").data.classes)
    classes = ["background", *classes]
    train = torchvision.datasets.VOCDetection(os.environ["ONEBOX_VOC_ROOT"], year="2007", image_set="train")

    def get_sample(ix: int) -> tuple[Any, Any]:
        img, label = train[ix]
        anns = label["annotation"]["object"]
        labels = np.array([classes.index(ann["name"]) for ann in anns])
        boxes = [ann["bndbox"] for ann in anns]
        bbs = np.array(
            [
                [int(bb["xmin"]), int(bb["ymin"]), int(bb["xmax"]) - int(bb["xmin"]), int(bb["ymax"]) - int(bb["ymin"])]
                for bb in boxes
            ]
        )
        return np.array(img), (labels, bbs)

    trans = A.Compose(
        [A.Resize(100, 100)],
        bbox_params={"format": "coco", "min_area": 0.0, "min_visibility": 0.0, "label_fields": ["labels"]},
    )

    class Single(torch.utils.data.Dataset):
        def __init__(self) -> None:
            parse = torchvision.datasets.VOCDetection.parse_voc_xml
            from xml.etree.ElementTree import parse as read

            counts = [len(parse(read(path).getroot())["annotation"]["object"]) for path in train.annotations]
            self.rows = [row for row, count in enumerate(counts) if count == 1]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, ix: int) -> Any:
            image, (labels, bbs) = get_sample(self.rows[ix])
            augmented = trans(image=image, bboxes=bbs, labels=labels)
            img, bb, label = augmented["image"], augmented["bboxes"][0], augmented["labels"][0]
            h, w = img.shape[:2]
            target = torch.FloatTensor([bb[0] / w, bb[1] / h, bb[2] / w, bb[3] / h])
            return torch.FloatTensor(img / 255.0).permute(2, 0, 1), target, torch.tensor(int(label)).long()

    def block(c_in: int, c_out: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(c_in, c_out, 3, padding=1, stride=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2, stride=2)
        )

    class Model(torch.nn.Module):
        def __init__(self, n_classes: int) -> None:
            super().__init__()
            self.conv = torch.nn.Sequential(block(3, 8), block(8, 16), block(16, 32), block(32, 64))
            self.fc1 = torch.nn.Sequential(torch.nn.Linear(64 * 6 * 6, 100), torch.nn.ReLU())
            self.fc2_loc = torch.nn.Linear(100, 4)
            self.fc2_cls = torch.nn.Linear(100, n_classes)

        def forward(self, x: Any) -> Any:
            x = self.conv(x)
            x = self.fc1(x.view(x.shape[0], -1))
            return self.fc2_loc(x), self.fc2_cls(x)

    torch.manual_seed(0)
    dataset = Single()
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    model = Model(len(classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion_loc, criterion_cls = torch.nn.L1Loss(), torch.nn.CrossEntropyLoss()
    means = []
    for epoch in range(epochs):
        if epoch == 1:
            start = time.perf_counter()
        losses = []
        for X, y1, y2 in loader:
            optimizer.zero_grad()
            y_hat1, y_hat2 = model(X)
            loss = criterion_loc(y_hat1, y1) + criterion_cls(y_hat2, y2)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(fmean(losses))
    return result(len(dataset), epochs, time.perf_counter() - start, means)


def result(images: int, epochs: int, seconds: float, losses: list[float]) -> dict[str, float]:
    return {
        "images_per_s": images * (epochs - 1) / seconds,
        "images": images,
        "first_loss": losses[0],
        "loss": losses[-1],
        "threads": torch.get_num_threads(),
    }


OVERRIDES = {"none": [], "seed": ["augment=seed", "model/box_coder=xywh", "loss.weights.loc=1", "optimizer=adam"]}


def main() -> None:
    import logging
    import warnings

    for text in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", text)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["bare", "onebox", "notebook"])
    parser.add_argument("option")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    stdout, sys.stdout = sys.stdout, sys.stderr  # the progress bar is part of the work, not of the answer
    if arguments.what == "notebook":
        measured = notebook(arguments.folder, arguments.epochs, int(arguments.option))
    else:
        function = {"bare": bare, "onebox": onebox}[arguments.what]
        measured = function(arguments.folder, arguments.epochs, OVERRIDES[arguments.option])
    print(json.dumps(measured), file=stdout)


if __name__ == "__main__":
    main()
