"""Data in the forms that people really have: each is read rightly, or refused in one line that names the key to set.

Whatever training says of a tree, `onebox data check` says too.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onebox.build import build_data
from onebox.data.annotations import Conventions
from onebox.data.check import check
from onebox.errors import BadInput

DOG = ("dog", (1, 1, 30, 20))
ALL = ["data.splits={train:['*'],val:[],test:[]}", "data.holdout={val:0,test:0}"]


@pytest.fixture
def data_of(composed, tree):
    """Builds and sets up `data=folder` on the test's tree, all of it for training."""

    def make(*overrides: str):
        data = build_data(composed("data=folder", f"data.root='{tree.folder}'", *ALL, *overrides, small=False))
        data.setup()
        data.decode()
        return data

    return make


def boxes_px(data) -> dict[str, list[float]]:
    index = data.indexes["train"]
    sides = index.sizes[:, [1, 0, 1, 0]]
    return dict(zip(index.ids, (index.boxes * sides).round(decimals=3).tolist(), strict=True))


def has_errors(tree, **conventions) -> bool:
    survey = check(
        tree.folder, conventions=Conventions(**conventions), classes=None, voc_classes=[], has_background=True
    )
    return survey.has_errors


def replace(tree, name: str, old: str, new: str) -> None:
    path = tree.folder / "Annotations" / f"{name}.xml"
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text))


@pytest.mark.parametrize(
    ("boxes", "told", "overrides", "expected"),
    [
        # VOC's own: 1 to W. Edges from 0: 0 to W. Edges from 1: 1 to W + 1. Pixels from 0: 0 to W - 1.
        ([(1, 1, 60, 40), (11, 9, 30, 20)], None, [], [(0, 0, 60, 40), (10, 8, 30, 20)]),
        ([(0, 0, 60, 40), (11, 9, 30, 20)], "set data.box_origin=0, with which 0", ["data.box_origin=0"],
         [(0, 0, 60, 40), (11, 9, 30, 20)]),
        ([(1, 1, 61, 41), (11, 9, 30, 20)], "set data.box_end=exclusive, with which 0", ["data.box_end=exclusive"],
         [(0, 0, 60, 40), (10, 8, 29, 19)]),
        ([(0, 0, 0, 0), (0, 0, 59, 39)], "set data.box_origin=0 data.box_end=inclusive, with which 0",
         ["data.box_origin=0", "data.box_end=inclusive"], [(0, 0, 1, 1), (0, 0, 60, 40)]),
        ([(0.1, 0.1, 0.5, 0.5), (0, 0, 1, 1)], "set data.box_units=relative", ["data.box_units=relative"],
         [(6, 4, 30, 20), (0, 0, 60, 40)]),
        ([(10, 10, 50, 50), (0, 0, 100, 100)], "wrong", ["data.box_units=percent"], [(6, 4, 30, 20), (0, 0, 60, 40)]),
    ],
)  # fmt: skip
def test_what_numbers_mean_is_found_from_all_of_them_and_told(data_of, tree, boxes, told, overrides, expected):
    for name, box in zip("ab", boxes, strict=True):
        tree.add(name, ("dog", box))
    if told is not None:
        with pytest.raises(BadInput, match=re.escape(told)) if told != "wrong" else pytest.raises(BadInput):
            data_of()
    assert list(boxes_px(data_of(*overrides)).values()) == [list(map(float, box)) for box in expected]


@pytest.mark.parametrize(
    ("how", "kept", "told"),
    [
        ("refuse", None, r"junk\.xml: box xmin=10 ymin=9 xmax=10 ymax=-3: ymax < ymin, outside .*data\.boxes=clip"),
        ("clip", {"both": [0, 0, 60, 40], "good": [0, 0, 30, 20], "over": [10, 8, 60, 20]},
         "1 boxes cut at the edge, 2 boxes without area left out"),
        ("drop", {"both": [0, 0, 60, 40], "good": [0, 0, 30, 20]}, "3 wrong boxes left out"),
    ],
)  # fmt: skip
def test_a_slip_costs_neither_the_picture_nor_the_run(data_of, tree, how, kept, told):
    tree.add("good", DOG)
    tree.add("both", ("dog", (1, 1, 60, 40)), ("dog", (70, 50, 90, 60)))
    tree.add("over", ("dog", (11, 9, 99, 20)))
    tree.add("junk", ("dog", (10, 9, 10, -3)))
    if kept is None:
        (tree.folder / "Annotations/both.xml").unlink()
        with pytest.raises(BadInput, match=told):
            data_of()
    else:
        data = data_of(f"data.boxes={how}")
        assert boxes_px(data) == kept
        assert told in str(data.indexes["train"])
    assert has_errors(tree, boxes=how) == (kept is None)


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_is_missing_is_that_of_the_picture(data_of, tree, size):
    tree.add("a", DOG)
    replace(tree, "a", "<size>.*</size>", size)
    data = data_of()
    assert boxes_px(data) == {"a": [0, 0, 30, 20]}
    assert data.notes == {"annotations have no size; that of the image is used": 1}
    assert not has_errors(tree)


def test_images_without_annotation_or_object_and_empty_objects_are_counted(data_of, tree):
    for name in "abc":
        tree.add(name, DOG)
    tree.add("d", DOG, ("", ("", "", "", "")))
    (tree.folder / "Annotations/a.xml").unlink()
    tree.add("b")
    index = data_of().indexes["train"]
    assert str(index) == ("2 of 4 images, 1 dropped (no annotation), 1 dropped (no object), 1 empty objects left out")
    assert not has_errors(tree)


def turned(tree, name: str, orientation: int) -> None:
    """Stores the picture as a telephone does that was held upright: 60x40 px and the wish to be turned."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    path = tree.folder / "JPEGImages" / f"{name}.jpg"
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = 255
    Image.fromarray(pixels).save(path, exif=tags, quality=95)


def test_a_turn_of_exif_data_is_ignored_applied_or_refused(data_of, tree):
    tree.add("a", ("dog", (21, 1, 40, 30)), size=(40, 60))  # of the white part, as it is seen
    turned(tree, "a", 6)
    with pytest.raises(
        BadInput, match=r"a\.jpg: the image is 60x40 px but its annotation says 40x60 .*data\.exif=apply"
    ):
        data_of()
    assert has_errors(tree)
    data = data_of("data.exif=apply", "image_size=60")
    assert boxes_px(data) == {"a": [20, 0, 40, 30]}
    x1, y1, x2, y2 = (data.indexes["train"].boxes[0] * 60).round().int().tolist()
    image = data.dataset("train")[0].images[0, 0].float()
    assert image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean() > 250 and image.mean() < 80
    assert not has_errors(tree, exif="apply")
    with pytest.raises(BadInput, match=r"data\.exif is refuse"):
        data_of("data.exif=refuse")
    tree.add("a", DOG)
    turned(tree, "a", 3)
    assert "pictures have an EXIF rotation" in next(iter(data_of().notes))


def test_what_looks_odd_is_told_in_one_line_with_a_count(data_of, tree):
    tree.add("small", ("dog", (1, 1, 2, 20)))
    tree.add("fraction", ("dog", (1.5, 1, 30, 20)))
    tree.add("twice", DOG, DOG)
    tree.add("other", ("Dog", (1, 1, 30, 20)))
    tree.add("deep", DOG)
    path = tree.folder / "JPEGImages/deep"
    Image.fromarray(np.full((40, 60), 4095, np.uint16)).save(path.with_suffix(".png"))
    path.with_suffix(".jpg").unlink()
    notes = data_of().notes
    told = ["boxes have fractions", "boxes are less than 3 px", "objects are repeated", "8 bits", "differ only in case"]
    assert [[count for note, count in notes.items() if text in note] for text in told] == [[1], [1], [1], [1], [2]]
    assert len(notes) == len(told)
    assert data_of("data.rename={Dog: dog}").class_names == ["background", "dog"]


def test_classes_are_text_and_none_is_called_like_the_background(data_of, tree):
    tree.add("a", ("0", (1, 1, 30, 20)))
    tree.add("b", ("1", (1, 1, 30, 20)))
    assert data_of().class_names == ["background", "0", "1"]
    assert data_of("data.classes=[0,1]").class_names == ["background", "0", "1"]
    tree.add("c", ("background", (1, 1, 30, 20)))
    with pytest.raises(BadInput, match=r"data\.background_class=false, or .*data\.rename=\{background: other\}"):
        data_of()
    assert has_errors(tree)
    assert "other" in data_of("data.rename={background: other}").class_names


def test_what_is_held_out_is_usable_and_at_least_one_image(data_of, tree):
    for number in range(3):
        tree.add(f"one{number}", DOG)
    for number in range(30):
        tree.add(f"two{number}", DOG, ("cat", (1, 1, 9, 9)))
    data = data_of("data.holdout={val:0.1,test:0.1}")
    assert {split: len(index) for split, index in data.indexes.items()} == {"train": 1, "val": 1, "test": 1}
    assert data.indexes["train"].dropped["several objects"] == 30


def test_pixels_and_fingerprint_follow_from_the_content_of_the_files(data_of, tree):
    tree.add("a", DOG)
    path = tree.folder / "JPEGImages/a.bmp"
    (tree.folder / "JPEGImages/a.jpg").unlink()
    seen = []
    for colour in ("black", "white", "black"):
        Image.new("RGB", (60, 40), colour).save(path)
        os.utime(path, ns=(10**18, 10**18))  # as an archive that is unpacked again sets it
        data = data_of()
        seen.append((data.fingerprint(), data.dataset("train")[0].images.float().mean().item()))
    assert seen[0] == seen[2] != seen[1]
    changed = [part for part in seen[0][0] if seen[0][0][part] != seen[1][0][part]]
    assert (changed, seen[1][1]) == (["files"], 255)


@pytest.mark.parametrize("name", ["~/my data", "2007", "a [b] {c}"])
def test_a_root_may_have_any_name(composed, tree, tmp_path, monkeypatch, name):
    tree.add("a", DOG)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tree.folder.rename(Path(name).expanduser())
    data = build_data(
        composed("data=folder", f"data.root={name}" if name == "2007" else f"data.root='{name}'", *ALL, small=False)
    )
    data.setup()
    assert data.indexes["train"].ids == ("a",)
