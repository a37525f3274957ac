"""Trials that end with an override to paste: a learning rate, a batch size."""

import csv
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from onebox import cli, fit_batch
from onebox.build import build_module
from onebox.errors import BadInput
from onebox.fit_batch import Memory, largest, peak_memory
from onebox.lr_find import Curve, LrRange
from onebox.module import LocalizationModule
from onebox.train import train


@pytest.fixture(autouse=True)
def _leave_hydra_as_it_was():
    yield
    HydraConfig.instance().cfg = None


@pytest.fixture
def small(shapes_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [
        f"data.root={shapes_root}",
        "data.source=null",
        "image_size=32",
        "data.batch_size=16",
        f"data.cache_dir={tmp_path / 'cache'}",
        "trainer.accelerator=cpu",
    ]


def run(*arguments):
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


@pytest.fixture
def seen(monkeypatch):
    """Rates of each step's groups."""
    steps = []
    step = LocalizationModule.training_step

    def spy(module, batch, batch_idx):
        steps.append([group["lr"] for group in module.optimizers().param_groups])
        return step(module, batch, batch_idx)

    def seen():
        return np.array(steps)

    monkeypatch.setattr(LocalizationModule, "training_step", spy)
    return seen


def test_lr_find_lets_the_rates_grow_draws_the_curve_and_changes_nothing_else(small, seen, tmp_path):
    factors = ["param_groups=discriminative", "scheduler=one_cycle", "callbacks/early_stopping=default"]
    out = run("lr-find", *small, *factors, "--min-lr", "1e-5", "--max-lr", "10", "--steps", "40", "-o", "curve.png")
    rates = seen()
    assert 15 < len(rates) <= 40
    assert rates[:, -1] == pytest.approx(np.geomspace(1e-5, 10, 40)[: len(rates)])
    assert rates[:, 0] == pytest.approx(rates[:, -1] / 100)  # the part nearest the image
    suggested = float(re.search(r"^optimizer\.lr=(\S+)$", out, re.M)[1])
    assert 1e-5 < suggested < rates[-1, -1]
    with Image.open("curve.png") as picture:
        assert picture.size == (960, 540)
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "curve.png"}


def test_the_suggested_rate_learns_what_a_thousandth_of_it_does_not(small, composed, tmp_path):
    out = run("lr-find", *small, "--min-lr", "1e-5", "-o", "curve.png")
    suggested = float(re.search(r"^optimizer\.lr=(\S+)$", out, re.M)[1])

    def last_loss(rate):
        run_dir = tmp_path / f"rate-{rate:g}"
        short = ["callbacks/progress=lines", "callbacks.pictures=null", "trainer.max_epochs=6"]
        train(composed(*small, *short, f"run_dir={run_dir}", f"optimizer.lr={rate}"))
        rows = list(csv.DictReader((run_dir / "metrics.csv").read_text().splitlines()))
        return float(rows[-1]["train/loss"])

    assert last_loss(suggested) < last_loss(suggested / 1000) - 0.1  # of 3.6, in six epochs


def test_a_step_of_lr_find_is_a_batch_also_where_gradients_are_accumulated(small, seen):
    run("lr-find", *small, "+trainer.accumulate_grad_batches=2", "--steps", "20", "--max-lr", "0.1")
    assert seen()[:, 0] == pytest.approx(np.geomspace(1e-6, 0.1, 20))


def test_lr_find_stops_where_the_loss_diverges(small, seen):
    run("lr-find", *small, "optimizer=sgd", "--min-lr", "1e-3", "--max-lr", "1e6", "--steps", "60")
    assert len(seen()) < 60


def test_lr_find_leaves_what_is_frozen_as_it_is(small, seen, composed, monkeypatch):
    made = []
    monkeypatch.setattr("onebox.build.build_module", lambda *args: made.append(build_module(*args)) or keep(made[0]))
    before = {}

    def keep(module):
        before.update({name: tensor.clone() for name, tensor in module.localizer.state_dict().items()})
        return module

    run("lr-find", *small, "callbacks/freeze=backbone", "--steps", "20", "--max-lr", "0.1")
    after = made[0].localizer.state_dict()
    moved = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"loc_head", "cls_head"}


@pytest.mark.parametrize("steps", [51, 101, 201])
def test_a_curve_suggests_where_the_loss_falls_fastest(steps):
    rates = np.geomspace(1e-5, 1, steps)
    place = np.log10(rates)
    losses = 2 - 1.5 / (1 + np.exp(-4 * (place + 3))) + 20 * np.clip(place + 1, 0, None) ** 2
    curve = Curve.of(rates, losses)
    assert curve.suggested == pytest.approx(1e-3, rel=0.2)
    assert 1e-2 < curve.lowest < 0.3


def test_the_picture_of_a_curve_holds_a_long_title_and_marks_the_suggestion(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig

    def spy(figure, *args, **options):
        save(figure, *args, **options)
        (axes,) = figure.axes
        drawn.append((axes.title.get_window_extent(), figure.bbox, axes.lines[-1].get_xydata()))

    monkeypatch.setattr(Figure, "savefig", spy)
    rates = np.geomspace(1e-5, 1, 40)
    curve = Curve.of(rates, 1 - np.arange(40) / 40)
    curve.draw(tmp_path / "lr.png", " ".join(["model.backbone.widths=[64,64,64,64]"] * 12))
    ((title, picture, marked),) = drawn
    assert title.x0 >= picture.x0
    assert title.x1 <= picture.x1
    assert title.y1 <= picture.y1
    assert marked[0].tolist() == [curve.suggested, curve.smoothed[list(rates).index(curve.suggested)]]


def test_a_loss_that_never_falls_is_said():
    with pytest.raises(BadInput, match="the loss does not fall between learning rates of 1e-05 and 1; choose"):
        Curve.of([1e-5, 1e-2, 1], [1.0, 2.0, 3.0])
    with pytest.raises(BadInput, match="does not fall"):
        LrRange(min_lr=1, max_lr=2, num_steps=10, lr=1).curve()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["lr-find", "--min-lr", "1"], "--min-lr 1 must be above 0 and below --max-lr 1"),
        (["lr-find", "-o", "nowhere/lr.png"], "nowhere/lr.png: there is no such folder"),
        (["lr-find", "-o", "lr.svg"], "lr.svg: the curve is a PNG; choose an --output that ends with .png"),
        (["lr-find", "optimzer.lr=1"], "no key optimzer"),
        (["lr-find", "data.batch_size=0"], "data.batch_size must be >= 1, not 0"),
        (["lr-find", "model.backbone.dropout=2"], "model.backbone.dropout must be in [0, 1), not 2"),
        (["lr-find", "data={limit:"], "no viable alternative at input"),
        (
            ["lr-find", "model/loc_head=edgs"],
            "model/loc_head=edgs: no such option; did you mean edges? (attention_pool, ",
        ),
        (["lr-find", "scheduler=null"], "scheduler cannot be null; choose one of its options"),
        (["lr-find", "loss/loc=[l1,giou]"], "loss/loc takes one option, not [l1,giou]"),
        (["lr-find", "optimizer.lr=0"], "optimizer.lr is 0, so that parts have no share of it"),
        (["fit-batch", "--memory", "4"], "--memory 4: write a number and MB or GB, such as 4GB"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["onebox", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"onebox: {line}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 100, 1000, 1024, 5000])
def test_the_largest_that_fits_is_found_to_an_eighth(limit):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    found = largest(fits, at_most=1024)
    assert found <= min(limit, 1024)
    assert found >= min(limit, 1024) * 0.88
    assert len(tried) == len(set(tried)) <= 16


def test_peak_memory_is_of_real_steps_and_a_batch_that_needs_more_ends_itself(small):
    wide = [*small, "image_size=100", "model.backbone.widths=[64,64,64,64]"]
    one = peak_memory(wide, 1, 10**11)
    assert 2e8 < one.start < one.peak < 2e9
    too_much = peak_memory(wide, 32, one.peak + 10**8)
    assert too_much.peak is None
    assert too_much.start == pytest.approx(one.start, rel=0.1)


def test_a_cpu_without_memory_means_that_a_batch_does_not_fit(monkeypatch):
    answers = []
    sender = SimpleNamespace(send=answers.append)

    def allocate(*args):
        torch.empty(2**50, dtype=torch.uint8)

    monkeypatch.setattr("onebox.trial.run_trial", allocate)
    monkeypatch.setattr(fit_batch, "_stay_below", lambda budget: None)
    fit_batch._measure(["data=shapes"], 1, 10**18, sender)
    assert not answers


def test_fit_batch_prints_what_it_tried_and_an_override(monkeypatch):
    monkeypatch.setattr(
        fit_batch, "peak_memory", lambda _, size, budget: Memory(10**6, size * 10**7 if size <= 20 else None)
    )
    lines = run("fit-batch", "experiment=baseline", "--memory", "200MB").splitlines()
    assert lines[0].split() == ["batch", "memory", "of", "200", "MB"]
    assert lines[1].split() == ["none", "1", "MB", "libraries", "and", "data"]
    assert lines[2].split() == ["1", "10", "MB"]
    assert any(line.split() == ["32", "too", "much"] for line in lines)
    assert lines[-1] in ("data.batch_size=18", "data.batch_size=20")


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (None, "libraries and data alone take more than 200 MB"),
        (150 * 10**6, "not even a batch of one image fits into 200 MB, of which libraries and data take 150 MB"),
    ],
)
def test_fit_batch_says_why_not_even_one_image_fits(monkeypatch, start, told):
    monkeypatch.setattr(fit_batch, "peak_memory", lambda overrides, size, budget: Memory(start, None))
    with pytest.raises(BadInput, match=told):
        run("fit-batch", "--memory", "200MB")


def test_a_trial_that_cannot_begin_says_why(small):
    with pytest.raises(BadInput, match=r"^data\.num_workers must be >= 0, not -1$"):
        peak_memory([*small, "data.num_workers=-1"], 1, 10**11)
