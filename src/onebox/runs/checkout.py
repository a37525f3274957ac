"""The code of a run, from git."""

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onebox.errors import BadInput
from onebox.runs.provenance import patch, repository


@contextmanager
def checkout(record: Mapping[str, Any], run_dir: Path) -> Iterator[Path]:
    """A git worktree of a run's commit with its uncommitted changes, removed in the end.

    Args:
        record: run.json.
        run_dir: where the patch lies.

    Raises:
        BadInput: commit or changes are not to be had.
    """
    git = record.get("git")
    if git is None:
        raise BadInput("the run was not made from a git checkout; --checkout has nothing to check out")
    source = repository()
    sha = git["sha"]
    with tempfile.TemporaryDirectory(prefix="onebox-") as temporary:
        folder = Path(temporary) / "code"
        _git(source, "worktree", "add", "--detach", str(folder), sha, advice=f"fetch commit {sha[:9]}")
        try:
            changes = stored_patch(record, run_dir)
            if changes:
                advice = "the run's uncommitted changes cannot be applied"
                _git(folder, "apply", "--whitespace=nowarn", "-", stdin=changes, advice=advice)
            yield folder
        finally:
            _git(source, "worktree", "remove", "--force", str(folder), advice="remove the worktree by hand")


def stored_patch(record: Mapping[str, Any], run_dir: Path) -> str:
    """The uncommitted changes that a run was made with, as `git apply` takes them.

    Raises:
        BadInput: they were too large to be stored whole.
    """
    git = record["git"]
    if git.get("patch_too_large"):
        raise BadInput("the run's uncommitted changes were too large to be stored; --checkout cannot apply them")
    return patch(run_dir) or ""


def _git(folder: Path, *arguments: str, advice: str, stdin: str = "") -> None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, errors="surrogateescape", check=False
        )
    except OSError as error:
        raise BadInput(f"git cannot be started ({error.strerror}); --checkout needs it") from error
    if done.returncode:
        raise BadInput(f"git {arguments[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}; {advice}")
