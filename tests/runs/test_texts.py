"""The texts that TensorBoard shows."""

import warnings
from html import unescape
from types import SimpleNamespace

from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from onebox.runs.results import SHOWN
from onebox.runs.texts import changed, result_table

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of its own copy of html5lib
    from tensorboard.plugin_util import markdown_to_safe_html


def test_a_class_is_shown_as_it_is_called_whatever_that_is():
    row = dict.fromkeys(SHOWN, 0.5)
    names = ["<script>alert(1)</script>", "a|b", "*bold*", "[link](http://x)"]
    html = markdown_to_safe_html(result_table(row, row, {name: {"images": 3, **row} for name in names}))
    assert "<script" not in html and "<a " not in html and "<em>" not in html
    assert all(f"<td>{name}</td>" in unescape(html) for name in names)
    assert html.count("<tr>") == 2 + len(SHOWN) + len(names)


def test_what_overrides_change_in_an_experiment_is_told_of_a_single_run():
    typed = ["experiment=overfit_one", "seed=3", "model/box_coder=xywh"]
    told = SimpleNamespace(mode=RunMode.RUN, overrides=SimpleNamespace(task=typed))
    try:
        with initialize_config_module("onebox.conf", version_base="1.3"):
            place = "hydra.runtime.output_dir=x"
            cfg = compose("train", overrides=[*typed, place], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            cfg = compose("train", overrides=typed)
            table = changed(cfg, told)["changed"]
            assert changed(cfg, SimpleNamespace(mode=RunMode.MULTIRUN)) == {}
    finally:
        HydraConfig.instance().cfg = None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["key", "experiment=overfit&#95;one", "this run"]
    assert ["seed", "0", "3"] in rows and "model.box&#95;coder.&#95;target&#95;" in [row[0] for row in rows]
    assert len(rows) == 6  # two of heading; what follows from seed has a row of its own
