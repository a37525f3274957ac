"""`onebox lr-find` ends with an override to paste and a curve, or with one line."""

import re

import pytest
from hydra.core.hydra_config import HydraConfig
from PIL import Image
from typer.testing import CliRunner

from onebox import cli
from onebox.errors import BadInput


@pytest.fixture
def run(shapes_root, tmp_path, monkeypatch):
    """Calls the command on the small data set, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    small = [f"data.root={shapes_root}", "data.source=null", "image_size=32", "data.batch_size=16"]

    def run(*arguments: str) -> str:
        common = [*small, f"data.cache_dir={tmp_path / 'cache'}", "trainer.accelerator=cpu"]
        done = CliRunner().invoke(cli.app, ["lr-find", *common, *arguments])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.stdout

    yield run
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize(
    "more", [["scheduler=one_cycle", "callbacks/early_stopping=default"], ["callbacks/freeze=backbone"]]
)
def test_lr_find_suggests_a_rate_draws_the_curve_and_changes_nothing_else(run, tmp_path, more):
    out = run(*more, "--min-lr", "1e-5", "--max-lr", "1", "--steps", "40", "-o", "curve.png")
    assert 1e-4 < float(re.search(r"^optimizer\.lr=(\S+)$", out, re.M)[1]) < 0.5
    with Image.open("curve.png") as picture:
        assert picture.format == "PNG"
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "curve.png"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--min-lr", "1"], "--min-lr 1 must be above 0 and below --max-lr 1"),
        (["-o", "nowhere/lr.png"], "nowhere/lr.png: no such folder"),
        (["-o", "lr.svg"], "lr.svg: the curve is a PNG; choose an --output that ends in .png"),
        (["optimizer.lr=0"], "optimizer.lr is 0, so parts of the network"),
        (["optimzer.lr=1"], "no key optimzer"),
        (["data.batch_size=0"], "data.batch_size must be a number >= 1 and <= 1000000000, not 0"),
        (["model.backbone.dropout=2"], "model.backbone.dropout must be in [0, 1), not 2"),
        (["data={limit:"], "no viable alternative at input"),
        (["scheduler=null"], "scheduler cannot be null; choose one of its options"),
    ],
)
def test_what_cannot_be_meant_is_one_line(run, arguments, told):
    with pytest.raises(BadInput, match=re.escape(told)):
        run(*arguments)
