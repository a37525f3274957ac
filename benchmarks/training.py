"""Speed of training, in this process: `python -m benchmarks.training OPTION`.

feed       the whole fit (loader, Lightning, metrics, TensorBoard, CSV, checkpoints, progress bar) against the same
           steps by hand over batches that lie ready in memory
framework  the whole fit without checkpoints against the same steps by hand over the batches of the same loader
lightning  the same with Lightning's loop alone (`Trainer(barebones=True)`) in the place of the whole fit
w0, best   the whole fit against the loop as the notebook writes it: VOCDetection, PIL, albumentations, NCHW; with no
           worker and with the best of 0, 1 and 2

The fit and its steps by hand take turns, a step each, so that a slow moment of the machine hits both, and both must end
each epoch with the same loss. Prints one line of JSON: ratios, for each epoch but the first.
"""

import argparse
import copy
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig, open_dict

from onebox.build import build_data, build_module, build_trainer
from onebox.data.dataset import Batch
from onebox.lightning_setup import IRRELEVANT_WARNINGS, collect_late, lightnings_errors

NO_CHECKPOINTS = ["callbacks.checkpoint_best=null", "callbacks.checkpoint_last=null"]
OPTIONS = {
    "none": [],
    "flip_jitter": ["augment=batched_flip"],
    "affine": ["augment=batched_affine"],
    "resnet18": ["model/backbone=resnet18", "image_size=224", "data.batch_size=32", "data.limit=512"],
    "framework_64": NO_CHECKPOINTS,
    "lightning_64": [],
    "framework_32": [*NO_CHECKPOINTS, "data.batch_size=32"],
    "seed": ["augment=seed", "model/box_coder=xywh", "loss.weights.loc=1", "optimizer=adam"],
}


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


class ByHand:
    """The steps of a fit, from the weights it starts from, without a framework."""

    def __init__(self, module: Any) -> None:
        module = copy.deepcopy(module)
        self.model, self.loss = module.localizer, module.loss
        self.optimizer = module.make_optimizer(self.model.parameters())
        self.totals: list[Any] = []

    def step(self, batches: Iterator[Batch]) -> None:
        batch = next(batches)
        total, _ = self.loss(self.model(batch.images), self.model.encode(batch.boxes, batch.labels))
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.totals.append(total.detach() * len(batch))

    def loss_sum(self) -> float:
        total = float(torch.stack(self.totals).sum())
        self.totals = []
        return total


class BareModule(LightningModule):
    """The steps by hand as Lightning makes them; nothing is logged."""

    def __init__(self, by_hand: ByHand) -> None:
        super().__init__()
        self.model, self.loss, self.optimizer = by_hand.model, by_hand.loss, by_hand.optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        total, _ = self.loss(self.model(batch.images), self.model.encode(batch.boxes, batch.labels))
        return total

    def configure_optimizers(self) -> Any:
        return self.optimizer


class TakeTurns(Callback):
    """After each step of the fit, the same step by hand. What the fit does between epochs is counted as well.

    Args:
        data: the data module of the fit.
        by_hand: the other side; None when the fit runs alone.
        in_memory: whether the batches by hand lie ready.
    """

    def __init__(self, data: Any, by_hand: ByHand | None, *, in_memory: bool) -> None:
        self.loader = data.train_dataloader()
        self.images = len(data.indexes["train"])
        self.by_hand, self.in_memory = by_hand, in_memory
        self.seconds: list[dict[str, float]] = []  # of each epoch, of the fit and by hand
        self.losses: list[float] = []  # by hand

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch > 0:
            self.close()
        self.loader.sampler.set_epoch(trainer.current_epoch)
        if self.by_hand is not None:
            self.batches = iter(list(self.loader) if self.in_memory else self.loader)
        self.turns = 0.0
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        if self.by_hand is None:
            return
        start = time.perf_counter()
        torch.use_deterministic_algorithms(False)  # the trainer's choice, which may cost time
        self.by_hand.step(self.batches)
        torch.use_deterministic_algorithms(True)
        self.turns += time.perf_counter() - start

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.close()

    def close(self) -> None:
        self.seconds.append({"fit": time.perf_counter() - self.start - self.turns, "by hand": self.turns})
        if self.by_hand is not None:
            self.losses.append(self.by_hand.loss_sum() / self.images)


def train(
    folder: Path, epochs: int, overrides: list[str], *, by_hand: bool, in_memory: bool = False
) -> tuple[int, list[dict[str, float]]]:
    """A fit, alone or in turns with its steps by hand; returns images an epoch and seconds of each but the first."""
    cfg = config(folder, epochs, *overrides)
    data = ready(cfg)
    seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data)
    turns = TakeTurns(data, ByHand(module) if by_hand else None, in_memory=in_memory)
    trainer = build_trainer(cfg, module=module)
    trainer.callbacks.append(turns)
    with lightnings_errors(trainer):
        trainer.fit(module, datamodule=data)
    (rows,) = [logger.rows for logger in trainer.loggers if hasattr(logger, "rows")]
    losses = [rows[epoch]["train/loss"] for epoch in range(epochs)]
    assert losses[-1] < losses[0], f"the fit did not learn: {losses}"
    for one, other in zip(losses, turns.losses or losses, strict=True):
        assert abs(one - other) < 1e-3 * one, f"fit and steps by hand trained differently: {losses}, {turns.losses}"
    return turns.images, turns.seconds[1:]


def lightning_alone(folder: Path, epochs: int, overrides: list[str]) -> list[dict[str, float]]:
    """Lightning's loop without anything around it in turns with the steps by hand; seconds as in `train`."""
    cfg = config(folder, epochs, *overrides)
    data = ready(cfg)
    seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data)
    turns = TakeTurns(data, ByHand(module), in_memory=False)
    options: dict[str, Any] = {"accelerator": "cpu", "deterministic": cfg.trainer.deterministic}
    trainer = Trainer(max_epochs=epochs, barebones=True, callbacks=[turns], **options)
    trainer.fit(BareModule(ByHand(module)), data.train_dataloader())
    return turns.seconds[1:]


def notebook(folder: Path, epochs: int, num_workers: int) -> tuple[int, float]:
    """The notebook's functions and names, put into a Dataset and a DataLoader as its closing exercise asks.

    Returns images an epoch, and images per second after the first epoch.
    """
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
        dataset, batch_size=64, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0
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
    assert means[-1] < means[0], f"the notebook's loop did not learn: {means}"
    return len(dataset), len(dataset) * (epochs - 1) / (time.perf_counter() - start)


def measure(folder: Path, epochs: int, option: str) -> dict[str, list[float]]:
    if option == "seed":
        loops = [notebook(folder, 3, num_workers) for num_workers in (0, 1, 2)]
        images, seconds = train(folder, epochs, OPTIONS[option], by_hand=False)
        assert {count for count, _ in loops} == {images}, f"different numbers of images: {loops}, {images}"
        speeds = [speed for _, speed in loops]
        mine = [images / row["fit"] for row in seconds]
        return {"w0": [speed / speeds[0] for speed in mine], "best": [speed / max(speeds) for speed in mine]}
    if option.startswith("lightning"):
        seconds = lightning_alone(folder, epochs, OPTIONS[option])
        return {"framework": [row["fit"] / row["by hand"] for row in seconds]}
    framework = option.startswith("framework")
    images, seconds = train(folder, epochs, OPTIONS[option], by_hand=True, in_memory=not framework)
    if framework:
        return {"framework": [row["fit"] / row["by hand"] for row in seconds]}
    return {
        "feed": [row["by hand"] / row["fit"] for row in seconds],
        "images_per_s": [images / row["fit"] for row in seconds],
    }


def main() -> None:
    for text in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", text)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument("option", choices=OPTIONS)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    stdout, sys.stdout = sys.stdout, sys.stderr  # the progress bar is part of the work, not of the answer
    collect_late()  # as onebox-train
    # Lightning sets it to 1; then Adam loads NVML in each step by hand, which takes .1 ms that no framework would.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), arguments.epochs, arguments.option)
    print(json.dumps(measured), file=stdout)


if __name__ == "__main__":
    main()
