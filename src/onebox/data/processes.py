"""A function over many items, in processes of their own: for work that holds the interpreter, such as parsing.

They are new interpreters behind pipes, not forks: safe beside threads and inside loader workers, no `__main__` is
imported again, and they end by themselves when their parent is killed, as their input ends.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from onebox.data.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 250  # items that travel together
WORTH_IT = 2000  # items; below, starting processes takes longer than the work
SERVE = "from onebox.data.processes import _serve; _serve()"


def process_map(function: Callable[[Item], Result], items: Sequence[Item], *, description: str) -> Iterator[Result]:
    """`map(function, items)` with a progress bar, on all cores that this process may use.

    Args:
        function: of the top level of a module, so that it has a name everywhere.
        items: what it is called with; items and results are pickled.
        description: what the progress bar says.
    """
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    workers = min(num_cores(), len(items) // (WORTH_IT // 2))
    done = _map_here(function, chunks) if workers < 2 else _map_there(function, chunks, workers)
    for results in progress(done, total=len(chunks), description=description):
        yield from results


def num_cores() -> int:
    """Cores that this process may use, at least 1: of its affinity, or as much time as its control group is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no Linux, an older kind of group, or `max`
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # of a container
        cores = min(cores, round(int(quota) / int(period)))
    return max(1, cores)


def _map_here(function: Callable[[Any], Any], chunks: list[Sequence[Any]]) -> Iterator[list[Any]]:
    for chunk in chunks:
        yield [function(item) for item in chunk]


def _map_there(function: Callable[[Any], Any], chunks: list[Sequence[Any]], workers: int) -> Iterator[list[Any]]:
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    # A group of their own: Ctrl-C is for the parent.
    command: dict[str, Any] = {"args": [sys.executable, "-c", SERVE], "process_group": 0}
    children = [subprocess.Popen(**command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(workers)]

    def ask(chunk: Sequence[Any]) -> list[Any]:
        child = idle.get()
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            pickle.dump((function, chunk), child.stdin, protocol=5)
            child.stdin.flush()
            answer: list[Any] | Exception = pickle.load(child.stdout)  # from our own process
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            idle.put(child)

    try:
        for child in children:
            idle.put(child)
        with ThreadPoolExecutor(workers) as pool:
            try:
                yield from pool.map(ask, chunks)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _serve() -> None:
    """What a process does: chunks in on standard input, results out, until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up among the answers
    try:
        while True:
            function, chunk = pickle.load(sys.stdin.buffer)
            try:
                answer: list[Any] | Exception = [function(item) for item in chunk]
            except Exception as error:  # to be raised where the work was asked for
                answer = error
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)  # the parent is done, or gone
