"""What is wrong with a config, in one line; each part checks its own arguments where it is made."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onebox.errors import BadInput, check, is_integer, own_complaint
from onebox.runs.fingerprint import flatten
from onebox.trainer_options import trainer_problems

GROUPS = ("data", "augment", "model", "loss", "optimizer", "param_groups", "trainer", "callbacks", "logger")
WORDS = {"monitor_mode": ("max", "min"), "resume": ("auto", "never"), "rerun": ("none", "failed", "stale", "all")}


def validate(cfg: DictConfig) -> None:
    """Refuse a config that cannot give a run, before anything is read or written.

    Raises:
        BadInput: names every problem.
    """
    problems = [
        f"{name} is null; choose an option of the group (see --help)" for name in GROUPS if cfg.get(name) is None
    ]
    if not problems:
        is_fused = bool(cfg.optimizer.get("fused"))
        problems = [*_bad_values(cfg), *trainer_problems(cfg.trainer, is_fused=is_fused), *_unknown_tags(cfg)]
    check(not problems, "; ".join(problems))


def _bad_values(cfg: DictConfig) -> Iterator[str]:
    if not is_integer(cfg.seed, 0, 2**32 - 1):
        yield f"seed must be a number >= 0 and below 2^32, not {cfg.seed}"
    counts = ["image_size", "trainer.max_epochs", "trainer.log_every_n_steps", "trainer.check_val_every_n_epoch"]
    counts += ["threads"] if cfg.get("threads") is not None else []
    for key in counts:
        if not is_integer(value := OmegaConf.select(cfg, key), 1):
            yield f"{key} must be a number >= 1, not {value}"
    for key, words in WORDS.items():
        if cfg.get(key) not in words:
            yield f"{key} must be one of {', '.join(words)}, not {cfg.get(key)}"


def _unknown_tags(cfg: DictConfig) -> Iterator[str]:
    """What is wrong with the names of logged values; importing the metrics' names takes torch."""
    from onebox.metrics import NAMES
    from onebox.module import TRAIN_METRICS

    losses = ["loss", *(f"{name}{kind}" for name in ("loss_loc", "loss_cls") for kind in ("", "_weighted"))]
    tags = [f"train/{name}" for name in (*losses, *TRAIN_METRICS)]
    tags += [f"val/{name}" for name in (*losses, *NAMES, *(f"{name}_macro" for name in NAMES))]
    if cfg.monitor not in tags:
        yield f"monitor={cfg.monitor} is not logged; it must be one of {', '.join(tags)}"
    objectives = [cfg.objective] if isinstance(cfg.objective, str) else cfg.objective or [None]
    if any(tag not in tags for tag in objectives):
        yield f"objective={cfg.objective} is not logged; it takes {', '.join(tags)}, or a list of them"
    if cfg.trainer.get("limit_val_batches") == 0 and str(cfg.monitor).startswith("val/"):
        yield f"monitor={cfg.monitor} but trainer.limit_val_batches=0; set monitor=train/loss monitor_mode=min"
    parts = {f"callbacks.{name}": part for name, part in cfg.callbacks.items()} | {"scheduler": cfg.get("scheduler")}
    for key, part in parts.items():
        if part is not None and part.get("monitor") not in (None, *tags):
            yield f"{key}.monitor={part.monitor} is not logged (see metrics.csv of any run)"


@contextmanager
def told_as_bad_input(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise about a config into `BadInput`.

    `overrides` are those that it is composed from, in which misspelt keys are looked for. See also `check_options`.
    """
    check_options(overrides)
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(explain(error, overrides)) from error


def explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """The part of an error that a user can act on; `overrides` are those that the config was composed from."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        near = difflib.get_close_matches(option, error.options, n=3)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"{group}={option}: no such option{meant} ({', '.join(error.options)})"
    unknown = _explain_unknown_keys(overrides) if isinstance(error, ConfigCompositionException) else None
    return unknown or str(own_complaint(error))


def check_options(overrides: Sequence[str]) -> None:
    """Refuse null for a group, and lists: Hydra would take the last of one and record none.

    Raises:
        BadInput: names the first.
    """
    for override in overrides:
        found = re.fullmatch(r"\+{0,2}([\w/]+)(@[^=]*)?=\s*(null|\[.*)", override, re.DOTALL)
        if found is None or not _is_group(found[1]):
            continue
        group, value = found[1], found[3]
        choose = "choose one of its options, such as scheduler=none (see --help)"
        check(value != "null", f"{group} cannot be null; {choose}")
        hint = f"a sweep tries one after the other: -m {group}={value.strip('[]')}"
        if group == "loss/loc":
            hint = "a sum is an option of its own, such as loss/loc=l1_giou (see docs/tuning.md)"
        check(group.startswith("hydra/"), f"{group} takes one option, not {value}; {hint}")


def _explain_unknown_keys(overrides: Sequence[str]) -> str | None:
    """One line that names the overridden keys that do not exist, each with the nearest ones that do.

    None when every key exists, or when the groups alone cannot be composed either.
    """
    GlobalHydra.instance().clear()
    # `+key` adds and `~key` deletes: whoever writes that knows the key is not there, or is.
    values = [item for item in overrides if "=" in item and not item.startswith(("-", "+", "~", "hydra"))]
    groups = [item for item in values if "={" not in item and _is_group(item.partition("=")[0])]
    parts = []
    with initialize_config_module("onebox.conf", version_base="1.3"):
        try:
            plain: Any = OmegaConf.to_container(compose("train", overrides=groups))
        except HydraException:
            return None
        paths = [key.split(".") for key, _ in flatten(plain)]
        known = sorted({".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)})
        for override in values:
            try:
                compose("train", overrides=[*groups, override])
            except HydraException as error:
                key = getattr(error.__cause__, "full_key", None)
                if isinstance(key, str):  # else it is something else that is wrong
                    siblings = [other for other in known if other.rpartition(".")[0] == key.rpartition(".")[0]]
                    near = difflib.get_close_matches(key, known, n=3, cutoff=0.8) or siblings
                    parts.append(f"no key {key}" + (f", did you mean {' or '.join(near)}?" if near else ""))
    return "; ".join(parts) + " (--cfg job shows all keys; +KEY=VALUE adds a new one)" if parts else None


def _is_group(name: str) -> bool:
    return files("onebox.conf").joinpath(name).is_dir()
