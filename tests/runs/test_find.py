"""How a user names runs."""

import json

import pytest

from onebox.errors import BadInput
from onebox.runs.reading.find import find_all, find_run, find_runs, read_run


def names(runs):
    return [run.path.name for run in runs]


def test_all_runs_are_found_newest_first(outputs):
    (outputs / "base" / "first" / "checkpoints").mkdir()
    assert names(find_runs(outputs)) == ["1", "0", "second", "first"]


def test_a_run_is_named_by_path_time_or_fingerprint(outputs, monkeypatch):
    second = outputs / "base" / "second"
    code = json.loads((second / "run.json").read_text())["fingerprint"]
    for name in (second, second / "run.json", "base/second", "latest~2", "2", code, code[:5]):
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
    assert names(find_all(["x"], outputs)) == ["1", "0"]  # a sweep by its name


@pytest.mark.parametrize(
    "text",
    [
        '{"status": ',
        "[" * 5000,
        '{"config": []}',
        '{"overrides": [1]}',
        '{"started": 3}',
        '{"seconds": "long"}',
        '{"choices": {"a": []}}',
        "[]",
    ],
)
def test_an_odd_record_is_left_out_and_does_not_hide_the_others(outputs, text, caplog):
    (outputs / "base" / "first" / "run.json").write_text(text)
    assert names(find_runs(outputs)) == ["1", "0", "second"]
    assert "base/first/run.json: " in caplog.text or text == "[]"


def test_a_record_with_null_in_place_of_a_part_is_read(outputs):
    path = outputs / "base" / "first" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(("choices", "overrides", "attempts"))))
    path.with_name("metrics.json").write_text('{"best": [], "test": null, "final": {"val/acc": "x", "val/iou": 0.5}}')
    run = find_runs(outputs)[-1]
    assert (run.path.name, run.tags) == ("first", {"val/iou": 0.5})
