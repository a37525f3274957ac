import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from onebox.data import shapes
from onebox.data.layout import Labelled
from onebox.data.shapes import SHAPE_CLASSES, write_shapes
from onebox.data.tree import _xml
from onebox.errors import BadInput

SETTINGS: dict[str, Any] = {
    "num_train": 24,
    "num_val": 8,
    "num_test": 16,
    "multi_object_fraction": 0.25,
    "min_side": 64,
    "max_side": 96,
    "seed": 7,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "shapes", **SETTINGS)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def members(root: Path, split: str) -> list[str]:
    return (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()


def annotations(root: Path) -> list[ET.Element]:
    return [ET.parse(path).getroot() for path in sorted((root / "Annotations").iterdir())]


def start(root: Path, before: str = "") -> subprocess.Popen[bytes]:
    code = f"from onebox.data import shapes\nimport os\n{before}\nshapes.write_shapes({str(root)!r}, **{SETTINGS!r})"
    return subprocess.Popen([sys.executable, "-c", code])


def test_an_image_is_a_function_of_settings_and_seed_and_not_of_how_many_there_are(tree, tmp_path):
    (tmp_path / "again").mkdir()  # an empty folder is filled
    assert files(write_shapes(tmp_path / "again", **SETTINGS)) == files(tree)
    for name, change in (("other", {"seed": 8}), ("few", {"num_train": 2, "num_val": 1, "num_test": 1})):
        other = files(write_shapes(tmp_path / name, **SETTINGS | change))
        same = [other[path] == files(tree)[path] for path in other if path.endswith(".jpg")]
        assert all(same) if name == "few" else not any(same)


def test_splits_are_disjoint_and_of_the_asked_size(tree):
    train, val, test = (members(tree, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (24, 8, 16)
    assert members(tree, "trainval") == train + val
    every = train + val + test
    assert len(set(every)) == 48
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        assert sorted(path.name for path in (tree / folder).iterdir()) == sorted(f"{i}.{ending}" for i in every)


def test_annotations_are_voc_agree_with_their_images_and_are_balanced(tree):
    first = [annotation.findtext("object/name") for annotation in annotations(tree)]
    assert Counter(first) == {name: 6 for name in SHAPE_CLASSES}
    for annotation in annotations(tree):
        image = cv2.imread(str(tree / "JPEGImages" / str(annotation.findtext("filename"))))
        assert image is not None
        size = [int(annotation.findtext(f"size/{side}", "")) for side in ("height", "width", "depth")]
        assert size == list(image.shape)
        assert min(size[:2]) >= 64 and max(size[:2]) <= 96
        assert annotation.findall("object")
        for each in annotation.iter("object"):
            assert each.findtext("name") in SHAPE_CLASSES
            assert each.findtext("difficult") == "0"
            x1, y1, x2, y2 = (int(each.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= x1 < x2 <= size[1]
            assert 1 <= y1 < y2 <= size[0]


def test_xml_box_is_one_based_and_inclusive():
    xml = ET.fromstring(_xml(Labelled("000000.jpg", 9, 9, [("star", False, 0, 2, 9, 5)])))
    assert [int(edge.text or "") for edge in xml.iterfind("object/bndbox/*")] == [1, 3, 9, 5]


@pytest.mark.parametrize("name", SHAPE_CLASSES)
def test_box_is_the_visible_extent(name):
    for seed in range(12):
        # On black and on white: what shows on either belongs to the object, whatever its colours are.
        shown = np.zeros((80, 100), bool)
        boxes = set()
        for paper in (0, 255):
            canvas = np.full((80, 100, 3), paper, np.uint8)
            boxes.add(shapes._paint_object(np.random.default_rng(seed), canvas, name, 15 + 4 * seed, []))
            shown |= (abs(canvas.astype(int) - paper) >= 12).any(axis=2)  # less, nobody sees
        ys, xs = np.nonzero(shown)
        assert boxes == {(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)}


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_share_of_images_with_several_objects(tmp_path, fraction):
    counts = {"num_train": 160, "num_val": 0, "num_test": 0, "min_side": 32, "max_side": 40}
    root = write_shapes(tmp_path / "s", **SETTINGS | counts | {"multi_object_fraction": fraction})
    objects = [len(annotation.findall("object")) for annotation in annotations(root)]
    assert set(objects) <= {1, 2, 3}
    assert np.mean([count > 1 for count in objects]) == pytest.approx(fraction, abs=0.1 * (0 < fraction < 1))


def test_a_second_call_writes_nothing_and_refuses_other_settings(tree, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert write_shapes(str(tree), **SETTINGS) == tree
    with pytest.raises(BadInput, match=r"num_val is 8, not 9.*remove the folder or point data\.root") as error:
        write_shapes(tree, **SETTINGS | {"num_val": 9})
    assert "seed" not in str(error.value)  # only what differs
    monkeypatch.setattr(shapes, "GENERATOR", shapes.GENERATOR + 1)
    with pytest.raises(BadInput, match="generator"):
        write_shapes(tree, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before


@pytest.mark.parametrize("content", [None, "", "[1]", "3"])
def test_a_foreign_folder_is_refused_and_kept(tmp_path, content):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    if content is not None:
        (tmp_path / "shapes.json").write_text(content)
    before = files(tmp_path)
    with pytest.raises(BadInput, match=r"shapes\.json"):
        write_shapes(tmp_path, **SETTINGS)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_test": -1},
        {"seed": -1},
        {"multi_object_fraction": 1.5},
        {"multi_object_fraction": float("nan")},
        {"min_side": 97},
        {"min_side": 8},
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(BadInput):
        write_shapes(tmp_path / "s", **SETTINGS | wrong)
    assert not (tmp_path / "s").exists()


def test_a_killed_run_leaves_nothing_that_looks_whole(tree, tmp_path):
    root = tmp_path / "shapes"
    die = "draw = shapes.draw_sample\nshapes.draw_sample = lambda i, s: os._exit(9) if i == 20 else draw(i, s)"
    assert start(root, die).wait() == 9
    assert not root.exists()
    assert any(tmp_path.rglob("*.jpg"))  # it was in the middle of writing
    assert files(write_shapes(root, **SETTINGS)) == files(tree)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["shapes"]


def test_two_processes_at_once_both_find_it_whole(tree, tmp_path):
    slow = "import time\ndraw = shapes.draw_sample\nshapes.draw_sample = lambda i, s: time.sleep(0.03) or draw(i, s)"
    both = [start(tmp_path / "shapes", slow) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert files(tmp_path / "shapes") == files(tree)
