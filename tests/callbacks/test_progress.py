import io
import multiprocessing
import os
import re
import sys
import warnings

import pytest
from lightning.pytorch import LightningModule, Trainer

from onebox import streams
from onebox.callbacks.epoch_csv import EpochCsvLogger
from onebox.callbacks.progress import EpochBar
from onebox.lightning_setup import quieten
from onebox.train import train

OFF = ["callbacks.pictures=null", "logger=csv"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(text):
    """The lines that are left on a terminal."""
    return [line.rpartition(streams.ERASE)[2] for line in re.sub(r"\x1b\[[\d;]*m", "", text).split("\n")]


@pytest.fixture
def printed(monkeypatch):
    """What is printed of a fit of some epochs that logged `rows`, `width` columns wide."""

    def make(rows, width=80, monitor="val/joint_acc", mode="max", stdout=None, max_epochs=None, val=1, **options):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "stdout", stdout := stdout or io.StringIO())
        logger = EpochCsvLogger(path=None)
        bar = EpochBar(monitor=monitor, mode=mode, **{"every_n_epochs": 1} | options)
        trainer = Trainer(max_epochs=max_epochs or len(rows), accelerator="cpu", logger=[logger], enable_checkpointing=False, enable_progress_bar=False)  # fmt: skip
        monkeypatch.setattr(Trainer, "num_val_batches", [val])
        module = LightningModule()
        bar.on_train_start(trainer, module)
        for epoch, row in enumerate(rows):
            trainer.fit_loop.epoch_progress.current.completed = epoch
            trainer.fit_loop.epoch_progress.current.processed = epoch
            bar.on_train_epoch_start(trainer, module)
            for batch in range(3):
                bar._lr = 1.5e-3
                bar._draw(trainer, f"epoch {epoch + 1}", batch + 1, 3)
            bar.on_train_epoch_end(trainer, module)
            logger.rows[epoch] = row
        bar.on_train_end(trainer, module)
        bar.teardown(trainer, module, "fit")
        return stdout.getvalue()

    return make


def row(score, loss=2.5):
    names = ("acc", "iou", "loc_acc", "loc_acc70")
    losses = {f"{split}/{name}": loss for split in ("train", "val") for name in ("loss", "loss_loc", "loss_cls")}
    return losses | {f"val/{name}": 0.25 for name in names} | {"val/joint_acc": score}


def test_a_file_gets_a_plain_line_an_epoch_with_the_best_marked(printed):
    header, *lines, best = printed([row(0.1), row(0.3), row(0.2)]).splitlines()
    assert header.split() == ["epoch", "train_loss", "val_loss", "joint_acc", "acc", "iou", "lr", "time", "left"]
    assert [line.split()[:-2] for line in lines] == [
        ["1/3", "2.5000", "2.5000", "0.100*", "0.250", "0.250", "1.5e-3"],
        ["2/3", "2.5000", "2.5000", "0.300*", "0.250", "0.250", "1.5e-3"],
        ["3/3", "2.5000", "2.5000", "0.200", "0.250", "0.250", "1.5e-3"],
    ]
    assert best == "best val/joint_acc 0.3000 in epoch 2"
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("epochs", [9, 200, 12_000])
@pytest.mark.parametrize("width", [30, 50, 80, 120])
def test_lines_fit_their_terminal_and_a_wide_one_shows_more(printed, width, epochs):
    text = printed([row(0.1), row(0.2)], width, max_epochs=epochs, stdout=Terminal())
    lines = [line for line in shown(text) if line]
    assert max(map(len, lines[:-1])) <= width
    words = lines[0].split()
    assert words[0] == "epoch" and "joint_acc" in words  # whatever the width
    assert ("loc_acc" in words) is (width == 120) and ("iou" in words) is (width > 50)
    assert lines[1].split()[0] == f"1/{epochs}"


def test_without_validation_the_training_is_shown_and_a_loss_can_be_the_best(printed):
    rows = [
        {"train/loss": loss, "train/acc": 0.5, "train/iou": 0.25} for loss in (3.0, 12_345_678.0, float("nan"), 2.0)
    ]
    header, *lines, best = printed(rows, monitor="train/loss", mode="min", val=0).splitlines()
    assert header.split()[:2] == ["epoch", "train_loss"] and {"train_acc", "train_iou"} < {*header.split()}
    assert [line.split()[1] for line in lines] == ["3.0000*", "1.2e+07", "nan", "2.0000*"]
    assert best == "best train/loss 2.0000 in epoch 4"


def test_long_fits_show_some_epochs_the_last_and_the_names_again(printed):
    text = printed([row(epoch / 200) for epoch in range(95)], every_n_epochs=10).splitlines()
    assert [line.split()[0] for line in text[1:-1]] == [f"{epoch}/95" for epoch in (*range(10, 91, 10), 95)]
    text = printed([row(0.1)] * 81).splitlines()
    assert sum(line.startswith("epoch") for line in text) == 3


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_has_a_bar_below_which_leaves_nothing(printed, monkeypatch, no_color):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1" * no_color)
    monkeypatch.setattr("onebox.callbacks.progress.REFRESH_S", 0)
    text = printed([row(0.1), row(0.2)], stdout=Terminal())
    assert re.search(r"epoch 2 [━─=-]+ 3/3  [\d.]+ it/s  0:00:00 left", text) and " 0.0 it/s" not in text
    assert ("\x1b[1;32m" in text) is not no_color
    left = shown(text)
    assert len(left) == 5 and "it/s" not in "".join(left)
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in printed([row(0.1)], stdout=Terminal()).replace("\x1b[1;32m", "\x1b")


def test_lines_of_jobs_that_share_a_stream_say_whose_they_are(printed, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_name", "LokyProcess-1")
    monkeypatch.setattr(Trainer, "default_root_dir", "sweeps/lr/0123456789ab")
    lines = printed([row(0.1)], stdout=Terminal()).splitlines()
    assert len(lines) == 3 and all(line.startswith("012345  ") and len(line) <= 80 for line in lines)


def test_what_is_printed_takes_the_place_of_the_bar(monkeypatch):
    monkeypatch.setattr(streams._Stream, "has_bar", True)
    master, slave = os.openpty()
    stream = streams._Stream(slave, "w", closefd=False)
    stream.write(b"a warning\n")
    stream.write(b"another\n")
    expected, read = f"{streams.ERASE}a warning\r\nanother\r\n".encode(), b""
    while len(read) < len(expected):  # a terminal gives what has come so far
        read += os.read(master, 100)
    assert read == expected
    os.close(slave), os.close(master)


def test_an_epoch_that_does_not_validate_shows_no_older_value(composed, capsys):
    train(composed("debug=fast", *OFF, "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r" +\d/3 ", line)]
    assert [line[2] == "-" for line in lines] == [True, False, True] and lines[1][3].endswith("*")


def test_lines_name_each_finished_epoch_and_pass_over_what_was_not_logged(composed, capsys):
    lines = ["callbacks/progress=lines", "callbacks.progress.tags=[train/loss_loc,val/iou]"]
    train(composed("debug=fast", *lines, "trainer.check_val_every_n_epoch=2", "callbacks.pictures=null"))
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert [line[1] for line in printed] == ["1/2", "2/2"]
    assert [line[2::2] for line in printed] == [["loss_loc"], ["loss_loc", "iou"]]


def test_a_warning_of_a_library_is_one_line(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", None)
    quieten()
    assert (
        warnings.formatwarning("low\n  memory\x1b", UserWarning, "x.py", 3, line="x") == "warning: low memory\ufffd\n"
    )
