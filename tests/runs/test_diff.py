"""`onebox diff` says what changed, what followed from it, and whether it did anything."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput
from onebox.runs.reading import diff_view
from onebox.runs.reading.changes import compare, without_harmless
from onebox.runs.reading.diff import diff
from onebox.runs.reading.find import read_run
from onebox.runs.reading.noise import Band, judge


def changes(*paths):
    return without_harmless(compare([read_run(path) for path in paths]))


def tree(items):
    return {item.key: tree(item.follows) for item in items}


def text(*paths, outputs, **kwargs):
    everything = kwargs.pop("everything", False)
    document = diff([read_run(path) for path in paths], outputs, everything=everything)
    return document, diff_view.markdown(document, everything=everything)


def test_equal_after_resolving_is_equal(make_run):
    a = make_run("a", "loss/loc=l1", "optimizer.lr=0.001", "image_size=100.0")
    b = make_run("b", "data.num_workers=4", "name='other'", "data.root='/elsewhere'", "logger=csv")
    relevant, hidden = changes(a, b)
    assert relevant == [] and hidden == 4


def test_keys_stand_below_what_brought_them_along_and_what_was_typed_for_itself(make_run):
    typed = ["loss/loc=giou", "loss.weights.loc=3.0", "seed=1", "image_size=64", "optimizer=sgd", "optimizer.lr=0.1"]
    relevant, _ = changes(make_run("a"), make_run("b", *typed))
    found = tree(relevant)
    assert found.pop("optimizer").keys() == {"optimizer._target_", "optimizer.momentum", "optimizer.weight_decay"}
    assert found == {
        "loss/loc": {"loss.loc._target_": {}, "loss.loc.criterion._target_": {}, "loss.loc.criterion.eps": {}},
        "loss.weights.loc": {},
        "optimizer.lr": {},
        "seed": {"data.seed": {}},
        "image_size": {"augment.resize.height": {}, "model.backbone.image_size": {}},
    }
    assert relevant[0].values == ("l1", "giou")


def test_an_experiment_brings_its_keys_and_groups_along(make_run):
    b = make_run("b", "experiment=baseline", by_experiment=["optimizer=sgd"])
    relevant, _ = changes(make_run("a"), b)
    assert tree(relevant).keys() == {"experiment"}
    followers = tree(relevant)["experiment"]
    assert followers.keys() == {"model.backbone.dropout", "trainer.max_epochs", "optimizer"}
    assert "optimizer.momentum" in followers["optimizer"]
    # Against another run of the experiment, only what was typed.
    c = make_run("c", "experiment=baseline", "trainer.max_epochs=3", by_experiment=["optimizer=sgd"])
    assert tree(changes(b, c)[0]) == {"trainer.max_epochs": {}}


def test_a_default_that_moved_with_the_code_is_told_from_an_override(make_run, tmp_path):
    a = make_run("a", "optimizer.lr=0.01")
    b = make_run("b", defaults={"trainer.max_epochs": 40}, source="bbbbbbbbbbbb")
    relevant, _ = changes(a, b)
    assert {item.key: item.origin for item in relevant} == {"optimizer.lr": "override", "trainer.max_epochs": "default"}
    _, shown = text(a, b, outputs=tmp_path / "outputs")
    head, _, tail = shown.partition("defaults that changed with the code")
    assert "optimizer.lr" in head and "trainer.max_epochs  30 → 40" in tail


def test_of_three_runs_what_varies_while_its_choice_stays_does_not_follow_from_it(make_run, tmp_path):
    c = make_run("c", defaults={"optimizer.weight_decay": 0.5}, source="bbbbbbbbbbbb")
    paths = make_run("a"), make_run("b", "optimizer=sgd"), c
    moved = {item.key: item.origin for item in changes(*paths)[0]}
    assert moved == {"optimizer": "override", "optimizer.weight_decay": "default"}
    assert "0.0  |  0.0005  |  0.5" in text(*paths, outputs=tmp_path / "outputs")[1]


@pytest.mark.parametrize(
    ("tag", "one", "other", "expected"),
    [
        ("test/acc", Band(1, 0.5, None), Band(1, 0.9, None), "noise unknown"),
        ("test/acc", Band(3, 0.5, 0.01), Band(3, 0.6, 0.01), "better"),
        ("test/loss", Band(3, 0.5, 0.01), Band(3, 0.6, 0.01), "worse"),
        ("val/loc_l1", Band(3, 0.6, 0.01), Band(3, 0.5, 0.01), "better"),
        # t(.975, 4) = 2.776; 2.776 * 0.01 * sqrt(2/3) = 0.02267
        ("test/acc", Band(3, 0.5, 0.01), Band(3, 0.5226, 0.01), "within noise"),
        ("test/acc", Band(3, 0.5, 0.01), Band(3, 0.5228, 0.01), "better"),
        # t(.975, 4) * 0.01 * sqrt(1/5 + 1) = 0.0304
        ("test/acc", Band(5, 0.5, 0.01), Band(1, 0.530, None), "within noise"),
        ("test/acc", Band(5, 0.5, 0.01), Band(1, 0.531, None), "better"),
        ("test/acc", Band(3, 0.5, 0.0), Band(3, 0.6, 0.0), "noise unknown"),
        ("test/acc", Band(3, 0.5, 0.1), Band(3, 0.5, 0.1), "same"),
    ],
)
def test_a_difference_is_held_against_the_noise_of_seeds(tag, one, other, expected):
    assert judge(tag, one, other) == expected


def test_other_seeds_of_the_same_config_and_code_give_the_noise(make_run, tmp_path):
    values = {"a": [0.50, 0.51, 0.49], "b": [0.60, 0.61, 0.59]}
    paths = {}
    for name, lr in (("a", 0.001), ("b", 0.01)):
        for seed, value in enumerate(values[name]):
            paths[name, seed] = make_run(f"{name}{seed}", f"optimizer.lr={lr}", f"seed={seed}", metrics={"acc": value})
    make_run("failed", "seed=7", "optimizer.lr=0.001", metrics={"acc": 0.0}, status="failed")
    make_run("other_code", "seed=8", "optimizer.lr=0.001", metrics={"acc": 0.0}, source="bbbbbbbbbbbb")
    moved = {"classes": "c", "pixels": "p", "train": "t", "val": "v", "test": "moved"}
    on_others = make_run("other", "seed=9", "optimizer.lr=0.001", metrics={"acc": 0.0}, data_fingerprint=moved)
    outputs = tmp_path / "outputs"
    document, shown = text(paths["a", 0], paths["b", 0], outputs=outputs)
    (row,) = document["metrics"]
    assert (
        row["seeds"] == [3, 3] and row["means"] == pytest.approx([0.5, 0.6]) and row["sds"] == pytest.approx([0.01] * 2)
    )
    assert row["verdicts"] == ["better"]
    assert "0.5000 ± 0.0100 (3)" in shown
    # On other images a difference is no noise of seeds.
    document, _ = text(paths["a", 0], on_others, outputs=outputs)
    assert document["metrics"][0]["verdicts"] == ["other images"] and document["metrics"][0]["seeds"] == [3, 1]
    # Two seeds of one config differ by noise, whatever the numbers.
    document, _ = text(paths["a", 0], paths["a", 1], outputs=outputs)
    assert document["metrics"][0]["verdicts"] == ["within noise"]
    document, shown = text(paths["a", 0], make_run("c", "optimizer.lr=9", metrics={"acc": 0.9}), outputs=tmp_path / "x")
    assert "A over seeds" in shown  # found beside it, too


def test_metrics_on_other_images_are_not_judged(make_run, tmp_path):
    prints = {
        "classes": "c",
        "pixels": "p",
        "train": "t",
        "val": "v",
        "test": "changed",
        "files": "new",
    }  # older runs have none
    a = make_run("a", metrics={"acc": 0.5})
    b = make_run("b", metrics={"acc": 0.9}, data_fingerprint=prints)
    document, shown = text(a, b, outputs=tmp_path)
    assert document["data"]["parts"] == ["test"] and "other images" in shown
    assert "not known which samples" in shown


def test_code_environment_and_outside_git_are_told(make_run, tmp_path):
    a = make_run("a", git=None, source="bbbbbbbbbbbb")
    b = make_run("b", packages={"torch": "2.15.0", "numpy": "2.2.0"}, environment={"OMP_NUM_THREADS": "1"})
    document, shown = text(a, b, outputs=tmp_path)
    assert "code         not from git → 1111111111" in shown
    assert (
        "torch (package)   2.14.1 → 2.15.0" in shown and "$OMP_NUM_THREADS  null → 1" in shown and "numpy" not in shown
    )
    assert not document["same"]


def test_git_gets_no_option_from_a_record(make_run, tmp_path):
    git = {"sha": f"--output={tmp_path / 'victim'}", "dirty": False}
    a, b = make_run("a", source="bbbbbbbbbbbb", git=git), make_run("b", git={**git, "sha": "HEAD"})
    document, _ = text(a, b, outputs=tmp_path)
    assert document["code"]["files"] == document["code"]["between"] == []
    assert not list(tmp_path.glob("victim*"))


def test_the_command_answers_as_diff_does(make_run, tmp_path):
    a, same, b = make_run("a"), make_run("b", "data.num_workers=2"), make_run("c", "optimizer.lr=0.1")

    def invoke(*arguments):
        return CliRunner().invoke(app, ["diff", *map(str, arguments), "--outputs", str(tmp_path / "outputs")])

    assert invoke(a, same).exit_code == 0
    assert invoke(a, b).exit_code == 1
    assert invoke("latest~2", "latest~1", "--all").exit_code == 0
    assert isinstance(invoke(a, "nowhere").exception, BadInput)
    assert isinstance(invoke(a).exception, BadInput)
    assert isinstance(invoke(*[a] * 27).exception, BadInput)  # there is a letter for each
    document = json.loads(invoke(a, b, "--json").stdout)
    assert document["config"][0]["key"] == "optimizer.lr" and document["config"][0]["values"] == [0.001, 0.1]
    lines = invoke(a, b, "--markdown").stdout.splitlines()
    assert (lines[0], lines[-1]) == ("```text", "```") and "  optimizer.lr  0.001 → 0.1" in lines


def test_neither_torch_nor_omegaconf_is_imported(make_run, tmp_path):
    a, b = make_run("a", metrics={"acc": 0.5}), make_run("b", "optimizer.lr=0.1", metrics={"acc": 0.6})
    code = (
        "import atexit, sys; from onebox.cli import main\n"
        "heavy = {'torch', 'numpy', 'pandas', 'scipy', 'hydra', 'omegaconf', 'pydantic'}\n"
        "atexit.register(lambda: print('HEAVY', heavy & set(sys.modules)))\n"
        f"sys.argv = ['onebox', 'diff', {str(a)!r}, {str(b)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY set()", done.stderr
