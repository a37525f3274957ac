import csv
import io
import itertools
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput
from onebox.files import write_json
from onebox.runs.reading.find import find_runs, read_run
from onebox.runs.record import claim, is_held, release
from onebox.sweep.reading import follow, table
from onebox.sweep.reading.table import list_sweep, read_sweep

make_run = runpy.run_path(str(Path(__file__).parents[1] / "runs" / "conftest.py"))["make_run"]
NOW = "aaaaaaaaaaaa"  # the source of made-up runs


@pytest.fixture(autouse=True)
def same_source(monkeypatch):
    monkeypatch.setattr(table, "source_fingerprint", lambda: NOW)


@pytest.fixture
def sweep(make_run, tmp_path):
    """Two learning rates and two seeds: three jobs completed, one failed."""
    for number, (rate, seed, value) in enumerate([(0.01, 0, 0.5), (0.01, 1, 0.7), (0.001, 0, 0.4)]):
        metrics = {"joint_acc": value, "acc": 0.9}
        make_run(f"sweeps/lr/{number}", f"optimizer.lr={rate}", f"seed={seed}", metrics=metrics)
    error = {"type": "ValueError", "message": "no\nsuch thing", "traceback": "..."}
    make_run("sweeps/lr/3", "optimizer.lr=0.001", "seed=1", status="failed", error=error)
    return tmp_path / "outputs" / "sweeps" / "lr"


def plan(folder, **facts):
    """Adds a sweep.json: the runs that are there and one that has not begun."""
    jobs = [
        {key: run.record[key] for key in ("fingerprint", "fingerprint_seedless", "seed", "overrides")}
        for run in find_runs(folder)[::-1]
    ]
    jobs.append({"fingerprint": "f" * 12, "fingerprint_seedless": "e" * 12, "seed": 0, "overrides": ["optimizer.lr=1e-4", "seed=0"]})  # fmt: skip
    write_json(folder / "sweep.json", {"schema": 1, "jobs": jobs, **facts})


def shown(folder, width=160, **options):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    list_sweep(read_sweep(folder), **options).show(console)
    return console.file.getvalue()


def command(*arguments):
    done = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    if isinstance(done.exception, BadInput):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_folds_are_repetitions_as_seeds_are(make_run, tmp_path):
    values = itertools.count(40)
    for rate, fold, seed in itertools.product((0.01, 0.001), range(3), range(2)):
        overrides = [f"optimizer.lr={rate}", f"data.fold={fold}", f"seed={seed}"]
        make_run(f"sweeps/folds/{rate}-{fold}-{seed}", *overrides, metrics={"joint_acc": next(values) / 100})
    folder = tmp_path / "outputs" / "sweeps" / "folds"
    rows = list_sweep(read_sweep(folder), metrics=["test/joint_acc"])
    assert rows.columns["seeds"] == [6, 6] and "data.fold" not in rows.columns
    assert sorted(rows.columns["test/joint_acc"]) == pytest.approx([0.425, 0.485])
    assert "over seeds and folds" in shown(folder)
    jobs = list_sweep(read_sweep(folder), seeds=True)
    assert sorted(jobs.columns["seed"])[:3] == ["0 fold=0", "0 fold=0", "0 fold=1"]


def test_the_floor_of_folds_is_the_mean_of_theirs_and_data_that_changed_in_place_are_a_row_of_their_own(
    make_run, tmp_path
):
    folder, prints = tmp_path / "outputs/sweeps/folds", {"classes": "c", "pixels": "p", "val": "v", "test": "e"}
    for seed, fold in itertools.product(range(2), range(2)):
        # Each fold has data of its own, and the newest runs see others.
        facts = {"data_fingerprint": {**prints, "train": f"{fold} of {seed}"}}
        path = make_run(
            f"sweeps/folds/{seed}-{fold}", f"data.fold={fold}", f"seed={seed}", metrics={"joint_acc": seed}, **facts
        )
        metrics = json.loads((path / "metrics.json").read_text())
        write_json(path / "metrics.json", metrics | {"floor": {"joint_acc": 0.1 + 0.2 * fold}})
    rows = list_sweep(read_sweep(folder), metrics=["test/joint_acc"])
    assert rows.columns["status"] == ["completed", "stale"] and rows.columns["test/joint_acc"] == [1, 0]
    assert rows.columns["floor/joint_acc"] == pytest.approx([0.2, 0.2])
    assert "stale 2 jobs completed under other data (train)" in shown(folder)


def edit(folder, **facts):
    record = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", record | facts)


def test_seeds_are_one_row_with_mean_and_interval_the_best_first(sweep):
    found = read_sweep(sweep)
    assert found.varied == ["optimizer.lr"]
    first, second = json.loads(command(sweep, "--json"))["rows"]
    assert (first["optimizer.lr"], first["best"], second["optimizer.lr"]) == (0.01, True, 0.001)
    assert (first["val/joint_acc"], first["seeds"]) == (pytest.approx(0.6), 2)
    # t of one degree of freedom, sd / sqrt(2) = 0.1
    assert first["val/joint_acc_interval"] == pytest.approx(12.706 * 0.1, rel=1e-3)
    assert second["status"] == "1 completed, 1 failed"
    assert second["val/joint_acc_interval"] is None


def test_the_table_tells_how_each_job_ended(sweep):
    plan(sweep)
    edit(sweep / "1", nonfinite={"epoch": 2, "batch": 5, "loss": "inf"})
    text = shown(sweep)
    assert re.search(r"^NaN .*lr/1: loss inf from epoch 2, batch 5 on", text, re.M)
    assert "0.600 ± 1.271" in text
    assert "failed ValueError: no such thing (#3 optimizer.lr=0.001 seed=1)" in text
    assert "5 jobs: 3 completed, 1 pending, 1 failed; 48 s of work" in text
    assert re.search(r"floor .* 0\.010", text)
    alone = shown(sweep, seeds=True, sort="number").splitlines()
    assert [line.split()[3] for line in alone if re.match(r" *\d  .*", line)] == ["completed"] * 3 + ["failed", "pending"]  # fmt: skip


def test_one_odd_run_does_not_hide_the_others(sweep):
    edit(sweep / "0", status="strange", started="yesterday", error={"message": 3})
    (sweep / "1" / "metrics.json").write_text('{"best": {"val/joint_acc": "high"}, "floor": {"acc": []}}')
    (sweep / "2" / "run.json").write_text("{")
    assert "3 jobs: 1 completed, 1 failed, 1 strange" in shown(sweep, sort="status")


def test_a_planned_job_shows_what_it_will_vary(sweep):
    plan(sweep)
    pending = read_sweep(sweep).jobs.loc[4]
    assert (pending["status"], pending["optimizer.lr"], pending["run"]) == ("pending", 1e-4, None)
    assert math.isnan(pending["seconds"])


def test_a_heading_is_broken_only_where_there_is_no_room(sweep):
    wide, narrow = (shown(sweep, width).splitlines() for width in (120, 24))
    assert any(line.split()[:2] == ["#", "optimizer.lr"] for line in wide)
    assert any("optimizer." in line.split() for line in narrow)


UNLIKE = (
    ("optimizer.lr=0.01",), ("optimizer.lr=0.003", "trainer.max_epochs=60"), ("loss/loc=giou",),
    ("loss/loc=giou", "loss.weights.loc=3.0"), ("optimizer=sgd",), ("data.limit=500",), ("image_size=128",),
    ("optimizer=sgd", "optimizer.weight_decay=0.001"), ("model.backbone.dropout=0.5",), ("loss.weights.cls=2.0",),
)  # fmt: skip


@pytest.fixture
def unlike(make_run, tmp_path):
    """Ten jobs of `sweep.jobs`, of two seeds each; two fail for the same reason."""
    for number, (overrides, seed) in enumerate(itertools.product(UNLIKE, (0, 1))):
        facts = {"metrics": {"joint_acc": number / 100, "acc": 0.875, "iou": 0.25}}
        if number in (3, 4):
            facts = {"status": "failed", "error": {"type": "RuntimeError", "message": "out of memory " * 30}}
        make_run(f"sweeps/unlike/{number}", *overrides, f"seed={seed}", **facts)
    return tmp_path / "outputs" / "sweeps" / "unlike"


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_nothing_is_hidden_at_any_width(unlike, width):
    text = shown(unlike, width)
    table = text[: text.index("failed RuntimeError: out of memory")]
    assert max(map(len, table.splitlines())) <= width
    words = table.split()
    for override in itertools.chain(*UNLIKE):
        key, _, value = override.partition("=")
        assert f"{key}={value.removesuffix('.0')}" in words
    assert [words.count(value) for value in ("0.875", "0.250", "±")] == [10, 10, 8 * 5]
    assert all(f"{18 - 2 * row}-{19 - 2 * row}" in words for row in range(10))
    assert re.search(r"\nfailed RuntimeError: (out of memory )+.*… \(2 jobs: #3-4\)\n", text)


def test_unlike_jobs_have_one_column_for_people_and_each_key_for_programs(unlike):
    found = read_sweep(unlike)
    assert found.columns == ["what"]
    row = json.loads(command(unlike, "--json", "--sort", "number"))["rows"][1]
    assert (row["what"], row["optimizer.lr"], row["trainer.max_epochs"]) == ("optimizer.lr=0.003 trainer.max_epochs=60", 0.003, 60)  # fmt: skip
    assert row["number"] == "2 3"


def test_a_row_is_named_by_its_number_or_fingerprint(sweep):
    plan(sweep)
    (sweep / "3" / "job.log").write_bytes(b"first\n\x1b[2Jlast \xff\n")
    assert command(sweep, "--log", "3") == "first\n\ufffd[2Jlast \ufffd\n"
    fingerprint = read_run(sweep / "3").record["fingerprint"]
    assert command(sweep, "--folder", fingerprint[:6], "--sort", "status") == f"{sweep / '3'}\n"
    assert command(sweep, "--where", "status == failed or number > 3", "--folder", "3") == f"{sweep / '3'}\n"
    rows = json.loads(command(sweep, "--where", "status == failed or optimizer.lr < 1e-3", "--json", "--seeds"))["rows"]
    assert sorted((row["number"], row["status"]) for row in rows) == [(3, "failed"), (4, "pending")]
    (sweep / "2" / "job.log").symlink_to("/etc/passwd")
    for arguments, told in (
        (["--log", "9"], "9: no such job; the numbers are 0-4"),
        (["--log", ""], "5 jobs have a fingerprint that begins so"),
        (["--log", "3", "--where", "seed == 0"], "no such job; the numbers are 0 2 4"),
        (["--folder", "4"], "4: pending, so it has no folder yet"),
        (["--log", "0"], "has no log yet"),
        (["--log", "2"], "is a link that leads out"),
        (["--log", "3", "--folder", "3"], "choose one"),
        (["--where", "optimizer.rl > 3"], "did you mean optimizer.lr"),
    ):
        with pytest.raises(BadInput, match=re.escape(told)):
            command(sweep, *arguments)


def test_folders_that_the_plan_no_longer_has_are_named(sweep):
    plan(sweep)
    document = json.loads((sweep / "sweep.json").read_text())
    jobs = document["jobs"]
    del jobs[1]
    for job in jobs:
        job["planned"] = "2026-11-01"
    # The defaults of job 0 have changed, and those of one that never ran.
    jobs += [
        jobs[0] | {"fingerprint": "1" * 12, "planned": "2026-11-02"},
        jobs[3] | {"fingerprint": "2" * 12, "planned": "2026-11-02"},
    ]
    write_json(sweep / "sweep.json", document)
    (sweep / ("3" * 12)).mkdir()
    (sweep / "notes").mkdir()
    (sweep / "1" / "big").write_bytes(bytes(3_000_000))
    rows = json.loads(command(sweep, "--orphans", "--json"))["rows"]
    assert {row["folder"].rpartition("/")[2]: (row["status"], row["why"]) for row in rows} == {
        "0": ("completed", "planned now as 111111111111"),
        "1": ("completed", "not planned"),
        "3" * 12: ("no run.json", "not planned"),
    }
    assert max(row["size_mb"] for row in rows) == pytest.approx(3.0, abs=0.1)
    text = shown(sweep)
    assert "the plan no longer has #0 5, see --orphans" in text
    assert "6 jobs: 3 completed, 2 pending, 1 failed" in text  # not the old one that never ran
    (sweep / "sweep.json").unlink()
    with pytest.raises(BadInput, match="nothing says which folders are orphans"):
        command(sweep, "--orphans")


def test_following_ends_with_the_last_job(sweep, monkeypatch, capsys):
    edit(sweep / "0", status="pending")
    monkeypatch.setattr(follow.time, "sleep", lambda _: edit(sweep / "0", status="completed"))
    assert json.loads(command(sweep, "--follow", "--json"))["totals"] == {"completed": 3, "failed": 1}

    def interrupt(_):
        raise KeyboardInterrupt

    edit(sweep / "0", status="pending")
    monkeypatch.setattr(follow.time, "sleep", interrupt)
    done = CliRunner().invoke(app, ["sweep", str(sweep), "--follow"])
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr.splitlines()[0] == "#1 optimizer.lr=0.01 seed=1: completed"


def test_a_choice_folds_what_it_brings_along(make_run, tmp_path):
    for loss in ("l1", "giou"):
        make_run(f"sweeps/x/{loss}", f"loss/loc={loss}", metrics={"joint_acc": 0.5})
    assert read_sweep(tmp_path / "outputs" / "sweeps" / "x").varied == ["loss/loc"]


def test_what_other_code_or_data_gave_is_stale_and_a_row_of_its_own(sweep):
    edit(sweep / "1", source="b" * 12)
    plan(sweep)
    document = json.loads((sweep / "sweep.json").read_text())
    now = {"classes": "c", "pixels": "p", "train": "other", "val": "v", "test": "e"}
    document["jobs"][2]["data_fingerprint"] = now
    write_json(sweep / "sweep.json", document)
    found = read_sweep(sweep)
    assert found.jobs["status"].tolist() == ["completed", "stale", "stale", "failed", "pending"]
    assert found.jobs["note"].tolist()[1:3] == [f"other code ({'b' * 12})", "other data (train)"]
    assert list_sweep(found).columns["jobs"] == [1] * 5
    assert f"stale 1 job completed under other code ({'b' * 12})" in shown(sweep)


def test_a_job_that_says_running_died_if_no_process_holds_it(sweep):
    edit(sweep / "0", status="running", started="2026-11-23T10:00:00.000+00:00")
    assert read_sweep(sweep).jobs["status"][0] == "died"
    assert read_run(sweep / "0").record["status"] == "died"  # so does onebox runs
    assert re.search(r"died killed, .* \(#0 optimizer.lr=0.01 seed=0\)", shown(sweep))
    code = "import sys; from pathlib import Path; from onebox.runs.record import take_directory as take; take(Path(sys.argv[1]), wait=True); print(1, flush=True); sys.stdin.read()"  # fmt: skip
    holder = subprocess.Popen([sys.executable, "-c", code, str(sweep / "0")], stdin=-1, stdout=-1)
    try:
        holder.stdout.readline()
        assert read_sweep(sweep).jobs["status"][0] == "running"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert read_sweep(sweep).jobs["status"][0] == "died"


def test_looking_at_a_lock_does_not_end_it(tmp_path):
    folder = tmp_path / "run"
    assert not is_held(folder, unknown=True)
    claim(folder, fingerprint="abc", resume="auto")
    (tmp_path / "link").symlink_to(folder)
    assert is_held(folder, unknown=True)
    assert is_held(tmp_path / "link", unknown=True)
    code = "import sys; from onebox.runs.record import is_held; sys.exit(not is_held(sys.argv[1], unknown=False))"
    assert subprocess.run([sys.executable, "-c", code, str(folder)]).returncode == 0  # still held, seen from elsewhere
    release(folder)
    assert not is_held(folder, unknown=True)


def test_runs_that_were_replaced_are_not_found(sweep):
    (sweep / ".replaced").mkdir()
    (sweep / "3").rename(sweep / ".replaced" / "3")
    assert [run.path.name for run in find_runs(sweep)] == ["2", "1", "0"]


def test_several_objectives_mark_the_pareto_front(make_run, tmp_path):
    points = [(0.9, 0.1), (0.5, 0.5), (0.4, 0.4), (0.1, 0.9)]
    for number, (acc, iou) in enumerate(points):
        make_run(f"sweeps/x/{number}", f"optimizer.lr={number + 1}", metrics={"acc": acc, "iou": iou})
    folder = tmp_path / "outputs" / "sweeps" / "x"
    plan(folder, objective=["val/acc", "val/iou"], mode={"val/acc": "max", "val/iou": "max"})
    columns = list_sweep(read_sweep(folder)).columns
    assert list(zip(columns["number"], columns["best"], strict=True)) == [
        (0, True),
        (1, True),
        (3, True),
        (2, False),
        (4, False),
    ]
    assert shown(folder).count("●") == 4  # and the legend


def test_machine_formats_hold_all_rows_and_nothing_else(sweep, tmp_path):
    plan(sweep)
    document = json.loads(command(sweep, "--json"))
    assert document["totals"] == {"completed": 3, "pending": 1, "failed": 1}
    assert document["rows"][0]["val/joint_acc"] == pytest.approx(0.6)
    assert document["rows"][0]["floor/joint_acc"] == 0.01 and document["objective"] == {"best/joint_acc": "max"}
    lines = list(csv.DictReader(io.StringIO(command(sweep, "--csv", "-", "--seeds"))))
    assert [line["val/joint_acc"] for line in lines] == ["0.7", "0.5", "0.4", "", ""]
    assert command(sweep, "--csv", tmp_path / "x.csv") == ""
    # Into a pipe: the same, by tabs.
    assert list(csv.reader((tmp_path / "x.csv").read_text().splitlines())) == [
        line.split("\t") for line in command(sweep).splitlines()
    ]
    text = command(sweep, "--markdown")
    assert "| 0.01 | 2 | completed | 0.600 ± 1.271 |" in text


def test_a_sweep_is_named_by_folder_name_or_time(sweep, make_run, tmp_path):
    make_run("sweeps/older/0", metrics={"joint_acc": 0.1})
    os.utime(sweep.parent / "older", (1, 1))
    outputs = ("--outputs", tmp_path / "outputs", "--json")
    for name in ([sweep], ["lr"], []):
        assert json.loads(command(*name, *outputs))["sweep"] == str(sweep)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "no such folder"),
        (["lr", "--sort", "test/jointacc"], "did you mean test/joint_acc"),
        (["lr", "--metric", "test/oiu"], "no run has a key test/oiu"),
        (["lr", "--json", "--markdown"], "choose one"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(sweep, tmp_path, arguments, told):
    with pytest.raises(BadInput, match=re.escape(told)):
        command(*arguments, "--outputs", tmp_path / "outputs")


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "cannot be read"), ("[]", "cannot be read"), ('{"jobs": [{}]}', "a job has no fingerprint")],
)
def test_a_plan_that_cannot_be_read_is_said(sweep, text, told):
    (sweep / "sweep.json").write_text(text)
    with pytest.raises(BadInput, match=rf"sweep\.json: {told}"):
        read_sweep(sweep)
