"""Imported once, by the server that jobs are forked from: all that a job would import, so that it need not.

Nothing here may start a thread, use a GPU or change a setting, as every job starts with what is here.
"""

import contextlib
import gc
import importlib
import os
import pkgutil

from omegaconf import OmegaConf

import onebox
from onebox.lightning_setup import import_lightning
from onebox.page import environment
from onebox.runs.provenance import remember

# What libraries import only when they are used. The names of our own modules are not listed: all of them are imported
# but those that only read runs, and two that no job of a sweep uses.
LIBRARIES = (
    "albumentations",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "tensorboard.backend.event_processing.event_accumulator",
    "torch.utils.tensorboard",
    "antlr4.LL1Analyzer",
    "fsspec.implementations.chained",
    "hydra._internal.logging_config",
    "importlib.resources.readers",
    "rich._emoji_codes",
    "torch.utils.serialization.config",
    "onebox.runs.reading.report",
)
LEFT_OUT = (
    *("onebox.cli", "onebox.conf", "onebox.runs.reading", "onebox.sweep.reading", __name__),
    # These take Optuna and pandas with them.
    *("onebox.sweep.search", "onebox.sweep.space", "onebox.sweep.study", "onebox.callbacks.lr_range"),
)


def preload() -> None:
    """Import everything, in a session of its own, which the terminal's Ctrl-C does not reach."""
    parent = os.getppid()
    os.setsid()
    gc.disable()  # nothing is garbage while modules are imported
    # A pool of threads, which OpenBLAS starts when it is imported, would be lost in the forks.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import_lightning()
    ours = (module.name for module in pkgutil.walk_packages(onebox.__path__, "onebox."))
    for name in (*LIBRARIES, *(name for name in ours if not name.startswith(LEFT_OUT))):
        with contextlib.suppress(ImportError):  # a job that needs it says so itself
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("PIL.Image").preinit()  # its readers of files
    remember()
    for name in environment("onebox.runs.reading").list_templates(["html", "css"]):
        if "/" not in name:
            environment("onebox.runs.reading").get_template(name)  # compiles it
    warm = {"a": 1, "b": "${a}", "c": "${oc.env:HOME,${a}}/${b}"}  # for the parser of interpolations, which learns
    OmegaConf.to_container(OmegaConf.create(warm), resolve=True)
    gc.collect()
    gc.enable()
    gc.freeze()  # the collector of a job passes over what is shared, and so does not copy it
    if os.getppid() != parent:
        os._exit(0)  # stopped before it began


if __name__ != "__main__":
    preload()
