"""A copy of the code, for jobs that import it themselves: an edit while the sweep runs changes none of them."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import onebox
from onebox.runs.provenance import source_fingerprint, write_git_state

FOLDER = ".code"  # in the sweep's


@contextmanager
def code_of_now(folder: Path, *, wanted: bool) -> Iterator[None]:
    """Let interpreters that are started in the block import onebox from a copy in a sweep's `folder`.

    An installed wheel is not copied, as nobody edits it.
    """
    package = Path(onebox.__file__).parent
    if not wanted or "site-packages" in package.parts:
        yield
        return
    copy = (folder / FOLDER / source_fingerprint()).absolute()
    if not copy.exists():
        temporary = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
        conf = Path(str(next(files("onebox.conf").iterdir()))).parent
        plugins = package.parent / "hydra_plugins"
        for name, source in (("onebox", package), ("onebox/conf", conf), ("hydra_plugins", plugins)):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, temporary / name, ignore=ignored, dirs_exist_ok=True)
        write_git_state(temporary)
        temporary.replace(copy)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(copy), *([before] if before else [])])
    sys.path.insert(0, str(copy))  # which joblib's workers are given
    try:
        yield
    finally:
        sys.path.remove(str(copy))
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
