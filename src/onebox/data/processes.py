"""A function over many items: in threads, or in processes for work that holds the interpreter, such as parsing."""

import contextlib
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 250  # items that travel together to a process
FEW = 8  # to a thread
WORTH_IT = 2000  # items; below, starting processes takes longer than the work


def thread_map(function: Callable[[Item], Result], items: Sequence[Item], *, description: str) -> Iterator[Result]:
    """`map(function, items)` with a progress bar, in threads: for work that lets go of the interpreter."""
    cores = num_cores()
    size = max(1, min(FEW, len(items) // cores))  # a future for each small image would cost 4 % of decoding it
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    pool = ThreadPoolExecutor(cores)
    try:
        results = chain.from_iterable(pool.map(lambda chunk: list(map(function, chunk)), chunks))
        yield from progress(results, total=len(items), description=description)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C is not to wait for all the others


def process_map(function: Callable[[Item], Result], items: Sequence[Item], *, description: str) -> Iterator[Result]:
    """`map(function, items)` with a progress bar, on all cores that this process may use.

    The processes are new interpreters, not forks: safe beside threads. Unlike those of `multiprocessing`, they do not
    import the main module, which takes longer than all they do.

    Args:
        function: of the top level of a module, so that it has a name everywhere.
        items: what it is called with; items and results are pickled.
        description: what the progress bar says.
    """
    workers = min(num_cores(), len(items) // (WORTH_IT // 2))
    done = map(function, items) if workers < 2 else _in_processes(function, items, workers)
    yield from progress(done, total=len(items), description=description)


def _in_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    start = f"import sys; sys.path[:] = {sys.path!r}; from onebox.data.processes import _serve; _serve()"
    # A group of their own: Ctrl-C is for the parent.
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "process_group": 0}
    children: list[subprocess.Popen[bytes]] = []
    idle: SimpleQueue[Any] = SimpleQueue()
    done = 0

    def ask(chunk: Sequence[Item]) -> list[Result]:
        child = idle.get()
        try:
            pickle.dump(chunk, child.stdin)
            child.stdin.flush()
            return pickle.load(child.stdout)  # from our own process
        finally:
            idle.put(child)

    try:
        for _ in range(workers):
            children.append(subprocess.Popen([sys.executable, "-c", start], **options))
            pickle.dump(function, children[-1].stdin)  # type: ignore[arg-type]  # it is a pipe
            idle.put(children[-1])
        with ThreadPoolExecutor(workers) as pool:
            try:
                for results in pool.map(ask, chunks):
                    done += len(results)
                    yield from results
            finally:
                pool.shutdown(cancel_futures=True)
    except (EOFError, OSError, pickle.UnpicklingError):
        log.warning("worker processes cannot be used; this process reads the rest alone")
        yield from map(function, items[done:])
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _serve() -> None:
    """What a child does: a function and chunks in, results out, until its parent is done, or gone."""
    with contextlib.suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):
        function = pickle.load(sys.stdin.buffer)
        while True:
            pickle.dump(list(map(function, pickle.load(sys.stdin.buffer))), sys.stdout.buffer)
            sys.stdout.flush()
    os._exit(0)  # without another try to write


def num_cores() -> int:
    """Cores that this process may use, at least 1: of its affinity, or as much time as its control group is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no Linux, an older kind of group, or `max`
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # of a container
        cores = min(cores, round(int(quota) / int(period)))
    return max(1, cores)


def progress(items: Iterable[Item], *, total: int, description: str) -> Iterator[Item]:
    """The same items; while they are taken, a terminal shows how many of `total` there were; a log file gets none."""
    from rich.console import Console
    from rich.progress import track  # slow to import, and the processes that parse need none

    console = Console(stderr=True)
    yield from track(items, description, total, console=console, transient=True, disable=not console.is_terminal)
