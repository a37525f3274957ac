"""Fits of a frozen backbone on stored features are those on images."""

import csv
import json
import logging

import pytest
import torch

from onebox.model.staged_net import StagedNet
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
        (
            [
                "model/backbone=resnet18",
                "image_size=64",
                "callbacks.freeze.unfreeze=[[0,layer4]]",
                "optimizer.lr=0.00001",
            ],
            "layer3",
        ),
    ],
    ids=["all", "first stages", "first stages with norms"],
)
def test_metrics_with_stored_features_are_those_of_the_images_within_float16(fit, caplog, overrides, until):
    """Float16 has 11 bits: 5e-4 of each feature, which three epochs of training carry on."""
    caplog.set_level(logging.INFO)
    off = fit("off", *overrides, "data.features=off", "callbacks.pictures=null")
    assert not fit.prefixes
    stored = fit("stored", *overrides, "callbacks.pictures=null")
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
    assert fit("again", *TINY) == first
    assert not fit.prefixes
    metrics = [(tmp_path / name / "metrics.json").read_bytes() for name in ("first", "again")]
    assert metrics[0] == metrics[1]
    assert (tmp_path / "first/trace.csv").read_bytes() == (tmp_path / "again/trace.csv").read_bytes()
    assert "data:image/jpeg" in (tmp_path / "first/report.html").read_text()
    loaded = load_run(tmp_path / "first")
    assert loaded.localizer(torch.zeros(1, 3, 32, 32)).boxes.shape == (1, 4)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.views=null"], "as each draws its own views; data.views=8"),
        (["callbacks.freeze.unfreeze=[[1,all]]"], "has all of the backbone trained"),
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
