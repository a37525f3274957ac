"""A run that its search has ended early says so everywhere, and stays so."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from onebox.runs.reading.find import find_runs
from onebox.runs.reading.prune import kept
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


@pytest.mark.long
def test_optunas_dashboard_opens_the_study(pruned):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "optuna-dashboard", f"sqlite:///{pruned[0]}/study.db", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert server.poll() is None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies/1") as answer:
                    study = json.load(answer)
                break
            except urllib.error.URLError:
                time.sleep(0.1)  # it is still importing
    finally:
        server.kill()
        server.wait()
    assert study["name"] == "search" and study["has_intermediate_values"]
    assert [trial["state"] for trial in study["trials"]] == ["Pruned"] * 2


def test_checkpoints_of_pruned_runs_go_where_only_the_best_keep_theirs(pruned):
    runs = find_runs(pruned[0])
    assert list(kept(runs, best=1, older_s=None).values()) == ["", ""]


@pytest.mark.parametrize(
    ("rerun", "stale", "step"),
    [("none", True, "keep"), ("failed", True, "keep"), ("stale", False, "keep"), ("stale", True, "again"), ("all", False, "again")],
)  # fmt: skip
def test_what_rerun_makes_of_a_pruned_run(rerun, stale, step):
    assert next_step({"status": "pruned"}, rerun=rerun, stale=stale) == step


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=hermetic", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=joblib"],
        ["hydra/launcher=submitit_local", "hydra.sweeper.n_jobs=2"],
        ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2", "hydra.sweeper.n_jobs=2"],
        ["hydra/launcher=hermetic", "trainer=ddp", "trainer.devices=2", "hydra.sweeper.n_trials=1"],
    ],
    ids=["hermetic", "joblib", "submitit_local", "ray", "two_devices"],
)
def test_every_launcher_prunes(data, tmp_path, launcher):
    command = [Path(sys.executable).parent / "onebox-train", *PRUNED, *data, *launcher]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "outputs/sweeps/search"
    trials = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db").trials
    assert {record.get("pruned") for record in records(folder).values()} == {"after epoch 2 of 8"}
    assert [trial.state.name for trial in trials] == ["PRUNED"] * (1 if "trainer=ddp" in launcher else 2)


@pytest.mark.long
def test_of_networks_of_which_half_cannot_learn_the_best_is_kept_for_less(nursery, data, tmp_path):
    """The same twenty trials with and without a pruner; the rate of 1e-9 is the planted bad half."""
    given = ["sweep=search", "hydra/sweeper=random", "hydra.sweeper.params=null", "hydra.sweeper.n_trials=20", *data]
    given += [
        "optimizer.lr=3e-3,1e-9",
        "loss.weights.loc=interval(1.0,30.0)",
        "monitor=val/loss_cls",
        "monitor_mode=min",
    ]

    def search(pruner: str) -> tuple[int, optuna.trial.FrozenTrial]:
        folder, log = tmp_path / pruner, tmp_path / f"{pruner}.log"
        assert nursery.run(*given, f"hydra.sweeper.pruner={pruner}", f"hydra.sweep.dir={folder}", log=log) == 0
        epochs = sum(len((folder / name / "metrics.csv").read_text().splitlines()) - 1 for name in records(folder))
        study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db")
        assert len(study.trials) == 20
        return epochs, study.best_trial

    (all_epochs, best), (epochs, kept_best) = search("null"), search("median")
    assert all_epochs == 20 * 8
    assert epochs <= 0.7 * all_epochs
    assert (kept_best.params, kept_best.value) == (best.params, best.value)


def owner(lock: Path) -> int | None:
    """The process that has a lock file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(lock):
                return int(link.parts[2])
        except OSError:
            continue  # ended meanwhile
    return None


@pytest.mark.long
def test_a_search_whose_jobs_and_itself_are_killed_loses_nothing_and_does_nothing_twice(nursery, data, tmp_path):
    folder, log = tmp_path / "sweep", tmp_path / "log"
    given = ["sweep=search", "hydra/sweeper=random", "hydra.sweeper.pruner=median", "hydra.sweeper.params=null", *data]
    given += ["hydra.sweeper.pruners.median.n_startup_trials=2", "monitor=val/loss_cls", "monitor_mode=min"]
    given += ["optimizer.lr=1e-3,1e-7", "loss.weights.loc=interval(1.0,30.0)", "hydra.sweeper.n_trials=10"]
    given += ["callbacks.checkpoint_last.epoch_seconds=0", "hydra/launcher=hermetic", "hydra.launcher.n_jobs=2"]
    ended: dict[str, str] = {}  # run.json of what has ended, as it was seen first
    number_killed = 0

    def look() -> dict[str, Any]:
        found = records(folder)
        for name, record in found.items():
            if record["status"] in ("completed", "pruned"):
                text = (folder / name / "run.json").read_text()
                assert ended.setdefault(name, text) == text  # nothing is done twice
        return found

    for _ in range(12):
        process = nursery.start(*given, f"hydra.sweep.dir={folder}", log=log)
        while Path(f"/proc/{process}/exe").exists():
            time.sleep(0.02)
            runs = [folder / name for name, record in look().items() if record["status"] == "running"]
            under_way = [run for run in runs if (run / "metrics.csv").exists()]
            if under_way and number_killed < min(6, len(ended)):  # one kill for each that has ended
                # In turn the search, and a job of it; both in the middle of a fit.
                victim = owner(under_way[0] / ".lock") if number_killed % 2 else process
                if victim is not None:
                    os.kill(victim, signal.SIGKILL)
                    number_killed += 1
        if nursery.wait(process) == 0:
            break
        while any(owner(path / ".lock") for path in folder.glob("*/")):  # jobs do not outlive their search for long
            time.sleep(0.05)
    assert number_killed == 6, log.read_text()
    found = look()
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db")
    retried = {trial.user_attrs.get("retry_of") for trial in study.trials}
    trials = {trial.user_attrs["run"]: trial for trial in study.trials if trial.number not in retried}
    assert trials.keys() == found.keys() and len(trials) == 10
    for name, trial in trials.items():
        assert (found[name]["status"], trial.state.name) in [("completed", "COMPLETE"), ("pruned", "PRUNED")]
        with (folder / name / "metrics.csv").open() as file:
            rows = {int(row["epoch"]): float(row["val/loss_cls"]) for row in csv.DictReader(file)}
        assert trial.intermediate_values == pytest.approx(rows)
        best = json.loads((folder / name / "metrics.json").read_text())["best"]["val/loss_cls"]
        assert best == pytest.approx(min(rows.values()))
        assert trial.state.name == "PRUNED" or trial.value == pytest.approx(best)
    assert not list(folder.rglob("*.tmp")) and not (folder / ".replaced").exists()
