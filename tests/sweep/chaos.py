"""What jobs do in the tests of launchers: things that jobs should not do. Imported by the jobs' own processes."""

import os
import signal
import sys
import time
from pathlib import Path

import psutil
from lightning.pytorch import Callback

from onebox.errors import BadInput
from onebox.runs.signals import sigterm_raises


class Unpicklable(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("deaf").touch()
    while True:
        time.sleep(1)


def patient():
    with sigterm_raises():
        Path("patient").touch()
        time.sleep(60)


def fault_beside_patient():
    while not Path("patient").exists():
        time.sleep(0.05)
    raise ValueError("a fault of its own")


def flaky():
    marks = Path("marks")
    marks.write_text(marks.read_text() + "x" if marks.exists() else "x")
    if len(marks.read_text()) < 2:
        raise ValueError("not yet")


def bad_input():
    with open("bad", "a") as file:
        file.write("x")
    raise BadInput("no such thing")


def unpicklable():
    raise Unpicklable("this", "that")


def fault():
    raise ValueError("a fault of its own")


def kill_the_next():
    """The process that waits for the next job."""
    waiting = []
    while not waiting:
        time.sleep(0.05)
        waiting = [child for child in psutil.Process(os.getppid()).children() if child.pid != os.getpid()]
    for process in waiting:
        process.kill()
        process.wait()


def settings():
    import torch

    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        os.environ.get("PL_GLOBAL_SEED"),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        torch.initial_seed() == 4711,
    )


def dirty():
    import torch

    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(4711)
    os.environ |= {"PL_GLOBAL_SEED": "4711", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return settings()


def threads():
    import cv2
    import torch

    from onebox.lightning_setup import use_threads

    use_threads(CFG, capped=True)
    return torch.get_num_threads(), torch.get_num_interop_threads(), cv2.getNumThreads(), os.environ["OMP_NUM_THREADS"]


def device():
    begin = time.monotonic()
    time.sleep(0.3)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), begin, time.monotonic()


DEEDS = {
    "fine": lambda: 0.5,
    "fault": fault,
    "fault_beside_patient": fault_beside_patient,
    "unpicklable": unpicklable,
    "exit": lambda: sys.exit(3),
    "vanish": lambda: os._exit(4),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill_the_next": kill_the_next,
    "deaf": deaf,
    "patient": patient,
    "flaky": flaky,
    "bad_input": bad_input,
    "dirty": dirty,
    "settings": settings,
    "threads": threads,
    "device": device,
    "clock": time.time,
}


def task(cfg):
    """Does `cfg.deed`, without any training."""
    global CFG
    CFG = cfg
    print("deed", cfg.deed, flush=True)
    return DEEDS[cfg.deed]()


class Chaos(Callback):
    """Does a deed when the fit has come to a step."""

    def __init__(self, deed: str, step: int) -> None:
        self._deed, self._step = deed, step

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == self._step:
            DEEDS[self._deed]()
