"""Which values of a config were chosen and which follow from a choice, so that a diff can fold one under the other."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from onebox.runs.fingerprint import fingerprints, flatten

_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)")


def without_hydra(config: DictConfig, *, run_dir: str) -> DictConfig:
    """A copy of what Hydra has composed, without its own part, of which `run_dir` is made."""
    cfg = config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.run_dir = run_dir
    return cfg


def choices(hydra: Any) -> dict[str, str | None]:
    """The option chosen in each group of onebox; `hydra` is Hydra's own part of a config."""
    return {group: option for group, option in hydra.runtime.choices.items() if not group.startswith("hydra/")}


def run_facts(cfg: DictConfig, hydra: Any) -> dict[str, Any]:
    """What run.json says of a run from the start.

    Args:
        cfg: the composed config.
        hydra: Hydra's own part of it.
    """
    chosen = choices(hydra)
    return {
        "name": cfg.name,
        "seed": cfg.seed,
        **fingerprints(cfg),
        "choices": chosen,
        "overrides": list(hydra.overrides.task),
        **composition(cfg, chosen),
    }


def composition(cfg: DictConfig, choices: Mapping[str, str | None]) -> dict[str, Any]:
    """What run.json keeps of how a config came to be.

    Args:
        cfg: the composed config.
        choices: the option of each group.

    Returns:
        `config`, resolved; `interpolated`, key -> what stands in its place (`${image_size}`); `sets`, for the chosen
        options that write elsewhere than below their group's name (an experiment): the keys and groups they set.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    return {
        "config": OmegaConf.to_container(cfg, resolve=True),
        "interpolated": {key: value for key, value in flatten(plain) if isinstance(value, str) and "${" in value},
        "sets": {group: found for group, option in choices.items() if option and (found := _sets(group, option))},
    }


def set_hydra_config(choices: Mapping[str, str | None], overrides: Sequence[str]) -> None:
    """Set what a run asks Hydra for, in a process where Hydra has composed nothing."""
    from hydra.conf import HydraConf
    from hydra.core.hydra_config import HydraConfig

    hydra = OmegaConf.structured(HydraConf)
    hydra.mode = "RUN"
    hydra.runtime.choices = dict(choices)
    hydra.overrides.task = list(overrides)
    HydraConfig.instance().set_config(OmegaConf.create({"hydra": hydra}))


def _sets(group: str, option: str) -> dict[str, list[str]] | None:
    """None for an option that writes below its group's name, or that is not one of onebox's own files."""
    path = files("onebox.conf").joinpath(group, f"{option}.yaml")
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    header = _PACKAGE.match(text)
    if header is None:
        return None
    content: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    defaults = content.pop("defaults", [])
    prefix = "" if header[1] == "_global_" else f"{header[1]}."
    groups = [str(name) for item in defaults if isinstance(item, dict) for name in item]
    return {
        "keys": [key for key, _ in flatten(content, prefix) if not key.startswith("hydra.")],
        "groups": [name.removeprefix("override ").strip().lstrip("/") for name in groups],
    }
