"""What onebox changes in Hydra: its store of schemas, our plugins, a resolver, and what makes it slow.

Import it before Hydra composes.
"""

from contextlib import suppress
from typing import Any

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from hydra._internal import defaults_list
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, _utils
from yaml.cyaml import CParser  # type: ignore[import-untyped]  # as above

# Hydra copies its store of schemas for each group that --help lists and each job of a sweep, though no copy is changed.
ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]  # it has none of its own
_store = ConfigStore.store


def _store_but_launchers(store: ConfigStore, name: str, node: Any, group: str | None = None, **more: Any) -> None:
    # conf/hydra/launcher has the names that users know, which are those of the plugins' schemas too, and one key more.
    # Plugins store these whenever they are looked for, also in workers, which import this module.
    if group != "hydra/launcher" or name not in ("joblib", "ray", "submitit_local", "submitit_slurm"):
        _store(store, name, node, group, **more)


ConfigStore.store = _store_but_launchers  # type: ignore[method-assign,assignment]  # Hydra has no hook for it

_map, _Loader = defaults_list._create_interpolation_map, _utils.get_yaml_loader()


def _map_if_needed(overrides: Any, defaults: Any, self_added: bool) -> Any:
    # Hydra makes one of all choices for each file, and few files have a ${} in their defaults to look up in it.
    return _map(overrides, defaults, self_added) if any(item.is_interpolation() for item in defaults) else {}


class _QuickLoader(CParser, _Loader):  # type: ignore[misc,valid-type]  # OmegaConf makes its class in a function
    """OmegaConf's YAML, parsed by libyaml; where that fails, by Python, whose message shows the line."""

    def __init__(self, stream: Any) -> None:
        self._text = stream
        CParser.__init__(self, stream)
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)

    def get_single_data(self) -> Any:
        with suppress(yaml.YAMLError):
            return super().get_single_data()
        getattr(self._text, "seek", int)(0)
        return _Loader(self._text).get_single_data()


defaults_list._create_interpolation_map = _map_if_needed  # type: ignore[assignment]  # Hydra has no hook for it
_utils.get_yaml_loader = lambda: _QuickLoader


def register_plugins() -> None:
    """Make our plugins known to Hydra, which does not find them in an editable install."""
    from hydra.core.plugins import Plugins

    from hydra_plugins import onebox as ours

    for plugin in (ours.GridSweeper, ours.HermeticLauncher, ours.OptunaSweeper, ours.ProjectConfigs):
        Plugins.instance().register(plugin)


def job_fingerprint(root: DictConfig) -> str:
    """The name of a sweep's folder for the job that Hydra has composed."""
    from onebox.runs.fingerprint import fingerprints, without_hydra

    # run_dir depends on what is asked for, and never counts.
    return fingerprints(without_hydra(root, run_dir=""))["fingerprint"]


OmegaConf.register_new_resolver("fingerprint", lambda *, _root_: job_fingerprint(_root_), replace=True)
