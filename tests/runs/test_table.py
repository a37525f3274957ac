"""How `onebox runs` lists runs, and the table that a notebook gets."""

import csv
import io
import json
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

import onebox
from onebox.cli import app
from onebox.errors import BadInput
from onebox.files import write_json
from onebox.runs.reading.diff import diff
from onebox.runs.reading.find import best_tag, find_runs, split_of
from onebox.runs.reading.table import _side_by_side, list_runs

ALL = {"where": None, "sort": None, "ascending": False, "limit": 0, "metrics": ()}


def command(outputs, *arguments):
    done = CliRunner().invoke(app, ["runs", "--outputs", str(outputs), *arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_a_notebook_gets_one_table(outputs, tmp_path):
    frame = onebox.runs(outputs)
    assert [path.removeprefix(f"{outputs}/") for path in frame.index] == ["sweeps/x/1", "sweeps/x/0", "base/second", "base/first"]  # fmt: skip
    assert list(frame["status"]) == ["failed", *["completed"] * 3]
    assert frame["optimizer.lr"].tolist() == [0.001, 0.001, 0.01, 0.001]
    assert frame["loss/loc"].iloc[0] == "giou" and frame["floor/joint_acc"].count() == 3
    assert frame.query("`val/joint_acc` > .5")["seed"].tolist() == [0, 1]
    assert onebox.runs(tmp_path / "empty").empty


def test_val_is_of_the_last_epoch_and_best_of_the_best_one(make_run, tmp_path):
    make_run("sweeps/x/0", metrics={"joint_acc": 0.6, "iou": 0.5}, last={"joint_acc": 0.2, "iou": 0.4})
    make_run("sweeps/x/1", "optimizer.lr=0.01", metrics={"joint_acc": 0.5}, last={"joint_acc": 0.4})
    outputs = tmp_path / "outputs"
    row = json.loads(command(outputs, "--where", "best/joint_acc > .55", "--json"))["rows"][0]
    assert (row["best/joint_acc"], row["val/joint_acc"]) == (0.6, 0.2)
    assert json.loads(command(outputs, "--where", "val/joint_acc > .3", "--json"))["rows"][0]["best/joint_acc"] == 0.5
    frame = onebox.runs(outputs)
    assert (frame["best/iou"].max(), frame["val/iou"].max()) == (0.5, 0.4)
    done = CliRunner().invoke(app, ["sweep", str(outputs / "sweeps" / "x"), "--json"])
    rows = json.loads(done.stdout)["rows"]  # ranked by the best of what is monitored
    assert [(row["best/joint_acc"], row["val/joint_acc"]) for row in rows] == [(0.6, 0.2), (0.5, 0.4)]
    document = diff(find_runs(outputs), outputs, everything=True)
    assert {"best/joint_acc", "val/joint_acc"} <= {row["metric"] for row in document["metrics"]}
    assert best_tag("train/loss") == "best/train/loss" and split_of("best/train/loss") == "train"


@pytest.mark.parametrize(
    ("ascending", "expected"), [(False, ["0", "second", "first", "1"]), (True, ["first", "second", "0", "1"])]
)
def test_sorting_puts_what_is_unknown_last(outputs, ascending, expected):
    columns = list_runs(outputs, **ALL | {"sort": "val/joint_acc", "ascending": ascending}).columns
    assert [path.rpartition("/")[2] for path in columns["run"]] == expected


def test_a_row_is_named_by_its_number(outputs):
    (outputs / "base" / "second" / "train.log").write_text("done\n")
    row = json.loads(command(outputs, "--where", "seed == 1", "--json"))["rows"][0]
    assert (row["number"], row["run"]) == (2, str(outputs / "base" / "second"))
    assert command(outputs, "--log", "2") == "done\n"
    assert command(outputs, "--folder", row["fingerprint"]) == f"{row['run']}\n"


def test_all_formats_have_the_same_rows(outputs, tmp_path):
    chosen = ("--where", "seed == 1 or loss.loc == giou", "--sort", "optimizer.lr", "--metric", "val/iou")
    document = json.loads(command(outputs, "--json", *chosen[:-1], "val/joint_acc"))
    assert document["runs"] == 3
    best = document["rows"][0]
    assert (best["optimizer.lr"], best["val/joint_acc"], best["status"]) == (0.01, 0.6, "completed")
    assert document["rows"][1]["val/joint_acc"] is None
    lines = list(csv.DictReader(io.StringIO(command(outputs, "--csv", "-", *chosen))))
    assert lines[0]["overrides"] == "optimizer.lr=0.01 seed=1"
    assert command(outputs, "--csv", str(tmp_path / "x.csv"), *chosen) == ""
    assert list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines())) == lines
    assert list(csv.DictReader(io.StringIO(command(outputs, *chosen)), delimiter="\t")) == lines
    text = command(outputs, "--markdown", "--limit", "3")
    assert "| fingerprint | test/joint_acc |" in text and "- 1 more (--limit 0 shows all 4)" in text
    assert "no run in" in command(outputs, "--where", "seed == 5")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sort", "sed"], "--sort: no run has a key sed, did you mean seed"),
        (["--metric", "test/oiu"], "no run has a key test/oiu"),
        (["--csv", "-", "--json"], "choose one"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(outputs, arguments, told):
    with pytest.raises(BadInput, match=told):
        command(outputs, *arguments)


def test_what_others_have_written_does_not_steer_the_terminal(make_run, tmp_path):
    make_run("[red]x[/red]", "name='\\x1b[2J\\x07'", metrics={"joint_acc": 0.5})
    make_run("other", metrics={"loss": 2})  # a run unlike it
    path = tmp_path / "outputs" / "other" / "run.json"
    record = json.loads(path.read_text())
    write_json(path, record | {"config": record["config"] | {"monitor": "val/loss"}, "started": "\x1b]0;x\x07"})
    console = Console(file=io.StringIO(), width=500, force_terminal=True, color_system=None)
    list_runs(tmp_path / "outputs", **ALL | {"sort": "name"}).show(console)
    text = console.file.getvalue()
    assert "\x1b" not in text and "\x07" not in text
    assert "[red]x[/red]" in text and "\ufffd[2J\ufffd" in text and "\ufffd]0;x" in text
    assert "2.000" in text and "0.500" in text  # the metrics of both


def test_what_is_done_with_records_imports_nothing_heavy(outputs):
    (outputs / "x.py").write_text(
        "import atexit, sys; from onebox.cli import main\n"
        "heavy = {'torch', 'lightning', 'torchvision', 'albumentations', 'matplotlib', 'cv2', 'scipy', 'hydra', 'pandas'}\n"
        "atexit.register(lambda: print('HEAVY', heavy & set(sys.modules)))\n"
        "main()"
    )
    for arguments, used in (
        (["runs", "--where", "seed == 1", "--outputs", outputs], "set()"),
        (["diff", "latest~1", "latest", "--outputs", outputs], "set()"),
        (["sweep", outputs / "sweeps" / "x"], "{'pandas'}"),
    ):
        done = subprocess.run([sys.executable, outputs / "x.py", *arguments], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == f"HEAVY {used}", done.stderr


@pytest.mark.parametrize(
    ("widths", "room", "groups"),
    [
        ([5, 10, 10, 10, 10], 47, [[0, 1, 2], [0, 3, 4]]),  # not the last one alone
        ([5, 10, 10, 10, 10, 10], 47, [[0, 1, 2, 3], [0, 4, 5]]),
        ([5, 10, 10, 10, 40], 47, [[0, 1, 2, 3], [0, 4]]),  # no room for two
        ([5, 20, 20], 30, [[0, 1], [0, 2]]),
    ],
)
def test_columns_without_room_beside_each_other_come_below(widths, room, groups):
    assert list(_side_by_side(widths, room)) == groups
