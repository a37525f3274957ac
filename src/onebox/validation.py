"""What is wrong with a config, in one line; each part checks its own arguments where it is made."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onebox.errors import BadInput, check, is_integer, own_complaint, refuse

GROUPS = ("data", "augment", "model", "loss", "optimizer", "param_groups", "trainer", "callbacks", "logger")


def validate(cfg: DictConfig) -> None:
    """Refuse a config that cannot give a run, before anything is read or written.

    Raises:
        BadInput: names every problem.
    """

    def get(key: str) -> Any:
        return OmegaConf.select(cfg, key)

    refuse({f"{group} is null; choose an option of the group (see --help)": get(group) is None for group in GROUPS})
    from onebox.metrics import NAMES
    from onebox.module import TRAIN_METRICS

    losses = [f"{name}{kind}" for name in ("loss_loc", "loss_cls") for kind in ("", "_weighted")]
    tags = [f"train/{name}" for name in ("loss", *losses, *TRAIN_METRICS)]
    tags += [f"val/{name}" for name in ("loss", *losses, *NAMES, *(f"{name}_macro" for name in NAMES))]
    monitor, objective = get("monitor"), get("objective")
    objectives = [objective] if isinstance(objective, str) else objective or [None]
    monitors = {f"callbacks.{name}": part.get("monitor") for name, part in cfg.callbacks.items() if part is not None}
    monitors["scheduler"] = get("scheduler.monitor")
    validates = get("trainer.limit_val_batches") != 0 or not str(monitor).startswith("val/")
    counts = ["image_size", "trainer.max_epochs", "trainer.log_every_n_steps", "trainer.check_val_every_n_epoch"]
    counts += ["threads"] if get("threads") is not None else []
    kinds = {"monitor_mode": ("max", "min"), "resume": ("auto", "never"), "rerun": ("none", "failed", "stale", "all")}
    refuse(
        {f"seed must be a number >= 0 and below 2^32, not {get('seed')}": not is_integer(get("seed"), 0, 2**32 - 1)}
        | {f"{key} must be a number >= 1, not {get(key)}": not is_integer(get(key), 1) for key in counts}
        | {
            f"{key} must be one of {', '.join(all_)}, not {get(key)}": get(key) not in all_
            for key, all_ in kinds.items()
        }
        | {f"monitor={monitor} is nothing that is logged; it must be one of {', '.join(tags)}": monitor not in tags}
        | {
            f"objective={objective} is nothing that is logged; it takes {', '.join(tags)}, or a list of them": any(
                tag not in tags for tag in objectives
            )
        }
        | {f"monitor={monitor} but trainer.limit_val_batches=0; set monitor=train/loss monitor_mode=min": not validates}
        | {
            f"{key}.monitor={tag} is nothing that is logged (see metrics.csv of any run)": tag not in (None, *tags)
            for key, tag in monitors.items()
        }
    )


@contextmanager
def told_as_bad_input(overrides: Sequence[str] = ()) -> Iterator[None]:
    """Raise what Hydra and OmegaConf have against a config as `BadInput`.

    Args:
        overrides: those that it is composed from, in which misspelt keys are looked for. See also `check_options`.
    """
    check_options(overrides)
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(explain(error, overrides)) from error


def explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """What a user can do something about in an error that a config has led to.

    Args:
        error: any.
        overrides: as in `told_as_bad_input`.
    """
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
        if found is None or not files("onebox.conf").joinpath(found[1]).is_dir():
            continue
        group, value = found[1], found[3]
        check(
            value != "null", f"{group} cannot be null; choose one of its options, such as scheduler=none (see --help)"
        )
        hint = f"a sweep tries one after the other: -m {group}={value.strip('[]')}"
        if group == "loss/loc":
            hint = "a sum is an option of its own, such as loss/loc=l1_giou (see docs/tuning.md)"
        check(group.startswith("hydra/"), f"{group} takes one option, not {value}; {hint}")


def _explain_unknown_keys(overrides: Sequence[str]) -> str | None:
    """One line that names all overridden keys that do not exist, each with the nearest ones that do.

    None when every key exists, or when the groups alone cannot be composed either.
    """
    GlobalHydra.instance().clear()
    try:
        flat = [item for override in overrides for item in _flat(override)]
        # `+key` adds and `~key` deletes: whoever writes that knows the key is not there, or is.
        pairs = [item.partition("=") for item in flat if "=" in item and not item.startswith(("-", "+", "~", "hydra"))]
        chosen = [key + sep + value for key, sep, value in pairs if files("onebox.conf").joinpath(key).is_dir()]
        with initialize_config_module("onebox.conf", version_base="1.3"):
            known = sorted(_keys(compose("train", overrides=chosen)))
    except HydraException:
        return None
    parts = []
    for key in [key for key, sep, value in pairs if key not in known and key + sep + value not in chosen]:
        siblings = [other for other in known if other.rpartition(".")[0] == key.rpartition(".")[0]]
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.8) or siblings
        parts.append(f"no key {key}" + (f", did you mean {' or '.join(near)}?" if near else ""))
    return "; ".join(parts) + " (--cfg job shows all keys; +KEY=VALUE adds a new one)" if parts else None


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        yield prefix + key
        value = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none():
            yield from _keys(value, prefix + key + ".")


def _flat(override: str) -> Iterator[str]:
    """`a={b:1}` as `a.b=1`; anything else as it is."""
    key, _, value = override.partition("=")
    if not value.startswith("{"):
        yield override
        return
    parsed: Any = OverridesParser.create().parse_override(override).value()
    for name, item in parsed.items() if isinstance(parsed, dict) else ():  # else several sets, for a sweep
        yield from _flat(f"{key}.{name}={item}")
