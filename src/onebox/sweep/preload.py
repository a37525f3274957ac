"""Imported once, by the server that jobs are forked from: all that a job would import, so that it need not.

Nothing here may start a thread, use a GPU or change a setting, as every job begins with what is here.
"""

import contextlib
import gc
import importlib
import os

MODULES = (
    "torch",
    "torchvision",
    "lightning.pytorch",
    "lightning.pytorch.callbacks.progress.rich_progress",
    "albumentations",
    "cv2",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "tensorboard.backend.event_processing.event_accumulator",
    "torch.utils.tensorboard",
    "torchmetrics",
    "antlr4.LL1Analyzer",
    "fsspec.implementations.chained",
    "hydra._internal.logging_config",
    "importlib.resources.readers",
    "rich._emoji_codes",
    "torch.utils.serialization.config",
    "onebox.callbacks.balance",
    "onebox.callbacks.early_stopping",
    "onebox.callbacks.progress",
    "onebox.callbacks.epoch_csv",
    "onebox.callbacks.freeze",
    "onebox.runs.hparams",
    "onebox.callbacks.last_checkpoint",
    "onebox.callbacks.pictures",
    "onebox.callbacks.same_on_all_ranks",
    "onebox.callbacks.trace",
    "onebox.data.batched",
    "onebox.data.datamodule",
    "onebox.data.shapes",
    "onebox.losses",
    "onebox.model.box_coder",
    "onebox.model.heads",
    "onebox.model.localizer",
    "onebox.model.tiny_cnn",
    "onebox.model.torchvision_net",
    "onebox.module",
    "onebox.runs.checkpoint",
    "onebox.runs.composition",
    "onebox.runs.record",
    "onebox.runs.reading.report",
    "onebox.runs.results",
    "onebox.runs.samples",
    "onebox.sweep.plan",
    "onebox.sweep.process",
    "onebox.build",
    "onebox.train",
    "onebox.validation",
)


def preload() -> None:
    """Import everything, in a session of its own, which the terminal's Ctrl-C does not reach."""
    parent = os.getppid()
    os.setsid()
    # A pool of threads, which OpenBLAS starts when it is imported, would be lost in the forks.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for name in MODULES:
        with contextlib.suppress(ImportError):  # a job that needs it says so itself
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("PIL.Image").preinit()  # its readers of files
    gc.collect()
    gc.freeze()  # the collector of a job passes over what is shared, and so does not copy it
    if os.getppid() != parent:
        os._exit(0)  # stopped before it began


preload()
