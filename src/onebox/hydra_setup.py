"""What onebox changes in Hydra: its store of schemas, our plugins, and a resolver. Import it before Hydra composes."""

from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

# Hydra copies its store of schemas for each group that --help lists and each job of a sweep, though no copy is changed.
ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]  # it has none of its own
_store = ConfigStore.store


def _store_but_launchers(store: ConfigStore, name: str, node: Any, group: str | None = None, **more: Any) -> None:
    # conf/hydra/launcher has the names that users know, which are those of the plugins' schemas too, and one key more.
    # Plugins store these whenever they are looked for, also in workers, which import this module.
    if group != "hydra/launcher" or name not in ("joblib", "ray", "submitit_local", "submitit_slurm"):
        _store(store, name, node, group, **more)


ConfigStore.store = _store_but_launchers  # type: ignore[method-assign,assignment]  # Hydra has no hook for it


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
