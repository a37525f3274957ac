"""How a user names runs, and how `onebox runs` lists them."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput
from onebox.runs import listing
from onebox.runs.find import find_all, find_run, find_runs, read_run
from onebox.runs.where import parse


@pytest.fixture
def outputs(make_run, tmp_path):
    make_run("base/first", metrics={"joint_acc": 0.3, "iou": 0.5})
    make_run("base/second", "optimizer.lr=0.01", "seed=1", metrics={"joint_acc": 0.6})
    make_run("sweeps/x/0", "loss/loc=giou", metrics={"joint_acc": 0.7})
    make_run("sweeps/x/1", "loss/loc=giou", "data.limit=5", status="failed", error={"type": "ValueError"})
    return tmp_path / "outputs"


def names(runs):
    return [run.path.name for run in runs]


def test_all_runs_are_found_newest_first(outputs):
    (outputs / "base" / "first" / "checkpoints").mkdir()
    assert names(find_runs(outputs)) == ["1", "0", "second", "first"]


def test_a_run_is_named_by_path_time_or_fingerprint(outputs, monkeypatch):
    second = outputs / "base" / "second"
    code = json.loads((second / "run.json").read_text())["fingerprint"]
    for name in (second, second / "run.json", "base/second", "latest~2", code, code[:5]):
        assert find_run(str(name), outputs).path == second, name
    assert find_run("latest", outputs).path.name == "1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base/secnd", "no such run in .*outputs.*; close to it: .*base/second"),
        ("fffff", "no such run|holds no run"),
        ("latest~4", "there are 4 such runs"),
        ("sweeps/x", "no such run"),
    ],
)
def test_an_unknown_run_is_one_line_with_candidates(outputs, name, message):
    with pytest.raises(BadInput, match=message) as error:
        find_run(name, outputs)
    assert "\n" not in str(error.value)
    assert "outputs/" in str(error.value)


def test_an_ambiguous_fingerprint_lists_its_runs(make_run, tmp_path):
    outputs = tmp_path / "outputs"
    paths = [make_run("a"), make_run("b")]
    code = read_run(paths[0]).record["fingerprint"]
    with pytest.raises(BadInput, match=f"2 runs have it: .*b .*{code}.*, .*a .*or {code}~0 for the newest"):
        find_run(code, outputs)
    assert find_run(f"{code}~1", outputs).path == paths[0]


def test_a_folder_of_runs_means_all_of_them_once(outputs):
    assert names(find_all([str(outputs / "sweeps"), "sweeps/x/0", "latest"], outputs)) == ["1", "0"]


def test_a_damaged_record_is_said_and_left_out(outputs, caplog):
    (outputs / "base" / "first" / "run.json").write_text('{"status": ')
    assert len(find_runs(outputs)) == 3
    assert "base/first/run.json: cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("val/joint_acc > .5", ["0", "second"]),
        ("val/joint_acc > .5 and loss.loc == giou", ["0"]),
        ("loss/loc == giou and status == failed", ["1"]),
        ("not (loss.loc == giou or seed == 1)", ["first"]),
        ("loss.loc==giou or seed==1 and test/joint_acc>=6e-1", ["1", "0", "second"]),
        ("optimizer.lr in [1e-2, 5]", ["second"]),
        ("status not in [completed, running]", ["1"]),
        ("loss.loc._target_ ~ Box*", ["1", "0"]),
        ("data.limit == null", ["0", "second", "first"]),
        ("data.limit != null", ["1"]),
        ("val/joint_acc == null", ["1"]),
        ("error.type = 'ValueError'", ["1"]),
        ("started < 2026-11-23T10:00:03", ["second", "first"]),
        ("image_size == 100.0 and hardware.cores == 2", ["1", "0", "second", "first"]),
        ("seed < x or optimizer.lr == true", []),
    ],
)
def test_where_finds_runs(outputs, text, expected):
    assert names(listing.select(outputs, text, None, ascending=False)[0]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a key"),
        ("seed ==", "expected a value .* found the end"),
        ("seed == 1 2", "expected and, or, or the end, found 2"),
        ("(seed == 1", r"expected \)"),
        ("seed in 1", r"expected \["),
        ("seed", "expected =="),
        ("name == 'x", "a quote that is not closed"),
        ("and == 3", "expected a key"),
        ("__import__('os').system('true') == 0", "expected =="),
    ],
)
def test_a_wrong_expression_says_where(text, message):
    with pytest.raises(BadInput, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("key", "near"),
    [("val/joint_ac", "val/joint_acc"), ("optimizer.learning_rate", None), ("lr", "optimizer.lr"), ("sed", "seed")],
)
def test_an_unknown_key_is_said_with_near_ones(outputs, key, near):
    with pytest.raises(BadInput, match=f"no run has a key {key}" + (f", did you mean .*{near}" if near else "")):
        listing.select(outputs, None, key, ascending=False)


def test_sorting_puts_the_largest_first_and_the_unknown_last(outputs):
    sort = lambda **kwargs: names(listing.select(outputs, None, "val/joint_acc", **kwargs)[0])  # noqa: E731
    assert sort(ascending=False) == ["0", "second", "first", "1"]
    assert sort(ascending=True) == ["first", "second", "0", "1"]


def test_the_command_prints_lines_or_json(outputs):
    def invoke(*arguments):
        return CliRunner().invoke(app, ["runs", "--outputs", str(outputs), *arguments])

    lines = [line.split("\t") for line in invoke("--where", "seed == 1").stdout.splitlines()]
    assert lines[0][:4] == ["run", "started", "status", "fingerprint"] and lines[0][-1] == "by hand"
    assert lines[1][0] == "base/second" and lines[1][-1] == "optimizer.lr=0.01 seed=1"
    document = json.loads(invoke("--json", "--sort", "optimizer.lr", "--limit", "1").stdout)
    assert document[0]["metrics"]["val/joint_acc"] == 0.6 and document[0]["keys"] == {"optimizer.lr": 0.01}
    assert "no run in" in invoke("--where", "seed == 5").stdout
    assert isinstance(invoke("--where", "sed == 5").exception, BadInput)


def test_what_is_done_with_records_imports_nothing_heavy(outputs):
    import subprocess

    path = [str(outputs / "base" / name) for name in ("first", "second")]
    for command in (["runs", "--where", "seed == 1", "--outputs", str(outputs)],):
        code = (
            "import atexit, sys; from onebox.cli import main\n"
            "heavy = {'torch', 'lightning', 'torchvision', 'albumentations', 'matplotlib', 'cv2', 'scipy', 'hydra'}\n"
            "atexit.register(lambda: print('HEAVY', heavy & set(sys.modules)))\n"
            f"sys.argv = ['onebox', *{command!r}]; main()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "HEAVY set()", done.stderr
    assert Path(path[0]).exists()
