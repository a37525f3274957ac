"""Two configs that cannot give different results have one fingerprint; any other change gives another."""

import copy
import json
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from onebox.runs.fingerprint import COUNT_OR_SHARE, Ignored, fingerprint, fingerprints, flatten, same

sys.path.insert(0, str(Path(__file__).parent))
import locked

CHOICES = [
    [],
    ["experiment=baseline", "data=voc0712", "callbacks/early_stopping=default", "loss/loc=giou"],
    ["data=folder", "augment=strong", "optimizer=sgd", "scheduler=cosine", "callbacks/progress=lines"],
    ["loss/cls=balanced_cross_entropy"],
]


def composed(*overrides):
    cfg = locked.composed(*(["data.root=cards"] if "data=folder" in overrides else []), *overrides)
    del cfg._get_node("hydra")._content["callbacks"]
    return cfg


def plain(cfg):
    content = OmegaConf.to_container(cfg, resolve=False)
    del content["hydra"]
    return OmegaConf.to_container(OmegaConf.create(content), resolve=True)


@pytest.fixture(scope="module")
def configs():
    """Real configs, one for each option, resolved."""
    found = [plain(composed(*overrides)) for overrides in CHOICES]
    HydraConfig.instance().cfg = None
    return found


def of(config):
    return fingerprint(config, config["fingerprint_ignore"], config["fingerprint_neutral"])


def short(*overrides):
    return of(plain(composed(*overrides)))


RECORD = (
    "finished sweeps would no longer be found. Give a new key its neutral value in fingerprint_neutral (conf/train.yaml), a "
    "class that moved its old name in MOVED (runs/fingerprint.py); or, on purpose: python tests/runs/locked.py"
)


def test_the_fingerprints_of_all_experiments_and_of_a_sweep_are_those_that_were_recorded():
    stored = json.loads(locked.FILE.read_text())
    shown = [text for text in stored if text.startswith(("experiment=", "sweep=box_loss")) or not text]
    changed = [text for text in shown if locked.fingerprint_of(*text.split()) != stored[text]]
    assert not changed, RECORD


@pytest.mark.long
def test_the_fingerprints_of_all_jobs_of_all_sweeps_are_those_that_were_recorded():
    assert locked.current() == json.loads(locked.FILE.read_text()), RECORD


def test_a_key_at_its_neutral_value_counts_as_absent_and_any_other_value_counts():
    added = "+optimizer.later={warm:0,kind:none}"
    assert short(added) != short()
    assert short(added, "+fingerprint_neutral.optimizer.later={warm:0,kind:none}") == short()
    assert short(added, "+fingerprint_neutral.optimizer.later={warm:0.0}") != short()
    assert short(added, "+fingerprint_neutral.optimizer.later={warm:1,kind:none}") != short()
    assert short("optimizer.lr=0.1", "+fingerprint_neutral.optimizer.lr=0.2") == short("optimizer.lr=0.1")
    assert short("+fingerprint_neutral.data.any=1") == short()


def test_a_class_that_moved_keeps_its_fingerprint():
    one = short("callbacks/early_stopping=default")
    old = "callbacks.early_stopping._target_=lightning.pytorch.callbacks.EarlyStopping"
    assert one == short("callbacks/early_stopping=default", old)


def test_what_cannot_change_a_result_does_not_change_the_fingerprint():
    assert short() == short(
        *("run_dir=elsewhere", "data.num_workers=2", "logger=csv", "callbacks/progress=lines", "name=other"),
        *("data.root=/elsewhere", "data_dir=there", "callbacks.checkpoint_last=null", "hparams=[]"),
    )
    for service in ("wandb", "mlflow"):
        assert short() == short(f"logger={service}", f"logger.{service}.timeout_s=1")
    assert short("loss.weights.loc=10") == short("loss.weights.loc=10.0")
    assert short("image_size=64") == short("image_size=64", "augment.resize.size=64", "model.backbone.image_size=64")
    voc = "data.source.archives.voc2007_test.urls=[http://mirror/x.tar]"
    assert short("data=voc2007") == short("data=voc2007", "voc_root=/big", voc, "data.source.timeout_s=5")


@pytest.mark.parametrize(
    "change",
    [
        *("seed=1", "optimizer.lr=0.0010001", "model/box_coder=xywh", "data.limit=10", "model.backbone.dropout=0.1"),
        *("data.source.num_train=1999", "data.source=null", "+trainer.accumulate_grad_batches=2", "data.seed=7"),
    ],
)
def test_what_can_change_a_result_changes_the_fingerprint(change):
    assert short(change) != short()


def test_a_folder_of_ones_own_is_told_by_its_path_however_that_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = short("data=folder", "data.root=cards")
    assert one == short("data=folder", f"data.root={tmp_path}/cards/")
    assert one != short("data=folder", "data.root=other")


def test_one_batch_is_not_all_batches():
    assert short("trainer.limit_train_batches=1") != short("trainer.limit_train_batches=1.0")


def test_seeds_differ_in_the_fingerprint_and_not_in_the_seedless_one():
    def both(*overrides):
        cfg = composed(*overrides)
        with_seed = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
        del with_seed["hydra"]
        return fingerprints(with_seed)

    zero, one, held = both(), both("seed=1"), both("data.seed=0")
    assert zero["fingerprint"] != one["fingerprint"]
    assert zero["fingerprint_seedless"] == one["fingerprint_seedless"]
    # The holdout and the order of all its seeds are those of seed 0.
    assert held["fingerprint"] == zero["fingerprint"]
    assert held["fingerprint_seedless"] != zero["fingerprint_seedless"]


def changed(value, draw):
    """A value that means something else."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + draw(st.sampled_from([1, -1, 0.5, 1e-7 * max(1.0, abs(value))]))
    if isinstance(value, str):
        return value + draw(st.sampled_from(["x", " ", "0"]))
    if isinstance(value, list) and value:
        return value[1:]
    return draw(st.sampled_from([0, "", "null", False, [1]]))


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_key_of_any_real_config_counts_unless_it_is_listed(configs, data):
    config = data.draw(st.sampled_from(configs))
    key, value = data.draw(st.sampled_from([*flatten(config)]))
    *parents, last = key.split(".")
    other = copy.deepcopy(config)
    node = other
    for parent in parents:
        node = node[parent]
    node[last] = changed(value, data.draw)
    rules = config["fingerprint_ignore"]
    listed = Ignored(config, rules)(tuple(key.split(".")))
    neutral = config["fingerprint_neutral"]
    assert (fingerprint(other, rules, neutral) == of(config)) is listed, (key, value, node[last])
    assert not same(key, value, node[last])
    del node[last]
    absent = key in dict(flatten(neutral))  # it has its neutral value, as in all configs here
    assert (fingerprint(other, rules, neutral) == of(config)) is (listed or absent), key


def test_the_order_of_keys_says_nothing_and_their_types_do():
    assert fingerprint({"a": {"b": 1, "c": 2}, "d": 0}, []) == fingerprint({"d": 0, "a": {"c": 2.0, "b": 1}}, [])
    assert fingerprint({"a": True}, []) != fingerprint({"a": 1}, [])
    assert fingerprint({"1": 0}, []) != fingerprint({1: 0}, [])
    for other in ({"a": {"x": 7}}, {"a": {}}, {}):
        assert fingerprint({"a": {"x": 1, "y": 2}, "ab": 1}, ["a"]) == fingerprint({**other, "ab": 1}, ["a"])


def test_every_rule_meets_a_key_of_some_option(configs):
    # The keys themselves and all above them.
    paths = [
        (Ignored(config, []), {tuple(key.split(".")[:end]) for key, _ in flatten(config) for end in range(1, 9)})
        for config in configs
    ]
    rules = configs[0]["fingerprint_ignore"]
    for rule in rules:
        bare = rule.partition(" if ")[0]
        assert any(Ignored({}, [bare])(path) for _, found in paths for path in found), rule


def test_the_keys_whose_type_has_a_meaning_are_lightnings():
    import inspect

    from lightning.pytorch import Trainer

    assert {
        name
        for name, item in inspect.signature(Trainer.__init__).parameters.items()
        if "int" in str(item.annotation) and "float" in str(item.annotation) and name != "gradient_clip_val"
    } == COUNT_OR_SHARE
