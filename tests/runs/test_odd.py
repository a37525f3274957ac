"""One odd run directory among others: every command still shows the others, and ends in a table or in one line."""

import copy
import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput

DEEP: list = []
for _ in range(60):
    DEEP = [DEEP]
ODD = (None, [], {}, [None], {"a": None}, {"a": {"b": [1]}}, "\x1b[31m[red]x[/]", "", -1, True, 1e999, 10**400, DEEP)


def places(node: object, path: tuple = ()) -> Iterator[tuple]:
    """Of everything in a document, where it stands, but of a config only what is read by name."""
    yield path
    if path[:1] == ("config",) and len(path) > 2:
        return
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(document: dict, path: tuple, value: object) -> object:
    document = copy.deepcopy(document)
    if not path:
        return value
    node: object = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return document


def ask(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        assert isinstance(done.exception, BadInput), (arguments, done.exception)
    assert "\x1b" not in done.output
    return done.output


@pytest.mark.parametrize(
    "number", [None, *(pytest.param(number, marks=pytest.mark.long) for number in range(len(ODD)))]
)
@pytest.mark.parametrize("file", ["run.json", "metrics.json", "sweep.json"])
def test_an_odd_value_anywhere_breaks_no_command_for_the_others(make_run, tmp_path, file, number):
    facts = {
        "attempts": [{"status": "failed", "seconds": 3.0, "source": "x", "started": "2026-11-23T10:00:00+00:00"}],
        "error": {"type": "ValueError", "message": "x", "traceback": "x"},
        "final_weights": "x",
        "data": {"train": 3},
        "command": ["onebox-train"],
    }
    metrics = {"joint_acc": 0.3, "iou": 0.5}
    odd = make_run("sweeps/x/odd", "loss/loc=giou", metrics=metrics, **facts)
    other = make_run(
        "sweeps/x/other", "optimizer.lr=0.01", "seed=1", metrics=metrics, by_experiment=["experiment=baseline"]
    )
    make_run("sweeps/x/third", "seed=2", metrics=metrics, **facts)
    folder = tmp_path / "outputs"
    job = {
        "fingerprint": "0",
        "fingerprint_seedless": "1",
        "seed": 0,
        "overrides": ["seed=0"],
        "varied": {},
        "data_fingerprint": {"train": "x"},
    }
    plan = {"schema": 1, "jobs": [job], "objective": ["val/joint_acc"], "mode": {"val/joint_acc": "max"}, "name": "x"}
    (folder / "sweeps/x/sweep.json").write_text(json.dumps(plan))
    path = folder / "sweeps/x" / ("sweep.json" if file == "sweep.json" else f"odd/{file}")
    document = json.loads(path.read_text())
    for count, place in enumerate(places(document)):
        value = ODD[count % len(ODD) if number is None else number]  # each place with one, and as a long test with all
        path.write_text(json.dumps(changed(document, place, value)))
        print(place, repr(value)[:40])  # shown when the test fails
        if file != "sweep.json":
            options = (["--json"], ["--sort", "seconds"], ["--where", "seconds > 1"], ["--markdown"])[count % 4]
            assert "other" in ask("runs", "--outputs", folder, *options)
            ask("diff", *((other, odd) if count % 2 else (odd, other, "--all")))
            ask("explain", folder)
        assert "joint_acc" in ask("sweep", folder / "sweeps/x", *["--seeds"] * (count % 2)) or file == "sweep.json"
