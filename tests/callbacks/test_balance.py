import copy
import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onebox.module import LocalizationModule
from onebox.train import train

SHORT = ["debug=fast", "callbacks/progress=lines", "callbacks.pictures=null", "model.backbone.dropout=0.3"]
WATCHED = ["callbacks/balance=default", "callbacks.balance.every_n_steps=2"]


def test_watching_changes_no_bit_of_the_result_and_survives_an_interruption(composed, tmp_path, monkeypatch):
    def stop(module):
        raise KeyboardInterrupt

    heads = ["model/loc_head=edges", "loss/loc=l1_giou", "loss/weighting=uncertainty"]  # with norms
    train(composed(*SHORT, *heads, f"run_dir={tmp_path / 'a'}"))
    watched = [*SHORT, *heads, *WATCHED, f"run_dir={tmp_path / 'b'}"]
    with monkeypatch.context() as patch:
        patch.setattr(LocalizationModule, "on_test_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(composed(*watched))
    before = json.loads((tmp_path / "b" / "run.json").read_text())
    train(composed(*watched))
    for name in ("metrics.json", "metrics.csv", "trace.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    one, other = (json.loads((tmp_path / name / "run.json").read_text()) for name in "ab")
    assert [one[name] for name in ("final_weights", "fingerprint")] == [
        other[name] for name in ("final_weights", "fingerprint")
    ]
    assert [before["status"], other["status"]] == ["interrupted", "completed"]
    assert other["balance"] == before["balance"] is not None


def test_norms_and_cosine_are_those_of_the_shared_features(composed, tmp_path, monkeypatch, capsys):
    first = []
    step = LocalizationModule.training_step

    def spy(module, batch, batch_idx):
        if not first:
            first.extend([copy.deepcopy(module.localizer), copy.deepcopy(module.loss), batch])
        return step(module, batch, batch_idx)

    monkeypatch.setattr(LocalizationModule, "training_step", spy)
    train(composed(*SHORT, *WATCHED, "model.backbone.dropout=0", "trainer.max_epochs=1"))
    net, loss, batch = first
    net.eval()
    maps = net.backbone(net.normalise(batch.images)).maps[0].detach().requires_grad_()
    pooled = net.backbone.fc(maps)
    loc = net.box_coder.activate(net.loc_head.linear(pooled))
    losses = {
        "loc": torch.nn.functional.l1_loss(loc, net.encode(batch.boxes, batch.labels).loc),
        "cls": torch.nn.functional.cross_entropy(net.cls_head.linear(pooled), batch.labels),
    }
    expected = {name: torch.autograd.grad(value, maps, retain_graph=True)[0] for name, value in losses.items()}
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = {name: events.Scalars(f"balance/{name}") for name in ("grad_norm_loc", "grad_norm_cls", "cosine")}
    assert [event.step for event in logged["cosine"]] == [0, 2]
    for name, gradient in expected.items():
        assert logged[f"grad_norm_{name}"][0].value == pytest.approx(gradient.norm().item(), rel=1e-4)
    product = (expected["loc"] * expected["cls"]).sum() / expected["loc"].norm() / expected["cls"].norm()
    assert logged["cosine"][0].value == pytest.approx(product.item(), abs=1e-4)

    balance = json.loads((tmp_path / "run" / "run.json").read_text())["balance"]
    ratios = [cls.value / loc.value for loc, cls in zip(logged["grad_norm_loc"], logged["grad_norm_cls"], strict=True)]
    assert balance["suggested_weight_loc"] == pytest.approx(sum(ratios) / 2, rel=1e-4)
    assert [balance["suggested_weight_loc_low"], balance["suggested_weight_loc_high"]] == pytest.approx(
        [0.75 * min(ratios) + 0.25 * max(ratios), 0.25 * min(ratios) + 0.75 * max(ratios)], rel=1e-4
    )
    out = capsys.readouterr().out
    assert f"balance  loss.weights.loc is 10; with {balance['suggested_weight_loc']:.3g} box" in out
    assert "(2 steps, the middle half " in out
    assert "loss/weighting" not in out
    assert "loss.weights.loc is 10; with" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("loss/weighting=dwa", ["(1 step; cosine", "; this is for loss/weighting=fixed"]),
        ("callbacks/freeze=backbone", ["balance  nothing is shared: the backbone is frozen\n"]),
    ],
)
def test_it_says_what_it_is_worth(composed, capsys, override, told):
    train(composed(*SHORT, *WATCHED, override, "trainer.max_epochs=1", "callbacks.balance.every_n_steps=9"))
    out = capsys.readouterr().out
    assert all(words in out for words in told)
