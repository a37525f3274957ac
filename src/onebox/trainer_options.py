"""The options of Lightning's `Trainer`: which of them do not hold here, and what to set in their place."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from onebox.errors import is_integer, is_number

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
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu", "xla", "hpu")
MIXED = ("16-mixed", "bf16-mixed")
PRECISIONS = ("32-true", "32", *MIXED)


def _is_part(value: object) -> bool:
    return is_integer(value, 0) or is_number(value, 0, 1)


# What a value must be, where Lightning would take another without a word, or refuse it in the middle of its work.
VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "accelerator": (lambda value: value in ACCELERATORS, f"one of {', '.join(ACCELERATORS)}"),
    "accumulate_grad_batches": (lambda value: is_integer(value, 1), "a whole number >= 1"),
    "devices": (
        lambda value: (
            is_integer(value, 1) or value == "auto" or (isinstance(value, Sequence) and not isinstance(value, str))
        ),
        "a whole number >= 1, auto, or a list of them such as [0,1]",
    ),
    "gradient_clip_val": (lambda value: is_number(value, 0, sys.float_info.max), "a number >= 0"),
    **{
        f"limit_{split}_batches": (_is_part, "a share in [0, 1] or a whole number of batches")
        for split in ("train", "val", "test")
    },
    "val_check_interval": (lambda value: value != 0 and _is_part(value), "a share in (0, 1] or a whole number"),
}


def trainer_problems(trainer: Mapping[str, Any], *, is_fused: bool) -> Iterator[str]:
    """What is wrong with a trainer's config, and what to set instead; `is_fused` says so of its optimizer."""
    for key, instead in INSTEAD.items():
        if trainer.get(key) is not None:
            yield f"trainer.{key} is not for onebox; instead: {instead}"
    for key, (is_right, what) in VALUES.items():
        if trainer.get(key) is not None and not is_right(trainer[key]):
            yield f"trainer.{key} must be {what}, not {trainer[key]}"
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
    accelerator = str(trainer.get("accelerator", "auto"))
    if accelerator in ("gpu", "cuda") and not _has_gpu(accelerator):
        yield f"trainer.accelerator={accelerator}, but torch finds no GPU here; set auto or cpu"
    if precision == "16-mixed" and not _has_gpu(accelerator):
        yield "trainer.precision=16-mixed needs a GPU (a processor would compute in bf16); set bf16-mixed"
    if precision == "bf16-mixed" and accelerator != "cpu" and _has_gpu("cuda") and not _computes_in_bf16():
        yield "trainer.precision=bf16-mixed, which this GPU only imitates; set 16-mixed or 32-true"
    if precision in MIXED and trainer.get("gradient_clip_val") and is_fused:
        yield f"trainer.gradient_clip_val with {precision}: not for a fused optimizer; set optimizer.fused=false"


def _has_gpu(accelerator: str) -> bool:
    if accelerator not in ("auto", "gpu", "cuda"):
        return accelerator != "cpu"
    import torch

    return torch.cuda.is_available()


def _computes_in_bf16() -> bool:
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)
