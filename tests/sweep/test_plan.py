"""Which jobs a sweep has."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from onebox.errors import BadInput
from onebox.sweep.job import read_plan
from onebox.sweep.plan import Job, as_override, combinations, varied, without_excluded, write_plan

PARSER = OverridesParser.create()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("ab ,='\\{[:é1.", max_size=6)
    | st.sampled_from(["null", "True", "1e-3", "nan"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=5,
)


def combined(*overrides, jobs=None):
    return combinations(PARSER.parse_overrides(list(overrides)), jobs)


def job(seed=0, lr=0.1, **choices):
    config = {"seed": seed, "name": "x", "optimizer": {"lr": lr}}
    overrides = (f"seed={seed}", f"optimizer.lr={lr}", "debug=fast")
    return Job(overrides, config, choices, f"f{seed}{lr}", f"s{lr}", Path("outputs", f"f{seed}{lr}"))


@pytest.mark.parametrize(
    "overrides, jobs, expected",
    [
        (["a=1"], None, [("a=1",)]),
        (["a=1,2", "b=x"], None, [("a=1", "b=x"), ("a=2", "b=x")]),
        (["a=1,2", "a=3"], None, [("a=3",)]),
        (["a=range(0,3)"], None, [("a=0",), ("a=1",), ("a=2",)]),
        ([], [{"g/h": "edges", "a": 0.001}, {"g/h": "mlp"}], [("g/h=edges", "a=0.001"), ("g/h=mlp",)]),
        (["a=1", "s=0,1"], [{"a": 2}], [("a=2", "s=0"), ("a=2", "s=1")]),
    ],
)
def test_grid_and_list_give_all_combinations(overrides, jobs, expected):
    assert combined(*overrides, jobs=jobs) == expected


@pytest.mark.parametrize("jobs", [[], "a=1", [["a=1"]], {"a": 1}])
def test_a_list_that_is_none_is_refused(jobs):
    with pytest.raises(BadInput, match="list of sets"):
        combined("a=1", jobs=jobs)


def test_a_range_without_steps_is_for_another_sweeper():
    with pytest.raises(BadInput, match="sweeper=tpe"):
        combined("a=interval(0,1)")


@given(VALUES)
def test_what_a_list_holds_reaches_the_job_as_it_is(value):
    parsed = PARSER.parse_override(f"a={as_override(value)}").value()
    assert plain(parsed) == value


def plain(value):
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return getattr(value, "text", value)  # a quoted string


def test_what_varies_is_what_not_all_jobs_say():
    assert varied([job(0).overrides, job(1).overrides]) == [{"seed": "0"}, {"seed": "1"}]
    assert varied([job(0).overrides]) == [{}]


def test_an_expression_leaves_jobs_out():
    jobs = [job(seed, lr) for seed in (0, 1) for lr in (0.1, 1.0)]
    kept = without_excluded(jobs, "optimizer.lr == 1 and seed > 0")
    assert [(one.config["seed"], one.config["optimizer"]["lr"]) for one in kept] == [(0, 0.1), (0, 1.0), (1, 0.1)]
    assert without_excluded(jobs, None) == jobs


@pytest.mark.parametrize(
    "expression, told",
    [
        ("optimizer.rl == 1", "did you mean optimizer.lr"),
        ("seed >= 0", "leaves no job"),
        ("seed >", "sweep.exclude.*cannot be read"),
    ],
)
def test_an_expression_that_cannot_be_meant_is_refused(expression, told):
    with pytest.raises(BadInput, match=told):
        without_excluded([job(0), job(1)], expression)


def test_a_plan_grows(tmp_path):
    for jobs in ([job(0)], [job(1), job(0)]):
        write_plan(tmp_path, jobs, objective={"val/acc": "max"}, source="s", data_fingerprints={})
    plan = read_plan(tmp_path)
    assert [(one["number"], one["seed"]) for one in plan["jobs"]] == [(0, 0), (1, 1)]
    assert plan["mode"] == {"val/acc": "max"}
    assert not read_plan(tmp_path / "none")
