"""A copy of the code, for jobs that import it themselves: an edit while the sweep runs changes none of them."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import onebox
from onebox.runs.own_code import COPIES, NO_CODE, hashes
from onebox.runs.provenance import git_and_patch, own_git, source_fingerprint, write_git_state

FOLDER = ".code"  # in the sweep's


@contextmanager
def code_of_now(folder: Path, *, wanted: bool) -> Iterator[Callable[[Mapping[str, Path]], None]]:
    """Let processes that are started in the block import code from copies in a sweep's `folder`.

    They are of onebox, unless it is installed, as nobody edits that, and of the `own_code` that the function that is
    given takes.
    """
    home, before, path = folder.absolute() / FOLDER, dict(os.environ), list(sys.path)
    copies: dict[str, str] = {}

    def import_from(copy: Path) -> None:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(copy), *filter(None, [os.environ.get("PYTHONPATH")])])
        sys.path.insert(0, str(copy))  # which joblib's workers are given

    def keep(own: Mapping[str, Path]) -> None:
        for name, place in own.items() if wanted else ():
            if name not in copies:
                copy = home / hashes(own)[name]
                _copy(copy, {place.name: place}, own_git(place))
                copies[name] = str(copy / place.name)
                os.environ[COPIES] = json.dumps(copies)
                import_from(copy)

    package = Path(onebox.__file__).parent
    if wanted and "site-packages" not in package.parts:
        conf = Path(str(next(files("onebox.conf").iterdir()))).parent
        places = {"onebox": package, "onebox/conf": conf, "hydra_plugins": package.parent / "hydra_plugins"}
        _copy(home / source_fingerprint(), places, git_and_patch())
        import_from(home / source_fingerprint())
    try:
        yield keep
    finally:
        sys.path[:] = path
        for name in ("PYTHONPATH", COPIES):
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})


def use_copies() -> None:
    """Import one's own code from the copies that the environment names, in a process that had begun before."""
    copies = json.loads(os.environ.get(COPIES, "{}"))
    sys.path[:0] = [str(Path(copy).parent) for copy in copies.values()]


def _copy(target: Path, places: Mapping[str, Path], git: Any) -> None:
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    for name, place in places.items():
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            shutil.copytree(place, temporary / name, ignore=shutil.ignore_patterns(".*", *NO_CODE), dirs_exist_ok=True)
        else:
            shutil.copy2(place, temporary / name)
    write_git_state(temporary, *git)
    try:
        temporary.replace(target)
    except OSError:
        shutil.rmtree(temporary)
        if not target.exists():  # else another sweep was quicker
            raise
