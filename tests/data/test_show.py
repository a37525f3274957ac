"""`onebox data show`: tables and a page on what a run would be trained on."""

import json
import re
import subprocess
import sys
from html import escape, unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from onebox.build import read_data
from onebox.cli import app
from onebox.data.selection import SPLITS
from onebox.data.show import EDGES, facts, write_page
from onebox.errors import BadInput

COMMAND = Path(sys.executable).parent / "onebox"
EVIL = "<script>alert(1)</script>"


def cells(page: str, section: str) -> list[list[str]]:
    """The texts of a section's table."""
    html = page.split(f'<section id="{section}"')[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [[unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]  # fmt: skip


@pytest.fixture
def mixed(tree):
    """Twelve images of three classes, of which one has two objects, one has none and one is cut short."""
    names = [escape(EVIL), "cat", "dog"]
    for number in range(12):
        box = (5 + number, 3, 30 + 2 * number, 20 + number)
        tree.add(f"{number:02d}", *[(names[number % 3], box)] * (number != 4), *[("cat", (1, 1, 9, 9))] * (number == 5))
    broken = tree.folder / "JPEGImages" / "07.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    tree.list("train", *(f"{number:02d}" for number in range(9)))
    tree.list("test", "09", "10", "11")
    return tree.folder


def test_every_number_is_one_of_the_data(composed, mixed, tmp_path):
    splits = "data.splits={train:[train],val:[],test:[test]}"
    cfg = composed("data=folder", f"data.root={mixed}", splits, "data.holdout={val:0,test:0}", "data.on_error=skip", small=False)  # fmt: skip
    data = read_data(cfg)
    found = facts(data)
    assert found["splits"]["train"] == {"listed": 9, "used": 6, "left_out": {"no object": 1, "several objects": 1, "bad sample": 1}}  # fmt: skip
    assert found["splits"]["val"] == {"listed": 0, "used": 0, "left_out": {}} and "val" not in found["boxes"]
    assert found["classes"] == {
        EVIL: {"train": 3, "val": 0, "test": 1},
        "dog": {"train": 2, "val": 0, "test": 1},
        "cat": {"train": 1, "val": 0, "test": 1},
    }
    for split in ("train", "test"):
        boxes, sizes = data.indexes[split].boxes.numpy().astype(float), data.indexes[split].sizes.numpy()
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        values = pd.DataFrame({"width": width, "height": height, "area": width * height})
        values["aspect"] = width / height * sizes[:, 1] / sizes[:, 0]
        quantiles = pd.DataFrame(found["boxes"][split]["quantiles"])
        assert np.allclose(quantiles, values.quantile([0.05, 0.25, 0.5, 0.75, 0.95]), atol=6e-5)
        values["side"] = values["area"] ** 0.5
        for name, edges in EDGES.items():
            counts = pd.cut(values[name], edges, right=False).value_counts(sort=False)
            assert found["boxes"][split]["bins"][name] == counts.tolist()
        assert sum(found["boxes"][split]["place"]) == len(boxes)

    write_page(data, found, tmp_path / "page.html", name="mixed", command="onebox data show")
    page = (tmp_path / "page.html").read_text()
    assert cells(page, "splits")[1:] == [
        ["listed", "9", "0", "3"],
        ["left out: no object", "1", "0", "0"],
        ["left out: several objects", "1", "0", "0"],
        ["left out: bad sample", "1", "0", "0"],
        ["used", "6", "0", "3"],
    ]
    classes = [[name, *(str(counts[split]) for split in SPLITS)] for name, counts in found["classes"].items()]
    assert [row[:4] for row in cells(page, "classes")[1:]] == classes
    rows = {row[0]: [float(cell) for cell in row[1:]] for row in cells(page, "boxes")[1:]}
    for split, boxes in found["boxes"].items():
        for name, values in boxes["quantiles"].items():
            assert rows[f"{split}, {name}"] == pytest.approx(list(values.values()), abs=6e-4)
    # What was dropped is shown, with why: each once, with all the boxes that it has.
    left_out = page.split('<section id="left-out"')[1].split("</section>")[0]
    assert left_out.count("<figure") == 3 and left_out.count("no picture") == 1
    assert "not a readable image" in left_out and "dog, cat" in left_out
    assert "<script" not in page
    assert "script-src 'none'" in unescape(page) and unescape(page).count(EVIL) >= 2


def test_what_is_counted_is_what_data_check_counts(composed, shapes_root, capsys):
    data = read_data(composed("data=shapes", small=True))
    found = facts(data)
    app(["data", "check", str(shapes_root), "--json"], standalone_mode=False)
    lists = json.loads(capsys.readouterr().out)["lists"]
    for split, counts in found["splits"].items():
        checked = lists[split]
        assert counts["listed"] == checked["images"]
        assert counts["used"] == checked["objects_per_image"]["1"]
        assert counts["left_out"]["several objects"] == checked["images"] - counts["used"]
        used = {name: of[split] for name, of in found["classes"].items() if of[split]}
        assert used == checked["classes_of_single"]


def test_an_image_is_shown_as_the_network_sees_it(composed, shapes_root, tmp_path):
    common = [f"data.root={shapes_root}", "data.source=null"]
    drawn = {"augment=flip": (12, 2), "augment=none": (1, 1), "augment=batched_affine data.views=3": (3, 3)}
    for overrides, (draws, outcomes) in drawn.items():
        data = read_data(composed("data=shapes", *common, *overrides.split(), small=False))
        write_page(data, facts(data), tmp_path / "page.html", name="shapes", command="onebox data show")
        section = (tmp_path / "page.html").read_text().split('<section id="augmentation"')[1].split("</section>")[0]
        assert section.count("<figure") == 1 + draws
        pictures = set(re.findall(r"data:image/jpeg;base64,[^\"]*", section))
        assert len(pictures) == 1 + outcomes
    assert (tmp_path / "page.html").stat().st_size < 1e6


def test_the_command_prints_tables_and_writes_the_page_that_it_names(mixed, tmp_path):
    command = [str(COMMAND), "data", "show", str(mixed), "augment=none", "data.select=largest", "--html", "page.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "page  page.html" in done.stdout and "bad sample" in done.stdout and "\x1b" not in done.stdout
    assert "--html page.html" in (tmp_path / "page.html").read_text()


def test_data_that_cannot_be_trained_on_are_shown_with_the_reason(mixed, tmp_path, monkeypatch, capsys):
    for file in (mixed / "JPEGImages").iterdir():
        file.write_bytes(b"no picture")
    page = tmp_path / "page.html"
    page.write_text("a page of before")
    monkeypatch.chdir(tmp_path)
    app(["data", "show", str(mixed), "--html", str(page)], standalone_mode=False)
    html = page.read_text()
    assert re.search(r"used +0 +0 +0", capsys.readouterr().out)
    assert html.count("not a readable image") == 6 and "a page of before" not in html
    assert 'id="boxes"' not in html and 'id="augmentation"' not in html


def test_many_classes_with_steering_names_fit_a_page(tree, tmp_path, monkeypatch, capsys):
    names = [f"class {number} &#x9b;31m&#x202e;" for number in range(250)]
    for number, name in enumerate(names):
        tree.add(f"{number:03d}", (name, (3, 3, 30, 30)), size=(40, 40))
    page = tmp_path / "page.html"
    monkeypatch.chdir(tmp_path)
    only_train = ["data.splits={train:['*'],val:[],test:[]}", "data.holdout={val:0,test:0}"]
    app(["data", "show", str(tree.folder), *only_train, "--html", str(page)], standalone_mode=False)
    html, printed = page.read_text(), capsys.readouterr().out
    assert "and 225 more classes" in printed and len(cells(html, "classes")) == 251
    assert html.split('<section id="samples"')[1].count("<figure") == 240 and "240 of 250 classes" in html
    assert not re.search("[\x80-\x9f\u202e]", html + printed)
    assert page.stat().st_size < 2e6


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing_here"], "nothing_here"),
        (["./nothing_here"], "nothing_here"),
        (["shapes", "augment=nothing"], "augment"),
        (["./tree", "data.splits={train:[],val:[],test:[]}"], "no image is listed"),
        (["seed=1"], "name DATA first"),
        (["shapes", "--html", "no/such/folder/page.html"], "no such folder"),
        (["shapes", "--html", "."], "is a folder"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(tree, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["data", "show", *arguments])
    assert isinstance(result.exception, BadInput) and told in str(result.exception)
    assert not list(tmp_path.rglob("*.html"))
