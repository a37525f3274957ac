"""Jobs are given to the launcher as they are composed."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from onebox.errors import BadInput
from onebox.files import write_json
from onebox.sweep import course
from onebox.sweep.job import planned_config, read_plan
from onebox.sweep.plan import Job, Jobs, write_plan


@pytest.fixture
def way(tmp_path, monkeypatch):
    """The course of jobs with so many seeds, of which some are wrong."""
    data = {}
    checks = SimpleNamespace(data_fingerprints=data, is_running=lambda: False, died_at=None, close=lambda: None)
    monkeypatch.setattr(course, "Checks", lambda jobs, build: checks)

    def make(seeds, wrong=(), rerun="failed", head=1):
        def compose(overrides):
            seed = int(overrides[0].partition("=")[2])
            if seed in wrong:
                raise BadInput(f"{seed} is wrong")
            config = {"seed": seed, "name": "x", "objective": "val/acc", "part": {"a": 1, "b": {"c": seed}}}
            return Job(tuple(overrides), config, {}, f"f{seed}", "s", tmp_path / f"f{seed}")

        jobs = Jobs([(f"seed={seed}",) for seed in seeds], compose)
        for _ in range(head):
            jobs.advance()

        def write(jobs, **facts):
            write_plan(tmp_path, jobs, objective={"val/acc": "max"}, source="s", **facts)

        return course.Course(jobs, rerun, None, write)

    return make


def names(folder):
    return [job["fingerprint"] for job in read_plan(folder)["jobs"]]


def test_a_job_is_run_when_the_plan_has_it_and_others_are_not_composed(way, tmp_path):
    found = []
    for job in (coming := way(range(10))).to_run():
        if job is not None:
            assert job.fingerprint in names(tmp_path)
            found.append((job.fingerprint, len(coming.jobs.composed)))
    assert [name for name, _ in found] == [f"f{seed}" for seed in range(10)]
    assert found[0][1] < 10
    assert read_plan(tmp_path)["jobs"][0]["varied"] == {"seed": "0"}


def test_a_wrong_job_that_is_met_late_is_left_out_and_told(way, tmp_path, caplog):
    coming = way(range(6), wrong=[3, 5])
    assert [job.fingerprint for job in coming.to_run() if job] == ["f0", "f1", "f2", "f4"]
    assert "seed=3: 3 is wrong; this job is left out" in caplog.text
    with pytest.raises(BadInput, match=r"3 is wrong; .*5 is wrong; the other jobs have run"):
        coming.jobs.refuse_problems("the other jobs have run")
    assert names(tmp_path) == ["f0", "f1", "f2", "f4"]


@pytest.mark.parametrize(
    ("rerun", "run"),
    [("none", ["f3"]), ("failed", ["f1", "f3"]), ("stale", ["f3", "f0", "f1"]), ("all", ["f0", "f1", "f2", "f3"])],
)
def test_what_ended_is_looked_at_last(way, tmp_path, monkeypatch, rerun, run):
    monkeypatch.setattr(course, "source_fingerprint", lambda: "s")
    ended = {"f0": ("completed", "old"), "f1": ("failed", "s"), "f2": ("completed", "s")}
    for name, (status, source) in ended.items():
        write_json(tmp_path / name / "run.json", {"schema": 2, "status": status, "source": source, "config": {}})
        write_json(tmp_path / name / "metrics.json", {"best": {"val/acc": 0.5}})
    coming = way(range(4), rerun=rerun)
    assert [job.fingerprint for job in coming.to_run() if job] == run
    assert set(coming.kept) == {"f0", "f1", "f2", "f3"} - {*run}


def test_a_plan_holds_the_config_of_each_job(way, tmp_path):
    coming = way(range(3))
    configs = [job.config for job in coming.to_run() if job]
    plan = read_plan(tmp_path)
    assert [planned_config(plan, job) for job in plan["jobs"]] == configs
    assert plan["jobs"][2]["config"] == {"seed": 2, "part.b.c": 2}
    coming = way([7, 2], head=2)  # another start
    coming.write()
    plan = read_plan(tmp_path)
    assert planned_config(plan, plan["jobs"][3])["part"] == {"a": 1, "b": {"c": 7}}


def test_typos_are_among_the_first_that_are_composed():
    composed = []

    def compose(overrides):
        composed.append(overrides)
        return Job(overrides, {}, {}, str(overrides), "", Path())

    def is_new_kind(text, seen):  # options of a group that are there, and other keys
        kind = text if text.startswith("group") else text.partition("=")[0]
        return not (kind in seen or seen.add(kind)) and text != "group=there"

    combined = [("a=1",), ("a=2",), ("a=1", "group=there"), ("a=2", "group=typo"), ("a=3", "b=1"), ("a=4", "b=2")]
    jobs = Jobs(combined, compose)
    jobs.look_ahead(is_new_kind)
    assert composed == [("a=1",), ("a=2", "group=typo"), ("a=3", "b=1")]
    while jobs.advance():
        pass
    assert sorted(composed) == sorted(combined)  # each once
    assert [job.overrides for job in jobs.composed] == combined
