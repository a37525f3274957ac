"""What is wrong with a config in one line, and what a user may have meant by a key that it does not have."""

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

from onebox.errors import BadInput, own_complaint, refuse


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
    unknown = explain_unknown_keys(overrides) if isinstance(error, ConfigCompositionException) else None
    return unknown or str(own_complaint(error))


def check_options(overrides: Sequence[str]) -> None:
    """Refuse null for a group, and lists: Hydra would take the last of one and record none.

    Raises:
        BadInput: names every one.
    """
    problems = {}
    for override in overrides:
        found = re.fullmatch(r"\+{0,2}([\w/]+)(@[^=]*)?=\s*(null|\[.*)", override, re.DOTALL)
        if found is None or not files("onebox.conf").joinpath(found[1]).is_dir():
            continue
        group, value = found[1], found[3]
        if value == "null":
            problems[f"{group} cannot be null; choose one of its options, such as scheduler=none (see --help)"] = True
        elif group == "loss/loc":
            hint = "a sum is an option of its own, such as loss/loc=l1_giou (see docs/tuning.md)"
            problems[f"{group} takes one option, not {value}; {hint}"] = True
        elif not group.startswith("hydra/"):
            hint = f"a sweep tries one after the other: -m {group}={value.strip('[]')}"
            problems[f"{group} takes one option, not {value}; {hint}"] = True
    refuse(problems)


def explain_unknown_keys(overrides: Sequence[str]) -> str | None:
    """One line that names all overridden keys that do not exist, each with the nearest ones that do.

    Args:
        overrides: the command line's arguments, such as `data.batchsize=8` or `experiment=baseline`.

    Returns:
        None when every key exists, or when the groups alone cannot be composed either.
    """
    GlobalHydra.instance().clear()
    try:
        overrides = [flat for item in overrides for flat in _flat(item)]
        # `+key` adds and `~key` deletes: whoever writes that knows the key is not there, or is.
        pairs = [
            item.partition("=") for item in overrides if "=" in item and not item.startswith(("-", "+", "~", "hydra"))
        ]
        chosen = [key + sep + value for key, sep, value in pairs if files("onebox.conf").joinpath(key).is_dir()]
        with initialize_config_module("onebox.conf", version_base="1.3"):
            known = sorted(_keys(compose("train", overrides=chosen)))
    except HydraException:
        return None
    unknown = [key for key, sep, value in pairs if key not in known and key + sep + value not in chosen]
    if not unknown:
        return None
    parts = []
    for key in unknown:
        parent = key.rpartition(".")[0]
        siblings = [other for other in known if other.rpartition(".")[0] == parent]
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.8) or siblings
        parts.append(f"no key {key}" + (f", did you mean {' or '.join(near)}?" if near else ""))
    return "; ".join(parts) + " (--cfg job shows all keys; +KEY=VALUE adds a new one)"


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
    if not isinstance(parsed, dict):  # several sets, for a sweep
        return
    for name, item in parsed.items():
        yield from _flat(f"{key}.{name}={item}")
