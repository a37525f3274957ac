"""`onebox explain` finds the effects that were put into made-up runs, and says where it cannot know."""

import itertools
import json
import random
from statistics import mean

import pytest
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput
from onebox.runs.reading.explain import explain, lines
from onebox.runs.reading.find import find_runs, read_run

LOSS = {"l1": 0.0, "giou": 0.05}
LR = {0.001: 0.0, 0.01: 0.08, 0.1: 0.16}  # 0.08 a factor of ten
DECAY = {0.0: 0.0, 0.1: 0.001}


@pytest.fixture
def grid(make_run, tmp_path):
    """2 x 3 x 2 settings with 3 seeds each: truth plus noise of 0.01."""
    noise = random.Random(3)
    for loss, lr, decay, seed in itertools.product(LOSS, LR, DECAY, range(3)):
        value = 0.3 + LOSS[loss] + LR[lr] + DECAY[decay] + noise.gauss(0, 0.01)
        overrides = [f"loss/loc={loss}", f"optimizer.lr={lr}", f"optimizer.weight_decay={decay}", f"seed={seed}"]
        make_run(f"{loss}_{lr}_{decay}_{seed}", *overrides, metrics={"joint_acc": value, "loss": 1 - value})
    make_run("failed", "seed=9", status="failed")
    return tmp_path / "outputs"


def effects(document, tag="best/joint_acc"):
    return {
        (item["key"], str(item["from"]), str(item["to"])): (
            item["metrics"][tag]["mean"],
            item["metrics"][tag]["interval"],
            item["pairs"],
        )
        for item in document["effects"]
    }


def test_known_effects_are_found_and_ranked(grid):
    document = explain(find_runs(grid), [])
    assert document["runs"] == 36 and document["left_out"] == 1
    assert [item["key"] for item in document["effects"]] == ["optimizer.lr"] * 2 + [
        "loss/loc",
        "optimizer.weight_decay",
    ]
    found = effects(document)
    truth = {
        ("loss/loc", "l1", "giou"): (0.05, 18),
        ("optimizer.lr", "0.001", "0.01"): (0.08, 12),
        ("optimizer.lr", "0.001", "0.1"): (0.16, 12),
        ("optimizer.weight_decay", "0.0", "0.1"): (0.001, 18),
    }
    if ("loss/loc", "giou", "l1") in found:
        truth[("loss/loc", "giou", "l1")] = (-0.05, truth.pop(("loss/loc", "l1", "giou"))[1])
    assert found.keys() == truth.keys()
    for key, (effect, pairs) in truth.items():
        value, interval, number = found[key]
        assert number == pairs
        assert abs(value - effect) < 1.5 * interval and 0.002 < interval < 0.015
    assert abs(found["optimizer.weight_decay", "0.0", "0.1"][0]) < found["optimizer.weight_decay", "0.0", "0.1"][1]
    assert document["never_alone"] == []


def test_the_interval_covers_the_truth_as_often_as_it_says(make_run, tmp_path):
    noise, covered = random.Random(1), []
    runs = {
        (lr, seed): read_run(make_run(f"{lr}_{seed}", f"optimizer.lr={lr}", f"seed={seed}", metrics={"joint_acc": 0.0}))
        for lr in (1, 2)
        for seed in range(4)
    }
    for _ in range(300):
        for (lr, _), run in runs.items():
            run.__dict__["tags"] = {"best/joint_acc": 0.1 * lr + noise.gauss(0, 0.02)}
        ((value, interval, _),) = effects(explain(list(runs.values()), ["best/joint_acc"])).values()
        covered.append(abs(value - 0.1) <= interval)
    assert 0.91 < mean(covered) < 0.985  # 95 %, give or take 300 draws


def test_a_choice_with_what_it_brings_along_is_one_thing(make_run, tmp_path):
    for index, (optimizer, lr) in enumerate([("adam", None), ("sgd", None), ("adam", 0.3), ("sgd", 0.3)]):
        overrides = [f"optimizer={optimizer}", *([f"optimizer.lr={lr}"] if lr else [])]
        value = 0.1 * (optimizer == "sgd") + 0.2 * (lr is not None)
        make_run(str(index), *overrides, metrics={"joint_acc": value})
    found = effects(explain(find_runs(tmp_path / "outputs"), []))
    change = next(key for key in found if key[0] == "optimizer")
    assert found[change][2] == 2  # at the default rates, and at 0.3
    assert abs(found[change][0]) == pytest.approx(0.1)


def test_a_default_that_was_typed_is_no_change(make_run, tmp_path):
    for index, overrides in enumerate(
        [["optimizer=adam"], ["optimizer=adam", "optimizer.lr=0.001"], ["optimizer=sgd"]]
    ):
        make_run(str(index), *overrides, metrics={"joint_acc": 0.1 * index})
    found = effects(explain(find_runs(tmp_path / "outputs"), []))
    assert {key[0] for key in found} == {"optimizer"}


def test_what_changed_only_together_is_said(make_run, tmp_path):
    make_run("a", metrics={"joint_acc": 0.1})
    make_run("b", "image_size=64", "data.limit=5", metrics={"joint_acc": 0.2})
    make_run("c", "trainer.max_epochs=3", metrics={"joint_acc": 0.3})
    document = explain(find_runs(tmp_path / "outputs"), [])
    assert [item["key"] for item in document["effects"]] == ["trainer.max_epochs"]
    assert set(document["never_alone"]) == {"image_size", "data.limit"}
    shown = "\n".join("".join(text for text, _ in line) for line in lines(document))
    assert "never varied alone: " in shown
    assert "(one pair)" in shown


def test_runs_of_other_code_are_not_paired(make_run, tmp_path):
    make_run("a", metrics={"joint_acc": 0.1})
    make_run("b", "optimizer.lr=0.1", metrics={"joint_acc": 0.2}, source="bbbbbbbbbbbb")
    document = explain(find_runs(tmp_path / "outputs"), [])
    assert document["effects"] == []
    assert set(document["never_alone"]) == {"optimizer.lr", "code"}


def test_runs_of_data_that_changed_in_place_are_not_paired(make_run, tmp_path):
    prints = {"classes": "c", "pixels": "p", "train": "moved", "val": "v", "test": "e"}
    for seed in range(3):
        make_run(f"a{seed}", f"seed={seed}", metrics={"joint_acc": 0.1})
        facts = {"data_fingerprint": prints} if seed else {}
        make_run(f"b{seed}", "optimizer.lr=0.1", f"seed={seed}", metrics={"joint_acc": 0.2 + seed}, **facts)
        # Another choice of images has other fingerprints too, and is a change of the config.
        chosen = {**prints, "train": "few"}
        make_run(f"c{seed}", "data.limit=5", f"seed={seed}", metrics={"joint_acc": 0.3}, data_fingerprint=chosen)
    found = effects(explain(find_runs(tmp_path / "outputs"), []))
    assert found["optimizer.lr", "0.001", "0.1"] == (pytest.approx(0.1), None, 1)
    assert not any(key == "data files" for key, *_ in found)


def test_the_command_prints_lines_or_json(grid):
    def invoke(*arguments):
        return CliRunner().invoke(app, ["explain", str(grid), *arguments])

    out = invoke().stdout
    assert "optimizer.lr" in out.splitlines()[2] and "0.001 → 0.1" in out
    assert json.loads(invoke("--json", "--metric", "val/loss").stdout)["metrics"] == ["val/loss"]
    assert isinstance(invoke("--metric", "val/los").exception, BadInput)
    assert isinstance(CliRunner().invoke(app, ["explain", str(grid / "failed")]).exception, BadInput)
