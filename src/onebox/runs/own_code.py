"""Code of a researcher's own that a run uses: packages that a `_target_` names, and folders of configs."""

import ast
import functools
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onebox.errors import BadInput, check
from onebox.trust import PACKAGES, texts

COPIES = "_ONEBOX_OWN_CODE"  # environment variable of the jobs of a sweep: name -> its copy, as JSON
SUFFIXES = (".py", ".yaml", ".yml")
MAX_ENTRIES = 20_000  # of a folder: one with more is not a project, but a disk
# What lies in projects and is no code; beside these, folders with one of the files.
NO_CODE = ("outputs", "multirun", "__pycache__", "node_modules", "site-packages", "dist-packages")
MARKS = ("run.json", "sweep.json", "pyvenv.cfg")


def own_code(config: Mapping[str, Any], folders: Sequence[str] = ()) -> dict[str, Path]:
    """Where what the plain `config` names lies: packages and modules by their name, config `folders` by their path.

    With the packages come those that they import from beside them. What is installed is left out, as nobody edits it
    and its version is known; so is onebox.
    """
    left, found = [*folders, *(target.partition(".")[0] for target in _targets(config))], dict[str, Path]()
    while left:
        name = left.pop()
        place = _place(name, os.environ.get(COPIES, "{}"))
        if place is not None and name not in found:
            found[name] = place
            left += _imports(place)
    return dict(sorted(found.items()))


def own_code_of(facts: Mapping[str, Any]) -> dict[str, Path]:
    """The same, of what run.json says of a run."""
    return own_code(facts.get("config", {}), facts.get("config_folders", []))


def config_places(hydra: Any) -> dict[str, list[str]]:
    """Where Hydra, whose config is given, has found configs beside those of onebox; empty where nowhere.

    `config_folders` are folders and packages, `config_arguments` what a command line says to find the same ones.
    """
    from omegaconf import OmegaConf

    found: Any = OmegaConf.select(hydra, "runtime.config_sources", throw_on_missing=False) or []
    ours = ("hydra", "main", "schema")
    own = [*{source.path: source for source in found if source.provider not in ours}.values()]  # each once
    paths = [str(Path(source.path).absolute()) for source in own if source.schema == "file"]
    packages = [source.path.partition(".")[0] for source in own if source.schema == "pkg"]
    by_flag = ("project", "command-line")  # the last one counts
    arguments = [f"--config-dir={source.path}" for source in own if source.provider in by_flag]
    arguments += [text for text in hydra.overrides.hydra if "hydra.searchpath=" in text]
    if hydra.job.get("config_name") not in (None, "train"):
        arguments.append(f"--config-name={hydra.job.config_name}")
    return {"config_folders": paths + packages, "config_arguments": arguments} if own else {}


def resume_command(folder: Path, record: Mapping[str, Any]) -> str:
    """What resumes the run in a folder, with all that a stored run may not say itself."""
    trusted = {target.partition(".")[0] for target in _targets(record.get("config"))} - PACKAGES
    trust = [f"trust=[{','.join(sorted(trusted))}]"] if trusted else []
    return shlex.join(["onebox-train", *record.get("config_arguments", []), f"resume={folder}", *trust])


def hashes(own: Mapping[str, Path]) -> dict[str, str]:
    """The hash of each part of `own_code`, taken once in a process."""
    return {name: _hash(place) for name, place in own.items()}


def with_own_code(source: str, own: Mapping[str, str]) -> str:
    """The fingerprint of all code: that of onebox, and of what is one's own with its `hashes`; itself without."""
    parts = sorted([Path(name).name, content] for name, content in own.items())
    return hashlib.sha256(json.dumps([source, *parts]).encode()).hexdigest()[:12] if own else source


def now(own: Mapping[str, str]) -> dict[str, str]:
    """The hashes of what an older run used, as it is today; as it was where it cannot be found or read."""
    found = dict(own)
    for name in own:
        with suppress(BadInput, OSError):
            found |= hashes({name: place} if (place := _place(name, "{}")) else {})
    return found


def files_of(place: Path) -> Iterator[Path]:
    """The files of code in a place, in order.

    Raises:
        BadInput: it holds more than `MAX_ENTRIES`.
    """
    if place.is_file():
        yield place
        return
    count = 0
    for folder, names, files in os.walk(place):
        count += len(names) + len(files)
        check(
            count <= MAX_ENTRIES,
            f"{place}: your own code or configs lie there, and more than {MAX_ENTRIES:,} other files; "
            "give them a folder of their own",
        )
        names[:] = [] if {*MARKS} & {*files} else sorted(n for n in names if n not in NO_CODE and n[0] != ".")
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(SUFFIXES) and not {*MARKS} & {*files})


def _targets(config: Any) -> Iterator[str]:
    return (value for key, value in texts(config) if key == "_target_")


@functools.cache
def _place(name: str, copies: str) -> Path | None:
    """The folder or file of a package or module, or of configs; None where it is none of one's own."""
    if copy := json.loads(copies).get(name):
        return Path(copy)
    if os.sep in name:
        return Path(name) if os.path.isdir(name) else None
    if name in ("onebox", "hydra_plugins", "__main__", *sys.stdlib_module_names):
        return None
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    places = [*(spec.submodule_search_locations or []), spec.origin] if spec else []
    place = Path(places[0]) if places and places[0] else None
    is_own = place is not None and place.exists() and not {"site-packages", "dist-packages"} & {*place.parts}
    return place if is_own and place and place.suffix in ("", ".py") else None


@functools.cache
def _imports(place: Path) -> list[str]:
    """The top names that the Python files of a place import."""
    names: set[str] = set()
    for path in files_of(place):
        try:
            tree = ast.parse(path.read_bytes()) if path.suffix == ".py" else ast.Module([], [])
        except (SyntaxError, ValueError):
            continue  # of which its import complains
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return sorted(names)


@functools.cache
def _hash(place: Path) -> str:
    digest = hashlib.sha256()
    for path in files_of(place):
        content = path.read_bytes()
        name = path.relative_to(place).as_posix() if place.is_dir() else path.name
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]
