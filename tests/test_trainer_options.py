"""Every option of Lightning's trainer holds, or is refused with what to set instead."""

import inspect

import pytest
from lightning.pytorch import Trainer

from onebox.errors import BadInput
from onebox.trainer_options import INSTEAD, trainer_problems
from onebox.validation import validate

SUPPORTED = frozenset(
    {
        *("accelerator", "strategy", "devices", "num_nodes", "precision", "plugins", "sync_batchnorm"),
        *("max_epochs", "min_epochs", "check_val_every_n_epoch", "val_check_interval", "num_sanity_val_steps"),
        *("limit_train_batches", "limit_val_batches", "limit_test_batches", "log_every_n_steps"),
        *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
        *("deterministic", "benchmark", "inference_mode", "detect_anomaly", "use_distributed_sampler"),
        *("enable_model_summary", "default_root_dir"),
    }
)


def test_each_option_of_lightning_is_supported_or_refused():
    """A new Lightning brings none unseen."""
    options = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert set(INSTEAD) | SUPPORTED == options
    assert not set(INSTEAD) & SUPPORTED


@pytest.mark.parametrize("option", INSTEAD)
def test_what_is_refused_says_what_to_set(composed, option):
    with pytest.raises(BadInput, match=rf"trainer\.{option} is not for onebox; instead: "):
        validate(composed(f"+trainer.{option}=1"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.limit_train_batches=0"], "nothing would be trained"),
        (["trainer.limit_test_batches=0"], "would look like one without a test"),
        (["trainer.precision=64-true"], "must be one of 32-true, 16-mixed, bf16-mixed"),
        (["trainer.precision=bf16-true"], "must be one of 32-true, 16-mixed, bf16-mixed"),
        (["trainer.precision=16-mixed"], "needs a GPU .* set bf16-mixed"),
        (
            ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1", "optimizer.fused=true"],
            "optimizer.fused=false",
        ),
        (["+trainer.enable_checkpointing=false"], "callbacks.checkpoint_best=null"),
        (["trainer.devices=-1"], "must be a whole number >= 1, auto, or a list"),
        (["trainer.devices=0"], "must be a whole number >= 1, auto, or a list"),
        (["+trainer.accumulate_grad_batches=0"], "must be a whole number >= 1, not 0"),
        (["trainer.gradient_clip_val=-1"], "must be a number >= 0, not -1"),
        (["trainer.limit_val_batches=-1"], "must be a share"),
        (["trainer.limit_train_batches=1.5"], "must be a share"),
        (["+trainer.val_check_interval=0"], "must be a share"),
        (["trainer.accelerator=foo"], "must be one of auto, cpu, gpu"),
        (["trainer.accelerator=gpu"], "torch finds no GPU here; set auto or cpu"),
        (
            ["trainer.precision=16-mixed", "trainer.gradient_clip_val=1", "trainer.accelerator=tpu"],
            r"optimizer\.fused=false",
        ),
    ],
)
def test_values_that_would_do_something_else_are_refused(composed, overrides, told):
    with pytest.raises(BadInput, match=told):
        validate(composed(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1", "optimizer.fused=false"], ["trainer=debug"]],
)
def test_what_works_is_not_refused(composed, overrides):
    cfg = composed(*overrides)
    assert not list(trainer_problems(cfg.trainer, is_fused=cfg.optimizer.fused))
