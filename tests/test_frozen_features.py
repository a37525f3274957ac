"""Fits of a frozen backbone on stored features are those on images; features are stored once, whole or not at all."""

import copy
import csv
import errno
import json
import logging
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from onebox.build import build_data
from onebox.data import cache
from onebox.data.loading import EpochSampler
from onebox.errors import BadInput
from onebox.frozen_features import FeatureDataset, Frozen, fold_norms
from onebox.model.backbone import InputRecord, StagedNet
from onebox.model.pretrained import timm_net, torchvision_net
from onebox.model.tiny_cnn import TinyCnn
from onebox.runs.reading.load import load_run
from onebox.train import train

COMMON = [
    "callbacks/progress=lines",
    "callbacks/freeze=backbone",
    "augment=batched_strong",
    "data.views=2",
    "data.batch_size=16",
    "optimizer.lr=0.003",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
]
TINY = ["image_size=32", "callbacks.pictures.num_images=2"]


@pytest.fixture
def fit(composed, tmp_path, monkeypatch):
    """Trains; gives the rows of metrics.csv, and adds to `fit.prefixes` and `fit.whole` the images that went through."""

    def spy(cls, name, counts):
        original = getattr(cls, name)

        def counting(self, images, **kwargs):
            counts.append(len(images))
            return original(self, images, **kwargs)

        monkeypatch.setattr(cls, name, counting)

    def go(name, *overrides):
        go.prefixes.clear()
        go.whole.clear()
        train(composed(*COMMON, f"run_dir={tmp_path / name}", *overrides))
        return list(csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines()))

    go.prefixes, go.whole = [], []
    for backbone in (TinyCnn, StagedNet):
        spy(backbone, "prefix", go.prefixes)
        spy(backbone, "forward", go.whole)
    return go


def assert_close(rows, others, *, rel):
    assert len(rows) == len(others) == 3
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        assert {tag: float(value) for tag, value in row.items()} == pytest.approx(
            {tag: float(value) for tag, value in other.items()}, rel=rel, abs=rel
        )


@pytest.mark.parametrize(
    ("overrides", "until"),
    [
        ([*TINY, "model.flip_average=true"], "fc"),
        ([*TINY, "callbacks.freeze.unfreeze=[[1,fc],[0,blocks.9]]"], "blocks.6"),
        # At the usual rate, training carries the difference to 0.4 % of the loss; at this one it is that of the features.
        (
            ["image_size=64", "model/loc_head=cells", "model/box_coder=cells", "loss/loc=cells", "optimizer.lr=1e-5"],
            "fc",
        ),
        pytest.param(
            ["model/backbone=resnet18", "image_size=64", "callbacks.freeze.unfreeze=[[0,layer4]]", "optimizer.lr=1e-5"],
            "layer3",
            marks=pytest.mark.long,
        ),
    ],
    ids=["all", "first stages", "cells", "first stages with norms"],
)
def test_metrics_with_stored_features_are_those_of_the_images_within_float16(fit, caplog, overrides, until):
    """Float16 has 11 bits: 5e-4 of each feature, which three epochs of training carry on."""
    caplog.set_level(logging.INFO)
    plain = [*overrides, *(f"callbacks.{name}=null" for name in ("pictures", "worst", "graph", "projector"))]
    off = fit("off", *plain, "data.features=off")
    assert not fit.prefixes
    stored = fit("stored", *plain)
    assert f"until {until}" in caplog.text
    assert fit.prefixes
    assert set(fit.whole) == {18}  # the test
    assert_close(stored, off, rel=2e-3)
    assert stored != off  # float16 was there


def test_runs_of_other_heads_and_losses_share_features_and_the_same_run_has_the_same_bits(fit, tmp_path):
    first = fit("first", *TINY)
    assert fit.prefixes
    fit("other", *TINY, "model/loc_head=linear", "loss/loc=giou", "loss.weights.loc=2", "optimizer.weight_decay=0.1")
    assert not fit.prefixes
    assert fit("again", *TINY, "data.features_memory_mb=100") == first
    assert not fit.prefixes
    metrics = [(tmp_path / name / "metrics.json").read_bytes() for name in ("first", "again")]
    assert metrics[0] == metrics[1]
    assert (tmp_path / "first/trace.csv").read_bytes() == (tmp_path / "again/trace.csv").read_bytes()
    assert "data:image/jpeg" in (tmp_path / "first/report.html").read_text()
    loaded = load_run(tmp_path / "first")
    assert (tmp_path / "first/predictions.csv").read_bytes() == (tmp_path / "again/predictions.csv").read_bytes()
    assert loaded.predictions["iou"].mean() == pytest.approx(json.loads(metrics[0])["test"]["iou"], abs=1e-6)
    assert loaded.localizer(torch.zeros(1, 3, 32, 32)).boxes.shape == (1, 4)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.views=null"], "as each draws its own views; data.views=8"),
        (["callbacks.freeze.unfreeze=[[1,all]]"], "trains all of the backbone"),
    ],
)
def test_it_is_said_why_features_are_not_stored(fit, caplog, overrides, line):
    caplog.set_level(logging.INFO)
    fit("run", *TINY, *overrides, "trainer.max_epochs=2", "callbacks.pictures=null")
    assert caplog.text.count(line) == 1
    assert not fit.prefixes


def test_without_augmentation_there_is_one_view_whatever_is_asked_for(fit, caplog):
    caplog.set_level(logging.INFO)
    fit("run", *TINY, "augment=none", "data.views=null", "callbacks.pictures=null")
    assert "images x 1 view, TinyCnn until fc: computed once" in caplog.text


def test_the_balance_of_the_heads_is_measured_with_stored_features_too(fit, tmp_path):
    watched = ["callbacks/balance=default", "callbacks.balance.every_n_steps=2", "callbacks.pictures=null"]
    for name in ("auto", "off"):
        fit(name, *TINY, *watched, "callbacks.freeze.unfreeze=[[0,blocks.9]]", f"data.features={name}")
    stored, off = (json.loads((tmp_path / name / "run.json").read_text())["balance"] for name in ("auto", "off"))
    assert stored["steps"] > 1
    assert stored == pytest.approx(off, rel=1e-2, abs=1e-3)


RANDOM = "augment=batched_strong"


@pytest.fixture
def make(composed):
    """Data whose features are a pooled map and the mean colour; `computed` has how many images went through at once."""
    computed = []

    def compute(images):
        computed.append(len(images))
        maps = torch.nn.functional.avg_pool2d(images.float(), 8)
        return maps.contiguous(memory_format=torch.channels_last), images.float().mean((2, 3))

    def go(*overrides, compute=compute, weights="1", store=True):
        cfg = composed(RANDOM, "data.views=3", "image_size=32", "data.batch_size=10", *overrides)
        data = build_data(cfg)
        data.setup()
        if store:
            frozen = Frozen("pooled", {"weights": weights}, compute)
            augment = OmegaConf.to_container(cfg.augment, resolve=True)
            data.replace_datasets(
                lambda source, split, views, cache_dir: FeatureDataset(
                    source,
                    frozen,
                    split=split,
                    views=views,
                    augment=augment,
                    cache_dir=cache_dir,
                    memory_mb=data.features_memory_mb,
                )
            )
        return data

    go.compute, go.computed = compute, computed
    return go


def batches(data, epoch, split="train"):
    loader = getattr(data, f"{split}_dataloader")()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_features_are_held_in_memory_where_they_fit(make, caplog):
    caplog.set_level(logging.INFO)
    for size_mb, is_held in (0, False), (0.001, False), (10, True):
        data = make(f"data.features_memory_mb={size_mb}")
        views = data._replaced["train"]._views
        held = {column.flags.c_contiguous for columns in views for column in columns.values()}  # not as in the file
        assert held == {is_held}
    (line,) = {
        line for line in caplog.text.splitlines() if "more than data.features_memory_mb" in line and "train" in line
    }
    assert "more than data.features_memory_mb=0.001: read from the files" in line


def test_every_image_comes_in_each_view_once_in_as_many_epochs_and_batches_mix_views():
    sampler = EpochSampler(50, shuffle=True, seed=3, views=4)
    for cycle in (0, 5):
        seen = {}
        for epoch in range(4 * cycle, 4 * cycle + 4):
            sampler.set_epoch(epoch)
            keys = list(sampler)
            assert len({view for view, _ in keys[:16]}) > 1
            for view, row in keys:
                seen.setdefault(row, set()).add(view)
        assert all(views == {0, 1, 2, 3} for views in seen.values())
        assert len(seen) == 50


@pytest.mark.parametrize("augment", ["batched_strong", "strong"])
def test_a_view_is_the_draw_of_the_epoch_of_its_number(make, augment):
    fresh = make(f"augment={augment}", "data.views=null", store=False).dataset("train")
    views = make(f"augment={augment}", store=False)
    for batch in batches(views, 7):
        for number, image_id in enumerate(batch.ids):
            row = fresh.index.ids.index(image_id)
            draws = [fresh.__getitems__([(view, row)]) for view in range(3)]
            same = [torch.equal(batch.images[number], draw.images[0]) for draw in draws]
            assert sum(same) == 1
            torch.testing.assert_close(batch.boxes[number], draws[same.index(True)].boxes[0], rtol=0, atol=0)


def test_stored_batches_are_those_of_the_images_rounded_to_float16(make):
    stored, images = make(), make(store=False)
    for split, epoch in (("train", 0), ("train", 4), ("val", 4)):
        for mine, theirs in zip(batches(stored, epoch, split), batches(images, epoch, split), strict=True):
            assert mine.images is None
            assert mine.ids == theirs.ids
            assert mine.shares == theirs.shares
            assert torch.equal(mine.boxes, theirs.boxes)
            assert torch.equal(mine.labels, theirs.labels)
            for part, exact in zip(mine.state, make.compute(theirs.images), strict=True):
                assert torch.equal(part, exact.half())
                assert part.stride() == exact.stride()  # as the network's own convolutions leave it
    assert batches(stored, 0, "test")[0].images is not None


def test_features_are_computed_once_and_read_with_the_same_bits(make):
    first = batches(make(), 1)
    computed = sum(make.computed)
    again = batches(make("data.batch_size=10", "data.num_workers=1"), 1)
    assert sum(make.computed) == computed > 0
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.state, other.state, strict=True))


@pytest.mark.parametrize(
    ("overrides", "weights", "splits"),
    [
        ([], "2", {"train", "val"}),
        (["image_size=40"], "1", {"train", "val"}),
        (["interpolation=nearest"], "1", {"train", "val"}),
        (["augment.flip=0.1"], "1", {"train"}),
        (["data.views=5"], "1", {"train"}),
        (["data.views=2"], "1", set()),
        (["data.limit=7"], "1", {"train", "val"}),
        (["data.box_origin=0", "data.boxes=clip"], "1", {"train", "val"}),
        (["seed=1"], "1", {"train"}),
        (["seed=1", "data.views_seed=0"], "1", set()),
        (["data.batch_size=3", "data.cache=none", "data.drop_last=true"], "1", set()),
    ],
)
def test_what_features_follow_from_makes_another_store(make, tmp_path, overrides, weights, splits):
    make()
    before = set((tmp_path / "cache/features").glob("*.json"))
    make(*overrides, weights=weights)
    new = set((tmp_path / "cache/features").glob("*.json")) - before
    assert {"train" if '"split": "train"' in path.read_text() else "val" for path in new} == splits


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child uses one
def test_two_processes_share_the_views_that_are_missing(make, tmp_path):
    """Each waits in its first view until the other is in another one."""
    begun = tmp_path / "begun"
    begun.mkdir()

    def compute(images):
        if len(images) > 1:
            (begun / str(os.getpid())).touch()
            while len(list(begun.iterdir())) < 2:
                time.sleep(0.01)
        return make.compute(images)

    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # other threads are not forked
            make(compute=compute)
            os._exit(0)
        finally:
            os._exit(1)
    mine = make(compute=compute)
    num_images = len(mine.dataset("train"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert 0 < sum(size for size in make.computed if size > 1) < 3 * num_images
    assert len(list((tmp_path / "cache/features").glob("*.npy"))) == 4


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_store_is_made_again(make, tmp_path, caplog, damage):
    before = batches(make(), 0)
    for path in (tmp_path / "cache/features").glob("*.npy"):
        if damage == "cut":
            os.truncate(path, path.stat().st_size - 1)
        else:
            np.save(path, np.zeros((2, 2), np.float16))
    after = batches(make(), 0)
    assert caplog.text.count("is damaged; it is made again") == 4  # three views of train, one of val
    assert all(torch.equal(a.state[0], b.state[0]) for a, b in zip(before, after, strict=True))


def test_a_disk_without_room_is_refused_before_anything_is_computed(make, tmp_path, monkeypatch):
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=1000))
    with pytest.raises(BadInput, match=r"MB of features, but 0 MB are free; lower data.views"):
        make()
    assert make.computed == [1]
    monkeypatch.undo()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    with pytest.raises(BadInput, match=r"No space left on device; lower data\.views"):
        make("data.cache=none")
    assert not list((tmp_path / "cache/features").glob("*npy*"))


def test_features_that_exceed_float16_are_refused(make):
    with pytest.raises(BadInput, match=r"exceed float16; set data\.features=off"):
        make(compute=lambda images: [images.float().mean((2, 3)) * 1e4])


def test_the_cache_lists_and_clears_features(make, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make()
    assert re.search("train features of .*: computed once in ", caplog.text)
    found = {
        entry.data.partition(": ")[2]: entry for entry in cache.entries(tmp_path / "cache") if entry.kind == "features"
    }
    entry = found["train, view 2, pooled"]
    assert "val, view 0, pooled" in found
    assert entry.size == (32, 32)
    assert entry.images > 0
    assert entry.num_bytes == entry.path.stat().st_size
    assert Path(entry.data.partition(": ")[0]).is_dir()
    cache.clear(tmp_path / "cache")
    assert not [entry for entry in cache.entries(tmp_path / "cache") if entry.kind == "features"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child uses one
def test_who_is_killed_while_computing_leaves_nothing_that_is_taken_for_features(make, tmp_path):
    done = []

    def die(images):
        done.append(len(images))
        if len(done) == 3:  # one image tells the sizes, and one chunk is written
            os.kill(os.getpid(), signal.SIGKILL)
        return make.compute(images)

    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # other threads are not forked
            make(compute=die)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    folder = tmp_path / "cache/features"
    assert {path.suffix for path in folder.iterdir()} == {".lock", ".tmp"}
    assert not [entry for entry in cache.entries(tmp_path / "cache") if entry.kind == "features"]
    after = make()
    assert {path.suffix for path in folder.iterdir()} == {".lock", ".npy", ".json"}
    undisturbed = make(f"data.cache_dir={tmp_path / 'other'}")
    for split in ("train", "val"):
        for one, other in zip(batches(after, 2, split), batches(undisturbed, 2, split), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.state, other.state, strict=True))
            assert torch.equal(one.boxes, other.boxes)


RECORD = InputRecord(size=224, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic")


def with_statistics(net):
    """As after some training: norms do something."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return net.eval()


@pytest.mark.parametrize(
    "make, name, norms_that_stay",
    [  # one of each way in which convolutions and norms follow each other
        (torchvision_net, "resnet18", 0),
        (torchvision_net, "densenet121", 62),  # those before the convolutions, and after a concatenation
        (timm_net, "tf_efficientnet_lite0", 0),
        (timm_net, "resnetv2_18d", 9),  # those after a sum,
    ],
)
@torch.no_grad()
def test_a_folded_network_gives_the_same(make, name, norms_that_stay):
    net = with_statistics(make(name=name, image_size=64, levels=[32], pretrained=False, input=RECORD))
    folded = copy.deepcopy(net)
    images = torch.rand(2, 3, 64, 64)
    fold_norms(folded, lambda: folded(images).maps)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == norms_that_stay
    torch.testing.assert_close(folded(images).maps, net(images).maps, rtol=1e-3, atol=1e-3)


class Twice(nn.Module):
    """A convolution that is called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(self.first(self.conv(x))))


class Shortcut(nn.Module):
    """A convolution that a shortcut reads too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


@pytest.mark.parametrize("make", [Twice, Shortcut])
@torch.no_grad()
def test_a_convolution_that_others_read_keeps_its_norm(make):
    net = with_statistics(make())
    folded = copy.deepcopy(net)
    x = torch.rand(2, 3, 4, 4)
    fold_norms(folded, lambda: [folded(x)])
    assert isinstance(folded.norm, nn.BatchNorm2d)
    torch.testing.assert_close(folded(x), net(x))
