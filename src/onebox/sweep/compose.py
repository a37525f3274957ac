"""What Hydra composes for the jobs of a sweep. Files of configs are read once: an edit meanwhile changes no job."""

import copy
import pickle
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from onebox.errors import NO_CHDIR, check
from onebox.runs.fingerprint import choices, fingerprint, without_hydra
from onebox.runs.own_code import config_places, own_code
from onebox.sweep.plan import Job

SWEEP_DIR = "sweep_dir"  # a key for the time of composing
MAX_COMPOSED = 64  # sets of choices whose configs are kept, of about half a megabyte each
RUN_DIR = "<run_dir>"  # stands in a config for the directory that its own fingerprint names


class ReadOnce(IConfigRepository):
    """Where Hydra's configs come from, each read when it is first asked for."""

    def __init__(self, repository: IConfigRepository, known: dict[Any, bytes] | None = None) -> None:
        self._repository, self._known = repository, {} if known is None else known

    def __deepcopy__(self, memo: dict[int, Any]) -> "ReadOnce":
        # Hydra copies a repository before it adds places to search, and so what is known is known by the places.
        return ReadOnce(copy.deepcopy(self._repository, memo), self._known)

    def _once(self, method: str, *arguments: Any) -> Any:
        places = tuple((source.provider, source.path) for source in self._repository.get_sources())
        key = (places, method, *arguments)
        if key not in self._known:
            self._known[key] = pickle.dumps(getattr(self._repository, method)(*arguments))
        return pickle.loads(self._known[key])  # our own; a copy, as Hydra changes what it is given

    def load_config(self, config_path: str) -> Any:
        return self._once("load_config", config_path)

    def group_exists(self, config_path: str) -> Any:
        return self._once("group_exists", config_path)

    def config_exists(self, config_path: str) -> Any:
        return self._once("config_exists", config_path)

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> Any:
        return self._once("get_group_options", group_name, results_filter)

    def get_schema_source(self) -> Any:
        return self._repository.get_schema_source()

    def get_sources(self) -> Any:
        return self._repository.get_sources()

    def initialize_sources(self, config_search_path: Any) -> None:
        self._repository.initialize_sources(config_search_path)


class Composer:
    """Composes the jobs of a sweep. The choices of options, which take Hydra longest, are composed once.

    Args:
        loader: Hydra's, which from now on reads each file once, also for those who launch the jobs.
        sweep_config: what Hydra has composed for the sweep itself.
    """

    def __init__(self, loader: ConfigLoader, sweep_config: DictConfig) -> None:
        assert isinstance(loader, ConfigLoaderImpl)  # Hydra has no other
        if not isinstance(loader.repository, ReadOnce):
            loader.repository = ReadOnce(loader.repository)  # type: ignore[assignment]  # its interface is all that is used
        self._loader, self._sweep_config = loader, sweep_config
        sweep: Any = OmegaConf.to_container(sweep_config.hydra.sweep, resolve=False)
        self._is_hydras = "hydra" in str(sweep["dir"])  # the folder needs Hydra's own part of the config
        parser = OverridesParser.create(config_loader=loader)
        self._parse: Callable[[str], Override] = cache(lambda text: parser.parse_overrides([text])[0])
        self._compose = lru_cache(MAX_COMPOSED)(self._compose_anew)
        self._seedless: dict[frozenset[str], str] = {}

    def __call__(self, overrides: Sequence[str]) -> Job:
        """The job of some overrides.

        Raises:
            BadInput: it would not run in a directory that is named by its fingerprint, or in another working directory.
            HydraException, OmegaConfBaseException: it cannot be composed.
        """
        composed, values = self._look_up(overrides)
        config = composed.resolved(values)
        sweep_dir = config.pop(SWEEP_DIR)
        ignore, neutral = config["fingerprint_ignore"], config.get("fingerprint_neutral") or {}
        name = fingerprint(config, ignore, neutral)
        others = frozenset(text for text in overrides if not text.startswith("seed="))
        if others not in self._seedless:
            seedless = composed.resolved([*values, self._parse("seed=null")])
            del seedless[SWEEP_DIR]
            self._seedless[others] = fingerprint(seedless, ignore, neutral)
        folder = Path(sweep_dir, name)
        config = _replaced(config, RUN_DIR, str(folder))
        own = own_code(config, composed.folders)
        return Job(tuple(overrides), config, composed.choices, name, self._seedless[others], folder, own)

    def with_hydra(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The config of a job as Hydra runs it: with Hydra's own part, and what is interpolated as it is written."""
        composed, values = self._look_up(overrides)
        cfg = composed.full.copy()
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        with read_write(cfg.hydra), open_dict(cfg.hydra):
            parsed = [override for text in overrides if not (override := self._parse(text)).is_hydra_override()]
            cfg.hydra.overrides.task = [override.input_line for override in parsed]
            cfg.hydra.job.override_dirname = get_overrides_dirname(parsed, **cfg.hydra.job.config.override_dirname)
            cfg.hydra.job.id, cfg.hydra.job.num = f"{cfg.hydra.job.name}_{number}", number
        return cfg

    def is_new_kind(self, text: str, seen: set[str]) -> bool:
        """Whether an override may be wrong in a way that none of those `seen` is: another key, or an unknown option."""
        override = self._parse(text)
        kind = override.key_or_group if self._is_value(override) else text
        if kind in seen:
            return False
        seen.add(kind)
        is_option = kind == text and override.type is OverrideType.CHANGE and isinstance(override.value(), str)
        return not (is_option and self._loader.repository.config_exists(f"{override.key_or_group}/{override.value()}"))

    def _look_up(self, overrides: Sequence[str]) -> "tuple[_Composed, list[Override]]":
        """What Hydra composes for some overrides, without those that only change values, and these."""
        parsed = [self._parse(text) for text in overrides]
        values = [override for override in parsed if self._is_value(override) and not self._is_hydras]
        rest = tuple(text for text, override in zip(overrides, parsed, strict=True) if override not in values)
        return self._compose(rest), values

    def _is_value(self, override: Override) -> bool:
        """Whether an override only changes a value that is there, and has no part in what is composed."""
        is_change = override.type is OverrideType.CHANGE and override.package is None
        key = override.key_or_group
        return is_change and key.partition(".")[0] != "hydra" and not self._loader.repository.group_exists(key)

    def _compose_anew(self, overrides: tuple[str, ...]) -> "_Composed":
        full = self._loader.load_sweep_config(self._sweep_config, list(overrides))
        check_job(full)
        sweep: Any = OmegaConf.to_container(full.hydra.sweep, resolve=False)
        sweep_dir = full.hydra.sweep.dir if self._is_hydras else sweep["dir"]  # that follows from other keys
        plain = without_hydra(full, run_dir=RUN_DIR)
        with open_dict(plain):
            plain[SWEEP_DIR] = str(sweep_dir)
        folders = config_places(full.hydra).get("config_folders", [])
        return _Composed(full, plain, choices(full.hydra), folders, {})


class _Composed(NamedTuple):
    full: DictConfig
    plain: DictConfig  # without Hydra's part but for the sweep's folder
    choices: dict[str, str | None]
    folders: list[str]  # of configs of one's own
    resolving: "dict[frozenset[str], _Resolving]"  # by the keys that are given other values

    def resolved(self, values: Sequence[Override]) -> dict[str, Any]:
        """The resolved config with some other values, as plain data of which parts are shared between calls."""
        keys = frozenset(override.key_or_group for override in values)
        if any(isinstance(override.value(), Mapping) for override in values):  # which is merged with what is there
            return _Resolving(self.plain, keys)(values)
        if keys not in self.resolving:
            self.resolving[keys] = _Resolving(self.plain, keys)
        try:
            return self.resolving[keys](values)
        except Exception:  # it may hold some of the values
            del self.resolving[keys]
            return _Resolving(self.plain, keys)(values)


class _Resolving:
    """Resolves a config again and again, with other values of the same keys: only the parts that may follow from them.

    A part is what is below one top-level key.
    """

    def __init__(self, cfg: DictConfig, keys: Collection[str]) -> None:
        self._cfg, self._config = cfg.copy(), dict[str, Any]()
        raw: Any = OmegaConf.to_container(cfg, resolve=False)
        named = {part: _names_in(repr(value)) for part, value in raw.items()}
        self._changing = {key.partition(".")[0] for key in keys}
        while (
            more := {part for part, names in named.items() if names is None or names & self._changing} - self._changing
        ):
            self._changing |= more

    def __call__(self, values: Sequence[Override]) -> dict[str, Any]:
        ConfigLoaderImpl._apply_overrides_to_config(list(values), self._cfg)
        parts = self._changing if self._config else list(self._cfg)
        self._config = {**self._config, **{str(part): self._part(str(part)) for part in parts}}
        return dict(self._config)

    def _part(self, name: str) -> Any:
        value = "???" if OmegaConf.is_missing(self._cfg, name) else self._cfg[name]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _names_in(text: str) -> set[str] | None:
    """The top-level keys that interpolations in a text name; None where only OmegaConf can tell."""
    names = set()
    while (found := re.search(r"\$\{([^${}]*)\}", text)) is not None:  # an innermost one
        if re.fullmatch(r"\w+(\.\w+)*", found[1]):
            names.add(found[1].partition(".")[0])
        elif not re.fullmatch(r"oc\.env:[\w,./-]*", found[1]):
            return None
        text = text.replace(found[0], "")
    return None if "${" in text else names


def check_job(cfg: DictConfig) -> None:
    """Refuse a job that would not run where the sweep expects it.

    Raises:
        BadInput: its directory is not named by its fingerprint, or it has another working directory.
    """
    subdir = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)["subdir"]  # type: ignore[index,call-overload]  # a dict
    check(
        subdir == "${fingerprint:}",
        f"hydra.sweep.subdir={subdir}: a job's directory is named by its fingerprint, as another name could give "
        "it the result of another job; leave it, and tell jobs apart by onebox sweep",
    )
    check(not cfg.hydra.job.chdir, NO_CHDIR)


def _replaced(value: Any, old: str, new: str) -> Any:
    """Plain data with a text in place of another."""
    if isinstance(value, Mapping):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    return value.replace(old, new) if isinstance(value, str) and old in value else value
