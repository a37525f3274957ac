"""What onebox changes around Lightning: threads, warnings, garbage, how its errors and a Ctrl-C arrive."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import logging
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING

from onebox.errors import BadInput, check, is_integer, printable

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from omegaconf import DictConfig

IRRELEVANT_WARNINGS = (
    ".*does not have many workers.*",  # with the cache of decoded images, workers only make it slower
    ".*smaller than the logging interval.*",  # the module reads what is left at the end of each epoch
    ".*Total length of .* across ranks is zero.*",  # an empty split is said on its own line
    ".*LeafSpec.*deprecated.*",  # Lightning's own use of torch
    ".*your dataloader is not resumable.*",  # the sampler begins where the checkpoint says
    ".*Checkpoint directory .* exists and is not empty.*",  # of a run that is resumed
    ".*could not find the monitored key.*",  # in an epoch that does not validate; its name is checked before
    ".*You defined a `validation_step` but have no `val_dataloader`.*",  # in trials of a few steps
)


def collect_late() -> None:
    """Look for no garbage before the first fit, as there is none while modules are imported, and none at the end."""
    gc.disable()
    atexit.register(gc.freeze)


@contextlib.contextmanager
def lightnings_errors(trainer: Trainer) -> Iterator[None]:
    """Around fit and test: a Ctrl-C, which Lightning turns into an exit with code 1, stays a Ctrl-C; no worker is left.

    Raises:
        BadInput: Lightning refuses how it is configured.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    if not gc.isenabled():
        gc.freeze()  # what is imported, so that no step looks through it
        gc.enable()
    others = multiprocessing.active_children()
    try:
        yield
    except MisconfigurationException as error:
        raise BadInput(str(error)) from error
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # which made Lightning fail a second time, when it cleaned up
            raise error.__context__ from None
        raise
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        # Stopped in validation or while workers start, Lightning forgets them, and at its end the process would wait.
        if (fetcher := trainer.fit_loop._data_fetcher) is not None:
            with contextlib.suppress(Exception):
                fetcher.teardown()
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.kill()


def use_threads(cfg: DictConfig, *, capped: bool) -> None:
    """Use `cfg.threads` in everything that computes; `capped`, no more loader workers, as other jobs want the rest."""
    import cv2
    import torch

    if cfg.threads is not None:
        check(is_integer(cfg.threads, 1), f"threads must be a number >= 1 or null, not {cfg.threads}")
        torch.set_num_threads(cfg.threads)
        cv2.setNumThreads(cfg.threads)
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(cfg.threads))  # for processes to come
    if capped:
        cfg.data.num_workers = min(cfg.data.num_workers, torch.get_num_threads())


def import_lightning() -> None:
    """Import Lightning without scipy.signal, which would take a quarter of the time.

    torchmetrics imports it only to see that it has `hamming`, for a metric of sound.
    """
    if "torchmetrics" not in sys.modules and "scipy.signal" not in sys.modules:
        sys.modules["scipy.signal"] = SimpleNamespace(hamming=None)  # type: ignore[assignment]  # stands for a module
        try:
            importlib.import_module("torchmetrics")
        finally:
            del sys.modules["scipy.signal"]
    importlib.import_module("lightning.pytorch")


def quieten() -> None:
    """Silence what libraries say that nobody can act on; of the rest each warning is one line."""
    import_lightning()  # which sets another level
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.formatwarning = lambda message, *where, **line: f"warning: {printable(' '.join(str(message).split()))}\n"
    for text in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", text)
