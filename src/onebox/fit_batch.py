"""How much memory training takes at some batch size: measured by a few real steps in a process of its own."""

import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onebox.errors import BadInput

NUM_STEPS = 3  # the optimizer has all of its state after the first
OVER_BUDGET = 3  # exit code
POLL_S = 0.01
NO_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch has no class for it


@dataclass(frozen=True)
class Memory:
    """What a trial had in use at most, in bytes; on a GPU what torch has allocated there, otherwise all of its process.

    Attributes:
        start: until the first step: libraries, data and network; None when it did not get there.
        peak: until its end; None when that is more than the budget.
    """

    start: int | None
    peak: int | None


def largest(fits: Callable[[int], bool], *, at_most: int) -> int:
    """The largest size that fits, to an eighth of itself; 0 when 1 does not.

    Args:
        fits: whether a size does; all smaller ones then do as well.
        at_most: no larger one is tried.
    """
    good, size = 0, 1
    while good < at_most and fits(size):
        good, size = size, min(2 * size, at_most)
    if good == at_most:
        return good
    bad = size
    while bad - good > max(good // 8, 1):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def peak_memory(overrides: Sequence[str], batch_size: int, budget: int) -> Memory:
    """What the first steps of training have in use.

    The process ends itself at the budget, so that a machine without more is not brought to its knees.

    Raises:
        BadInput: config or data cannot be used.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(list(overrides), batch_size, budget, sender))
    child.start()
    sender.close()
    memory = Memory(None, None)
    try:
        while memory.peak is None:
            answer: Memory | BadInput = receiver.recv()
            if isinstance(answer, BadInput):
                raise answer
            memory = answer
    except EOFError:  # ended by itself, or by a system without memory
        child.join()
        if child.exitcode not in (0, OVER_BUDGET, -signal.SIGKILL, -signal.SIGABRT):
            raise RuntimeError(
                f"the trial with data.batch_size={batch_size} ended with code {child.exitcode}"
            ) from None
    finally:
        child.kill()
        child.join()
    return memory


def _measure(overrides: list[str], batch_size: int, budget: int, sender: Connection) -> None:
    """Send what is in use before the first step, and at the end again; nothing more when it is too much."""
    import torch
    from lightning.pytorch.callbacks import LambdaCallback

    from onebox.trial import compose_trial, run_trial

    start = 0

    def begin(trainer: Any, module: Any) -> None:
        nonlocal start
        start = torch.cuda.max_memory_allocated() if module.device.type == "cuda" else _peak_of_process()
        sender.send(Memory(start, None))

    try:
        with TemporaryDirectory() as folder:
            cfg = compose_trial([*overrides, f"data.batch_size={batch_size}"], Path(folder), progress=False)
            if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available():
                threading.Thread(target=_stay_below, args=(budget,), daemon=True).start()
            module = run_trial(cfg, NUM_STEPS, [LambdaCallback(on_train_start=begin)])
            on_gpu = module.device.type == "cuda"
        used = torch.cuda.max_memory_allocated() if on_gpu else _peak_of_process()
        if used <= budget:
            sender.send(Memory(start, used))
    except (torch.OutOfMemoryError, MemoryError):
        return
    except RuntimeError as error:
        if NO_CPU_MEMORY not in str(error):
            raise
    except BadInput as error:
        sender.send(error)


def _stay_below(budget: int) -> None:
    while _peak_of_process() <= budget:
        time.sleep(POLL_S)
    os._exit(OVER_BUDGET)


def _peak_of_process() -> int:
    """The most memory that this process had in use, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()  # getrusage counts the parent's too, from before the exec
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
