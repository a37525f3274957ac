"""A run that its search has ended early says so everywhere, and stays so."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from onebox.sweep.job import next_step

# Ends every job in its second epoch, as nothing reaches the limit.
PRUNED = [
    "sweep=search",
    "hydra/sweeper=random",
    "hydra.sweeper.pruner=limit",
    "+hydra.sweeper.pruners.limit={_target_: optuna.pruners.ThresholdPruner, lower: 2.0, n_warmup_steps: 1}",
    "hydra.sweeper.params=null",
    "loss.weights.loc=interval(1.0,30.0)",
    "hydra.sweeper.n_trials=2",
]


@pytest.fixture(scope="module")
def pruned(nursery, data, tmp_path_factory) -> Iterator[tuple[Path, list[str], str]]:
    """The folder of a search whose jobs were all pruned, its arguments, and what it printed."""
    folder = tmp_path_factory.mktemp("pruned") / "sweep"
    log = folder.parent / "log"
    given = [*PRUNED, *data, f"hydra.sweep.dir={folder}"]
    assert nursery.run(*given, log=log) == 0, log.read_text()
    return folder, given, log.read_text()


def records(folder: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))}


def told(command: str, *arguments: str) -> Any:
    done = subprocess.run([Path(sys.executable).parent / "onebox", command, *arguments, "--json"], capture_output=True)
    return json.loads(done.stdout)


def test_a_pruned_run_says_so_everywhere_and_keeps_its_checkpoint(pruned):
    folder, _, out = pruned
    found = records(folder)
    assert [(record["status"], record["pruned"]) for record in found.values()] == [("pruned", "after epoch 2 of 8")] * 2
    for name in found:
        run = folder / name
        assert (run / "checkpoints/best.ckpt").exists() and (run / "checkpoints/last.ckpt").exists()
        with (run / "metrics.csv").open() as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
        assert json.loads((run / "metrics.json").read_text())["test"] == {}
        assert "This run was pruned</b> after epoch 2 of 8" in (run / "report.html").read_text()
    trials = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db").trials
    assert [(trial.state.name, sorted(trial.intermediate_values)) for trial in trials] == [("PRUNED", [0, 1])] * 2
    assert {trial.user_attrs["run"] for trial in trials} == set(found)
    out = " ".join(out.split())
    assert "2 jobs: 2 pruned" in out and "(pruned after epoch 2 of 8, so not tested)" in out
    table = told("sweep", str(folder))
    assert [(row["status"], row["note"]) for row in table["rows"]] == [("pruned", "after epoch 2 of 8")] * 2
    assert table["totals"] == {"pruned": 2}
    assert [row["status"] for row in told("runs", "--outputs", str(folder), "--where", "status == pruned")["rows"]] == [
        "pruned"
    ] * 2


def test_hparams_counts_a_pruned_run_neither_as_success_nor_as_failure(pruned):
    ends = []
    for path in pruned[0].rglob("*.hparams_end"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                content = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                ends.append(content.session_end_info.status)
    assert ends == [api_pb2.STATUS_UNKNOWN] * 2


def test_a_pruned_run_stays_pruned(nursery, pruned):
    folder, given, _ = pruned
    before, log = records(folder), folder.parent / "again"
    assert nursery.run(*given, log=log) == 0, log.read_text()
    assert records(folder) == before
    run = next(folder.glob("*/run.json")).parent
    assert nursery.run(f"resume={run}", log=log) == 2
    assert f"{run}: already holds a run (pruned)" in log.read_text()
    assert records(folder) == before


@pytest.mark.parametrize(
    ("rerun", "stale", "step"),
    [("none", True, "keep"), ("failed", True, "keep"), ("stale", False, "keep"), ("stale", True, "again"), ("all", False, "again")],
)  # fmt: skip
def test_what_rerun_makes_of_a_pruned_run(rerun, stale, step):
    assert next_step({"status": "pruned"}, rerun=rerun, stale=stale) == step
