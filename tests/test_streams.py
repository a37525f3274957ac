"""What becomes of a command whose output nobody can receive."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onebox.errors import limit_of_system
from onebox.streams import _leave_to_main_thread

BIN = Path(sys.executable).parent
# Prints more than a pipe holds and then a character that not every encoding has, opens a file, and ends with 3.
SCRIPT = """
import os, subprocess, sys
from contextlib import suppress
from onebox.streams import command_line
with command_line("onebox"):
    print("first", flush=True)
    print("x" * 100_000, "\\u2192 \\udcff", flush=True)
    file = open("file", "w")
    with suppress(BrokenPipeError):
        os.write(1, b"by a library")
    subprocess.run(["echo", "by a child"])
    sys.exit(3)
"""
FULL = "onebox: what it prints cannot be written: No space left on device"


def shell(command: str, folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code of the first command of a pipe, and what the shell printed; "$@" is an interpreter with `SCRIPT`."""
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}", "bash", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr.strip()


@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        ('"$@" | head -1', 3, "first\n", ""),
        ('"$@" | true', 3, "", ""),
        ('"$@" > /dev/full', 1, "", FULL),
        ('"$@" > /dev/full 2>&1', 1, "", ""),
        ('"$@" >&-', 3, "", ""),
        ('"$@" <&- >&- 2>&-', 3, "", ""),
        ('mkdir x; cd x; rmdir ../x; "$@" 2>&1 | tail -1', 1, "the working directory has been deleted", ""),
    ],
)
def test_what_cannot_be_printed_is_lost_and_neither_the_exit_code_nor_a_file(tmp_path, command, code, out, err):
    found, printed, told = shell(command, tmp_path, sys.executable, "-c", SCRIPT)
    assert found == code
    assert printed == out or (out and out in printed)
    assert told == err
    if "rmdir" not in command:
        assert (tmp_path / "file").read_text() == ""


def test_a_character_that_the_encoding_lacks_is_escaped(tmp_path):
    code, out, err = shell(
        '"$@" | tail -c 80', tmp_path, sys.executable, "-c", SCRIPT, LC_ALL="C", PYTHONIOENCODING="ascii"
    )
    assert (code, err) == (3, "")
    assert "x \\u2192 \\udcff\nby a library" in out


@pytest.mark.parametrize(
    ("command", "code", "err"),
    [
        ("onebox data check ROOT | head -1", 0, ""),
        ("onebox data check ROOT > /dev/full", 1, FULL),
        ("onebox-train --cfg job > /dev/full", 1, FULL.replace("onebox", "onebox-train")),
        ("onebox-train --cfg job | true", 0, ""),
        ("mkdir x; cd x; rmdir ../x; onebox runs", 2, "onebox: the working directory has been deleted; change to one"),
        ("mkdir x; cd x; rmdir ../x; onebox-train", 2, "onebox-train: the working directory has been deleted; change"),
    ],
)
def test_both_commands_print_through_it(tmp_path, shapes_root, command, code, err):
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    found, _, told = shell(command.replace("ROOT", str(shapes_root)), tmp_path, PATH=path)
    assert found == code
    assert told.startswith(err) and len(told.splitlines()) <= 1
    assert bool(told) == bool(err)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_command_that_is_stopped_leaves_no_half_written_file(tmp_path, name, code):
    script = (
        "import time; from onebox import cli; from onebox.files import replacing\n"
        "def app():\n"
        "    with replacing('file') as temporary:\n"
        "        temporary.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
        "cli.app = app; cli.main()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err, list(tmp_path.iterdir())) == (code, "", [])


def raised(error: Exception, after: Exception | None = None) -> Exception:
    error.__context__ = after
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "Cannot allocate memory; lower data.batch_size"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "Cannot allocate memory",
        ),
        (RuntimeError("unable to mmap 24 bytes from file <x>: Cannot allocate memory (12)"), "Cannot allocate memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "Cannot allocate memory"),
        (RuntimeError("can't start new thread"), "raise the limit of processes"),
        (raised(AttributeError("_workers_status"), OSError(errno.EMFILE, "")), "Too many open files"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly with exit code 1"), "a loader process ended"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (raised(ValueError("x"), OSError(errno.ENOENT, "")), None),
    ],
)
def test_an_error_is_told_by_the_limit_that_it_is_about(error, told):
    found = limit_of_system(error)
    assert found is None if told is None else told in (found or "")


def test_only_the_thread_whose_error_is_raised_elsewhere_is_not_printed(capsys):
    class _AsyncWriterThread(threading.Thread):
        pass

    for kind, expected in ((_AsyncWriterThread, False), (threading.Thread, True)):
        threading.excepthook, before = _leave_to_main_thread, threading.excepthook
        thread = kind(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        threading.excepthook = before
        assert ("ZeroDivisionError" in capsys.readouterr().err) is expected
