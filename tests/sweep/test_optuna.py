"""sweep=tpe: a search that goes on when it was killed, and grows."""

import contextlib
import hashlib
import inspect
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import InstantiationException
from hydra.utils import get_object

from onebox.errors import BadInput, SweepFailed, own_complaint
from onebox.files import write_json, write_text
from onebox.sweep.study import reporter

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
    # To compose and build jobs takes seconds; test_files.py does it.
    monkeypatch.setattr("onebox.sweep.search.Checks", lambda *args: Mock())
    monkeypatch.setattr("onebox.sweep.search.compose_jobs", lambda combined, compose: [job_of(combined[-1])])

    def go(
        objective, *overrides: str, n_trials: int | None, name: str = "sweep", sweep: str = "tpe"
    ) -> list[dict[str, str]]:
        amount = [] if n_trials is None else [f"hydra.sweeper.n_trials={n_trials}"]
        found = sweeper(f"sweep={sweep}", "name=tpe", *TWO, *amount, f"hydra.sweep.dir={tmp_path / name}", *overrides)
        launcher = FakeLauncher(objective)
        found._sweeper._launcher = launcher
        if isinstance(objective, Trained):
            objective.search = found._sweeper
        with contextlib.suppress(KeyboardInterrupt):
            found.sweep(found.arguments)
        return launcher.jobs

    return go


def job_of(overrides: tuple[str, ...]) -> Any:
    """What stands for a composed job."""
    text = " ".join(sorted(text for text in overrides if not text.startswith(("rerun=", "sweep="))))
    return SimpleNamespace(fingerprint=hashlib.md5(text.encode()).hexdigest()[:12], own_code={})


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
    assert states(tmp_path / "sweep") == ["COMPLETE"] * 13  # the one that was cut off is launched again
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert best == yaml.safe_load((tmp_path / "straight" / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(by_rate(job) for job in straight)


@pytest.mark.parametrize("sampler", ["cmaes", "random", "nsgaii", "optuna_grid"])
def test_with_every_sampler_the_same_search_proposes_the_same(search, sampler):
    wanted = [f"hydra/sweeper={sampler}", "optimizer.lr=range(1,5)" if sampler == "optuna_grid" else "seed=0"]
    small = ["hydra.sweeper.sampler.population_size=4"] if sampler == "nsgaii" else []
    straight = search(by_rate, *wanted, *small, n_trials=11, name="straight", sweep="search")
    first = search(cut_off_after(6), *wanted, *small, n_trials=11, sweep="search")
    then = search(by_rate, *wanted, *small, n_trials=11, sweep="search")
    assert [*first[:6], *then] == straight
    assert len(straight) == (8 if sampler == "optuna_grid" else 11)  # four rates and two heads
    if sampler != "nsgaii":  # whose children may be like a parent
        assert len({tuple(job.values()) for job in straight}) == len(straight)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("n_trials=null", "n_trials must be a number >= 1, not None"),
        ("constraints=['test/acc >= 0.5']", "test/acc >= 0.5 is not NAME <= NUMBER"),
        ("constraints=['val/acc >= 0.5']", "val/acc >= 0.5 is not NAME <= NUMBER .*best/iou is val/iou"),
        ("constraints=3", "constraints must be a list"),
        ("sampler=3", "sampler is 3; choose hydra/sweeper=tpe"),
        ("sampler.seed=null", "sampler.seed must be a whole number >= 0, not None"),
        ("storage=null", "storage must be the address of a database, not None"),
        ("constraints='parameters < many'", "parameters < many is not NAME <= NUMBER"),
    ],
)
def test_an_argument_that_no_search_takes_is_refused(sweeper, wrong, told):
    with pytest.raises(InstantiationException, match=told) as caught:
        sweeper("sweep=tpe", f"hydra.sweeper.{wrong}")
    assert isinstance(own_complaint(caught.value), BadInput)


def test_a_grid_of_a_range_without_steps_is_refused(search):
    with pytest.raises(BadInput, match=r"optimizer\.lr: a grid needs single values"):
        search(by_rate, "hydra/sweeper=optuna_grid", n_trials=None, sweep="search")


def test_every_argument_of_a_sampler_and_a_pruner_is_in_yaml(sweeper):
    # What Optuna has deprecated; the grid is made from the params.
    gone = {"consider_prior", "prior_weight", "consider_magic_clip", "consider_endpoints", "gamma", "weights"}
    gone |= {"warn_independent_sampling", "x0", "sigma0", "restart_strategy", "inc_popsize", "constraints_func"}
    for option in ("tpe", "cmaes", "random", "nsgaii", "optuna_grid"):
        found = sweeper("sweep=search", f"hydra/sweeper={option}")._sweeper
        for part in (found.sampler, *found.pruners.values()):
            known = inspect.signature(get_object(part._target_)).parameters.keys()
            assert known - gone - {"search_space"} <= part.keys() <= known | {"_target_"}, option


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
        (["hydra.sweeper.pruner=median", "hydra.sweeper.pruners.median=null"], "hydra.sweeper.pruner is median, not"),
        (["hydra.sweeper.pruner=mean"], "hydra.sweeper.pruner is mean, not median, hyperband or null"),
        (["hydra.sweeper.pruner=median", "objective=[val/acc,val/iou]"], "pruner needs one objective"),
        (
            ["hydra.sweeper.pruner=median", "hydra.sweeper.pruners.median.n_startup_trials=-1"],
            "pruners.median: .* negative",
        ),
        (["+hydra.sweeper.sampler.sigma=1"], "hydra.sweeper.sampler: .* 'sigma'"),
        (["hydra/sweeper=cmaes"], "hydra/sweeper=cmaes, but sweep=tpe brings another sampler; take sweep=search"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused(search, tmp_path, overrides, told):
    with pytest.raises(BadInput, match=told):
        search(by_rate, *overrides, n_trials=None)
    assert not (tmp_path / "sweep" / "study.db").exists()


def test_a_dry_run_says_what_is_searched_and_leaves_nothing(search, tmp_path, capsys):
    assert search(by_rate, "sweep.plan=only", n_trials=7) == []
    assert capsys.readouterr().out == (
        "7 trials, of which 0 have ended; each is proposed when those before it have.\n"
        "  optimizer.lr: 0.0001 to 0.1, by its logarithm\n  model/loc_head: linear, mlp\n"
    )
    assert not (tmp_path / "sweep").exists()


def test_a_key_that_does_not_exist_is_told_before_anything_runs(sweeper, tmp_path):
    found = sweeper("sweep=tpe", *TWO, "optimizer.learning_rate=interval(0.1,0.2)")
    with pytest.raises(BadInput, match=r"no key optimizer\.learning_rate"):
        found.sweep(found.arguments)
    assert not (tmp_path / "sweep" / "study.db").exists()


@pytest.mark.parametrize("other", ["trainer.max_epochs=3", "objective=val/iou", "model/loc_head=linear,mlp,edges"])
def test_another_search_in_the_folder_is_refused(search, tmp_path, other):
    search(by_rate, n_trials=1)
    with pytest.raises(BadInput, match="already holds a search"):
        search(by_rate, other, n_trials=2)
    assert states(tmp_path / "sweep") == ["COMPLETE"]


def records(folder: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}


@pytest.mark.long
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
    assert states(folder) == ["COMPLETE"] * 3
    found = records(folder)
    assert len(found) == 3 and {record["status"] for record in found.values()} == {"completed"}
    assert found[first] == done
    assert len(found[second]["attempts"]) == 1

    assert nursery.run(*command, "hydra.sweeper.n_trials=4", log=log) == 0, log.read_text()
    assert states(folder) == ["COMPLETE"] * 4
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


class Trained:
    """Jobs of ten epochs that ask their study after each, as `onebox.callbacks.pruning` does.

    The heads are a planted half: with mlp the objective grows by a tenth an epoch, with linear by a hundredth.
    """

    search: Any  # that launches them

    def __init__(self, folder: Path, killed_after: str | None = None) -> None:
        self.folder, self.killed_after, self.epochs = folder, killed_after, 0

    def __call__(self, job: dict[str, str]) -> float:
        (trial,) = study_of(self.folder).get_trials(states=[optuna.trial.TrialState.RUNNING])
        run = self.folder / trial.user_attrs["run"]
        speed = 0.1 if job["model/loc_head"] == "mlp" else 0.01
        values = {epoch: (epoch + 1) * speed + float(job["optimizer.lr"]) for epoch in range(10)}
        if not run.exists():
            self.train(run, values)
        return max(values.values())

    def train(self, run: Path, values: dict[int, float]) -> None:
        is_hopeless = reporter(self.search, run.name)
        status, rows = "completed", ["epoch,val/joint_acc"]
        for epoch in values:
            self.epochs += 1
            rows.append(f"{epoch},{values[epoch]}")
            if is_hopeless({number: values[number] for number in range(epoch + 1)}) and epoch < 9:
                status = "pruned"
                break
        run.mkdir()
        write_text(run / "metrics.csv", "\n".join(rows))
        parameters = 100 if values[0] >= 0.1 else 10
        write_json(run / "run.json", {"status": status, "fingerprint": run.name, "parameters": parameters})
        if status == self.killed_after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("pruner", ["median", pytest.param("hyperband", marks=pytest.mark.long)])
def test_a_planted_bad_half_is_pruned_and_the_best_is_kept(search, tmp_path, pruner):
    wanted = ["hydra/sweeper=random", f"hydra.sweeper.pruner={pruner}", "trainer.max_epochs=10"]
    jobs = Trained(tmp_path / "sweep")
    pruned = search(jobs, *wanted, n_trials=20, sweep="search")
    assert jobs.epochs <= 0.7 * 20 * 10
    ended = states(tmp_path / "sweep")
    assert len(ended) == 20 and set(ended) == {"COMPLETE", "PRUNED"}
    best = max(pruned, key=lambda job: (job["model/loc_head"] == "mlp", float(job["optimizer.lr"])))
    results = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert {key: str(value) for key, value in results["best_params"].items()} == best


@pytest.mark.parametrize("after", ["pruned", "completed"])
def test_a_kill_between_the_end_of_a_job_and_its_trial_loses_nothing(search, tmp_path, after):
    wanted = ["hydra/sweeper=random", "hydra.sweeper.pruner=median"]
    straight = Trained(tmp_path / "straight")
    search(straight, *wanted, n_trials=8, name="straight", sweep="search")
    killed, again = Trained(tmp_path / "sweep", after), Trained(tmp_path / "sweep")
    search(killed, *wanted, n_trials=8, sweep="search")
    assert states(tmp_path / "sweep")[-1] == "RUNNING"
    search(again, *wanted, n_trials=8, sweep="search")
    assert states(tmp_path / "sweep") == states(tmp_path / "straight")
    assert killed.epochs + again.epochs == straight.epochs
    one, other = (study_of(tmp_path / name).trials for name in ("straight", "sweep"))
    assert [trial.intermediate_values for trial in one] == [trial.intermediate_values for trial in other]


def test_a_constraint_counts_for_what_is_best_and_for_what_is_proposed(search, tmp_path):
    search(Trained(tmp_path / "sweep"), "hydra.sweeper.constraints='parameters <= 50'", n_trials=6)
    trials = study_of(tmp_path / "sweep").trials
    assert [trial.constraints["parameters <= 50"] for trial in trials] == [
        50 if trial.params["model/loc_head"] == "mlp" else -40 for trial in trials
    ]
    results = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert results["best_params"]["model/loc_head"] == "linear" and results["best_value"] < 1

    with pytest.raises(SweepFailed, match="1 of 7"):  # the run has no such value
        search(Trained(tmp_path / "sweep"), "hydra.sweeper.constraints=['best/iou >= 0.5']", n_trials=7)


def test_a_study_that_another_sampler_began_is_continued(search, tmp_path):
    first = search(by_rate, "hydra/sweeper=random", n_trials=3, sweep="search")
    then = search(by_rate, "hydra.sweeper.pruner=median", n_trials=5)
    assert (len(first), len(then), states(tmp_path / "sweep")) == (3, 2, ["COMPLETE"] * 5)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("UPDATE alembic_version SET version_num = 'v2.6.0.a'", "optuna storage upgrade --storage sqlite:"),
        ("UPDATE alembic_version SET version_num = 'v99.0.0.a'", "made by a newer Optuna: pip install -U optuna"),
        (None, r"cannot be opened \(file is not a database\); correct hydra.sweeper.storage, or move it away"),
    ],
)
def test_a_study_that_this_optuna_cannot_use_is_refused_in_one_line(search, tmp_path, damage, told):
    search(by_rate, n_trials=1)
    path = tmp_path / "sweep" / "study.db"
    if damage is None:
        path.write_bytes(b"no database" * 100)
    else:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(damage)
    before = path.read_bytes()
    with pytest.raises(BadInput, match=told):
        search(by_rate, n_trials=2)
    assert path.read_bytes() == before
