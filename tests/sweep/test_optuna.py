"""sweep=tpe: a search that goes on when it was killed, and grows."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus

from onebox.errors import BadInput, SweepFailed
from onebox.sweep.plan import compose_jobs

TWO = ["hydra.sweeper.params=null", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "model/loc_head=linear,mlp"]

FEW = ["hydra.sweeper.params=null", "loss.weights.loc=tag(log,interval(1.0,30.0))"]


class FakeLauncher:
    """Takes the objective of each job from a function of its overrides, in place of a training.

    The function may raise: an `Exception` is a job that failed, anything else the end of the whole process.
    """

    def __init__(self, objective: Callable[[dict[str, str]], Any]) -> None:
        self.objective = objective
        self.jobs: list[dict[str, str]] = []

    def launch(self, job_overrides, initial_job_idx):
        return [self.run(dict(text.split("=", 1) for text in job)) for job in job_overrides]

    def run(self, job: dict[str, str]) -> JobReturn:
        self.jobs.append({key: job[key] for key in ("optimizer.lr", "model/loc_head")})
        try:
            return JobReturn(status=JobStatus.COMPLETED, _return_value=self.objective(job))
        except Exception as error:
            return JobReturn(status=JobStatus.FAILED, _return_value=error)


@pytest.fixture
def search(sweeper, tmp_path, monkeypatch):
    """Searches with made-up objectives and gives the jobs that were launched."""
    # To compose and build a job for each end of each range takes seconds; test_files.py does it.
    monkeypatch.setattr("onebox.sweep.search.Checks", lambda *args: contextlib.nullcontext(Mock()))
    monkeypatch.setattr(
        "onebox.sweep.search.compose_jobs", lambda combined, compose: compose_jobs(combined[-1:], compose)
    )

    def go(objective, *overrides: str, n_trials: int, name: str = "sweep") -> list[dict[str, str]]:
        found = sweeper(
            "sweep=tpe", *TWO, f"hydra.sweeper.n_trials={n_trials}", f"hydra.sweep.dir={tmp_path / name}", *overrides
        )
        launcher = FakeLauncher(objective)
        found._search._launcher = launcher
        with contextlib.suppress(KeyboardInterrupt):
            found.sweep(found.arguments)
        return launcher.jobs

    return go


def study_of(folder: Path, name: str = "tpe") -> Any:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/study.db")


def states(folder: Path, name: str = "tpe") -> list[str]:
    return [trial.state.name for trial in study_of(folder, name).trials]


def by_rate(job: dict[str, str]) -> float:
    return 1 - abs(float(job["optimizer.lr"]) - 0.01) + (job["model/loc_head"] == "mlp")


def cut_off_after(count: int) -> Callable[[dict[str, str]], float]:
    def objective(job: dict[str, str]) -> float:
        nonlocal count
        count -= 1
        if count < 0:
            raise KeyboardInterrupt
        return by_rate(job)

    return objective


def test_a_search_that_was_cut_off_proposes_what_one_left_alone_does(search, tmp_path):
    straight = search(by_rate, n_trials=13, name="straight")  # the last three are the model's, not random
    assert len({job["optimizer.lr"] for job in straight}) == 13

    cut_off = search(cut_off_after(11), n_trials=12)
    assert cut_off == straight[:12]
    assert search(by_rate, n_trials=13) == straight[11:]
    assert states(tmp_path / "sweep") == ["COMPLETE"] * 11 + ["FAIL"] + ["COMPLETE"] * 2
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert best == yaml.safe_load((tmp_path / "straight" / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(by_rate(job) for job in straight)


def test_failed_jobs_are_one_trial_each_and_tried_again(search, tmp_path):
    def bad(job):
        if job["model/loc_head"] == "mlp":
            raise RuntimeError("out of memory")
        return by_rate(job)

    with pytest.raises(SweepFailed, match="of 6 trials failed"):
        search(bad, "seed=1", n_trials=6)
    first = states(tmp_path / "sweep")
    assert len(first) == 6 and set(first) == {"COMPLETE", "FAIL"}
    with pytest.raises(SweepFailed):
        search(bad, "seed=1", "rerun=none", n_trials=6)
    assert states(tmp_path / "sweep") == first
    again = search(by_rate, "seed=1", n_trials=6)
    assert len(again) == first.count("FAIL")
    assert states(tmp_path / "sweep") == first + ["COMPLETE"] * len(again)


def test_a_value_that_is_no_number_is_a_failure(search, tmp_path):
    with pytest.raises(SweepFailed, match="1 of 1"):
        search(lambda job: float("nan"), n_trials=1)
    assert yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())["best_params"] is None


def test_jobs_are_proposed_together_as_the_launcher_takes_them(search, tmp_path):
    together = []

    def objective(job):
        together.append(states(tmp_path / "sweep").count("RUNNING"))
        return by_rate(job)

    search(objective, "hydra.sweeper.n_jobs=2", n_trials=3)
    assert together == [2, 2, 1]


def test_several_objectives_give_a_pareto_front(search, tmp_path):
    search(lambda job: (by_rate(job), float(job["optimizer.lr"])), "objective=[val/acc,val/loss]", n_trials=4)
    found = study_of(tmp_path / "sweep")
    assert [direction.name for direction in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    results = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert results["objective"] == ["val/acc", "val/loss"]
    assert results["solutions"] == [{"params": one.params, "values": one.values} for one in found.best_trials]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["seed=0,1"], "seed cannot be searched"),
        (["optimizer.lr=0.1", "model/loc_head=mlp"], "nothing to search"),
        (["hydra.sweeper.direction=minimize"], "val/joint_acc is best at its max"),
        (["monitor=val/loss", "monitor_mode=min", "hydra.sweeper.direction=maximize"], "val/loss is best at its min"),
        (["sweep.exclude='seed == 0'"], "belong to a grid"),
        (["optimizer.learning_rate=interval(0.1,0.2)"], "no key optimizer.learning_rate"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused(search, tmp_path, overrides, told):
    with pytest.raises(BadInput, match=told):
        search(by_rate, *overrides, n_trials=2)
    assert not (tmp_path / "sweep" / "study.db").exists()


@pytest.mark.parametrize("other", ["trainer.max_epochs=3", "objective=val/iou", "model/loc_head=linear,mlp,edges"])
def test_another_search_in_the_folder_is_refused(search, tmp_path, other):
    search(by_rate, n_trials=1)
    with pytest.raises(BadInput, match="already holds a search"):
        search(by_rate, other, n_trials=2)
    assert states(tmp_path / "sweep") == ["COMPLETE"]


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    from hydra_plugins.onebox import OptunaSweeper

    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "onebox.sweep.search", raising=False)
    with pytest.raises(BadInput, match=r"pip install 'onebox\[optuna\]'"):
        OptunaSweeper()


def test_optuna_is_imported_by_a_search_only():
    code = "import onebox.train as t, sys; t.register_plugins(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "hydra_plugins.onebox" in done.stdout.split() and "optuna" not in done.stdout.split()


def records(folder: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}


def test_a_killed_search_loses_nothing_and_does_nothing_twice(nursery, data, tmp_path):
    folder, log = tmp_path / "sweep", tmp_path / "log"
    command = ["sweep=tpe", f"hydra.sweep.dir={folder}", *FEW, *data]
    process = nursery.start(*command, "hydra.sweeper.n_trials=3", log=log)
    while len(list(folder.glob("*/run.json"))) < 2:  # the second trial has begun
        time.sleep(0.005)
        assert os.path.exists(f"/proc/{process}"), log.read_text()
    os.kill(process, signal.SIGKILL)
    assert nursery.wait(process) == -signal.SIGKILL
    assert states(folder) == ["COMPLETE", "RUNNING"]
    (first, done), (second, _) = sorted(records(folder).items(), key=lambda item: item[1]["started"])
    assert done["status"] == "completed"

    assert nursery.run(*command, "hydra.sweeper.n_trials=3", log=log) == 0, log.read_text()
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    trials = study_of(folder).trials
    assert trials[2].params == trials[1].params
    found = records(folder)
    assert len(found) == 3 and {record["status"] for record in found.values()} == {"completed"}
    assert found[first] == done
    assert len(found[second]["attempts"]) == 1

    assert nursery.run(*command, "hydra.sweeper.n_trials=4", log=log) == 0, log.read_text()
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    grown = records(folder)
    assert len(grown) == 4 and all(grown[name] == found[name] for name in found)
    assert "Warning" not in log.read_text()


def test_two_objectives_of_real_runs(nursery, data, tmp_path):
    folder, log = tmp_path / "sweep", tmp_path / "log"
    command = ["sweep=tpe", "name=both", f"hydra.sweep.dir={folder}", *FEW, *data, "trainer.max_epochs=1"]
    wanted = ["objective=[val/acc,val/iou]", "hydra.sweeper.direction=[maximize,maximize]", "hydra.sweeper.n_trials=2"]
    assert nursery.run(*command, *wanted, log=log) == 0, log.read_text()
    front = yaml.safe_load((folder / "optimization_results.yaml").read_text())["solutions"]
    best = [json.loads(path.read_text())["best"] for path in folder.glob("*/metrics.json")]
    values = [[row["val/acc"], row["val/iou"]] for row in best]
    assert len(values) == 2 and 1 <= len(front) <= 2
    assert all(one["values"] in values for one in front)
