"""`onebox-train like=RUN`: an earlier run's config with changes, as it was resolved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from onebox.errors import BadInput
from onebox.like import with_run
from onebox.overrides import read_arguments
from onebox.runs.fingerprint import fingerprint
from onebox.validation import validate


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of a run of today, the newest below outputs/, whose record a test may change."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "outputs/default/run"))


def edit(run: Path, **facts):
    record = json.loads((run / "run.json").read_text())
    config = record["config"]
    for key, value in facts.pop("config", {}).items():
        OmegaConf.update(cfg := OmegaConf.create(config), key, value, force_add=True, merge=False)
        config = OmegaConf.to_container(cfg)
    (run / "run.json").write_text(json.dumps(record | facts | {"config": config}))
    return config


def composed_like(composed, *arguments):
    overrides = [text for text in read_arguments(with_run([*arguments])) if not text.startswith("-")]
    config = OmegaConf.to_container(composed(*overrides, small=False), resolve=True)
    return config, fingerprint(config, config["fingerprint_ignore"], config["fingerprint_neutral"])


def test_a_run_like_another_has_its_config_with_the_changes_that_are_typed(run, composed, capsys):
    recorded = json.loads((run / "run.json").read_text())
    for name in ("latest", recorded["fingerprint"][:6]):
        assert composed_like(composed, f"like={name}", "trainer.accelerator=auto")[1] == recorded["fingerprint"]
    assert composed_like(composed, "init=null", "like=latest", "trainer.accelerator=auto")[1] == recorded["fingerprint"]
    assert capsys.readouterr().err == ""
    assert not [text for text in with_run(["like=latest"]) if text.startswith(("data.cache_dir", "hydra", "resume"))]

    config, _ = composed_like(composed, "optimizer=sgd", "like=latest", "image_size=48")
    lr = composed("optimizer=sgd").optimizer.lr
    assert (config["optimizer"]["lr"], config["image_size"], config["data"]["batch_size"]) == (lr, 48, 8)
    assert "optimizer.lr=0.01 of the run belongs to a group that is chosen anew; left out" in capsys.readouterr().err
    config, _ = composed_like(composed, "optimizer=sgd", "like=latest", "optimizer.lr=0.3")
    assert config["optimizer"]["lr"] == 0.3

    edit(run, overrides=[*recorded["overrides"], "logger=wandb", "logger.wandb.options.project=mine"])
    assert not [text for text in with_run(["like=latest"]) if "wandb" in text]  # a new run is not uploaded unasked

    swept = with_run(["like=latest", "seed=0,1", "-m", "optimizer.lr=0.1,0.2"])
    assert [text for text in swept if "seed" in text or "lr" in text] == ["seed=0,1", "optimizer.lr=0.1,0.2"]
    assert "optimizer.lr=0.01" not in with_run(["sweep=lr", "like=latest"])  # it would take the sweep's axis away


def test_where_defaults_have_changed_the_run_is_as_it_was_resolved(run, composed, capsys):
    # As if today's YAML had other values and keys than that of the run.
    overrides = [text for text in json.loads((run / "run.json").read_text())["overrides"] if "image_size" not in text]
    changes = {"loss.weights.loc": 7.0, "callbacks.early_stopping": None, "optimizer.betas": [0.8, 0.99]}
    config = edit(run, config=changes | {"model.loc_head.pool": "none"}, overrides=overrides)
    found, _ = composed_like(composed, "like=latest", "trainer.accelerator=auto")
    for key in ("loss", "optimizer", "image_size", "scheduler", "model", "augment"):
        assert found[key] == config[key], key
    assert found["callbacks"]["early_stopping"] is None
    told = capsys.readouterr().err
    assert "defaults have changed since that run, so these are set: image_size=32 loss.weights.loc=7.0" in told
    assert "augment" not in told  # an interpolation still follows what is typed, and a group is still swapped
    found, _ = composed_like(composed, "like=latest", "optimizer=sgd", "image_size=64", "model/loc_head=spatial")
    assert found["augment"]["resize"]["size"] == 64
    assert "betas" not in found["optimizer"] and "pool" not in found["model"]["loc_head"]
    assert found["loss"]["weights"]["loc"] == 7.0


def test_a_choice_that_is_another_today_is_made_as_it_was(run, composed):
    record = json.loads((run / "run.json").read_text())
    sgd = OmegaConf.to_container(composed("optimizer=sgd", "optimizer.lr=0.01").optimizer, resolve=True)
    edit(run, choices=record["choices"] | {"optimizer": "sgd"}, config={"optimizer": sgd})
    assert "optimizer=sgd" in with_run(["like=latest"])
    assert composed_like(composed, "like=latest")[0]["optimizer"] == sgd


BAD = {
    "like=nowhere": "nowhere: no such run",
    "like=": "no such run|give",
    "init=nowhere": "nowhere: no such run",
    "like=latest like=latest": "give like=RUN once",
    "like=latest optimizer=agd": "optimizer=agd: no such option; did you mean sgd",
    "like=latest optimizer.lrr=1": "no key optimizer.lrr, did you mean optimizer.lr",
}
HOSTILE = {
    "+callbacks.x={_target_:os.mkdir,path:/x}": r"names os\.mkdir",
    "seed=1,2": "lists values, as no run does",
    "hydra.sweep.dir=/x": "must not override",
    "name=${oc.env:HOME}": "must not override",
    "callbacks.trace.path=/x": "writes to /x, outside of",
}


def test_what_cannot_be_composed_is_one_line(run):
    for arguments, words in BAD.items():
        with pytest.raises(BadInput, match=words):
            with_run(arguments.split())


def test_a_stored_run_names_no_class_command_or_place_of_its_own(run):
    for override, words in HOSTILE.items():
        edit(run, overrides=["data.source=null", override])
        with pytest.raises(BadInput, match=words):
            with_run(["like=latest"])
    edit(run, overrides=[], config={"callbacks.x": {"_target_": "os.mkdir", "path": "/x"}})
    with pytest.raises(BadInput, match=r"names os\.mkdir"):
        with_run(["like=latest"])
    edit(run, overrides=[], config={"loss.weights.loc": "${oc.env:HOME}"})
    with pytest.raises(BadInput, match="must not override"):
        with_run(["like=latest"])


def test_the_command_makes_a_new_run_and_leaves_the_old_one(nursery, run, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    arguments = [f"like={run}", "trainer.max_epochs=1", f"hydra.run.dir={new}", "callbacks.pictures=null"]
    assert nursery.run(*arguments, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    record = json.loads((new / "run.json").read_text())
    assert (record["config"]["trainer"]["max_epochs"], record["config"]["optimizer"]["lr"]) == (1, 0.01)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_init_begins_with_the_weights_of_a_run_and_redraws_heads_of_other_classes(
    nursery, run, tmp_path, shapes_root, composed
):
    new, log = tmp_path / "new", tmp_path / "log"
    short = ["trainer.max_epochs=1", "callbacks.pictures=null", f"like={run}", f"init={run}"]

    def start(folder, *arguments):
        log.unlink(missing_ok=True)
        code = nursery.run(*short, f"hydra.run.dir={folder}", *arguments, log=log)
        return code, log.read_text()

    assert start(new, "optimizer.lr=1e-30")[0] == 0, log.read_text()  # so small that nothing is learned
    states = [torch.load(path / "checkpoints/best.ckpt", weights_only=True)["state_dict"] for path in (run, new)]
    for name, value in states[0].items():
        if "running_" not in name and "num_batches" not in name:  # of the batch norms
            assert torch.equal(value, states[1][name]), name
    record = json.loads((new / "run.json").read_text())
    assert record["parent"] == str(run) and record["weights_fingerprint"] == record["config"]["init"]["weights"]
    assert record["fingerprint"] != json.loads((run / "run.json").read_text())["fingerprint"]

    assert str(run) in (new / "report.html").read_text()
    (swept,) = with_run([f"init={run},{new}"])
    parsed = OverridesParser.create().parse_override(swept).value()
    assert [part["run"].text for part in parsed.list] == [str(run), str(new)]
    with pytest.raises(BadInput, match="named so on the command line of onebox-train alone"):
        validate(composed("init=latest"))

    code, told = start(tmp_path / "x", "model.backbone.widths=[8,16,32,32]")
    assert code == 2 and "layers do not fit: " in told.splitlines()[-1] and "backbone." in told.splitlines()[-1]
    classes = ["data=folder", f"data.root={shapes_root}", "data.rename={circle: square}", "data.batch_size=8"]
    code, told = start(tmp_path / "y", *classes, "model/loc_head=per_class_box")
    assert code == 2 and "loc_head" in told.splitlines()[-1]
    code, told = start(tmp_path / "fewer", *classes)
    assert code == 0, told
    assert "init: 8 classes in place of 9; drawn anew: cls_head." in told and "loc_head." not in told
    (run / "checkpoints/best.ckpt").unlink()
    (run / "checkpoints/last.ckpt").unlink()
    code, told = start(tmp_path / "none")
    assert code == 2 and "no trained run" in told and len(told.splitlines()) == 1
