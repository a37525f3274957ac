import itertools
import json
import logging

import pytest
import torch
from torch import nn

from onebox.errors import BadInput
from onebox.model import tiny_cnn
from onebox.module import LocalizationModule
from onebox.train import train

SHORT = ["debug=fast", "callbacks/progress=lines", "callbacks.pictures=null", "optimizer=adamw"]
DROPOUT = 0.3


@pytest.fixture
def fit(composed, tmp_path, monkeypatch):
    """Trains the tiny CNN with norms; gives the backbone's state at the beginning and after each epoch."""
    original = tiny_cnn.TinyCnn

    def with_norms(**arguments):
        net = original(**arguments)
        for number, width in zip(range(2, len(net.blocks), 3), arguments["widths"], strict=True):
            net.blocks[number] = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        net.stage_of = lambda name: "fc" if name.startswith("fc") else f"blocks.{int(name.split('.')[1]) // 3 * 3}"
        return net

    def snapshot(module):
        return {name: value.clone() for name, value in module.localizer.backbone.state_dict().items()}

    def go(*overrides):
        states = []
        start, end = LocalizationModule.on_train_start, LocalizationModule.on_train_epoch_end
        with monkeypatch.context() as patch:
            patch.setattr(tiny_cnn, "TinyCnn", with_norms)
            patch.setattr(
                LocalizationModule, "on_train_start", lambda self: states.append(snapshot(self)) or start(self)
            )
            patch.setattr(
                LocalizationModule, "on_train_epoch_end", lambda self: states.append(snapshot(self)) or end(self)
            )
            train(composed(*SHORT, f"model.backbone.dropout={DROPOUT}", *overrides))
        return states

    return go


def moved(before, after) -> set[str]:
    """Layers with something that changed, as `blocks.0`; statistics of norms as `statistics 0`."""
    names = {name for name in before if not torch.equal(before[name], after[name])}
    return {
        f"statistics {name.split('.')[1]}" if "running" in name or "num_batches" in name else name.rpartition(".")[0]
        for name in names
    }


def layers(*numbers: int, statistics: bool = True) -> set[str]:
    found = {f"blocks.{3 * number}" for number in numbers} | {f"blocks.{3 * number + 2}.0" for number in numbers}
    return found | {f"statistics {3 * number + 2}" for number in numbers if statistics}


def test_frozen_weights_and_norm_statistics_keep_their_bits(fit, tmp_path):
    start, *_, end = fit("callbacks/freeze=backbone")
    assert moved(start, end) == set()
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    (optimizer,) = checkpoint["optimizer_states"]
    names = [name for name in checkpoint["state_dict"] if "running" not in name and "num_batches" not in name]
    assert {names[number].split(".")[1] for number in optimizer["state"]} == {"loc_head", "cls_head"}


def test_stages_are_trained_from_their_epoch_on_and_norms_in_eval_mode_keep_their_statistics(fit):
    stages = ["callbacks/freeze=heads_first", "trainer.max_epochs=3"]
    states = fit(*stages, "callbacks.freeze.unfreeze=[[1,blocks.9],[2,all]]")
    heads, last, everything = (moved(*pair) for pair in itertools.pairwise(states))
    assert (heads, last, everything) == (set(), layers(3) | {"fc.2"}, layers(0, 1, 2, 3) | {"fc.2"})
    eval_mode = [
        "callbacks.freeze.norms=eval",
        "callbacks.freeze.unfreeze=[[0,blocks.6]]",
        "run_dir=${data.cache_dir}/2",
    ]
    start, *_, end = fit(*stages, *eval_mode)
    assert moved(start, end) == layers(2, 3, statistics=False) | {"fc.2"}


def test_what_is_frozen_drops_nothing(composed, monkeypatch):
    modes = []
    forward = nn.Dropout.forward
    monkeypatch.setattr(
        nn.Dropout, "forward", lambda self, x: modes.append((self.p, self.training)) or forward(self, x)
    )
    freeze = ["callbacks/freeze=heads_first", "callbacks.freeze.unfreeze=[[1,fc]]"]
    train(composed(*SHORT, "trainer.limit_val_batches=1", "model.backbone.dropout=0.3", *freeze))
    seen = [mode for p, mode in modes if p == DROPOUT]
    assert seen[:8] == [False] * 4 + [True] * 3 + [False]  # three steps and a validation, twice


def test_it_is_said_what_is_trained_from_when_on(composed, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    stages = ["callbacks/freeze=heads_first", "callbacks.freeze.unfreeze=[[1,fc],[3,all]]"]
    train(composed(*SHORT, *stages, "trainer.max_epochs=3"))
    said = [line for line in caplog.messages if "trained" in line]
    weights = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    sizes = {name.removeprefix("localizer."): value.numel() for name, value in weights.items()}
    heads, fc = (
        sum(size for name, size in sizes.items() if name.startswith(parts))
        for parts in (("loc_head", "cls_head"), ("loc_head", "cls_head", "backbone.fc"))
    )
    everything = sum(sizes.values())
    assert said == [
        "callbacks.freeze: the backbone until blocks.9 is never trained, epoch 3 is beyond trainer.max_epochs=3 "
        "(counted from 0)",
        f"trained from epoch 0: the heads, {heads:,} of {everything:,} parameters",
        f"trained from epoch 1: the heads and the backbone from fc on, {fc:,} of {everything:,} parameters",
    ]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [record["trained_parameters"], record["parameters"]] == [fc, everything]
    assert f"{everything:,} parameters, {fc:,} of them trained" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("unfreeze", "told"),
    [
        ("[[1,layer4]]", "has no stage layer4; it has blocks.0, blocks.3, blocks.6, blocks.9, fc, and all"),
        ("[5,all]", "must be pairs such as"),
        ("[[-1,all]]", "must be pairs such as"),
    ],
)
def test_what_cannot_be_unfrozen_is_refused(composed, unfreeze, told):
    with pytest.raises(Exception, match=told) as error:
        train(composed(*SHORT, "callbacks/freeze=backbone", f"callbacks.freeze.unfreeze={unfreeze}"))
    assert isinstance(error.value, BadInput) or isinstance(error.value.__cause__, BadInput)
