"""Arguments as people type them: what Hydra would misread is put right, or refused with what to type instead."""

import argparse
import functools
import os
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException

from onebox.errors import BadInput, check

# Keys that take a text, also one that Hydra reads as a number or a truth value.
TEXTS = {
    *("name", "data_dir", "voc_root", "data.root", "data.images", "data.annotations", "data.cache_dir"),
    *("hydra.run.dir", "hydra.sweep.dir"),
}

OPTIONAL = ("experiment", "sweep", "debug")
MAX_NAME, MAX_PATH = 255, 4000  # bytes that file systems take; below a run lie names of up to 90


def read_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of onebox-train for Hydra: flags first, then each override as it was meant.

    Raises:
        BadInput: one cannot be used.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        args, unknown = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise BadInput(f"{error} (see --hydra-help)") from error
    check(not unknown, f"{' '.join(unknown)}: no such flag; a value is given as KEY=VALUE, without dashes (see --help)")
    if args.shell_completion:
        return list(arguments)
    asked = [f"--{name}" for name in ("run", "multirun", "cfg", "info") if getattr(args, name)]
    check(len(asked) <= 1, f"{' and '.join(asked)} exclude each other; give one of them")
    check(not args.resolve or args.cfg or args.help, "--resolve is for --cfg: --cfg job --resolve")
    overrides = [as_meant(text) for text in args.overrides]
    if args.multirun:
        overrides = _of_each_job(overrides)
    return [text for text in arguments if text not in args.overrides] + overrides


@functools.cache
def as_meant(text: str) -> str:
    """An override for Hydra; a value that is a text beyond doubt is quoted.

    Raises:
        BadInput: it cannot be read.
    """
    key, equals, value = text.partition("=")
    if not equals and not text.startswith("~"):
        pair = re.fullmatch(r"([\w./@+-]+):\s*(.+)", text, re.DOTALL)
        instead = f"write {pair[1]}={pair[2]}" if pair else "no blanks around =, and blanks in quotes: KEY='a b'"
        raise BadInput(f"{text!r} is no KEY=VALUE; {instead} (--cfg job shows all keys)")
    is_key = re.fullmatch(r"(~|\+{0,2})[A-Za-z_$][\w$./@:-]*", key, re.ASCII)
    check(
        bool(is_key),
        f"{text!r}: {key!r} is no key (--cfg job shows all); no blanks around =, no single entry of a list",
    )
    check(not equals or bool(value.strip()), f"{text} has no value; none is {key}=null, an empty text \"{key}=''\"")
    check(
        not (key.startswith("hydra.") and key in TEXTS and value == "null"), f"{text}: must be a folder; leave it out"
    )
    if key in TEXTS and value.startswith("~/") and "," not in value:
        return as_text(key, str(Path(value).expanduser()))
    quoted = as_text(key, value)
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        if not value.lstrip().startswith(("[", "{", "(", "'", '"', "=")) and "," not in value:
            return quoted
        brackets = "a list is [a,b], a set {a:1,b:2}; " if value.lstrip().startswith(("[", "{")) else ""
        reason = str(error).partition(" expecting ")[0].splitlines()[0]
        raise BadInput(f"{text}: not understood ({reason}); {brackets}as a text: {_for_shell(quoted)}") from error
    check_option(override)
    is_other = not override.is_sweep_override() and isinstance(override.value(), int | float)
    return quoted if override.key_or_group in TEXTS and is_other else text


def check_option(override: Override) -> None:
    """Refuse null for a group, and lists: Hydra would take the last of one and record none.

    Raises:
        BadInput: says what is possible.
    """
    group, value = override.key_or_group, override.value()
    if not is_group(group) or override.is_delete() or isinstance(value, dict):  # which is merged into its option
        return
    if override.is_sweep_override():
        check(group != "sweep", f"{override.input_line}: one sweep at a time; start one after the other")
        return
    leave_out = f"leave it out, in a sweep with sweep.jobs='[{{}},{{{group}:...}}]'" if group in OPTIONAL else ""
    choose = leave_out or "choose one of its options, such as scheduler=none (see --help)"
    check(value is not None, f"{group} cannot be null; {choose}")
    text = override.input_line.partition("=")[2].strip() if override.input_line else value
    hint = f"a sweep tries one after the other: -m {group}={str(text).strip('[]')}"
    if group == "loss/loc":
        hint = "a sum is an option of its own, such as loss/loc=l1_giou (see docs/tuning.md)"
    check(isinstance(value, str) or group.startswith("hydra/"), f"{group} takes one option, not {text}; {hint}")


def is_group(name: str) -> bool:
    """Whether a group of options is called so."""
    return bool(name) and files("onebox.conf").joinpath(name).is_dir()


def several_values(text: str) -> str:
    """What to type in place of `text`, which lists values where one is taken."""
    key, _, value = text.partition("=")
    sweep = f"{text} lists several values; a sweep over them needs -m"
    if is_group(key):
        return sweep
    a_list, a_text = _for_shell(f"{key}=[{value}]"), _for_shell(as_text(key, value))
    return f"{sweep}, a list brackets: {a_list}, one text quotes: {a_text}"


def _for_shell(argument: str) -> str:
    return shlex.quote(argument) if re.search(r'["$`\\!]', argument) else f'"{argument}"'


def as_text(key: str, value: str) -> str:
    """The override that gives a key this text, whatever is in it."""
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def check_place(folder: Path | str, name: object) -> None:
    """Refuse a directory for runs that a file system does not take, or that would lie where nobody looks for it.

    Raises:
        BadInput: says whether the directory or `name`, a part of it, is at fault.
    """
    is_name = isinstance(name, str | int | float) and str(name).strip(" ./") != ""
    text = str(name)
    is_inside = is_name and not text.startswith("/") and ".." not in text.split("/")
    check(
        is_inside,
        f"name={text!r:.80}: runs lie in outputs/<name>/, so it must be a text that leads there, such as my_run",
    )
    check(text.isprintable(), f"name={text!r:.80}: holds a character that is not printed; leave it out")
    where = "hydra.run.dir or hydra.sweep.dir"
    check(
        str(folder).isprintable(), f"{str(folder)!r:.80}: holds a character that is not printed; choose another {where}"
    )
    longest = max((len(os.fsencode(part)) for part in Path(folder).parts), default=0)
    length = len(os.fsencode(str(folder)))
    check(
        longest <= MAX_NAME and length <= MAX_PATH,
        f"{str(folder)[:40]}...: a part of it has {longest} bytes, all of it {length}, and a file system takes "
        f"{MAX_NAME} and {MAX_PATH}; choose a shorter name or {where}",
    )


def _of_each_job(overrides: Sequence[str]) -> list[str]:
    """Leave keys of groups that are swept to the jobs: what all jobs share, Hydra looks for in the default option."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = tuple(
        f"{item.key_or_group.replace('/', '.')}."
        for item in parsed
        if item.is_sweep_override() and is_group(item.key_or_group)
    )
    texts = []
    for text, item in zip(overrides, parsed, strict=True):
        key, _, value = text.partition("=")
        is_shared = item.type is OverrideType.CHANGE and not item.is_sweep_override()
        if is_shared and item.key_or_group.startswith(swept):
            text = f"{key}=choice({value})" if item.value() is not None else f"{key}=null,null"
        texts.append(text)
    return texts
