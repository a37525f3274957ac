"""`make bench`: its table and its bookkeeping; the measurements themselves run there."""

import json
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


def test_the_networks_whose_use_is_measured_predict(bench):
    from benchmarks import use

    boxes, probabilities = use.network("model/backbone=small_cnn").run(use.noise(2, 100))
    assert boxes.shape == (2, 4) and probabilities.shape == (2, 20)
