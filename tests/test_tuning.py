"""What changes in the course of a fit goes on where it stopped; tests/test_resume.py kills whole processes."""

import csv

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onebox.callbacks.last_checkpoint import LastCheckpoint
from onebox.errors import BadInput
from onebox.train import train

COMMON = [
    "debug=fast",
    "callbacks/progress=lines",
    "callbacks.pictures=null",
    "callbacks.checkpoint_last.every_minutes=0",
    "callbacks.checkpoint_last.epoch_seconds=0",
    "model.backbone.dropout=0.3",
    "trainer.max_epochs=3",
]
KINDS = {
    "stages that thaw": [
        "callbacks/freeze=heads_first",
        "callbacks.freeze.unfreeze=[[1,blocks.9],[2,all]]",
        "param_groups=discriminative",
        "scheduler=one_cycle",
        "loss/weighting=uncertainty",
        "callbacks/balance=default",
        "callbacks.balance.every_n_steps=2",
    ],
    "weights and rate that follow the losses": [
        "loss/weighting=dwa",
        "scheduler=plateau",
        "scheduler.monitor=train/loss",
        "scheduler.min_delta=100",  # never met
        "scheduler.patience=0",
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_fit_goes_on_with_the_same_bits(composed, tmp_path, monkeypatch, kind):
    save, saves = LastCheckpoint._save, []

    def stopping_save(self, *args):
        save(self, *args)
        saves.append(args)
        if len(saves) == 6:  # four in the first epoch: now within the second
            raise KeyboardInterrupt

    def go(name, *overrides):
        train(composed(*COMMON, *KINDS[kind], f"run_dir={tmp_path / name}", *overrides))

    go("straight", "callbacks.checkpoint_last.every_minutes=10")
    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", stopping_save)
        with pytest.raises(KeyboardInterrupt):
            go("stopped")
    go("stopped")

    for name in ("metrics.json", "metrics.csv", "trace.bin"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    mine, theirs = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("stopped", "straight")
    )
    assert all(torch.equal(mine["state_dict"][key], value) for key, value in theirs["state_dict"].items())
    for key in ("optimizer_states", "lr_schedulers"):
        assert str(mine[key]) == str(theirs[key]), key


def test_weights_and_shares_of_the_losses_are_shown_for_each_epoch(composed, tmp_path):
    train(composed(*COMMON, "loss/weighting=dwa", "loss/cls=balanced_cross_entropy"))
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    weights = [float(row["train/weight_loc"]) for row in rows]
    assert weights[:2] == pytest.approx([10, 10])
    assert weights[2] != pytest.approx(10, abs=1e-3)
    for row in rows:
        loc, cls = (float(row[f"train/loss_{name}_weighted"]) for name in ("loc", "cls"))
        assert float(row["train/share_loc"]) == pytest.approx(loc / (loc + cls))
        assert float(row["train/share_loc"]) + float(row["train/share_cls"]) == pytest.approx(1)
    counts = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["loss"]["cls"]["criterion"]["class_counts"]
    assert counts[0] == 0  # the background
    assert len(counts) == 9 and sum(counts) > 20


@pytest.mark.parametrize(("every", "patience", "falls"), [(1, 1, [3, 5]), (2, 0, [4])])
def test_on_a_plateau_the_rate_falls_after_validations_without_improvement(composed, tmp_path, every, patience, falls):
    plateau = ["scheduler=plateau", "scheduler.min_delta=100", f"scheduler.patience={patience}"]
    validation = [f"trainer.check_val_every_n_epoch={every}", "callbacks.checkpoint_best=null"]
    train(composed(*COMMON, *plateau, *validation, "trainer.max_epochs=6"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rates = [event.value for event in events.Scalars("step/lr")][::3]  # three steps an epoch
    assert [epoch for epoch in range(1, 6) if rates[epoch] < rates[epoch - 1]] == falls


def test_a_plateau_of_nothing_is_refused(composed):
    with pytest.raises(BadInput, match=r"scheduler\.monitor=val/los is nothing that is logged; val/loss is"):
        train(composed(*COMMON, "scheduler=plateau", "scheduler.monitor=val/los"))
