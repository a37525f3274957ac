"""What is wrong with a config, in one line; each part checks its own arguments where it is made."""

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from hydra import compose, initialize_config_module
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onebox.errors import BadInput, check, is_integer, is_number, own_complaint
from onebox.lightning_setup import import_lightning
from onebox.overrides import is_group, several_values
from onebox.runs.fingerprint import flatten
from onebox.streams import check_limits
from onebox.trainer_options import trainer_problems

Limit = tuple[Callable[[Any], bool], str]
GROUPS = ("data", "augment", "model", "loss", "optimizer", "param_groups", "trainer", "callbacks", "logger")
WORDS = {"monitor_mode": ("max", "min"), "resume": ("auto", "never"), "rerun": ("none", "failed", "stale", "all")}
LARGEST = 10**18  # of a whole number; what is larger overflows somewhere
_WHOLE: Limit = (lambda value: is_integer(value, 0), "a whole number >= 0")
_COUNT: Limit = (lambda value: is_integer(value, 1), "a whole number >= 1")
_SIZE: Limit = (lambda value: is_number(value, 0), "a number >= 0")
_SHARE: Limit = (lambda value: is_number(value, 0, 1), "in [0, 1]")
# Name of a class -> what its arguments must be, where a library takes others without a word or fails in the fit.
LIMITS: dict[str, dict[str, Limit]] = {
    "CrossEntropyLoss": {"label_smoothing": _SHARE},
    "balanced_cross_entropy": {"label_smoothing": _SHARE},
    "SmoothL1Loss": {"beta": _SIZE},
    **{f"{name}_box_iou_loss": {"eps": _SHARE} for name in ("generalized", "distance", "complete")},
    "EarlyStopping": {"patience": _WHOLE, "min_delta": _SIZE},
    "EMAWeightAveraging": {"decay": _SHARE, "update_every_n_steps": _COUNT},
    "Plateau": {"factor": _SHARE, "patience": _WHOLE, "min_delta": _SIZE, "min_lr": _SIZE},
    "Trainer": {"num_sanity_val_steps": _WHOLE},
}
_ABSENT = object()


def validate(cfg: DictConfig) -> None:
    """Refuse a config that cannot give a run, before anything is read or written.

    Raises:
        BadInput: names every problem.
        OSError: a limit of the system is too low for the loader's processes.
    """
    problems = [
        f"{name} is null; choose an option of the group (see --help)" for name in GROUPS if cfg.get(name) is None
    ]
    if not problems:
        is_fused = bool(cfg.optimizer.get("fused"))
        problems = [*_odd_numbers(OmegaConf.to_container(cfg))]
        problems = problems or [
            *_bad_values(cfg),
            *trainer_problems(cfg.trainer, is_fused=is_fused),
            *_unknown_tags(cfg),
        ]
    check(not problems, "; ".join(problems))
    if is_integer(workers := cfg.data.get("num_workers"), 0, 1024):
        check_limits(workers)


def _bad_values(cfg: DictConfig) -> Iterator[str]:
    if not is_integer(cfg.seed, 0, 2**32 - 1):
        yield f"seed must be a number >= 0 and below 2^32, not {cfg.seed}"
    for how in ("init", "extend", "like"):
        if not isinstance(named := cfg.get(how, {}), DictConfig | dict):
            yield f"{how}={named}: a run is named so on the command line of onebox-train alone"
    counts = ["image_size", "trainer.max_epochs", "trainer.log_every_n_steps", "trainer.check_val_every_n_epoch"]
    counts += ["threads"] if cfg.get("threads") is not None else []
    for key in counts:
        if not is_integer(value := OmegaConf.select(cfg, key), 1):
            yield f"{key} must be a number >= 1, not {value}"
    if (best := OmegaConf.select(cfg, "callbacks.checkpoint_best.save_top_k")) not in (None, 1):
        yield f"callbacks.checkpoint_best.save_top_k must be 1, not {best}; checkpoint_best=null tests the last"
    if OmegaConf.select(cfg, "data.root") is None:
        yield "data.root must be given (KEY=VALUE)"
    for key, words in WORDS.items():
        if cfg.get(key) not in words:
            yield f"{key} must be one of {', '.join(words)}, not {cfg.get(key)}"


def _odd_numbers(node: Any, key: str = "") -> Iterator[str]:
    """What is wrong with the numbers of a config, whoever takes them."""
    if isinstance(node, int | float) and not (math.isfinite(node) if isinstance(node, float) else abs(node) <= LARGEST):
        yield f"{key} must be a number that can be computed with, not {node:.5g}"
    elif isinstance(node, dict | list):
        parts = node.items() if isinstance(node, dict) else ((f"[{number}]", item) for number, item in enumerate(node))
        for name, value in parts:
            yield from _odd_numbers(value, f"{key}.{name}".lstrip(".").replace(".[", "["))
    target = str(node.get("_target_")) if isinstance(node, dict) else ""
    for name, (is_right, what) in LIMITS.get(target.rpartition(".")[2], {}).items():
        value = node.get(name)
        is_told = isinstance(value, float) and not math.isfinite(value)
        if not (value is None or is_told or "${" in str(value) or is_right(value)):
            yield f"{key}.{name} must be {what}, not {value}"


def _unknown_tags(cfg: DictConfig) -> Iterator[str]:
    """What is wrong with the names of logged values; importing the metrics' names takes torch."""
    import_lightning()
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

    `overrides` are those that it is composed from, in which misspelt keys are looked for.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(explain(error, overrides)) from error


def explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """The part of an error that a user can act on; `overrides` are those that the config was composed from."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        near = difflib.get_close_matches(option, error.options, n=3)
        near = near or [
            f"{other}={option}"
            for other in _groups()
            if files("onebox.conf").joinpath(f"{other}/{option}.yaml").is_file()
        ]
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"{group}={option}: no such option{meant} ({', '.join(error.options)})"
    listed = re.match(
        r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'(?:\n| requires)", str(error), re.DOTALL
    )
    if listed:
        return several_values(listed[1])
    if hydras := re.match(r"Could not override '(hydra\.[\w.]+)'", str(error)):
        schema: Any = OmegaConf.to_container(OmegaConf.structured(HydraConf))
        known = [f"hydra.{key}" for key, _ in flatten(schema)]
        near = difflib.get_close_matches(hydras[1], known, n=2)
        return (
            f"no key {hydras[1]}{', did you mean ' * bool(near)}{' or '.join(near)}{'?' * bool(near)} (see --cfg hydra)"
        )
    composing = isinstance(error, ConfigCompositionException)
    return (_explain_unknown_keys(overrides) if composing else None) or str(own_complaint(error))


def _explain_unknown_keys(overrides: Sequence[str]) -> str | None:
    """One line that names the overridden keys that do not exist, each with what may be meant, and + and ~ that fail.

    None when all is well, or when the groups alone cannot be composed either.
    """
    GlobalHydra.instance().clear()
    values = [item for item in overrides if item[:1] not in ("", "-") and not item.startswith("hydra")]
    groups = [item for item in values if "={" not in item and is_group(item.partition("=")[0])]
    parts = []
    with initialize_config_module("onebox.conf", version_base="1.3"):
        plain: Any = _composed(tuple(groups))
        if plain is None:
            return None
        for override in values:
            try:
                compose("train", overrides=[*groups, override])
            except HydraException as error:
                if override[0] in "+~":
                    parts.append(_explain_sign(override))
                elif isinstance(key := getattr(error.__cause__, "full_key", None), str):  # else something else is wrong
                    parts.append(_explain_unknown_key(key, plain, groups))
    return "; ".join(parts) or None


def _explain_sign(override: str) -> str:
    """Why a key that is there cannot be added, or one that is not there deleted."""
    key, _, value = override.partition("=")
    if key.startswith("~"):
        return f"{override}: there is nothing to delete, as it is not chosen, null, or no key; leave it out"
    return f"{override}: {key.lstrip('+')} exists, so it needs no +: {key.lstrip('+')}={value}"


def _explain_unknown_key(key: str, plain: dict[str, Any], groups: Sequence[str]) -> str:
    """One line on a key that is not in the config `plain`, which is composed from `groups`."""
    group = max((name for name in _groups() if key.startswith(f"{name.replace('/', '.')}.")), key=len, default=None)
    if group is not None:
        options = [item.name.removesuffix(".yaml") for item in files("onebox.conf").joinpath(group).iterdir()]
        others = [name for name in sorted(options) if _has(key, [*groups, f"{group}={name}"])]
        if others:
            some = f"{{{group}:{others[0]},{key}:...}}"
            only = f"in a sweep over several options: sweep.jobs='[{some},{{{group}:...}}]'"
            return f"{key} exists only with {group}={','.join(others)}; choose one of these, or {only}"
    paths = [name.split(".") for name, _ in flatten(plain)]
    known = sorted({".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)} | {*_groups()})
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.8)
    near = [name for name in near if not key.startswith(f"{name}.")]
    if not near:
        last: dict[str, list[str]] = {}
        for name in known:
            last.setdefault(re.split(r"[./]", name)[-1], []).append(name)
        close = difflib.get_close_matches(re.split(r"[./]", key)[-1], last, n=3, cutoff=0.7)
        parent = key.rpartition(".")[0]
        siblings = [name for name in known if parent and name.rpartition(".")[0] == parent and not name.endswith("_")]
        near = [name for part in close for name in last[part]][:5] or siblings
    meant = f", did you mean {' or '.join(near)}?" if near else ""
    return f"no key {key}{meant} (--cfg job shows all keys; +KEY=VALUE adds a new one)"


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Any:
    """The config of `overrides` as plain data; None where it cannot be composed."""
    try:
        return OmegaConf.to_container(compose("train", overrides=[*overrides]))
    except HydraException:
        return None


def _has(key: str, overrides: Sequence[str]) -> bool:
    plain = _composed(tuple(overrides))
    return plain is not None and OmegaConf.select(OmegaConf.create(plain), key, default=_ABSENT) is not _ABSENT


def _groups() -> list[str]:
    """The groups of options, such as model/backbone."""
    top = files("onebox.conf")
    first = [item.name for item in top.iterdir() if is_group(item.name) and not item.name.startswith(("_", "."))]
    return first + [f"{one}/{item.name}" for one in first for item in top.joinpath(one).iterdir() if item.is_dir()]
