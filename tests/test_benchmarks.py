"""`make bench`: its table and its bookkeeping; the measurements themselves run there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from onebox.runs.predictions import BOXES

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.__main__ as bench

    return bench


def test_every_row_names_a_measurement_that_exists(bench):
    for name, row in bench.ROWS.items():
        module, *arguments = row.measurement.split()
        source = (ROOT / "benchmarks" / f"{module}.py").read_text()
        assert f'"{row.figure}"' in source, f"{name}: {module} prints no {row.figure}"
        if module in ("training", "loading"):
            assert f'"{arguments[0]}":' in source, f"{name}: {module} has no option {arguments[0]}"


def test_a_round_measures_and_says_what_is_met(bench, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(
        sys, "argv", ["bench", "--rounds=1", "--index-files=50", "--only", "index_bytes", "index_ratio"]
    )
    monkeypatch.setitem(bench.ROWS, "index_ratio", bench.ROWS["index_ratio"]._replace(target=1e9))
    bench.main()
    rows = {row["name"]: row for row in json.loads((tmp_path / "outputs" / "bench.json").read_text())}
    assert rows.keys() == {"index_bytes", "index_ratio"}
    assert 0 < rows["index_ratio"]["median"] < 1e9 and not rows["index_ratio"]["met"]
    assert rows["index_bytes"]["met"] is (rows["index_bytes"]["median"] <= 1000)


def test_a_measurement_that_fails_takes_no_other_with_it(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "argv", ["bench", "--rounds=1", "--index-files=50", "--only", "diff_s", "index_bytes"])
    monkeypatch.setitem(bench.ROWS, "diff_s", bench.ROWS["diff_s"]._replace(measurement="startup --nothing"))
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 1
    assert [row["name"] for row in json.loads((tmp_path / "outputs" / "bench.json").read_text())] == ["index_bytes"]
    assert "failed" in capsys.readouterr().out


def test_the_networks_whose_use_is_measured_predict(bench):
    from benchmarks import use

    boxes, probabilities = use.network("model/backbone=small_cnn").run(use.noise(2, 100))
    assert boxes.shape == (2, 4) and probabilities.shape == (2, 20)


def test_folds_are_put_together_and_their_interval_holds_images_and_seeds(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import folds

    right = {(0, 0): "1101", (0, 1): "1100", (1, 0): "1111", (1, 1): "0111", (2, 0): "1111"}  # of (seed, fold)
    for (seed, fold), names in right.items():
        run = tmp_path / "runs" / f"{seed}{fold}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"seed: {seed}\ndata: {{fold: {fold}, views_seed: 0}}\n")
        (run / "metrics.json").write_text(json.dumps({"floor": dict.fromkeys(folds.METRICS, 0.25)}))
        box = dict.fromkeys(BOXES, 0) | {
            f"{which}_{edge}": 9 for which in ("true", "predicted") for edge in ("x2", "y2")
        }
        texts = {"path": "", "true_label": "cat", "top1": "cat"}
        numbers = {"width": 10, "height": 10, **box, "iou": 1, "probability": 1, "top1_probability": 1}
        rows = [
            {"id": f"{fold}{n}", "predicted_label": "cat" if is_right == "1" else "dog", **texts, **numbers}
            for n, is_right in enumerate(names)
        ]
        pd.DataFrame(rows).to_csv(run / "predictions.csv", index=False)
    repeats, floors = folds.read_repeats(tmp_path / "runs")
    assert {name: table["acc"].mean() for name, table in repeats.items()} == {
        "seed 0": 5 / 8,
        "seed 1": 7 / 8,
        "seed 2": 1,
    }
    assert {name: floor["acc"] for name, floor in floors.items()} == dict.fromkeys(repeats, 0.25)
    monkeypatch.setattr(sys, "argv", ["folds", str(tmp_path / "runs")])
    folds.main()
    printed = capsys.readouterr().out
    assert "8 images" in printed and "left out: seed 2, which has 4 images" in printed
    values = np.stack([repeats[name][["acc"]] for name in ("seed 0", "seed 1")])
    (low, high), (low_of_images, high_of_images) = folds.bootstrap(values)[0], folds.bootstrap(values.mean(0)[None])[0]
    assert low < low_of_images < 0.75 < high_of_images < high


@pytest.mark.long(minutes=2)
def test_the_benchmark_of_a_gpu_runs_without_one_as_a_try_and_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "benchmarks.gpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
    assert "no GPU here" in refused.stderr
    tried = subprocess.run([*command, "--device", "cpu", "--quick"], env=environment, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr
    assert "no measurement of a GPU" in tried.stdout
    figures = json.loads(tried.stdout.splitlines()[-1])
    assert list(figures) == ["tiny_cnn", "resnet50", "efficientnet_lite0", "sweep"]
    assert all(value > 0 for values in figures.values() for value in values)
