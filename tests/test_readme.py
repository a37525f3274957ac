"""Every command that README and docs show is one that works."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

ROOT = Path(__file__).parent.parent
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(prefix: str) -> list[str]:
    found = []
    for text in TEXTS:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text.read_text(), re.S):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.partition(" #")[0].strip() for line in lines if line.strip().startswith(prefix)]
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        found += re.findall(rf"^#.*?({prefix} [^(\n]*?)(?: {{2,}}.*)?$", file.read_text(), re.M)
    return found


def test_the_readme_is_short_and_shows_commands():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
    assert len(commands("onebox-train")) > 8


@pytest.mark.parametrize("command", commands("onebox-train"))
def test_every_training_command_composes(composed, command):
    words = [
        word for word in shlex.split(command)[1:] if "=" in word and not word.startswith(("like=", "init=", "extend="))
    ]
    single = []
    for override in OverridesParser.create().parse_overrides(words):
        if override.is_sweep_override():
            override_value = next(iter(override.sweep_string_iterator()))
            single.append(f"{override.key_or_group}={override_value}")
        else:
            single.append(override.input_line)
    cfg = composed(*single, small=False)
    for override in single:
        key, _, value = override.partition("=")
        if (given := OmegaConf.select(cfg, key)) is not None and not isinstance(given, DictConfig | ListConfig):
            assert str(given) in (value, str(yaml.safe_load(value)), str(float(value) if "e-" in value else None))


def test_every_make_target_linked_file_and_path_of_the_where_table_exists():
    for target in {re.sub(r"\W", "", line.split()[1]) for line in commands("make")} | {"setup", "bench"}:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
    for text in TEXTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text.read_text()):
            assert (text.parent / target).exists(), f"{text.name}: {target}"
    table = (ROOT / "README.md").read_text().partition("## Where is X")[2].partition("##")[0]
    targets = re.findall(r"^\|[^|]*\| `([^`]+)`", table, re.M)
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target.rstrip("/")).exists(), target
