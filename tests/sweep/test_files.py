"""The sweeps that are shipped: each file composes to the jobs that it says, and each job can be built."""

from pathlib import Path
from unittest.mock import Mock

import pytest
from omegaconf import OmegaConf

from onebox.build import build_job

FILES = Path(__file__).parent.parent.parent / "conf" / "sweep"
NUM_JOBS = {"loss_weights": 4, "lr": 5, "heads": 10, "box_loss": 7, "seeds": 3}
NUM_JOBS |= {"augment": 4, "views": 4, "image_size": 3, "unfreeze": 4, "learning_curve": 5}
NEEDS = {"unfreeze": ["experiment=transfer", "data=shapes", "image_size=64"]}  # something that is frozen


SEARCHES = ("search", "tpe")


def all_jobs(found) -> list:
    jobs = found._sweeper._plan(found.arguments)
    while jobs.advance():
        pass
    jobs.refuse_problems("")
    return jobs.composed


def test_every_file_is_tested():
    assert {path.stem for path in FILES.glob("*.yaml")} == {*NUM_JOBS, *SEARCHES}


@pytest.mark.parametrize("file", [*NUM_JOBS, *SEARCHES])
def test_a_file_sets_its_name_and_says_how_to_run_it(file):
    text = (FILES / f"{file}.yaml").read_text()
    assert OmegaConf.load(FILES / f"{file}.yaml").name == file
    assert f"# Run:   onebox-train sweep={file}" in text
    assert "# Takes: " in text


@pytest.mark.parametrize("file", NUM_JOBS)
def test_all_jobs_of_a_file_compose_and_can_be_built(sweeper, file):
    found = sweeper(f"sweep={file}", *NEEDS.get(file, []))
    jobs = all_jobs(found)
    assert len(jobs) == NUM_JOBS[file]
    known = {}
    for job in jobs:
        build_job(dict(job.config), known)


def test_the_ends_of_what_tpe_searches_can_be_built(sweeper, monkeypatch):
    built = []

    def build_all(jobs, build):
        known = {}
        built.extend(build(dict(job.config), known) for job in jobs)
        return Mock()

    search = sweeper("sweep=tpe")._sweeper
    monkeypatch.setattr("onebox.sweep.search.Checks", build_all)
    space, fixed = search._space([])
    assert set(space) == {"optimizer.lr", "optimizer.weight_decay", "loss.weights.loc", "model.cls_head.dropout"}
    search._check(space, fixed)
    assert len(built) == 5  # the lowest of all, and each highest with the others' lowest


def test_a_file_combines_with_an_experiment_and_other_axes(sweeper):
    found = sweeper("sweep=loss_weights", "experiment=baseline", "data.limit=20", "seed=0,1")
    jobs = all_jobs(found)
    assert len(jobs) == 8
    assert {job.config["name"] for job in jobs} == {"loss_weights"}
    assert {job.choices["optimizer"] for job in jobs} == {"adamw"}  # the experiment's
    assert len({job.fingerprint_seedless for job in jobs}) == 4


def test_the_command_line_wins_over_a_file(sweeper):
    found = sweeper("sweep=seeds", "name=mine", "seed=5,6")
    assert [job.config["seed"] for job in all_jobs(found)] == [5, 6]
    assert found._sweeper._config.name == "mine"
