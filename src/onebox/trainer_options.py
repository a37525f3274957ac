"""The options of Lightning's `Trainer`: which of them hold here, and what to set in the place of the others."""

from collections.abc import Iterator, Mapping
from typing import Any

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
# What would end in a traceback, stop a fit without a word or do nothing -> what does it here.
INSTEAD = {
    "barebones": "set callbacks.NAME=null and logger=none for what is not wanted",
    "callbacks": "the groups of callbacks, such as callbacks.mine._target_=...",
    "enable_autolog_hparams": "nothing: hyper-parameters are always recorded",
    "enable_checkpointing": "callbacks.checkpoint_best=null callbacks.checkpoint_last=null",
    "enable_progress_bar": "callbacks/progress=lines, or callbacks.progress=null",
    "fast_dev_run": "debug=fast",
    "limit_predict_batches": "nothing: a run predicts its test split, see trainer.limit_test_batches",
    "logger": "the group logger",
    "max_steps": "trainer.max_epochs: a fit that stops within an epoch is not resumed exactly",
    "max_time": "trainer.max_epochs: a fit that stops by the clock cannot be repeated",
    "min_steps": "trainer.min_epochs",
    "model_registry": "nothing: a run directory holds its model",
    "overfit_batches": "data.limit=N data.only_train=true, as experiment=overfit_one does",
    "profiler": "torch.profiler on a few steps (debug=fast); Lightning's prints to a log that onebox silences",
    "reload_dataloaders_every_n_epochs": "nothing: loaders are made once",
}
MIXED = ("16-mixed", "bf16-mixed")
PRECISIONS = ("32-true", "32", *MIXED)


def trainer_problems(trainer: Mapping[str, Any], *, is_fused: bool) -> Iterator[str]:
    """What is wrong with a trainer's config, and what to set instead; `is_fused` says so of its optimizer."""
    for key, instead in INSTEAD.items():
        if trainer.get(key) not in (None, False):
            yield f"trainer.{key} is not for onebox; instead: {instead}"
    for key in ("limit_train_batches", "limit_test_batches"):
        if trainer.get(key) == 0:
            without = "nothing would be trained" if "train" in key else "the result would look like one without a test"
            yield f"trainer.{key}=0: {without}; give a number of batches, or name no list and no holdout of the split"
    precision = str(trainer.get("precision", "32-true"))
    if precision not in PRECISIONS:
        yield (
            f"trainer.precision={precision}: boxes and losses are float32, so it must be one of 32-true, "
            f"{', '.join(MIXED)}"
        )
    if precision == "16-mixed" and not _has_gpu(str(trainer.get("accelerator", "auto"))):
        yield "trainer.precision=16-mixed needs a GPU (a processor would compute in bf16); set bf16-mixed"
    if precision == "16-mixed" and trainer.get("gradient_clip_val") and is_fused:
        yield "trainer.gradient_clip_val with 16-mixed: a fused optimizer does not allow it; set optimizer.fused=false"


def _has_gpu(accelerator: str) -> bool:
    if accelerator not in ("auto", "gpu", "cuda"):
        return accelerator != "cpu"
    import torch

    return torch.cuda.is_available()
