"""A sweep resolves only the parts of a config that may follow from what varies; the result is that of resolving all."""

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from onebox.sweep.compose import _Composed, _names_in

CONFIG = """
a: one
direct: {value: "${a}", other: 5}
relative: {value: "${direct.value}", again: ["${...direct.value}", "x ${relative.value}"]}
whole: ${direct}
resolver: {value: "${oc.select:a}"}
nested: {value: "${names.${a}}"}
environment: {value: "${oc.env:ONEBOX_NOT_SET,none}", more: "${oc.env:ONEBOX_NOT_SET,${a}}"}
names: {one: 1, two: 2, three: 3}
missing: ???
empty: null
alone: {value: 7, name: "${names.one}"}
"""


def parse(*texts):
    return OverridesParser.create().parse_overrides(list(texts))


@pytest.fixture
def composed():
    cfg = OmegaConf.create(CONFIG)
    OmegaConf.set_struct(cfg, True)
    return _Composed(cfg, cfg, {}, [], {})


def resolved_afresh(composed, values):
    cfg = composed.plain.copy()
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize(
    "keys",
    [
        [["a=two"], ["a=three"], ["a=two"]],
        [["direct.value=2", "alone.value=1"], ["direct.value=3", "alone.value=null"]],
        [["direct={value:9}"], ["direct={other:9}"]],  # which is merged, so one must not see the other's
        [["alone.value=2", "alone=null"], ["alone.value=3", "alone=null"]],
        [["names.one=4"], ["names.one=5"]],
        [["missing=4"], ["missing=5"]],
        [["environment.value=x"], ["a=two"], []],
        [["alone.value=[1,2]"], ["alone.value=[3]"], ["alone.value='${a}'"]],
    ],
)
def test_what_is_resolved_again_is_what_is_resolved_afresh(composed, keys):
    for texts in keys:
        values = parse(*texts)
        config = composed.resolved(values)
        assert config == resolved_afresh(composed, values)
        assert list(config) == list(composed.plain)


def test_parts_that_cannot_follow_are_not_resolved_again(composed):
    one, other = composed.resolved(parse("a=one")), composed.resolved(parse("a=two"))
    assert {name for name in one if one[name] is other[name]} == {"names", "missing", "empty", "alone"}
    assert one["direct"] == {"value": "one", "other": 5}  # and stays as it was given


def test_after_a_value_that_cannot_be_resolved_the_next_is_as_ever(composed):
    for text in ("a=two", "a=four", "a=three"):
        if text == "a=four":
            with pytest.raises(InterpolationResolutionError):
                composed.resolved(parse(text))
        else:
            assert composed.resolved(parse(text)) == resolved_afresh(composed, parse(text))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("nothing", set()),
        ("{'x': '${a} and ${b.c}', 'y': '${d}'}", {"a", "b", "d"}),
        ("${oc.env:HOME}", set()),
        ("${oc.env:HOME,${a}/b}", {"a"}),
        ("${now:%Y}", None),
        ("${.a}", None),
        ("${a[0]}", None),
        ("${oops", None),
    ],
)
def test_the_names_in_a_text(text, names):
    assert _names_in(text) == names
