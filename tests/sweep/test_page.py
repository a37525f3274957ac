"""The page of a sweep without a browser: what it holds, that nothing in it can run, and its study and its picture."""

import base64
import hashlib
import json
import math
import re
import runpy
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from PIL import Image
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput
from onebox.files import write_text
from onebox.sweep import report
from onebox.sweep.reading import page, strips, table, trials
from onebox.sweep.reading.table import read_sweep

make_run = runpy.run_path(str(Path(__file__).parents[1] / "runs" / "conftest.py"))["make_run"]
EVIL = "</script><script>alert(1)</script>"


@pytest.fixture(autouse=True)
def same_source(monkeypatch):
    monkeypatch.setattr(table, "source_fingerprint", lambda: "aaaaaaaaaaaa")


@pytest.fixture
def sweep(make_run, tmp_path):
    """Three learning rates, two weights and two seeds; one failed and one was pruned."""
    folder, number = tmp_path / "outputs" / "sweeps" / "lr", 0
    for rate in (0.001, 0.01, 0.1):
        for weight in (1.0, 3.0):
            for seed in (0, 1):
                given = (f"optimizer.lr={rate}", f"loss.weights.loc={weight}", f"seed={seed}")
                facts = {"metrics": {"joint_acc": rate * 5 + weight / 100 + seed / 50, "acc": 0.5, "iou": 0.25}}
                if number == 3:
                    facts = {"status": "failed", "error": {"type": "ValueError", "message": f"{EVIL} " * 20}}
                if number == 7:
                    facts = {"status": "pruned", "pruned": "after epoch 1"}
                make_run(f"sweeps/lr/{number}", *given, **facts)
                rows = [f"{epoch},{rate + seed + epoch},{3 - epoch}" for epoch in range(3)]
                write_text(folder / str(number) / "metrics.csv", "\n".join(["epoch,val/joint_acc,val/loss", *rows]))
                write_text(folder / str(number) / "job.log", "said")
                number += 1
    write_text(folder / "0" / "report.html", "")
    return folder


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.tags, self.scripts, self.links, self.policy, self.text = [], [], [], "", ""
        self._script = None
        self.feed(path.read_text(encoding="utf-8"))
        self.data = json.loads(next(text for kind, text in self.scripts if kind == "application/json"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self._script = given.get("type", "") if tag == "script" else None
        self.links += [given["href"]] if "href" in given else []
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]

    def handle_data(self, text):
        if self._script is not None:
            self.scripts.append((self._script, text))
            self._script = None
        else:
            self.text += text


def command(*arguments):
    done = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def written(folder, *arguments):
    assert command(folder, "--html", *arguments).strip() == str(folder / "sweep.html")
    return Page(folder / "sweep.html")


def rows_of(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_every_number_of_the_page_is_one_of_the_table(sweep):
    found = written(sweep)
    assert rows_of(found.data["rows"]) == json.loads(command(sweep, "--json"))["rows"]
    jobs = json.loads(command(sweep, "--json", "--seeds"))["rows"]
    assert rows_of(found.data["jobs"]) == jobs
    by_rate = next(strip for strip in found.data["strips"] if strip["key"] == "optimizer.lr")
    assert by_rate["order"] == ["0.001", "0.01", "0.1"]
    mean, half, count = by_rate["means"]["best/joint_acc"]["0.1"]
    values = [job["best/joint_acc"] for job in jobs if job["optimizer.lr"] == 0.1]
    assert (mean, count) == (pytest.approx(sum(values) / 4), 4)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 3)
    assert half == pytest.approx(3.182 * deviation / 2)  # Student's t of three degrees of freedom
    assert found.data["floors"]["test/joint_acc"] == [jobs[0]["floor/joint_acc"]]
    line = found.data["curves"]["lines"][0]
    assert set(line["name"].split()) == {"optimizer.lr=0.1", "loss.weights.loc=3"}
    assert line["points"]["val/joint_acc"][1] == [2, pytest.approx(1.6), pytest.approx(1.1), pytest.approx(2.1)]
    assert len(found.data["parallel"]["lines"]) == 10
    assert max(found.data["importances"]["best/joint_acc"]) == "optimizer.lr"


def test_the_page_says_what_failed_and_links_to_what_each_job_has_left(sweep):
    found = written(sweep)
    assert f"failed ValueError: {' '.join([EVIL] * 20)}" in " ".join(found.text.split())  # not cut off as on a terminal
    assert "pruned after epoch 1" in " ".join(found.text.split())
    assert {"0/report.html", "3/job.log"} <= set(found.links)
    assert all((sweep / link).is_file() for link in found.links)
    only = written(sweep, "--where", "optimizer.lr == 0.1", "--metric", "test/iou")
    assert len(only.data["jobs"]["number"]) == 4
    assert only.data["metrics"] == ["best/joint_acc", "test/iou"]
    assert "optimizer.lr == 0.1" in only.text


def test_nothing_of_the_data_can_run(make_run, tmp_path):
    for number, value in enumerate((EVIL, "<img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "\u2028 javascript:alert(1)")):
        facts = (
            {"status": "failed", "error": {"type": EVIL, "message": EVIL}} if number == 3 else {"metrics": {"acc": 0.5}}
        )
        make_run(f"sweeps/<script>alert(1)<>/{number}", f"loss.name={value!r}", f"{EVIL}={number}", **facts)
    found = written(tmp_path / "outputs" / "sweeps" / "<script>alert(1)<>")
    assert "<script>alert(1)<>" in found.text  # is shown as it is
    scripts = [text for kind, text in found.scripts if not kind]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts}
    policy = dict(part.strip().split(" ", 1) for part in found.policy.split(";"))
    assert (policy["default-src"], set(policy["script-src"].split())) == ("'none'", hashes)
    assert len(found.scripts) == 3
    assert not {"img", "iframe", "link", "object", "base"} & {tag for tag, _ in found.tags}
    assert not [name for _, given in found.tags for name in given if name.startswith("on")]
    assert not [link for link in found.links if re.match(r"\w+:", link)]
    assert found.text.count("49") == 0


@pytest.mark.parametrize("case", ["one job", "only seeds", "nothing done", "two objectives", "many values"])
def test_any_sweep_has_a_page(make_run, tmp_path, case):
    for number in range({"one job": 1, "many values": 300}.get(case, 4)):
        given = {"only seeds": f"seed={number}"}.get(case, f"optimizer.lr={number + 1}")
        facts = (
            {"status": "failed", "error": {}}
            if case == "nothing done"
            else {"metrics": {"joint_acc": number / 9, "iou": 0.5 - number / 9}}
        )
        make_run(f"sweeps/s/{number}", given, **facts)
    folder = tmp_path / "outputs" / "sweeps" / "s"
    if case == "two objectives":
        write_text(
            folder / "sweep.json", json.dumps({"schema": 1, "jobs": [], "objective": ["val/joint_acc", "val/iou"]})
        )
    found = written(folder)
    marks = {name for _, given in found.tags for name in given if name.startswith("data-")}
    assert ("data-pareto" in marks) is (case == "two objectives")
    assert ("data-strip" in marks) is (case != "nothing done")
    assert ("data-parallel" in marks) is (case in ("two objectives", "many values"))
    if case == "only seeds":
        assert found.data["strips"][0]["means"]["best/joint_acc"]["all jobs"][2] == 4
    if case == "many values":  # a scale, as of a search
        assert (found.data["strips"][0]["order"], found.data["strips"][0]["is_log"]) == ([], True)
        assert found.data["parallel"]["left_out"] == 300 - len(found.data["parallel"]["lines"]) == 100
        assert f"{100} are left out" in found.text


def test_a_page_needs_no_torch(sweep):
    code = f"from onebox.cli.runs import sweep; import sys; sweep({str(sweep)!r}, html=True); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_page_that_cannot_be_written_is_one_line_after_a_sweep(sweep, monkeypatch, caplog, capsys):
    def refuse(*given):
        raise OSError("no\nroom")

    monkeypatch.setattr(page, "write_text", refuse)
    with report.reported(sweep):
        pass
    assert "12 jobs: 10 completed" in capsys.readouterr().out
    assert [record.getMessage() for record in caplog.records] == [
        "the sweep's page could not be written: OSError: no room"
    ]


def test_the_page_is_written_while_jobs_run(sweep, monkeypatch):
    monkeypatch.setattr(report, "PAUSE_S", 0.1)
    with report.reported(sweep):
        begun = time.monotonic()
        while not (sweep / page.PAGE).exists():
            assert time.monotonic() < begun + 240
            time.sleep(0.05)
        assert "12 jobs: " in (sweep / page.PAGE).read_text()


def test_a_page_says_of_when_it_is_while_jobs_are_waited_for(sweep):
    read = read_sweep(sweep)
    assert "<span>as of " not in page.write_page(read).read_text()
    read.jobs.loc[0, "status"] = "pending"
    assert "<span>as of 2" in page.write_page(read).read_text()


def test_the_study_has_each_job_that_ended(sweep, tmp_path):
    file = tmp_path / "a study #1.db"
    assert command(sweep, "--study", file).startswith(str(file))
    with pytest.raises(BadInput, match=r"exists already; .* --force"):
        command(sweep, "--study", file)
    command(sweep, "--study", file, "--force")
    copy = tmp_path / "copy.db"
    copy.write_bytes(file.read_bytes())
    with trials.quiet_optuna():
        study = optuna.load_study(study_name="lr", storage=f"sqlite:///{copy}")
        assert (study.metric_names, study.direction.name) == (["best/joint_acc"], "MAXIMIZE")
        states = [trial.state.name for trial in study.trials]
        assert [states.count(state) for state in ("COMPLETE", "FAIL", "PRUNED")] == [10, 1, 1]
    first = study.trials[0]
    job = read_sweep(sweep).jobs.loc[first.user_attrs["job"]]
    assert first.params == {"optimizer.lr": job["optimizer.lr"], "loss.weights.loc": job["loss.weights.loc"]}
    assert first.value == job["best/joint_acc"]
    assert list(first.intermediate_values) == [0, 1, 2]
    own = sweep / "study.db"
    own.write_text("a search's")
    with pytest.raises(BadInput, match="the search's own study"):
        command(sweep, "--study", own, "--force")
    assert own.read_text() == "a search's"


def test_the_picture_for_a_paper_is_as_wide_as_a_column(sweep, tmp_path):
    assert command(sweep, "--plot", tmp_path / "p.png").strip() == str(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.size == (990, 1200)
    command(sweep, "--plot", tmp_path / "p.pdf", "--metric", "test/iou")
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(BadInput, match=r"name a \.png or a \.pdf"):
        command(sweep, "--plot", tmp_path / "p.gif")
    with pytest.raises(BadInput, match="no job has a test/none yet"):
        command(sweep, "--plot", tmp_path / "p.png", "--metric", "test/none")
    with pytest.raises(BadInput, match="leave the options of the table out"):
        command(sweep, "--plot", tmp_path / "p.png", "--json")


def test_stale_jobs_are_drawn_only_where_all_are(sweep, monkeypatch):
    assert len(strips.drawn(read_sweep(sweep))) == 10
    mixed = read_sweep(sweep)
    mixed.jobs.loc[strips.drawn(mixed).index[0], "status"] = "stale"
    assert len(strips.drawn(mixed)) == len(trials.parallel_coordinates(mixed, trials.drawn_trials(mixed))["lines"]) == 9
    assert trials.importances(mixed, trials.drawn_trials(mixed)) == {}  # too few jobs
    monkeypatch.setattr(table, "source_fingerprint", lambda: "bbbbbbbbbbbb")
    assert len(strips.drawn(read_sweep(sweep))) == 10
