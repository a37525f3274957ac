"""What a run directory may make onebox do. It is data: someone else may have made it, and it names classes and paths.

The commands a user types are trusted, the files of a run directory are not. Before anything that they name is built,
each `_target_` is resolved and the object itself is compared with one allow-list: strings would not do, as
`onebox.data.resize.torch.load` begins with the name of our package and is `torch.load`.
"""

import functools
import importlib
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from onebox.errors import check
from onebox.files import read_yaml
from onebox.project import packages

PACKAGES = {"onebox", "torch", "torchvision", "lightning", "albumentations"}  # whose import does nothing else
NEVER = ("onebox.train", "hydra_plugins")  # targets of Hydra's own part of the config
FORMER = {"lightning.pytorch.loggers.TensorBoardLogger", "lightning.pytorch.callbacks.EarlyStopping"}  # of older runs
WRITERS = ("callbacks", "logger", "trainer")  # groups whose paths are written to
WRITTEN = ("path", "folder", "dirpath", "filename", "save_dir", "default_root_dir")  # by these arguments
LOCAL = ("data.cache_dir", "data_dir", "data.download", "trust")  # for the user to decide, not the run directory
stored_in: list[Path] = []  # the file of a run directory that this process has its arguments from, with resume=FOLDER
_TARGET = re.compile(r"_target_:\s*([\w.]+)")
_OPTION = re.compile(r"[\w-]+")
_RESOLVER = re.compile(r"\$\{[^}]*:")


def stored_file(folder: Path, name: str) -> Path:
    """The path of a file that lies in a run directory itself.

    Raises:
        BadInput: it is a link to somewhere else, or no regular file.
    """
    path = folder / name
    check(path.is_file(), f"{path}: no such file; name the directory of a run")
    check(path.resolve().is_relative_to(folder.resolve()), f"{path}: is a link that leads out of the run directory")
    return path


def stored_yaml(folder: Path, name: str, remedy: str) -> Any:
    """What a YAML file of a run directory holds, as plain data; nothing is resolved.

    Raises:
        BadInput: see `stored_file`, and `onebox.files.read_yaml`.
    """
    from omegaconf import OmegaConf

    def load(text: str) -> Any:
        return OmegaConf.to_container(OmegaConf.create(text or "{}"))

    return read_yaml(stored_file(folder, name), remedy=remedy, load=load)


def check_config(config: Any, where: Path | str, trust: Sequence[str] = ()) -> None:
    """Refuse plain data from a run directory's file `where` that name something that must not be built.

    Classes of the packages in `trust`, and of the project that one stands in, may be built too. An interpolation is
    refused, as it could become a name when it is resolved.
    """
    trust = (*trust, *packages())
    for key, value in texts(config):
        check("${" not in value, f"{where}: holds the interpolation {value}; a stored config needs none")
        check(
            key != "_target_" or is_allowed(value, trust),
            f"{where}: names {value}, which is built only with your consent; if you trust its package, add "
            f"--trust {value.partition('.')[0]} (load_run: trust=[...], onebox-train: trust=[...])",
        )


def check_stored(config: Any, folder: Path, where: Path, trust: Sequence[str] = ()) -> None:
    """Refuse a resolved config, part of which comes out of a run directory's file `where`, before anything is built.

    See `check_config` and `check_paths`; nor may data be made or fetched where there are none.
    """
    check_config(config, where, trust)
    check_paths(config, folder, where)
    root = Path(str(config["data"].get("root"))).expanduser()
    check(  # a tree, or a folder of trees
        config["data"].get("source") is None or any(root.glob("Annotations")) or any(root.glob("*/Annotations")),
        f"{root}: holds no data, and a stored run neither generates nor downloads any; give data.root=FOLDER, or "
        "repeat the whole command",
    )


def check_paths(config: dict[str, Any], folder: Path, where: Path | str) -> None:
    """Refuse a config out of a run directory whose callbacks, loggers or trainer would write outside of `folder`."""
    home = folder.resolve()
    for group in WRITERS:
        for key, value in texts(config.get(group)):
            if key not in WRITTEN and not value.startswith(("/", "~")) and ".." not in Path(value).parts:
                continue
            path = Path(value).expanduser()  # relative to the working directory, but for the name of a checkpoint
            is_inside = (home / path if key == "filename" else path).resolve().is_relative_to(home)
            instead = "give the key yourself to allow it"
            check(is_inside, f"{where}: {group} writes to {value}, outside of {folder}; {instead}")


def stored_overrides(folder: Path, overrides: Sequence[Any]) -> list[str]:
    """Those of the `overrides` of the run in `folder` that another start may take over, without what is up to the user.

    Raises:
        BadInput: they hold options of Hydra, or interpolations that call something; or what is written into the
            directory would go elsewhere, by a link.
    """
    for path in folder.rglob("*"):
        is_inside = path.resolve().is_relative_to(folder.resolve()) and (path.is_file() or path.is_dir())
        check(is_inside, f"{path}: is a link that leads out of the run directory, or not a file; remove it")
        is_shared = path.suffix == ".log" and path.stat().st_nlink > 1  # logs grow; all else is replaced
        check(not is_shared, f"{path}: has another name elsewhere, which would be written to; copy it")
    kept = []
    for text in overrides:
        refusal = f"{folder / '.hydra' / 'overrides.yaml'}: holds {text!r:.80}, which a stored run must not "
        refusal += "override; repeat the whole command instead"
        check(isinstance(text, str), refusal)
        key, _, value = text.lstrip("+~").partition("=")
        key = key.partition("@")[0]
        is_local = value.lstrip().startswith("{") and any(name.startswith(f"{key}.") for name in LOCAL)
        is_hydra = text.startswith("-") or key.startswith(("hydra.", "hydra/"))
        # Where a logger uploads to is not for the folder to say: it may choose an option, or leave one out.
        is_logger = (key.startswith("logger.") and value != "null") or (
            key == "logger" and not _OPTION.fullmatch(value)
        )
        check(not (is_local or is_hydra or is_logger or _RESOLVER.search(text)), refusal)
        if key not in LOCAL:
            kept.append(text)
    return kept


def stored_arguments(argument: str) -> list[str]:
    """For `resume=FOLDER` the arguments that the run in it was started with, for any other argument itself."""
    key, _, value = argument.partition("=")
    if key != "resume" or value in ("auto", "never", ""):
        return [argument]
    path = Path(value, ".hydra/overrides.yaml")
    overrides = stored_yaml(Path(value), ".hydra/overrides.yaml", "resume=FOLDER takes the folder of a run")
    check(isinstance(overrides, list), f"{path}: is no list of overrides; resume=FOLDER takes the folder of a run")
    stored_in.append(path)
    from onebox.overrides import as_text  # takes Hydra with it

    # A job of a sweep is resumed alone.
    return [*stored_overrides(Path(value), overrides), as_text("hydra.run.dir", value), "hydra.mode=RUN"]


@functools.cache
def is_allowed(target: str, trust: tuple[str, ...] = ()) -> bool:
    """Whether the object that a `_target_` names may be built: a class of the shipped configs and its like."""
    package = target.partition(".")[0]
    if package not in PACKAGES and package not in trust:
        return False
    found = _resolve(target)
    module = getattr(found, "__module__", None) or ""
    if module.partition(".")[0] in trust:
        return True
    if any(found is shipped for shipped in _shipped()):
        return True
    if not isinstance(found, type):
        return False
    import albumentations
    import torch

    kinds: dict[str, tuple[type, ...]] = {
        "torch.nn.modules.": (torch.nn.Module,),
        "torch.optim.": (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler),
        "albumentations.": (albumentations.BasicTransform, albumentations.BaseCompose),
        "onebox.": (torch.nn.Module,),
    }
    return any(f"{module}.".startswith(prefix) and issubclass(found, bases) for prefix, bases in kinds.items())


@functools.cache
def _shipped() -> tuple[object, ...]:
    """All objects that the package's own config files name, and those that they named in earlier versions."""
    texts = (path.read_text(encoding="utf-8") for path in Path(str(files("onebox.conf"))).rglob("*.yaml"))
    names = FORMER | {name for text in texts for name in _TARGET.findall(text) if not name.startswith(NEVER)}
    found = (_resolve(name) for name in sorted(names) if name.partition(".")[0] in PACKAGES)
    return tuple(item for item in found if item is not None)


def _resolve(target: str) -> Any:
    """The object that a dotted name means; None when there is none."""
    names = target.split(".")
    for count in range(len(names), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(names[:count]))
        except ImportError:
            continue
        for name in names[count:]:
            found = getattr(found, name, None)
        return found
    return None


def texts(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a config, each with the name of the argument that it is given to; the names too.

    What a `_target_` holds counts as one text, whatever it is.
    """
    if isinstance(config, str) or key == "_target_":
        yield key, str(config)
    elif isinstance(config, dict):
        for name, item in config.items():
            yield from texts(str(name), "a key")
            yield from texts(item, str(name))
    elif isinstance(config, list):
        for item in config:
            yield from texts(item, key)
