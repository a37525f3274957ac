"""A sweep from its first start to its last, with real runs."""

import json

from onebox.files import read_json, write_json


def records(folder):
    return {path.parent: read_json(path) for path in (folder / "outputs/sweeps/x").glob("*/run.json")}


def test_a_typo_in_the_last_job_is_found_before_the_first_runs(nursery, data, tmp_path):
    command = ["-m", *data, f"hydra.sweep.dir={tmp_path / 'outputs/sweeps/x'}"]
    for values, told in {
        "optimizer=adam,adamw,adamm": "adamm",
        "sweep.jobs=[{optimizer.lr: 0.1}, {optimizer.rl: 0.1}]": "did you mean optimizer.lr",
        "hydra.sweep.subdir=${hydra.job.num}": "named by its fingerprint",
        "hydra.job.chdir=true": "leave it false",
    }.items():
        log = tmp_path / f"{told}.log"
        assert nursery.run(*command, values, log=log) == 2
        lines = [line for line in log.read_text().splitlines() if line.startswith("onebox-train: ")]
        assert len(lines) == 1
        assert told in lines[0]
        assert "no job was started" in lines[0]
    assert not records(tmp_path)


def test_a_job_that_cannot_be_built_is_told_beside_the_others_and_fails_alone(nursery, data, tmp_path):
    command = ["-m", *data, "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path / 'outputs/sweeps/x'}"]
    log = tmp_path / "log"
    told = "model.backbone.dropout must be in [0, 1), not 2.0"
    assert nursery.run(*command, "model.backbone.dropout=0.1,0.2,2.0", log=log) == 1
    assert f"model.backbone.dropout=2.0: {told}; this job will fail" in log.read_text()
    assert "1 of 3 jobs failed" in log.read_text()
    assert sorted(record["status"] for record in records(tmp_path).values()) == ["completed", "completed", "failed"]

    log.write_text("")
    assert nursery.run(*command, "model.backbone.dropout=2.0", "seed=0,1", log=log) == 2  # all for their config
    assert f"onebox-train: {told}" in log.read_text().splitlines()


def test_a_sweep_that_grows_goes_stale_and_fails_runs_only_what_it_must(nursery, data, tmp_path):
    folder = tmp_path / "outputs/sweeps/x"

    def sweep(*arguments, code=0):
        log = tmp_path / "log"
        log.write_text("")
        given = ["-m", *data, "trainer.max_epochs=1", f"hydra.sweep.dir={folder}", *arguments]
        assert nursery.run(*given, log=log) == code, log.read_text()
        return log.read_text()

    assert "1 jobs: 1 new" in sweep("seed=0")
    (first,) = records(tmp_path)
    begun = records(tmp_path)[first]["started"]
    assert "2 jobs: 1 done, 1 new" in sweep("seed=0,1")
    assert records(tmp_path)[first]["started"] == begun
    assert "2 jobs: 2 done" in sweep("seed=0,1")

    write_json(first / "run.json", records(tmp_path)[first] | {"source": "other"})
    text = sweep("seed=0,1")
    assert "2 jobs: 1 done, but stale, 1 done" in text
    assert "rerun=stale runs them again" in text
    assert "2 jobs: 1 again, 1 done" in sweep("seed=0,1", "rerun=stale")
    assert records(tmp_path)[first]["started"] > begun
    (kept,) = folder.glob(".replaced/*/run.json")
    assert json.loads(kept.read_text())["started"] == begun

    failed = {"status": "failed", "error": {"type": "E", "message": "boom"}}
    write_json(first / "run.json", records(tmp_path)[first] | failed)
    text = sweep("seed=0,1", "rerun=none", code=1)
    assert "1 failed before, kept" in text
    assert "1 of 2 jobs failed" in text
    assert "boom" in text
    assert "1 failed before, retried" in sweep("seed=0,1")
    assert {record["status"] for record in records(tmp_path).values()} == {"completed"}
