"""Whole runs, in this process, through the function that the command calls."""

import csv
import itertools
import json
import logging
import multiprocessing
import os
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torchvision.ops import box_convert

from onebox.build import build_data, build_module
from onebox.data.datamodule import VocDataModule
from onebox.errors import BadInput, Preempted
from onebox.module import LocalizationModule
from onebox.train import train
from onebox.validation import validate

QUIET = ["callbacks/progress=lines", "trainer.log_every_n_steps=1"]
PICTURES_OFF = "callbacks.pictures=null"


def read(run_dir: Path, name: str):
    return json.loads((run_dir / name).read_text())


def table(run_dir: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run_dir / "metrics.csv").read_text().splitlines()))


def weights(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def scalars(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return events


@pytest.fixture
def run(composed, tmp_path):
    """Trains with overrides into a run directory of its own and gives it back."""

    def go(name: str, *overrides: str) -> Path:
        train(composed(f"run_dir={tmp_path / name}", *QUIET, *overrides))
        return tmp_path / name

    return go


def test_a_run_directory_and_tensorboard_have_what_is_promised(run):
    from tensorboard.plugins.hparams import plugin_data_pb2

    weights_and_rate = ["loss.weights.loc=7", "optimizer.lr=0.002", "scheduler=none"]
    every = ["trainer.max_epochs=3", "callbacks.pictures.every_n_epochs=1", "logger.tensorboard.hide=[epoch]"]
    folder = run("run", "experiment=baseline", *weights_and_rate, *every)
    record, metrics = read(folder, "run.json"), read(folder, "metrics.json")
    assert record["status"] == "completed"
    assert record["schema"] == metrics["schema"] == 1
    assert len(record["fingerprint"]) == 12
    assert record["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["data_fingerprint"].keys() == {"classes", "pixels", "files", "train", "val", "test"}
    assert (record["seed"], record["choices"]["experiment"]) == (0, "baseline")
    assert record["hardware"]["threads"] == torch.get_num_threads()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["num_classes"] == 9
    assert "${" not in (folder / "config.yaml").read_text()

    rows = table(folder)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["val/joint_acc"]) >= 0 and float(row["train/loss"]) > 0 for row in rows)
    assert metrics["final"]["val/iou"] == float(rows[-1]["val/iou"])
    assert metrics["best"]["val/joint_acc"] == max(float(row["val/joint_acc"]) for row in rows)
    assert metrics["test"].keys() >= {"acc", "iou", "loc_acc", "joint_acc", "joint_acc_50_95", "acc_macro", "loss_loc"}
    assert metrics["floor"].keys() >= {"acc", "iou", "joint_acc"}
    assert sum(row["images"] for row in metrics["per_class"].values()) > 0
    for name in ("report.html", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (folder / name).stat().st_size > 1000, name
    best, _ = (
        torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last")
    )  # weights_only=True refuses anything else
    assert best["epoch"] == metrics["best"]["epoch"]
    assert not list((folder / "checkpoints").glob("*-v*"))
    assert not list(folder.rglob("*.tmp"))

    events = scalars(folder)
    tags = events.Tags()
    steps = {"step/loss", "step/loss_loc", "step/loss_loc_weighted", "step/lr"}
    epochs = {"train/loss", "train/loss_cls_weighted", "val/loss_loc", "val/iou", "val/joint_acc", "val/acc_macro"}
    assert set(tags["scalars"]) >= steps | epochs | {"best/joint_acc", "test/joint_acc"}
    assert set(tags["images"]) == {"val/predictions", "val/worst", "val/confusion", "train/augmented"}
    assert [len(events.Images(tag)) for tag in ("val/predictions", "val/worst", "train/augmented")] == [3, 1, 1]
    assert set(tags["histograms"]) >= {"val/iou_spread", "val/probability_wrong"}
    text = {"config/text_summary", "overrides/text_summary", "results/text_summary"}
    assert {*tags["tensors"]} >= text | {"custom_scalars__config__", "pr/circle"}
    best = [event.value for event in events.Scalars("best/joint_acc")]
    assert best[:3] == sorted(best[:3]) and best[-1] == pytest.approx(metrics["best"]["val/joint_acc"])
    graph = GraphDef.FromString(events.Graph().SerializeToString())
    assert {node.name for node in graph.node} >= {"images", "cls_head/linear/linear"}
    assert (folder / "tensorboard" / "projector_config.pbtxt").exists()
    assert events.Scalars("step/lr")[0].value == pytest.approx(0.002)
    raw, weighted = events.Scalars("train/loss_loc")[-1].value, events.Scalars("train/loss_loc_weighted")[-1].value
    assert weighted == pytest.approx(7 * raw, rel=1e-5)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["loss.weights.loc"].number_value == 7
    assert start.hparams["optimizer.lr"].number_value == pytest.approx(0.002)
    assert start.hparams["model/box_coder"].string_value == "cxcywh_sigmoid"
    # TensorBoard would take the list of hyper-parameters of all runs from it.
    assert "_hparams_/experiment" not in tags["tensors"]
    assert {"val/joint_acc", "best/joint_acc", "test/iou"} <= set(tags["scalars"])  # which are the metrics


def test_what_tensorboard_shows_does_not_change_a_bit(run, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    from benchmarks.see import NAMES

    every = [f"callbacks.{name}.every_n_epochs=1" for name in ("pictures", "worst", "augmented", "confusion", "curves")]
    common = ["trainer.max_epochs=2", "augment=batched_flip", "model.backbone.dropout=0.3", "data.batch_size=16"]
    shown = run("shown", *common, *every)
    plain = run("plain", *common, *(f"callbacks.{name}=null" for name in NAMES))
    assert_same_run(shown, plain)
    assert read(shown, "run.json")["fingerprint"] == read(plain, "run.json")["fingerprint"]
    events = scalars(shown)
    tags = events.Tags()
    assert not [tag for tag in tags["scalars"] if tag.endswith(("_macro", "_weighted")) or tag == "epoch"]
    assert len(tags["scalars"]) < 50
    assert not scalars(plain).Tags()["images"]


@pytest.mark.parametrize("augment", ["none", "strong"])
def test_the_same_seed_gives_the_same_bits_whatever_the_workers(run, augment):
    dropout = "model.backbone.dropout=0.3"
    common = ["trainer.max_epochs=2", f"augment={augment}", dropout, "data.batch_size=16", PICTURES_OFF]
    first = run("first", *common)
    torch.rand(7)  # what happened before in the process must not matter
    for number, overrides in enumerate((["data.num_workers=1"], ["data.num_workers=2", "data.cache=none"])):
        assert_same_run(first, run(f"again{number}", *common, *overrides))
    other = run("other", *common, "seed=1")
    assert (first / "metrics.json").read_bytes() != (other / "metrics.json").read_bytes()


@pytest.mark.parametrize(("head", "other"), [("loc", "cls"), ("cls", "loc")])
def test_weight_zero_leaves_the_head_as_it_was(run, head, other):
    common = ["trainer.max_epochs=1", "optimizer=adamw", PICTURES_OFF]
    off = weights(run("off", *common, f"loss.weights.{head}=0"))
    untrained = weights(run("untrained", *common, "optimizer.lr=0", "optimizer.weight_decay=0"))
    name = "localizer.{}_head.linear.weight"
    assert torch.equal(off[name.format(head)], untrained[name.format(head)])
    assert not torch.equal(off[name.format(other)], untrained[name.format(other)])


@pytest.mark.parametrize(
    "overrides",
    [
        ["model/box_coder=xywh", "loss/loc=giou", "optimizer=sgd", "scheduler=cosine"],
        ["loss/loc=smooth_l1", "optimizer=adamw", "scheduler=one_cycle"],
        ["loss/loc=mse", "loss.cls.criterion.label_smoothing=0.1", "callbacks/early_stopping=default"],
        ["loss/loc=giou", "trainer=debug", "trainer.limit_train_batches=1.0", "logger=csv"],
    ],
)
def test_options_train_together_and_loss_falls(run, overrides):
    common = ["trainer.max_epochs=4", "data.background_class=false", "augment=flip", "data.batch_size=8", PICTURES_OFF]
    folder = run("run", *common, *overrides)
    losses = [float(row["train/loss"]) for row in table(folder)]
    assert losses[-1] < losses[0]


def test_without_one_of_the_loggers_the_results_are_all_there_and_only_what_is_there_is_named(run, capsys):
    folder = run("tensorboard", "debug=fast", "logger=tensorboard", PICTURES_OFF)
    assert not (folder / "metrics.csv").exists()
    metrics = read(folder, "metrics.json")
    assert metrics["best"]["val/joint_acc"] >= 0
    assert metrics["final"]["train/loss"] > 0
    assert "tensorboard --logdir" in capsys.readouterr().out
    run("few", "trainer.max_epochs=1", "debug=fast", "logger=csv", PICTURES_OFF)
    out = capsys.readouterr().out
    assert "few/report.html" in out
    assert "tensorboard" not in out


def test_early_stopping_says_why_also_after_a_test_that_was_interrupted(run, monkeypatch, tmp_path, caplog):
    def stop(module):
        raise KeyboardInterrupt

    caplog.set_level(logging.INFO)
    stopping = ["callbacks/early_stopping=default", "callbacks.early_stopping.patience=2", "optimizer.lr=0"]
    overrides = ["trainer.max_epochs=20", *stopping, PICTURES_OFF]
    with monkeypatch.context() as patch:
        patch.setattr(LocalizationModule, "on_test_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            run("run", *overrides)
    line = read(tmp_path / "run", "run.json")["stopped_early"]
    start = (
        "stopped after epoch 3 of 20: Monitored metric val/joint_acc did not improve in the last 2 records. Best score:"
    )
    assert line.startswith(start) and line in caplog.messages
    folder = run("run", *overrides)
    assert read(folder, "run.json")["stopped_early"] == line
    assert f"{read(folder, 'metrics.json')['best']['val/joint_acc']:.3f}" in line
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 3
    assert line in (folder / "report.html").read_text()


@pytest.mark.parametrize("stop", [Preempted("stopped by SIGTERM"), KeyboardInterrupt(), ValueError("a fault")])
def test_a_fit_that_ends_in_validation_leaves_no_worker_for_which_the_process_would_wait(run, monkeypatch, stop):
    def validation_step(module, batch, number):
        raise stop

    monkeypatch.setattr(LocalizationModule, "validation_step", validation_step)
    with pytest.raises(type(stop)) as _:  # keeps what the frames refer to
        run("run", "data.num_workers=1", PICTURES_OFF)
    assert not multiprocessing.active_children()


def test_a_fit_that_ends_with_its_last_epoch_was_not_stopped(run):
    stopping = ["callbacks/early_stopping=default", "callbacks.early_stopping.patience=1", "optimizer.lr=0"]
    folder = run("run", "debug=fast", "trainer.max_epochs=2", *stopping, PICTURES_OFF)
    assert "stopped_early" not in read(folder, "run.json")


def test_the_baseline_recipe_learns_the_embedded_data_above_the_floor(run):
    plain = ["augment=none", "data.batch_size=8", PICTURES_OFF]
    metrics = read(run("run", "experiment=baseline", "trainer.max_epochs=40", *plain), "metrics.json")
    assert metrics["final"]["train/iou"] > 0.6
    assert metrics["final"]["train/acc"] > 0.6


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["seed=-1"], "seed must be"),
        (["seed=null", "image_size=0", "monitor_mode=best"], "seed must.*; image_size must.*; monitor_mode must be"),
        (["monitor=val/joint_ac"], "monitor=val/joint_ac is not logged; it must be one of .*val/joint_acc"),
        (["monitor=null"], "monitor=None is not logged"),
        (["trainer.limit_val_batches=0"], "limit_val_batches=0; set monitor=train/loss"),
        (["trainer.max_epochs=0", "trainer.log_every_n_steps=0"], "max_epochs must be .*log_every_n_steps must be"),
        (["data.select=biggest"], "select must be"),
        (["data.select={trian:largest}"], "select must be"),
        (["data.box_origin=2"], "box_origin must"),
        (["data.cache=tape"], "cache must be disk, ram or none"),
        (["data.on_error=shrug"], "on_error must be raise or skip"),
        (["data.limit=-1", "data.batch_size=0", "data.num_workers=-1"], "limit must"),
        (["data.holdout.val=-0.5"], "holdout must be shares"),
        (["data.classes=[cat,cat]"], "classes must be names, each once"),
        (["data.ids=['000000',nope]"], r"no list of data.splits names nope \(an unquoted number"),
        (["data.ids=28"], "data.ids must be a list"),
        (["data.batch_size=1000", "data.drop_last=true"], "drop_last leaves no batch of 1000"),
        (["loss.weights.loc=-1"], "loss.weights.loc must be"),
        (["loss.weights.loc=null"], "loss.weights.loc must be"),
        (["loss.weights={loc:0,cls:0}"], "both are 0"),
        (["augment=batched_strong", "augment.scale=[0,1000]", "augment.fill=999"], "fill must be"),
        (["augment=batched_strong", "augment.scale=2"], "scale must be two rising numbers"),
        (["augment.min_visibility=5"], "min_visibility must be"),
        (["model.backbone.input.std=[0,1,1]"], "model.backbone.input.std needs three numbers > 0"),
        (["image_size=8"], "image_size must be a number >= 16"),
        (["model.backbone.widths=[]"], "widths and hidden_features must be numbers >= 1"),
        (["callbacks.pictures.columns=0"], "pictures.columns must be"),
        (["callbacks/early_stopping=default", "callbacks.early_stopping.monitor=val/nothing"], "val/nothing"),
        (
            ["data.splits={train:[train],val:[],test:[test]}", "data.holdout={val:0,test:0}"],
            "monitor=val/joint_acc but there is no validation image.*monitor=train/loss",
        ),
        (["callbacks/freeze=heads_first", "callbacks.freeze.unfreeze=[[1,layer9]]"], "no stage layer9"),
        (["model/backbone=resnet18", "model.backbone.levels=[5]"], "has maps of stride"),
        (["model/backbone=resnet18", "model.backbone.pretrained=no/such.pth"], "no/such.pth"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_before_images_are_decoded(
    composed, monkeypatch, tmp_path, overrides, told
):
    monkeypatch.setattr(VocDataModule, "decode", lambda self: pytest.fail("decodes"))
    with pytest.raises((BadInput, HydraException), match=f"(?s){told}"):
        train(composed(*QUIET, "image_size=64", *overrides))
    assert read(tmp_path / "run", "run.json")["status"] == "failed"


def numbers(node, key=""):
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in parts:
        yield from numbers(value, f"{key}[{name}]" if isinstance(node, list) else f"{key}.{name}".lstrip("."))
    if type(node) in (int, float):
        yield key


def test_no_number_of_a_config_is_one_that_cannot_be_computed_with(composed):
    cfg = composed("augment=strong", "scheduler=slanted_triangular", "callbacks/ema=default", "loss/loc=l1_giou")
    keys = [key for key in numbers(OmegaConf.to_container(cfg)) if not key.startswith("fingerprint")]
    assert len(keys) > 60
    for key, value in zip(keys, itertools.cycle([float("nan"), float("-inf"), 10**30]), strict=False):
        before = OmegaConf.select(cfg, key)
        OmegaConf.update(cfg, key, value)
        with pytest.raises(BadInput, match=rf"^{re.escape(key)} must be a number that can be computed with, not"):
            validate(cfg)
        OmegaConf.update(cfg, key, before)
    validate(cfg)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.strategy=nope"], "strategy='nope'"),
        (["optimizer.lr=-1"], "Invalid learning rate: -1"),
        (["optimizer.weight_decay=-1"], "Invalid weight_decay value: -1"),
        (["loss.weights.loc=-1"], "loss.weights.loc must be a number >= 0, not -1"),
        (["data.num_workers=-1"], "num_workers must be a number >= 0 and <= 1024, not -1"),
        (["data.num_workers=1000000"], "num_workers must be a number >= 0 and <= 1024"),
        (["data.batch_size=0"], "batch_size must be a number >= 1"),
        (["callbacks/ema=default", "callbacks.ema.decay=2"], "callbacks.ema.decay must be in "),
        (["callbacks/ema=default", "callbacks.ema.update_every_n_steps=-1"], "must be a whole number >= 1, not -1"),
        (["callbacks/early_stopping=default", "callbacks.early_stopping.patience=-1"], "must be a whole number >= 0"),
        (["callbacks.checkpoint_best.save_top_k=3"], "save_top_k must be 1, not 3"),
        (["scheduler=plateau", "scheduler.min_delta=-1"], "scheduler.min_delta must be a number >= 0, not -1"),
        (["scheduler=one_cycle", "scheduler.final_factor=0"], "scheduler.final_factor must be a number > 0, not 0"),
        (["loss.cls.criterion.label_smoothing=-1"], "loss.cls.criterion.label_smoothing must be in .0, 1., not -1"),
        (["loss/loc=l1_giou", "loss.loc.terms.giou.criterion.eps=-1"], "loss.loc.terms.giou.criterion.eps must be in"),
        (["loss/loc=smooth_l1", "loss.loc.criterion.beta=-1"], "loss.loc.criterion.beta must be a number >= 0"),
        (["augment=batched_strong", "augment.max_redraws=0.5"], "max_redraws must be in"),
        (["model.backbone.widths=[8,0]"], "widths and hidden_features must be numbers >= 1"),
        (["model.backbone.in_channels=1"], "in_channels must be 3"),
        (["trainer.num_sanity_val_steps=0.5"], "trainer.num_sanity_val_steps must be a whole number >= 0, not 0.5"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_before_data_are_read(composed, monkeypatch, overrides, told):
    monkeypatch.setattr(VocDataModule, "prepare_data", lambda self: pytest.fail("reads data"))
    with pytest.raises((BadInput, HydraException), match=f"(?s){told}"):
        train(composed(*QUIET, *overrides))


def test_an_augmentation_that_gives_another_size_is_refused(composed):
    with pytest.raises(BadInput, match=r"turn .100, 100. px into .50, 50."):
        train(composed(*QUIET, "augment.transforms=[{_target_:albumentations.Resize,height:50,width:50}]"))


@pytest.mark.parametrize("cache", ["disk", "ram"])
@pytest.mark.parametrize("damage", ["empty", "a head and an end, and no pixels between them"])
def test_a_bad_test_image_is_found_before_the_fit(composed, tmp_path, shapes_root, cache, damage):
    root = tmp_path / "shapes"
    shutil.copytree(shapes_root, root)
    first = (root / "ImageSets/Main/test.txt").read_text().split()[0]
    path = root / f"JPEGImages/{first}.jpg"
    data = path.read_bytes()
    path.write_bytes(b"" if damage == "empty" else data[: data.index(b"\xff\xda")] + b"\xff\xd9")
    with pytest.raises(BadInput, match=f"{first}.jpg: not a readable image"):
        train(composed(f"data.root={root}", "data.select=largest", f"data.cache={cache}", *QUIET))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("monitor", "title"),
    [([], "best checkpoint (epoch 1)"), (["monitor=val/loss", "monitor_mode=min"], "best checkpoint")],
)
def test_a_diverged_run_writes_null_and_is_not_called_better(run, capsys, monitor, title):
    diverging = ["optimizer=sgd", "optimizer.lr=1e30", "callbacks.nonfinite.action=continue"]
    folder = run("run", *diverging, "trainer.max_epochs=2", *monitor)
    metrics = json.loads((folder / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert metrics["test"]["loc_l1"] is None
    assert read(folder, "run.json")["status"] == "completed"
    out = capsys.readouterr().out
    assert "nan" in out
    assert f"test, {title}\n" in re.sub(" +\n", "\n", out)


def test_result_and_floor_are_taken_on_the_same_images(run):
    cut = run("cut", "trainer.max_epochs=1", "trainer.limit_test_batches=1", "data.eval_batch_size=4", PICTURES_OFF)
    whole = run("whole", "trainer.max_epochs=1", PICTURES_OFF)
    assert sum(row["images"] for row in read(cut, "metrics.json")["per_class"].values()) == 4
    assert read(cut, "metrics.json")["floor"]["iou"] != read(whole, "metrics.json")["floor"]["iou"]


def test_pictures_are_drawn_without_dropout_and_leave_the_mode(composed, monkeypatch):
    modes = []
    forward = LocalizationModule.forward
    monkeypatch.setattr(
        LocalizationModule, "forward", lambda self, *given: modes.append(self.training) or forward(self, *given)
    )
    train(composed(*QUIET, "experiment=overfit_one", "trainer.max_epochs=2", "model.backbone.dropout=0.5"))
    assert modes == [True, True, False]


def test_objects_below_min_area_are_dropped_as_the_notebooks_pipeline_does(composed):
    data = build_data(composed("augment.min_area=600"))
    data.setup()
    index = data.indexes["train"]
    assert index.dropped["below augment.min_area"] > 0
    areas = (index.boxes[:, 2:] - index.boxes[:, :2]).prod(1) * 100 * 100
    assert areas.min() >= 600
    assert len(data.dataset("train")) == len(index)
    assert data.dataset("train").__getitems__([(0, 0)]).images.shape[0] == 1


class TestOverfitOne:
    """Fit of one image, as the notebook does it."""

    def test_prints_the_notebooks_lines_and_stores_the_final_values(self, run, capsys):
        folder = run("run", "experiment=overfit_one_seed")
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch ")]
        assert len(lines) == 30
        final = read(folder, "metrics.json")["final"]
        assert lines[-1] == f"Epoch 30/30 loss_loc {final['train/loss_loc']:.5f} loss_cls {final['train/loss_cls']:.5f}"
        assert 0 <= final["train/iou"] <= 1
        assert "data:image/jpeg" in (folder / "report.html").read_text()

    def test_every_step_is_the_notebooks_from_the_same_weights(self, run, composed):
        folder = run("run", "experiment=overfit_one_seed", PICTURES_OFF)
        cfg = composed("experiment=overfit_one_seed", "model.num_classes=9")
        data = build_data(cfg)
        data.setup()
        batch = data.plain_batch("train", [0])
        torch.manual_seed(cfg.seed)
        model = build_module(cfg, data).localizer  # the run's initial weights
        images, true = batch.images.contiguous() / 255.0, box_convert(batch.boxes, "xyxy", "xywh")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for row in table(folder):
            optimizer.zero_grad()
            loc, _, logits = model(images)
            loss_loc = torch.nn.L1Loss()(loc, true)
            loss_cls = torch.nn.CrossEntropyLoss()(logits, batch.labels)
            (loss_loc + loss_cls).backward()
            optimizer.step()
            assert float(row["train/loss_loc"]) == pytest.approx(loss_loc.item(), abs=1e-3)
            assert float(row["train/loss_cls"]) == pytest.approx(loss_cls.item(), abs=1e-3)

    # Drawn images only where there are no photographs, of which the notebook's numbers are.
    @pytest.mark.parametrize("source", ["voc" if "ONEBOX_VOC_ROOT" in os.environ else "shapes"])
    def test_ten_images_end_where_the_notebooks_do(self, run, request, source):
        """The notebook's own code on 19 VOC images: L1 0.02 to 0.22 (median 0.107), class loss at most 0.04, IoU 0.05
        to 0.79 (median 0.53). Single images scatter, so the medians are held, and wide bounds."""
        if source == "voc":
            root = request.getfixturevalue("voc_root") / "VOCdevkit"
            ids = (root / "VOC2007/ImageSets/Main/train.txt").read_text().split()[:200:20]
            data = ["data=voc2007", f"data.root={root}", "data.source=null"]
        else:
            root = request.getfixturevalue("shapes_root")
            ids = (root / "ImageSets/Main/train.txt").read_text().split()[:10]
            data = []
        finals = []
        for image_id in ids:
            folder = run(image_id, *data, "experiment=overfit_one_seed", f"data.ids=['{image_id}']", PICTURES_OFF)
            finals.append(read(folder, "metrics.json")["final"])
        loc, cls, iou = ([row[f"train/{name}"] for row in finals] for name in ("loss_loc", "loss_cls", "iou"))
        assert len(finals) == 10
        assert 0.04 < statistics.median(loc) < 0.2
        assert max(loc) < 0.3
        assert statistics.median(cls) < 0.03
        assert max(cls) < 0.1
        assert 0.2 < statistics.median(iou) < 0.8

    @pytest.mark.parametrize("source", ["shapes", "voc"])
    def test_by_default_an_image_is_learned_by_heart(self, composed, tmp_path, request, capsys, source):
        data = []
        if source == "voc":
            root = request.getfixturevalue("voc_root") / "VOCdevkit"
            data = ["data=voc2007", f"data.root={root}", "data.source=null", "data.ids=['000028']"]
        train(composed(*data, "experiment=overfit_one", PICTURES_OFF))
        final = read(tmp_path / "run", "metrics.json")["final"]
        assert final["train/iou"] > 0.95
        assert (final["train/acc"], final["train/joint_acc"]) == (1, 1)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        epochs = [line[0] for line in lines if line and line[0].endswith("/100")]
        assert epochs == [f"{epoch}/100" for epoch in range(10, 101, 10)]


@pytest.mark.long
def test_real_voc_trains_above_the_floor_in_a_few_epochs(run, voc_root):
    data = ["data=voc2007", f"data.root={voc_root / 'VOCdevkit'}", "data.source=null", "augment=none"]
    folder = run("run", "experiment=baseline", *data, "trainer.max_epochs=16")
    metrics = read(folder, "metrics.json")
    test, floor = metrics["test"], metrics["floor"]
    # Seeds 0 to 3 end with 1.7 to 2.0 times the joint_acc, 1.8 to 1.9 times the acc, and an IoU .023 to .027 above.
    assert test["joint_acc"] > 1.3 * floor["joint_acc"]
    assert test["acc"] > 1.4 * floor["acc"]
    assert test["iou"] > floor["iou"]
    # What a prediction that ignores the image reaches on these 183 test images.
    assert floor["iou"] == pytest.approx(0.47, abs=0.02)


def test_skipped_samples_stand_in_the_run_directory_and_not_in_the_class_counts(run, tree):
    for name in "abcd":
        tree.add(name, ("dog", (1, 1, 30, 20)))
    path = tree.folder / "JPEGImages/b.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\xff\xda")] + b"\xff\xd9")  # a head and an end, and no pixels between them
    path.with_name("d.jpg").write_bytes(b"nothing")
    own = ["data=folder", f"data.root={tree.folder}", "data.holdout={val:0,test:0}", "data.on_error=skip"]
    own += ["monitor=train/loss", "monitor_mode=min", "loss/cls=balanced_cross_entropy"]
    folder = run("skip", *own, "trainer.max_epochs=1", PICTURES_OFF)
    skipped = {row["id"]: row for row in read(folder, "run.json")["skipped"]}
    assert skipped.keys() == {"b", "d"}
    assert skipped["d"].pop("reason").startswith("not a readable image (")
    assert skipped["d"] == {"split": "train", "id": "d", "file": str(path.with_name("d.jpg"))}
    stored = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["onebox"]["config"]
    for config in (stored, yaml.safe_load((folder / "config.yaml").read_text())):
        assert sum(config["loss"]["cls"]["criterion"]["class_counts"]) == 2


def test_lost_boxes_are_counted_and_many_of_them_warned_of(run, caplog):
    common = ["augment=batched_affine", "augment.margin=1", "trainer.max_epochs=1", "data.batch_size=16", PICTURES_OFF]
    rows = []
    for workers in (0, 2):
        folder = run(f"w{workers}", *common, "augment.scale=[20,20]", f"data.num_workers={workers}")
        rows += table(folder)
        assert "train/augment_fallback" in scalars(folder).Tags()["scalars"]
    assert rows[0]["train/augment_fallback"] == rows[1]["train/augment_fallback"]
    assert float(rows[0]["train/augment_fallback"]) + float(rows[0]["train/augment_redrawn"]) > 0.5
    assert caplog.text.count("were not augmented") == 2  # once a fit
    caplog.clear()
    assert float(table(run("soft", *common))[0]["train/augment_fallback"]) < 0.05
    assert "train/augment_fallback" not in table(run("none", *common[2:]))[0]
    assert "were not augmented" not in caplog.text
