"""What is changed in Hydra and OmegaConf changes no config."""

import io
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from onebox.hydra_setup import _Loader, _QuickLoader

CONF = Path(__file__).parent.parent / "conf"
ODD = [
    "a: [1e3, 1.5e-3, 2020-01-01, 1_000, 0x1F, 0o17, 017, yes, off, ~, .inf, -.NaN, 12:30, 1., .5, '1', +1, 1.e+3]",
    "a: ['${oc.env:HOME,~}', {deep: {er: }}, 'a: b', \"tab\\tand \\u00e9\", é, 0.1.2, !!str 1, !!float 1]",
    "b: &anchor {c: 1, d: 2}\ne:\n  <<: *anchor\n  d: 3\nf: *anchor",
    "a: >-\n  folded\n  text\nb: |\n  literal\n    more\nc: plain\n  goes on",
    "? a\n: 1\n1: one\n2.5: two\nyes: three",
    *(
        "",
        "# none",
        "text",
        "- 1\n- [2, 3]",
        "\ufeffa: 1",
        "a: 1\r\nb: 2\r\n",
        "a: ${b}\nc: ${d:e,f}",
        "{a: b:c, d: [e]}",
    ),
]
MISTAKES = [
    *("a: [1, 2\nb: 3\n", "a: 1\na: 2\n", "a: b: c\n", "\tb: 1\n", "a: *none\n", "a: !!python/object:os.x {}\n"),
    *("a: \x07\n", "- a\nb: 1", "a: 1\n---\nb: 2", "a: '1", "a: @b", "a: =", "a: %b", "{a: 1}}"),
]


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_libyaml_reads_an_option_as_python_does(path):
    assert yaml.load(path.read_text(), _QuickLoader) == yaml.load(path.read_text(), _Loader)


@pytest.mark.parametrize("text", ODD)
def test_libyaml_reads_odd_values_as_python_does(text):
    assert repr(yaml.load(text, _QuickLoader)) == repr(yaml.load(text, _Loader))


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_shown_as_python_shows_it(text):
    with pytest.raises(yaml.YAMLError) as quick:
        OmegaConf.load(io.StringIO(text))
    with pytest.raises(yaml.YAMLError) as plain:
        yaml.load(io.StringIO(text), _Loader)
    assert str(quick.value) == str(plain.value)


def test_a_default_may_name_what_another_has_chosen(tmp_path):
    for option in ("a", "b"):
        for group in ("first", "second"):
            (tmp_path / group).mkdir(exist_ok=True)
            (tmp_path / group / f"{option}.yaml").write_text(f"is: {group} {option}")
    (tmp_path / "top.yaml").write_text("defaults: [_self_, {first: a}, {second: '${first}'}]")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert compose("top", ["first=b"]) == {"first": {"is": "first b"}, "second": {"is": "second b"}}
