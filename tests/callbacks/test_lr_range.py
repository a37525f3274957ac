"""The learning-rate range test reads its curve rightly and sets the rates that it says."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from onebox.build import build_data, build_module, fill_in
from onebox.callbacks.lr_range import LrRange
from onebox.errors import BadInput


def made(losses, *, min_lr=1e-6, max_lr=1.0) -> LrRange:
    """A test that has seen these losses."""
    test = LrRange(min_lr=min_lr, max_lr=max_lr, num_steps=len(losses), lr=1.0)
    test.losses = list(losses)
    return test


@pytest.mark.parametrize("steps", [60, 100, 300])
@pytest.mark.parametrize("steepest", [1e-4, 1e-3, 1e-2])
def test_the_suggestion_is_where_the_loss_falls_fastest(steps, steepest):
    rates = np.geomspace(1e-6, 1, steps)
    noise = np.random.default_rng(0).normal(0, 0.02, steps)
    falls = 4 - 2 / (1 + np.exp(-3 * np.log10(rates / steepest)))
    curve, suggested = made(falls + noise + 100 * np.maximum(0, rates - 0.2)).curve()
    assert 0.5 < suggested / steepest < 2
    assert curve[0] == pytest.approx(4, abs=0.1)  # it begins where the losses do, not at a share of them


def test_a_loss_that_never_falls_is_one_line():
    with pytest.raises(BadInput, match="does not fall between learning rates of 1e-06 and 1;"):
        made(np.linspace(3, 9, 40)).curve()


def test_each_part_keeps_its_share_of_the_rate_and_a_diverging_loss_ends_the_test(composed):
    cfg = composed("param_groups=discriminative", "image_size=32", "data.batch_size=16", "optimizer=sgd")
    data = build_data(cfg)
    data.setup()
    fill_in(cfg, data)
    seen = []

    class Watched(LrRange):
        def on_train_batch_end(self, trainer, *args):
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])
            super().on_train_batch_end(trainer, *args)

    torch.manual_seed(0)
    test = Watched(min_lr=1e-3, max_lr=1e6, num_steps=60, lr=cfg.optimizer.lr)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=-1, limit_val_batches=0, callbacks=[test], **off)
    trainer.fit(build_module(cfg, data), datamodule=data)
    rates = np.array(seen)
    assert 5 < len(rates) < 60
    assert rates[:, -1] == pytest.approx(np.geomspace(1e-3, 1e6, 60)[: len(rates)])
    assert rates[:, 0] == pytest.approx(rates[:, -1] / 100)  # the part nearest the image
