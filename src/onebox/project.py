"""A project of one's own: a folder of `onebox new`, whose conf/ and packages are found by whoever stands in it.

That runs its code, and the folder may be a stranger's. So a project is used only if its file `MARK` holds a token that
the user's own list of projects holds too. Git ignores that file: a clone is trusted by `onebox new --trust`.
"""

import os
import secrets
import shlex
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.resources import files
from pathlib import Path

from onebox.errors import BadInput, check, say
from onebox.files import read_text

SIGN = "[tool.onebox]"  # in the pyproject.toml of a project
MARK = ".onebox"
COMPLETION = {"COMP_LINE", "_ONEBOX_COMPLETE"}  # variables of a shell that completes a line
_entered: list[Path] = []  # the project whose modules this process may have imported
_refused: set[Path] = set()


def enter() -> Path | None:
    """The trusted project that the working directory lies in, if any; what lies in it can be imported from now on.

    Raises:
        BadInput: its modules would be mistaken for others.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None  # it was deleted
    root = next((folder for folder in (here, *here.parents) if is_project(folder)), None)
    if root is None or root in _entered:
        return root
    if not _is_trusted(root):
        if root not in _refused and not COMPLETION & {*os.environ}:
            instead = f"if you trust them: onebox new --trust {shlex.quote(str(root))}"
            say(f"{root}: a project that you have not made, so its conf/ and code are not used; {instead}")
        _refused.add(root)
        return None
    check(not _entered, f"{root}: this process has the modules of {', '.join(map(str, _entered))}; use another process")
    if str(root) not in sys.path:  # else it was put there for a job or a rank, behind the copies of its sweep
        _check_names(root)
        sys.path.insert(0, str(root))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    _entered.append(root)
    return root


def is_project(folder: Path) -> bool:
    """Whether a folder calls itself a project of onebox."""
    return SIGN in _text(folder / "pyproject.toml")


def config_folder() -> Path | None:
    """The conf/ of the project that the working directory lies in.

    Raises:
        BadInput: an option in it has the name of one of onebox's, which would be used in its place without a word.
    """
    root = enter()
    if root is None or not (root / "conf").is_dir():
        return None
    for path in (root / "conf").rglob("*.yaml"):
        is_ours = files("onebox.conf").joinpath(*path.relative_to(root / "conf").parts).is_file()
        check(not is_ours, f"{path}: onebox has an option of this name, which would be used instead; rename yours")
    return root / "conf"


def packages() -> set[str]:
    """The names of the modules and packages of the project that the working directory lies in."""
    root = enter()
    return _names(root) if root else set()


def trust_project(root: Path) -> None:
    """Use the code of a project from now on."""
    token = secrets.token_hex(16)
    listed = _list()
    try:
        listed.parent.mkdir(parents=True, exist_ok=True)
        _append(listed, f"{token} {root}\n")
    except OSError as error:
        raise BadInput(f"{listed}: {error.strerror}; set XDG_CONFIG_HOME to a folder that can be written") from error
    (root / MARK).unlink(missing_ok=True)
    _append(root / MARK, token + "\n")


def _names(root: Path) -> set[str]:
    return {path.stem for path in root.glob("*.py")} | {path.parent.name for path in root.glob("*/__init__.py")}


def _check_names(root: Path) -> None:
    for name in sorted(_names(root)):
        spec = PathFinder.find_spec(name)
        where = spec.origin if spec else None
        is_taken = name in {*sys.stdlib_module_names, "onebox"} or (where and not Path(where).is_relative_to(root))
        check(not is_taken, f"{root / name}: {where or 'another module'} has the same name; rename yours")


def _is_trusted(root: Path) -> bool:
    token = _text(root / MARK).strip()
    with suppress(BadInput):
        return len(token) == 32 and token in _text(_list()).split()
    return False


def _list() -> Path:
    """The user's own list of projects: a token and a path each."""
    path = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "onebox", "projects")
    check(path.is_absolute(), "there is no home folder to keep the list of your projects in; set XDG_CONFIG_HOME")
    return path


def _append(path: Path, text: str) -> None:
    path.touch(mode=0o600)  # whoever knows a token can make a folder that is trusted
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _text(path: Path) -> str:
    with suppress(OSError, BadInput):
        return read_text(path, remedy="", max_bytes=1 << 20)
    return ""
