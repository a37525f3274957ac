"""`onebox evaluate`: the bits of training's own test, and other data by the names of their classes."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput


@pytest.fixture(scope="module")
def trained_once(nursery, shapes_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    data = [f"data.root={shapes_root}", "data.source=null", f"data.cache_dir={folder / 'cache'}", "image_size=32"]
    options = ["trainer.max_epochs=2", "callbacks/ema=default", "loss/weighting=uncertainty", "optimizer.lr=0.01"]
    plain = ["callbacks.pictures=null", "trainer.accelerator=cpu", f"hydra.run.dir={folder / 'run'}"]
    assert nursery.run(*data, *options, *plain, log=folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


@pytest.fixture
def run(trained_once, tmp_path):
    """A copy of its own."""
    return Path(shutil.copytree(trained_once, tmp_path / "run"))


def evaluate(run: Path, out: str, *arguments) -> dict:
    environment = {"ONEBOX_DATA_DIR": str(run.parent / "data")}
    done = CliRunner(env=environment).invoke(
        app, ["evaluate", str(run), "--out", str(run.parent / out), "--json", *map(str, arguments)]
    )
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def test_a_run_is_evaluated_again_and_on_other_images(run, shapes_root):
    stored = json.loads((run / "metrics.json").read_text())
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    found = evaluate(run, "again")
    assert {name: found[name] for name in ("test", "floor", "per_class")} == {
        name: stored[name] for name in ("test", "floor", "per_class")
    }
    assert (run.parent / "again/predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    assert json.loads((run.parent / "again/metrics.json").read_text()) == found
    assert all(low <= stored["test"][name] <= high for name, (low, high) in found["intervals"].items())
    assert found["intervals"]["acc"][0] < found["intervals"]["acc"][1]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    with pytest.raises(BadInput, match="again: holds files already; choose another --out"):
        evaluate(run, "again")

    val = evaluate(run, "val", "--split", "val")["test"]
    assert val == pytest.approx({name: stored["best"][f"val/{name}"] for name in val}, abs=1e-6)
    assert evaluate(run, "largest", "data.select=largest")["images"] == 20 > found["images"]

    # Data of the same names and sizes are known for those of the run, whatever draws the splits anew.
    drawn = evaluate(run, "drawn", "data.splits={train: [test, train, val]}", "data.holdout={val: 0, test: 0.5}")
    again = evaluate(run, "again drawn", "data=shapes", f"data.root={shapes_root}", "data.source=null", "data.fold=0")
    assert drawn["trained_on"] > 0 < again["trained_on"]
    seen = set(np.load(run / "samples.npz")["train/ids"].tobytes().decode().split("\0"))
    for out in ("drawn", "again drawn"):
        assert not seen & set(pd.read_csv(run.parent / out / "predictions.csv", dtype=str)["id"])

    moved = evaluate(run, "moved", "data.splits={train: [val], val: [], test: [test, train]}")
    num_trained = evaluate(run, "train", "--split", "train")["images"]
    assert (moved["images"], moved["trained_on"]) == (found["images"], num_trained)
    assert moved["test"] == pytest.approx(found["test"], abs=1e-6)
    with pytest.raises(BadInput, match=f"no image to evaluate .*{num_trained} dropped .the run was trained on it"):
        evaluate(run, "trained", "data.splits={train: [val], val: [], test: [train]}")
    every = evaluate(run, "every", "--split", "all")["images"]
    assert evaluate(run, "of test", "--split", "all", "data.select={train: largest}")["images"] == every

    # Here the classes are read from the annotations, so they are sorted, and have other numbers.
    folder = ["data=folder", f"data.root={shapes_root}"]
    same = evaluate(run, "folder", *folder, "data.splits={train: [train], test: [test]}")
    assert (same["test"], same["per_class"], same["unknown_classes"]) == (
        pytest.approx(stored["test"], abs=1e-6),
        {name: pytest.approx(row, abs=1e-6) for name, row in stored["per_class"].items()},
        {},
    )
    everything = evaluate(run, "all", *folder, "data.rename={circle: zebra}")
    assert set(everything["unknown_classes"]) == {"zebra"}
    assert everything["images"] + everything["unknown_classes"]["zebra"] > 60
    assert "circle" not in everything["per_class"]
    # Of the split that is tested alone, though training images have that class too.
    name = max(stored["per_class"], key=lambda name: stored["per_class"][name]["images"])
    lists = "data.splits={train: [train], test: [test]}"
    tested = evaluate(run, "test alone", *folder, lists, f"data.rename={{{name}: zebra}}")
    assert tested["unknown_classes"] == {"zebra": stored["per_class"][name]["images"]}


def test_the_command_prints_tables_or_one_document(run):
    command = [Path(sys.executable).parent / "onebox", "evaluate", run, "--json", "--out", run.parent / "json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.parent, check=True)
    document = json.loads(done.stdout)
    assert "test  1" in done.stderr  # what training says of its data
    shown = CliRunner().invoke(app, ["evaluate", str(run), "--out", str(run.parent / "shown")]).stdout
    assert f"{document['test']['joint_acc']:.3f}" in shown and "95 % interval" in shown


NEW = "data.rename={circle: a, square: b, triangle: c, star: d, ring: e, cross: f, crescent: g, hexagon: h}"
BAD = {
    "data=folder": "data.root must be given",
    "data=foldr": "data=foldr: no such option; did you mean folder",
    "data=folder data.rot=x": "no key data.rot, did you mean data.root",
    "data.rot=x": "data.rot=x: the run's config.yaml has no such key",
    "data.root=/nowhere": "/nowhere",
    "data.select=some": "data.select must be single, largest, or of splits such as {train: largest}, not some",
    "trainer.precision=9": "Precision 9 is invalid",
    "threads=0": "threads must be a number >= 1 or null, not 0",
    "image_size=9": "image_size=9: a run is evaluated as it is",
    "voc_root=/data": "voc_root=/data: a run is evaluated as it is",
    "data=folder data.root=ROOT 'data.holdout={val: 0, test: 0}' --split val": r"no image to evaluate \(val",
    f"data=folder data.root=ROOT '{NEW}'": "classes that the model does not know",
}


def test_what_cannot_be_evaluated_is_one_line_and_leaves_nothing(run, shapes_root):
    for arguments, words in BAD.items():
        with pytest.raises(BadInput, match=words):
            evaluate(run, "out", *shlex.split(arguments.replace("ROOT", str(shapes_root))))
    record = json.loads((run / "run.json").read_text())
    record["data_fingerprint"]["test"] = "0" * 16
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match=r"the data have changed since \(test"):
        evaluate(run, "out")
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(BadInput, match="no trained run"):
        evaluate(run, "out")
    assert not (run.parent / "out").exists()
