"""That only what is trained moves, and in which mode, is tested with every backbone in tests/model/test_backbones.py."""

import json
import logging

import pytest
import torch
from torch import nn

from onebox.errors import BadInput
from onebox.train import train

SHORT = ["debug=fast", "callbacks/progress=lines", "callbacks.pictures=null", "optimizer=adamw"]


def test_what_is_frozen_drops_nothing(composed, monkeypatch):
    modes = []
    forward = nn.Dropout.forward
    monkeypatch.setattr(
        nn.Dropout, "forward", lambda self, x: modes.append((self.p, self.training)) or forward(self, x)
    )
    freeze = ["callbacks/freeze=heads_first", "callbacks.freeze.unfreeze=[[1,all]]"]
    short = [*SHORT, "callbacks.graph=null", "trainer.limit_val_batches=1"]
    train(composed(*short, "model.backbone.dropout=0.3", *freeze))
    seen = [mode for p, mode in modes if p == 0.3]
    assert seen[:8] == [False] * 4 + [True] * 3 + [False]  # three steps and a validation, twice


def test_it_is_said_what_is_trained_from_when_on_and_the_rest_has_no_optimizer_state(composed, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    stages = ["callbacks/freeze=heads_first", "callbacks.freeze.unfreeze=[[1,fc],[3,all]]"]
    train(composed(*SHORT, *stages, "trainer.max_epochs=3"))
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    sizes = {name.removeprefix("localizer."): value.numel() for name, value in checkpoint["state_dict"].items()}
    heads, fc = (
        sum(size for name, size in sizes.items() if name.startswith(parts))
        for parts in (("loc_head", "cls_head"), ("loc_head", "cls_head", "backbone.fc"))
    )
    everything = sum(sizes.values())
    assert [line for line in caplog.messages if "trained" in line or "freeze" in line] == [
        "callbacks.freeze.unfreeze=[[1, 'fc'], [3, 'all']]: epoch 3 (counted from 0) is beyond trainer.max_epochs=3",
        f"trained from epoch 0: the heads, {heads:,} of {everything:,} parameters",
        f"trained from epoch 1: the heads and the backbone from fc on, {fc:,} of {everything:,} parameters",
    ]
    stepped = {list(sizes)[number] for number in checkpoint["optimizer_states"][0]["state"]}
    assert stepped == {name for name in sizes if "blocks" not in name}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [record["trained_parameters"], record["parameters"]] == [fc, everything]
    assert f"{everything:,} parameters, {fc:,} of them trained" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("unfreeze", "told"),
    [
        ("[[1,layer4]]", "has no stage layer4; it has blocks.0, blocks.3, blocks.6, blocks.9, fc, all"),
        ("[5,all]", "must be pairs such as"),
        ("[[-1,all]]", "must be pairs such as"),
    ],
)
def test_what_cannot_be_unfrozen_is_refused(composed, unfreeze, told):
    with pytest.raises(Exception, match=told) as error:
        train(composed(*SHORT, "callbacks/freeze=backbone", f"callbacks.freeze.unfreeze={unfreeze}"))
    assert isinstance(error.value, BadInput) or isinstance(error.value.__cause__, BadInput)
