"""`onebox explain A B`: two settings on the same seeds and images, against known values of its formulas."""

import json
import re

import pandas as pd
import pytest
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput
from onebox.runs.predictions import BOXES
from onebox.runs.reading.pairs import seeds_needed, sign_test

# statsmodels 0.15.0: mcnemar([[0, b], [c, 0]], exact=True).pvalue; ceil(TTestPower().solve_power(d, power=.8, alpha=.05))
MCNEMAR = {
    (0, 0): 1.0,
    (1, 0): 1.0,
    (5, 0): 0.0625,
    (6, 0): 0.03125,
    (12, 31): 0.0054016,
    (50, 50): 1.0,
    (400, 470): 0.019267,
}
POWER = {0.1: 787, 0.2: 199, 0.5: 34, 0.8: 15, 1.0: 10, 2.0: 5, 5.0: 3, 50.0: 2}


@pytest.mark.parametrize(("counts", "p"), MCNEMAR.items())
def test_p_over_images_is_that_of_mcnemars_exact_test(counts, p):
    assert sign_test(*counts) == sign_test(*counts[::-1]) == pytest.approx(p, rel=5e-4)


@pytest.mark.parametrize(("effect", "needed"), POWER.items())
def test_seeds_are_those_that_a_paired_t_test_takes(effect, needed):
    assert seeds_needed(effect, 1.0) == seeds_needed(-0.03 * effect, 0.03) == needed
    assert seeds_needed(0.05, 1.0) is None  # 3,141


def setting(make_run, name, *overrides, seeds=(0, 1, 2), joint=lambda seed: 10, acc=None, images=40, **facts):
    """Runs in whose predictions the first `joint(seed)` images are right, and the class of the first `acc(seed)`."""
    for seed in seeds:
        right, known = joint(seed), (acc or joint)(seed)
        metrics = {"joint_acc": right / images, "acc": known / images, "loc_l1": 1 - right / images}
        folder = make_run(f"{name}/{seed}", *overrides, f"seed={seed}", metrics=metrics, **facts)
        columns = {
            "id": [f"{row:06d}" for row in range(images)],
            "path": "x.jpg",
            "true_label": "cat",
            "width": 9,
            "height": 9,
        }
        columns |= {"predicted_label": ["cat" if row < known else "dog" for row in range(images)]}
        columns |= {"iou": [0.5 if row < right else 0.25 for row in range(images)]}
        columns |= dict.fromkeys(BOXES, 1.0) | {"probability": 1.0, "top1": "cat", "top1_probability": 1.0}
        pd.DataFrame(columns).to_csv(folder / "predictions.csv", index=False)


def explain(tmp_path, *arguments):
    done = CliRunner().invoke(app, ["explain", *map(str, arguments), "--outputs", str(tmp_path / "outputs")])
    if isinstance(done.exception, BadInput):
        return str(done.exception)
    assert done.exit_code == 0, done.exception
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


@pytest.fixture
def two(make_run, tmp_path):
    """l1 with 10, 12, 14 of 40 images right, giou with 20, 21, 25; and a third setting in the same sweep."""
    setting(make_run, "sweeps/x/l1", joint=lambda seed: 10 + 2 * seed, acc=lambda seed: 30)
    setting(make_run, "sweeps/x/giou", "loss/loc=giou", joint=lambda seed: (20, 21, 25)[seed], acc=lambda seed: 31)
    return tmp_path / "outputs/sweeps/x"


def test_two_settings_are_compared_by_seeds_and_by_images(two, tmp_path):
    found = explain(tmp_path, two / "l1", two / "giou", "--json")
    assert found["seeds"] == [0, 1, 2] and found["images"] == 40
    assert [change["values"] for change in found["changes"]] == [["l1", "giou"]]
    joint = found["metrics"]["test/joint_acc"]
    # scipy.stats: ttest_rel([20, 21, 25], [10, 12, 14]).confidence_interval() is 10 ± 2.4841
    assert joint["difference"] == pytest.approx(10 / 40)
    assert joint["interval"] == pytest.approx(2.4841 / 40, rel=1e-3)
    assert (joint["verdict"], joint["seeds_needed"]) == ("better", 3)
    assert found["metrics"]["test/loc_l1"]["verdict"] == "better"  # it is lower
    # Image 10 to 13: A in 2 or 1 of 3 seeds, B in 3; 14 to 24: A in none, B in 3, 2 or 1.
    images = found["over_images"]["joint_acc"]
    assert (images["only_a"], images["only_b"], images["verdict"]) == (0, 15, "better")
    assert found["over_images"]["acc"]["verdict"] == "cannot tell"
    assert found["verdict"] == "B is better"

    # The same by selections, a run of each, or their fingerprints; and the other way round.
    for names in (
        (two, "loss/loc=l1", "loss/loc=giou"),
        ("loss/loc=l1", "loss/loc=giou and seed in [0, 1, 2]"),
        (two / "l1/2", two / "giou/0"),
    ):
        again = explain(tmp_path, *names, "--json")
        assert (again["metrics"], again["over_images"]) == (found["metrics"], found["over_images"])
    text = explain(tmp_path, two / "giou", two / "l1")
    assert "B is worse than A in test/joint_acc" in text
    assert "   loss/loc  giou → l1" in text
    assert "test/joint_acc  0.5500  0.3000  -0.2500 ± 0.0621  worse" in text


def test_what_cannot_be_told_is_said_with_what_would_tell_it(make_run, two, tmp_path):
    setting(make_run, "noisy", "optimizer.lr=0.1", joint=lambda seed: (15, 10, 13)[seed], acc=lambda seed: 30)
    text = explain(tmp_path, two / "l1", tmp_path / "outputs/noisy")
    assert "cannot tell: about 256 seeds would be needed for a difference of this size, and there are 3" in text
    assert "better" not in text and "worse" not in text
    setting(make_run, "single", "optimizer.lr=0.2", joint=lambda seed: 39, seeds=(2,))
    text = explain(tmp_path, two / "l1", tmp_path / "outputs/single")
    assert "cannot tell: one common seed says nothing of others" in text
    assert re.search(r"\njoint_acc +0 +25 +6e-08 +better", text)
    # One or two images more in each seed: seeds agree, but they say nothing of other images.
    setting(make_run, "ten", "optimizer.lr=0.3", seeds=range(5))
    setting(make_run, "more", "optimizer.lr=0.4", joint=lambda seed: 12 if seed else 11, seeds=range(5))
    found = explain(tmp_path, tmp_path / "outputs/ten", tmp_path / "outputs/more", "--json")
    assert (found["metrics"]["test/joint_acc"]["verdict"], found["verdict"]) == ("better", "cannot tell")
    assert "B is better on these images, but might not be on others" in found["why"]
    # Where no seed moves the difference, their noise is not known.
    setting(make_run, "constant", "optimizer.lr=0.5", joint=lambda seed: 20 + 2 * seed)
    found = explain(tmp_path, two / "l1", tmp_path / "outputs/constant", "--json")
    assert "the same with every seed" in found["why"]
    assert (found["metrics"]["test/joint_acc"]["verdict"], found["verdict"]) == ("cannot tell", "cannot tell")


def test_what_cannot_be_compared_is_one_line(make_run, two, tmp_path):
    outputs = tmp_path / "outputs"
    assert "l1 has 0, 1, 2 and" in explain(tmp_path, two / "l1", one_of(make_run, "other", seeds=(7,)))
    assert "have other test images" in explain(
        tmp_path, two / "l1", one_of(make_run, "images", data_fingerprint={"test": "other"})
    )
    trained = {"classes": "c", "pixels": "p", "train": "changed", "val": "v", "test": "e"}
    assert "the data have changed between them (train)" in explain(
        tmp_path, two / "l1", one_of(make_run, "training", data_fingerprint=trained)
    )
    assert "tested on other images" in explain(tmp_path, two / "l1", one_of(make_run, "fewer", images=39))
    outputs.joinpath("fewer/0/predictions.csv").unlink()
    assert "predictions.csv: no such file" in explain(tmp_path, two / "l1", outputs / "fewer")
    assert "no run has a key test/joint" in explain(tmp_path, two / "l1", two / "giou", "--metric", "test/joint")
    assert "are one setting" in explain(tmp_path, two / "l1/0", two / "l1/1")
    assert "takes two selections" in explain(tmp_path, two, "loss/loc=l1")
    assert "none of 6 completed runs has it" in explain(tmp_path, two, "loss/loc=l1", "loss/loc=giou and seed=9")
    assert "no run has a key los" in explain(tmp_path, two, "los=l1", "los=giou")
    assert "these runs differ in loss/loc; say which" in explain(tmp_path, two, "seed=0", "loss/loc=giou")


def one_of(make_run, name, **facts):
    setting(make_run, name, f"optimizer.weight_decay={len(name)}", **facts)
    return name
