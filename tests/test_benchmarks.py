"""`make bench`: its table and its bookkeeping; the measurements themselves run there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
