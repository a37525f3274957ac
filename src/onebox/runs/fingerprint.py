"""The config of a run: where its values come from, and a hash of all that can change the result."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onebox.project import config_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Lightning reads 1 as one batch and 1.0 as all of them.
COUNT_OR_SHARE = {f"limit_{part}_batches" for part in ("train", "val", "test", "predict")}
COUNT_OR_SHARE |= {"overfit_batches", "val_check_interval"}
PATHS = {("data", "root")}  # two spellings of one place are the same
# New name of a class -> the one it had: a run of before a move has the fingerprint that it would get now.
MOVED = {
    "onebox.callbacks.early_stopping.EarlyStopping": "lightning.pytorch.callbacks.EarlyStopping",
    "onebox.losses.DynamicWeightAverage": "onebox.weighting.DynamicWeightAverage",
    "onebox.losses.FixedWeighting": "onebox.weighting.FixedWeighting",
    "onebox.losses.UncertaintyWeighting": "onebox.weighting.UncertaintyWeighting",
    "onebox.model.backbone.InputRecord": "onebox.model.features.InputRecord",
    "onebox.model.pretrained.efficientnet_lite0": "onebox.model.timm_net.efficientnet_lite0",
    "onebox.model.pretrained.timm_net": "onebox.model.timm_net.timm_net",
    "onebox.model.pretrained.torchvision_net": "onebox.model.torchvision_net.torchvision_net",
    "onebox.optim.ParamGroups": "onebox.param_groups.ParamGroups",
    "onebox.optim.Plateau": "onebox.schedules.Plateau",
    "onebox.optim.cosine": "onebox.schedules.cosine",
    "onebox.optim.one_cycle": "onebox.schedules.one_cycle",
    "onebox.optim.slanted_triangular": "onebox.schedules.slanted_triangular",
}
RENAMED = {old: new for new, old in MOVED.items() if old.startswith("onebox.")}  # Lightning's own classes stay theirs

_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)")

Path = tuple[Any, ...]


def fingerprints(cfg: "DictConfig") -> dict[str, str]:
    """`fingerprint`, and `fingerprint_seedless`: the same without the seed and what is interpolated from it."""
    from omegaconf import OmegaConf  # onebox runs does without

    seedless = cfg.copy()
    seedless.seed = None
    configs = {"fingerprint": cfg, "fingerprint_seedless": seedless}
    plain: dict[str, Any] = {name: OmegaConf.to_container(config, resolve=True) for name, config in configs.items()}
    neutral = plain["fingerprint"].get("fingerprint_neutral") or {}
    return {name: fingerprint(config, cfg.fingerprint_ignore, neutral) for name, config in plain.items()}


def without_hydra(config: "DictConfig", *, run_dir: str) -> "DictConfig":
    """A copy of what Hydra has composed, without its own part, of which `run_dir` is made."""
    from omegaconf import open_dict

    cfg = config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.run_dir = run_dir
    return cfg


def choices(hydra: Any) -> dict[str, str | None]:
    """The option chosen in each group of onebox; `hydra` is Hydra's own part of a config."""
    return {group: option for group, option in hydra.runtime.choices.items() if not group.startswith("hydra/")}


def run_facts(cfg: "DictConfig", hydra: Any) -> dict[str, Any]:
    """What run.json says from the start of a run of `cfg`; `hydra` is Hydra's own part of the config.

    With `interpolated`, key -> what stands in its place (`${image_size}`), and `sets`, what each option sets elsewhere,
    a diff folds values that follow from a choice under it.
    """
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    chosen = choices(hydra)
    return {
        "name": cfg.name,
        "seed": cfg.seed,
        **fingerprints(cfg),
        "choices": chosen,
        "overrides": list(hydra.overrides.task),
        "config": OmegaConf.to_container(cfg, resolve=True),
        "interpolated": {key: value for key, value in flatten(plain) if isinstance(value, str) and "${" in value},
        "sets": {group: found for group, option in chosen.items() if option and (found := _sets(group, option))},
    }


def set_hydra_config(choices: Mapping[str, str | None], overrides: Sequence[str]) -> None:
    """Set the part of Hydra's config that a run reads, in a process where Hydra has composed nothing."""
    from hydra.conf import ConfigSourceInfo, HydraConf
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    hydra = OmegaConf.structured(HydraConf)
    hydra.mode = "RUN"
    hydra.runtime.choices = dict(choices)
    hydra.overrides.task = list(overrides)
    if (folder := config_folder()) is not None:  # as Hydra would have searched it
        hydra.runtime.config_sources = [ConfigSourceInfo(path=str(folder), schema="file", provider="project")]
    HydraConfig.instance().set_config(OmegaConf.create({"hydra": hydra}))


def fingerprint(config: Mapping[str, Any], ignore: Sequence[str], neutral: Mapping[str, Any] | None = None) -> str:
    """Hash of a resolved config, as 12 hexadecimal digits.

    Neither the order of keys nor 10.0 in place of 10 changes it (but for the few keys where the type has a meaning).
    `ignore` says what cannot change the result, see `Ignored`. A key that has its value in `neutral`, which is nested
    like `config`, counts as absent. Without a seed, as for `fingerprint_seedless`, a run that was extended has none.
    """
    extend = config.get("extend")
    if isinstance(extend, Mapping) and extend.get("fingerprint") and config.get("seed") is None:
        config = {**config, "extend": {"fingerprint": extend.get("seedless")}}
    ignored = Ignored(config, ignore)
    config = _without_neutral(config, neutral or {}, (), ignored)
    return hashlib.sha256(_text(_canonical(config, (), ignored)).encode()).hexdigest()[:12]


def changed_parts(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts of a fingerprint of data that have changed; one that only one of them has is not compared."""
    return [part for part in now if part in before and before[part] != now[part]]


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which two resolved configs differ such that the result can; the rules are those of `now`."""
    ignored, absent = Ignored(now, now["fingerprint_ignore"]), dict(flatten(now["fingerprint_neutral"]))
    one, other = (absent | dict(flatten(with_new_names(dict(config)))) for config in (before, now))
    keys = (key for key in {**other, **one} if not ignored(tuple(key.split("."))))
    return [key for key in keys if not (key in one and key in other and same(key, one[key], other[key]))]


def same(key: str, one: Any, other: Any) -> bool:
    """Whether two values of the dotted `key` are one and the same to a fingerprint."""
    path = tuple(key.split("."))
    return _text(_canonical(one, path, None)) == _text(_canonical(other, path, None))


class Ignored:
    """Tells the keys of a config that cannot change its result.

    A rule is a dotted key, with all that is below it; `*` stands for any one name. `KEY if OTHER` holds only where
    OTHER is not null.
    """

    def __init__(self, config: Mapping[str, Any], rules: Sequence[str]) -> None:
        keys = (key for key, _, other in (rule.partition(" if ") for rule in rules) if not other or _has(config, other))
        self._pattern = _pattern(tuple(keys))

    def __call__(self, path: Path) -> bool:
        """Whether the key, given name by name, or one above it is ignored."""
        return self._pattern.match(".".join(map(str, path))) is not None


@functools.lru_cache(64)  # thousands of runs have the same rules
def _pattern(keys: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(re.escape(key).replace(r"\*", "[^.]+") for key in keys)
    return re.compile(rf"({names})(\.|$)")


def with_new_names(value: Any, key: str = "") -> Any:
    """The same plain data, with each `_target_` from before a move as it is called now."""
    if isinstance(value, dict):
        return {name: with_new_names(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [with_new_names(item) for item in value]
    return RENAMED.get(value, value) if key == "_target_" and isinstance(value, str) else value


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; lists and empty dicts are values."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def key_of(override: str) -> str:
    """The key or group that an override names."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def _without_neutral(
    config: Mapping[str, Any], neutral: Mapping[str, Any], path: Path, ignored: Ignored
) -> dict[str, Any]:
    kept = {}
    for key, value in config.items():
        if key in neutral and isinstance(value, Mapping) and isinstance(neutral[key], Mapping):
            value = _without_neutral(value, neutral[key], (*path, key), ignored)
            if all(ignored((*path, key, name)) for name in value):
                continue  # all of it is new
        elif key in neutral and same(key, value, neutral[key]):
            continue
        kept[key] = value
    return kept


def _canonical(value: Any, path: Path, ignored: Ignored | None) -> Any:
    """Equal for values that mean the same."""
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if ignored is None or not ignored((*path, key))}
        # The key 1 is not the key "1".
        return {json.dumps(key): _canonical(item, (*path, key), ignored) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, path, None) for item in value]
    if isinstance(value, str) and path in PATHS:
        return os.path.realpath(value)
    if isinstance(value, str) and path and path[-1] == "_target_":
        return MOVED.get(value, value)
    if path and path[-1] in COUNT_OR_SHARE and not isinstance(value, bool):
        return repr(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _has(config: Mapping[str, Any], key: str) -> bool:
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node is not None


def _sets(group: str, option: str) -> dict[str, list[str]] | None:
    """The keys and groups that an option sets elsewhere than below its group's name, as an experiment does."""
    from importlib.resources import files

    from omegaconf import OmegaConf

    path = files("onebox.conf").joinpath(group, f"{option}.yaml")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""  # else one of a user's own
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
