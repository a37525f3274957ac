"""What onebox-train takes of an earlier run.

Its config, as resolved (`like=RUN`), its weights (`init=RUN`), or both and the state of its training (`extend=RUN`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from onebox.errors import check, printable, say
from onebox.files import file_hash
from onebox.overrides import is_group, read_arguments
from onebox.runs.fingerprint import Ignored, flatten, key_of, same, with_new_names
from onebox.runs.reading.find import Run, find_run, weights_file
from onebox.sweep.plan import as_override
from onebox.trust import check_stored, stored_in, stored_overrides
from onebox.validation import told_as_bad_input

NEW = "the-new-run"  # stands for a run directory: the old one is not written to
# How a run was started, and where it was uploaded to; not what it is.
NOT_TAKEN = {"like", "sweep", "resume", "rerun", "run_dir", "data_fingerprint", "logger"}


def with_run(arguments: Sequence[str]) -> list[str]:
    """The arguments with `like=RUN` or `extend=RUN` replaced by overrides that compose the config of that run.

    These are its own overrides, and after them explicit ones where defaults have changed since. Left out is what the
    other arguments set again, and with a group that they choose again all that the run set in it. `init=RUN` is found.

    Raises:
        BadInput: there is no such run, or it cannot be composed.
    """
    arguments = [_with_weights(text) for text in arguments]
    named = [text for text in arguments if text.startswith(("like=", "extend=")) and not text.startswith("extend={")]
    if not named:
        return arguments
    how, _, name = named[0].partition("=")
    is_alone = how == "like" or not any(text.startswith("init=") for text in arguments)
    check(
        len(named) == 1 and is_alone, f"{' '.join(named)}: a run begins from one other; give {how}=RUN once, and alone"
    )
    check(not stored_in, f"{named[0]}: resume=FOLDER resumes a run as it was; give one of them")
    run = find_run(name, Path("outputs"))
    path = run.path / "run.json"
    check(bool(run.config), f"{path}: holds no config (it is of an older version); repeat the whole command instead")
    typed = read_arguments([text for text in arguments if text not in named])  # which begin with the flags
    args, _ = get_args_parser().parse_known_args(typed)
    places = (
        [f"hydra.searchpath=[{as_override(f'file://{Path(args.config_dir).absolute()}')}]"] if args.config_dir else []
    )
    places += [text for text in typed if text.startswith("hydra.searchpath=")]
    with told_as_bad_input(args.overrides):
        swept = {*_swept(args.overrides, places), *(key_of(text) for text in args.overrides if _is_swept(text))}
        keys = {key_of(text) for text in args.overrides} | swept
    # A run that another one was extended to, without a change, is a run of its own.
    is_whole = how == "extend" or not (run.config.get("extend") or {}).get("fingerprint")
    not_taken = NOT_TAKEN | ({"extend"} if is_whole else set())
    overrides = [text for text in run.record.get("overrides") or [] if not _is_set_by(key_of(text), not_taken)]
    overrides = stored_overrides(run.path, overrides)
    _refuse_sweeps(overrides, path)
    with told_as_bad_input([*overrides, *args.overrides]), initialize_config_module("onebox.conf", version_base="1.3"):
        moved = _moved_defaults(run, overrides, places)
        kept, moved = ([text for text in texts if not _is_set_by(key_of(text), keys)] for texts in (overrides, moved))
        single = [text for text in args.overrides if not _is_swept(text)]
        cfg = compose("train", overrides=[*kept, *moved, *single, *places, f"run_dir={NEW}"])
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        check_stored(config, Path(NEW), path, cfg.trust)
    begun = f"like.run={as_override(str(run.path.absolute()))}"
    if how == "extend":
        from onebox.runs.extension import extension  # takes torch with it

        begun = f"extend={as_override(extension(run, config, keys, swept))}"
    left_out = [text for text in overrides if text not in kept and key_of(text) not in keys]
    if left_out:
        say(printable(f"{named[0]}: {', '.join(left_out)} of the run belongs to a group that is chosen anew; left out"))
    if moved:
        say(printable(f"{named[0]}: defaults have changed since that run, so these are set: {' '.join(moved)}"))
    return [*kept, *moved, begun, *typed]


def _with_weights(argument: str) -> str:
    """For `init=RUN` the run's directory and the hash of its weights; several, with commas between, are swept."""
    key, _, value = argument.partition("=")
    if key != "init" or not value or value.startswith("{"):
        return argument
    if value == "null":
        return "init={run:null,weights:null}"
    names = [value] if Path(value).exists() else value.split(",")
    folders = [find_run(name, Path("outputs")).path.absolute() for name in names]
    inits = [{"run": str(folder), "weights": file_hash(weights_file(folder))} for folder in folders]
    return "init=" + ",".join(map(as_override, inits))


def _is_swept(override: str) -> bool:
    return bool(OverridesParser.create().parse_override(override).is_sweep_override())


def _is_set_by(key: str, keys: set[str]) -> bool:
    """Whether a key, or a group that it belongs to, is among `keys`."""
    parts = key.replace("/", ".").split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts))}
    groups = {name.replace("/", ".") for name in keys if is_group(name) or name in NOT_TAKEN}
    return key in keys or bool(above & groups)


def _swept(given: Sequence[str], places: Sequence[str]) -> Iterator[str]:
    """The keys that a `sweep=OPTION` varies, which values of a command line would replace."""
    chosen = [text for text in given if text.startswith("sweep=")]
    if chosen:
        with initialize_config_module("onebox.conf", version_base="1.3"):
            cfg = compose("train", overrides=[*chosen, *places], return_hydra_config=True)
        yield from OmegaConf.select(cfg, "hydra.sweeper.params") or {}
        for job in OmegaConf.select(cfg, "sweep.jobs") or []:
            yield from job


def _refuse_sweeps(overrides: Sequence[str], where: Path) -> None:
    """Refuse overrides of a run that would start several: they would become jobs that nobody asked for."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        check(
            not override.is_sweep_override(),
            f"{where}: holds {override.input_line!r:.80}, which lists values, as no run does; repeat the whole command",
        )


def _moved_defaults(run: Run, own: Sequence[str], places: Sequence[str]) -> list[str]:
    """Overrides for what its `own` do not give today as the run had it: choices, then values, then what follows."""
    moved: list[str] = []
    cfg = _composed(run, [*own, *places])
    chosen = dict(cfg.hydra.runtime.choices)
    for group, option in (run.record.get("choices") or {}).items():
        is_known = is_group(group) and not _is_set_by(group, NOT_TAKEN)
        if is_known and isinstance(option, str) and chosen.get(group) != option:
            moved.append(f"{group}={as_override(option)}")
    stored = dict(flatten(with_new_names(dict(run.config))))
    count = 0  # of those that cfg is composed with
    for is_last in (False, True):
        if len(moved) > count:
            cfg, count = _composed(run, [*own, *moved, *places]), len(moved)
        plain, unresolved = (_plain(cfg, resolve=resolve) for resolve in (True, False))
        now, written, neutral = map(dict, map(flatten, (plain, unresolved, plain["fingerprint_neutral"])))
        is_ignored = Ignored(plain, plain["fingerprint_ignore"])
        for key in {**now, **stored}:
            if is_ignored(tuple(key.split("."))) or _is_set_by(key, NOT_TAKEN) or key == "extend.fingerprint":
                continue
            follows = "${" in str(written.get(key))
            before = stored.get(key, neutral.get(key, now.get(key)))
            if (is_last or not follows) and not (key in now and same(key, before, now[key])):
                moved.append(f"{'' if key in now else '++'}{key}={as_override(before)}")
    return stored_overrides(run.path, moved)


def _composed(run: Run, overrides: Sequence[str]) -> DictConfig:
    """What the command line composes, in the run's own directory: so a path in it is no difference."""
    own = {key: run.config.get(key) for key in ("run_dir", "data_dir")}
    texts = [f"{key}={as_override(value)}" for key, value in own.items() if value is not None]
    return compose("train", overrides=[*overrides, *texts], return_hydra_config=True)


def _plain(cfg: DictConfig, *, resolve: bool) -> Any:
    names = [str(name) for name in cfg if name != "hydra"]
    return OmegaConf.to_container(OmegaConf.masked_copy(cfg, names), resolve=resolve)
