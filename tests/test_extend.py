"""`onebox-train extend=RUN`: a run that trains on from another's end gives the bits of one that was never interrupted."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput
from onebox.like import with_run
from onebox.runs import extension
from onebox.runs.fingerprint import fingerprint
from onebox.runs.reading.find import read_run

# What there is to lose: averaged weights, weights that follow the losses, dropout, early stopping's count, the orders of
# later epochs.
COMMON = shlex.split("""
    data.source=null data.batch_size=8 image_size=24 model.backbone.dropout=0.3 augment=flip optimizer.lr=0.003
    callbacks/ema=default callbacks.ema.decay=0.8 callbacks/early_stopping=default callbacks/progress=lines
    callbacks.pictures=null loss/weighting=dwa trainer.accelerator=cpu
""")
EACH_EPOCH = "callbacks.checkpoint_last.epoch_seconds=0"


@pytest.fixture(scope="module")
def runs(nursery, shapes_root, tmp_path_factory):
    """Starts runs by name in one folder, which is `runs.folder`; two epochs are `first`, four at once `whole`."""
    folder = tmp_path_factory.mktemp("extend")

    def start(name, *arguments, code=0, **options):
        arguments = [f"data.cache_dir={folder / 'cache'}", *arguments]
        log = folder / f"{name}.log"
        log.unlink(missing_ok=True)
        place = [] if "-m" in arguments else [f"hydra.run.dir={folder / name}"]
        assert nursery.run(*arguments, *place, log=log, **options) == code, log.read_text()
        return log.read_text()

    data = [f"data.root={shapes_root}", *COMMON]
    start("first", *data, "trainer.max_epochs=2")
    start("whole", *data, "trainer.max_epochs=4")
    start("extended", f"extend={folder / 'first'}", "trainer.max_epochs=4", EACH_EPOCH)
    other = ["scheduler=cosine", "scheduler.warmup=0", "optimizer.lr=0.03", "data.batch_size=16"]
    start("changed", f"extend={folder / 'first'}", "trainer.max_epochs=4", *other)
    return SimpleNamespace(start=start, folder=folder, data=data)


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def assert_same(one, other):
    for name in ("metrics.json", "metrics.csv", "trace.csv", "predictions.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for key in ("final_weights", "fingerprint", "fingerprint_seedless", "data_fingerprint"):
        assert facts(one)[key] == facts(other)[key], key
    for name in ("state_dict", "current_model_state", "fit", "optimizer_states", "loops"):
        assert str(last(one).get(name)) == str(last(other).get(name)), name


def test_two_epochs_and_two_more_give_the_bits_of_four(runs):
    first, whole, extended = (runs.folder / name for name in ("first", "whole", "extended"))
    assert_same(extended, whole)
    assert len((extended / "metrics.csv").read_text().splitlines()) == 5
    assert (extended / "trace.csv").read_text().startswith((first / "trace.csv").read_text())
    parent = {key: value for key, value in facts(extended).items() if key.startswith("parent")}
    expected = {"parent": str(first), "parent_how": "extend", "parent_fingerprint": facts(first)["fingerprint"]}
    assert parent == expected
    assert facts(first)["config"]["trainer"]["max_epochs"] == 2
    best = torch.load(extended / "checkpoints/best.ckpt", weights_only=True)["onebox"]
    assert (best["fingerprint"], best["config"]["run_dir"]) == (facts(extended)["fingerprint"], str(extended))


# A schedule that follows what is validated, weights that are trained, gradients of two steps, stored features, a worker.
OTHER = shlex.split("""
    scheduler=plateau scheduler.patience=0 loss/weighting=uncertainty +trainer.accumulate_grad_batches=2
    trainer.check_val_every_n_epoch=2 augment=batched_flip data.num_workers=1 data.views=2 callbacks/freeze=backbone
""")


def test_a_run_that_is_extended_twice_gives_the_bits_of_one(runs):
    runs.start("one", *runs.data, *OTHER, "trainer.max_epochs=1")
    runs.start("two", f"extend={runs.folder / 'one'}", "trainer.max_epochs=2")
    runs.start("four", f"extend={runs.folder / 'two'}", "trainer.max_epochs=4")
    runs.start("straight", *runs.data, *OTHER, "trainer.max_epochs=4")
    assert_same(runs.folder / "four", runs.folder / "straight")
    assert facts(runs.folder / "four")["parent"] == str(runs.folder / "two")


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_killed_in_the_middle_it_resumes_to_the_same_bits(runs, share):
    name, extend = f"killed{share}", [f"extend={runs.folder / 'first'}", "trainer.max_epochs=4", EACH_EPOCH]
    moments = len((runs.folder / "extended.log.moments").read_text().splitlines())
    runs.start(name, *extend, code=-9, hit_at=int(share * moments))
    runs.start(name, f"resume={runs.folder / name}")
    assert_same(runs.folder / name, runs.folder / "whole")
    assert facts(runs.folder / name)["parent_how"] == "extend"


def test_another_schedule_begins_at_the_point_of_extension(runs):
    first, changed = runs.folder / "first", runs.folder / "changed"
    assert (changed / "trace.csv").read_text().startswith((first / "trace.csv").read_text())
    steps = [line.split(",")[:2] for line in (changed / "trace.csv").read_text().splitlines()[1:]]
    per_epoch = [sum(epoch == str(number) for _, epoch in steps) for number in range(4)]
    assert per_epoch == [6, 6, 3, 3]
    schedule = last(changed)["lr_schedulers"][0]
    assert schedule["last_epoch"] == per_epoch[2] + per_epoch[3] and schedule["base_lrs"] == [0.03]
    (group,) = last(changed)["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(0, abs=1e-9) and group["initial_lr"] == 0.03  # all of the cosine was run
    config, identity = facts(changed)["config"], facts(first)["fingerprint"]
    assert (config["extend"]["fingerprint"], config["extend"]["epochs"]) == (identity, 2)
    rules = config["fingerprint_ignore"], config["fingerprint_neutral"]
    assert fingerprint(config | {"extend": {"fingerprint": None}}, *rules) != facts(changed)["fingerprint"]


BAD = {
    "": "the run has 2 epochs; give trainer.max_epochs, which counts them too, a larger number than 2",
    "model/loc_head=edges trainer.max_epochs=4": "model.loc_head._target_.* cannot change within a run; init=RUN",
    "trainer.max_epochs=4 -m model/loc_head=edges,spatial": "model.loc_head cannot change",
    "trainer.max_epochs=4 init=FIRST": "give extend=RUN once, and alone",
    "trainer.max_epochs=4 like=FIRST": "once, and alone",
    "trainer.max_epoch=4": "no key trainer.max_epoch, did you mean trainer.max_epochs",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_a_checkpoint_does_not_fit_is_one_line(runs, arguments):
    first = str(runs.folder / "first")
    with pytest.raises(BadInput, match=BAD[arguments]) as told:
        with_run([f"extend={first}", *arguments.replace("FIRST", first).split()])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("trainer.max_epochs", 1, "a larger number than 1"),
        ("optimizer._target_", "torch.optim.SGD", "optimizer._target_ cannot change within a run; init=RUN"),
        ("image_size", 48, "image_size cannot change"),
        ("data.limit", 10, "data.limit cannot change"),
        ("callbacks.ema", None, "callbacks.ema.* cannot change"),
        ("monitor", "val/iou", "monitor cannot change"),
        ("callbacks.checkpoint_last", None, "needs callbacks.checkpoint_last"),
        *((key, "another", None) for key in ("optimizer.lr", "augment", "seed", "data.batch_size", "callbacks.freeze")),
    ],
)
def test_what_may_change_within_a_run(runs, key, value, words):
    checkpoint = extension.last_checkpoint(runs.folder / "first")
    config = OmegaConf.create(checkpoint["onebox"]["config"])
    OmegaConf.update(config, "trainer.max_epochs", 4)
    OmegaConf.update(config, key, value, merge=False)
    config = OmegaConf.to_container(config)
    if words:
        with pytest.raises(BadInput, match=words):
            extension.check_changes(checkpoint, config)
    else:
        assert {name.split(".")[0] for name in extension.check_changes(checkpoint, config)} == {
            "trainer",
            key.split(".")[0],
        }


@pytest.fixture
def first(runs, tmp_path):
    """A copy that a test may change."""
    extension.last_checkpoint.cache_clear()
    yield Path(shutil.copytree(runs.folder / "first", tmp_path / "first"))
    extension.last_checkpoint.cache_clear()


def edit(run, **changes):
    (run / "run.json").write_text(json.dumps(facts(run) | changes))


def test_only_a_completed_run_with_its_checkpoint_is_extended(first, runs):
    def refused(words):
        extension.last_checkpoint.cache_clear()
        run = read_run(first)
        with pytest.raises(BadInput, match=words):
            extension.extension(run, run.record["config"], [], [])

    for status, words in {"interrupted": "resume=", "failed": "resume=", "running": "is died; resume="}.items():
        edit(first, status=status)
        refused(words)
    edit(first, status="pruned")
    refused("is pruned; like=")
    edit(first, status="completed")
    content = last(first)
    torch.save(content | {"fit": content["fit"] | {"done": False}}, first / "checkpoints/last.ckpt")
    refused("is not of the end of the run")
    torch.save(content | {"fit": content["fit"] | {"trained": {}}}, first / "checkpoints/last.ckpt")
    refused("holds the averaged weights alone")
    shutil.copy(runs.folder / "whole/checkpoints/last.ckpt", first / "checkpoints/last.ckpt")
    refused("belongs to a run of another config")
    (first / "checkpoints/last.ckpt").write_bytes(b"x")
    refused("cannot be read")
    (first / "checkpoints/last.ckpt").unlink()
    refused("last.ckpt: no such file; extend=RUN trains on from it; like=")
    edit(first, checkpoints_removed="2026-01-01T00:00")
    refused("removed by onebox prune on 2026-01-01")


def test_a_schedule_that_has_ended_is_refused_unless_another_is_given(runs):
    changed = f"extend={runs.folder / 'changed'}"
    with pytest.raises(BadInput, match=r"its schedule .*cosine.* has come to its end; give one for the epochs to come"):
        with_run([changed, "trainer.max_epochs=6"])
    for given in ("scheduler=none", "scheduler=cosine", "scheduler.warmup=0.1"):
        (text,) = [text for text in with_run([changed, "trainer.max_epochs=6", given]) if text.startswith("extend=")]
        assert facts(runs.folder / "changed")["fingerprint"] in text and "epochs:4" in text.replace(" ", "")


def test_early_stopping_that_has_ended_a_run_is_refused_unless_it_is_another(first):
    extend, content = [f"extend={first}", "trainer.max_epochs=4"], last(first)
    (state,) = (state for name, state in content["callbacks"].items() if name.startswith("EarlyStopping"))
    state["wait_count"] = state["patience"]  # in the very last epoch
    torch.save(content, first / "checkpoints/last.ckpt")
    with pytest.raises(BadInput, match="early stopping has ended the run after 2 epochs"):
        with_run(extend)
    (text,) = [text for text in with_run([*extend, "callbacks/early_stopping=none"]) if text.startswith("extend=")]
    assert facts(first)["fingerprint"] in text


def test_stored_features_that_a_longer_run_would_not_take_make_another_result(runs):
    checkpoint = extension.last_checkpoint(runs.folder / "first")
    config = OmegaConf.to_container(OmegaConf.create(checkpoint["onebox"]["config"]))
    config["callbacks"]["freeze"] = {"unfreeze": [[3, "all"]]}
    assert not extension._stores_frozen(config)  # features are not stored
    config["data"]["views"] = 2
    assert extension._stores_frozen(config)
    assert not extension._stores_frozen(config | {"data": config["data"] | {"features": "off"}})
    config["callbacks"]["freeze"]["unfreeze"] = [[1, "all"]]
    assert not extension._stores_frozen(config)


def test_a_sweep_extends_a_run_and_finds_what_is_done(runs):
    extend, place = f"extend={runs.folder / 'first'}", f"hydra.sweep.dir={runs.folder / 'sweep'}"
    runs.start("sweep", "-m", extend, "trainer.max_epochs=3,4", "optimizer.lr=0.003", place)
    jobs = {
        facts(path.parent)["config"]["trainer"]["max_epochs"]: path.parent
        for path in runs.folder.glob("sweep/*/run.json")
    }
    assert sorted(jobs) == [3, 4]
    assert_same(jobs[4], runs.folder / "whole")
    told = runs.start("sweep2", "-m", extend, "trainer.max_epochs=4", "optimizer.lr=0.001,0.002", place)
    rates = {facts(path.parent)["config"]["optimizer"]["lr"] for path in runs.folder.glob("sweep/*/run.json")}
    assert rates == {0.003, 0.001, 0.002}, told
    for path in runs.folder.glob("sweep/*/run.json"):
        (group,) = last(path.parent)["optimizer_states"][0]["param_groups"]
        assert group["lr"] == facts(path.parent)["config"]["optimizer"]["lr"]
    told = runs.start("sweep3", "-m", extend, "trainer.max_epochs=1,4", place, code=1)
    assert "the run has 2 epochs; give trainer.max_epochs" in told


def test_a_run_like_one_that_was_extended(runs, composed):
    def config(name):
        arguments = with_run([f"like={runs.folder / name}", "trainer.accelerator=cpu"])
        return OmegaConf.to_container(composed(*arguments, small=False), resolve=True)

    for name in ("extended", "changed"):
        found = config(name)
        rules = found["fingerprint_ignore"], found["fingerprint_neutral"]
        assert fingerprint(found, *rules) == facts(runs.folder / name)["fingerprint"]
    assert config("extended")["extend"]["run"] is None  # it is a run of four epochs
    assert config("changed")["extend"]["run"] == str(runs.folder / "first")


def onebox(*arguments, code=0):
    result = CliRunner(env={"ONEBOX_DATA_DIR": str(Path(arguments[1]).parent / "data")}).invoke(
        app, [*map(str, arguments)]
    )
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def test_tables_diffs_and_reports_show_the_parent(runs):
    first, whole, extended = (runs.folder / name for name in ("first", "whole", "extended"))
    document = json.loads(onebox("diff", whole, extended, "--json", "--outputs", runs.folder))
    assert document["same"] and document["runs"][1]["parent"] == f"extends {first}"
    assert f"extends {first}" in onebox("diff", whole, extended, "--outputs", runs.folder)
    rows = json.loads(onebox("runs", "--outputs", runs.folder, "--json"))["rows"]
    parents = {Path(row["run"]).name: (row["parent_how"], row["parent"]) for row in rows}
    assert parents["extended"] == ("extend", str(first)) and parents["first"] == (None, None)
    assert "extends <code>" in (extended / "report.html").read_text()
    assert not any("extend=" in row["overrides"] for row in rows)


def test_reproduce_trains_the_whole_or_both_parts(runs, tmp_path):
    def verdict(name, *arguments):
        return json.loads(onebox("reproduce", runs.folder / name, "--json", "--out", tmp_path / name, *arguments))

    first, away = runs.folder / "first", tmp_path / "away"
    first.rename(away)
    try:
        assert verdict("extended")["verdict"] == "identical"
        with pytest.raises(
            BadInput, match=f"extends the run {facts(away)['fingerprint']}, which is not at .*first any more"
        ):
            verdict("changed")
    finally:
        away.rename(first)
    told = verdict("changed")
    assert (told["verdict"], told["steps"]) == (
        "identical",
        len((runs.folder / "changed/trace.csv").read_text().splitlines()) - 1,
    )
    shutil.rmtree(tmp_path / "changed")
    assert verdict("changed", "--steps", "3")["verdict"] == "identical"
