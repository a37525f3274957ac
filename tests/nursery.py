"""Starts `onebox-train` in forks of one process that has imported everything: 0.05 s instead of 10 s each.

Run as a program: it listens at an address for as long as the process `guardian` lives, for all workers of a test run. Of
each connection it reads one JSON line a training (argv, log, hit_at, hit_by, env, cwd) and answers with its process id,
or, for {"wait": pid}, with how that process ended. A training is sent the signal `hit_by` at the `hit_at`-th moment that it
syncs, renames or has renamed a file, so that writes are hit, which take too little time to be hit by chance.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from filelock import FileLock


def serve(address: str, guardian: int) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    listener.settimeout(1)

    import torch

    import onebox.cli
    import onebox.sweep.preload  # with Lightning, in less time than its own import takes
    import onebox.sweep.reading.page
    import onebox.sweep.search
    import onebox.train  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that serve a connection
    while os.path.exists(f"/proc/{guardian}"):
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                with connection, connection.makefile("rw") as stream:
                    answer_orders(stream)
                os._exit(0)
            connection.close()


def answer_orders(stream) -> None:
    for line in stream:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork() or train(**order)
        print(answer, file=stream, flush=True)


def train(
    argv: list[str], log: str, hit_at: int | None, hit_by: int, env: dict[str, str], cwd: str, program: str
) -> None:
    """Never returns."""
    from onebox.sweep import process

    os.chdir(cwd)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ |= env
    watch(log + ".moments", hit_at, hit_by)
    # A sweep checks its jobs in a fork of a clean server, which would import everything once more.
    process.start_server = lambda: None
    process._context = multiprocessing.get_context("fork")
    sys.argv = [program, *argv]
    code = 1
    try:
        if program == "python":
            exec(argv[0], {})
        else:
            importlib.import_module({"onebox": "onebox.cli", "onebox-train": "onebox.train"}[program]).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch(path: str, hit_at: int | None, hit_by: int) -> None:
    """Write each moment to `path`, one a line."""
    sync, replace, me = os.fsync, Path.replace, os.getpid()
    moments = []

    def passed(what: str) -> None:
        if os.getpid() != me:
            return
        moments.append(what)
        with open(path, "a") as file:
            file.write(what + "\n")
        if len(moments) == hit_at:
            os.kill(me, hit_by)

    def watched_sync(file):
        passed("sync")
        return sync(file)

    def watched_replace(self, target):
        passed(f"before {Path(target).name}")
        result = replace(self, target)
        passed(f"after {Path(target).name}")
        return result

    os.fsync, Path.replace = watched_sync, watched_replace


def left(folder: Path) -> list[str]:
    """Command lines of the processes that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").resolve() == folder:
                found.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


class Nursery:
    """The other end, of one nursery for all workers, whose shared folder is `folder`."""

    def __init__(self, folder: Path) -> None:
        address = str(folder / "nursery")
        guardian = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
        self._socket = socket.socket(socket.AF_UNIX)
        with FileLock(folder / "nursery.lock"):
            if not os.path.exists(address):
                # It outlives the worker that has started it, and ends with the guardian.
                command = [sys.executable, __file__, address, str(guardian)]
                os.posix_spawn(command[0], command, os.environ)
            end = time.monotonic() + 60
            while self._socket.connect_ex(address):
                assert time.monotonic() < end, "the nursery does not start"
                time.sleep(0.05)
        self._stream = self._socket.makefile("rw")

    def start(
        self,
        *argv: str,
        log: Path,
        hit_at: int | None = None,
        hit_by: int = signal.SIGKILL,
        cwd: Path = Path(),
        program: str = "onebox-train",
        **env: str,
    ) -> int:
        """The process id; `env` is added to its environment. Other programs: onebox, and python with code as `argv`."""
        order = {"argv": argv, "log": str(log), "hit_at": hit_at, "hit_by": hit_by, "env": env}
        return self._ask(order | {"cwd": os.path.abspath(cwd), "program": program})

    def wait(self, pid: int) -> int:
        """The exit code, or minus the signal."""
        return self._ask({"wait": pid})

    def run(self, *argv: str, log: Path, **options) -> int:
        return self.wait(self.start(*argv, log=log, **options))

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def _ask(self, order: dict) -> int:
        print(json.dumps(order), file=self._stream, flush=True)
        return int(self._stream.readline())


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
