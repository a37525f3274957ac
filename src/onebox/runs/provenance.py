"""Where a run's numbers come from: code, packages, machine."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import onebox

MAX_DIFF_CHARACTERS = 200_000


def git_state() -> dict[str, Any] | None:
    """Commit, branch, changes of tracked files and names of untracked ones.

    Of the checkout that onebox runs from, or else of the current folder.

    None outside git. A diff of more than `MAX_DIFF_CHARACTERS` is cut, and says so in `diff_cut`.
    """
    source = Path(onebox.__file__).parent
    folder = Path.cwd() if "site-packages" in source.parts else source

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=20).stdout

    try:
        top = git("rev-parse", "--show-toplevel").strip()
        diff = git("diff", "HEAD", "--", top)
        status = git("status", "--porcelain", "--", top)
        return {
            "sha": git("rev-parse", "HEAD").strip(),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD").strip(),
            "dirty": bool(status),
            "untracked": [line[3:] for line in status.splitlines() if line.startswith("??")],
            "diff": diff[:MAX_DIFF_CHARACTERS],
            "diff_cut": len(diff) > MAX_DIFF_CHARACTERS,
        }
    except (OSError, subprocess.SubprocessError):
        return None


def packages() -> dict[str, str]:
    """Version of each installed distribution."""
    found = {item.metadata["Name"]: item.version for item in importlib.metadata.distributions()}
    return dict(sorted(found.items()))


def hardware() -> dict[str, Any]:
    """Processor, threads and GPUs that the run sees; the number of threads can change the last bits of a sum."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
