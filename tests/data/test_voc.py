import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from tests.conftest import read_annotation

from onebox.data.tree import VocTree
from onebox.data.voc import read_record
from onebox.errors import BadInput

# The notebook's classes: background first.
CLASSES = ["background", "aeroplane", "bicycle", "dog"]
LABEL_OF = {name: label for label, name in enumerate(CLASSES)}


def test_class_and_box_of_the_notebooks_image(tree):
    tree.add("2008_000001", ("aeroplane", (39, 119, 493, 252)), size=(500, 333))
    table = read_annotation(tree.folder / "Annotations/2008_000001.xml", label_of=LABEL_OF)
    assert table.names.tolist() == ["aeroplane"]
    # The notebook reads (39, 119, 454, 133) as xywh; VOC's pixel 39 is the one between the edges 38 and 39.
    assert table.corners.tolist() == [[38, 118, 493, 252]]


def test_all_objects_come_in_file_order(tree):
    tree.add("a", ("dog", (1, 1, 60, 40)), ("bicycle", (2, 3, 4, 5)), difficult=[1])
    table = read_annotation(tree.folder / "Annotations/a.xml", label_of=LABEL_OF)
    assert table.names.tolist() == ["dog", "bicycle"]
    assert table.corners.tolist() == [[0, 0, 60, 40], [1, 2, 4, 5]]
    assert table.difficult.tolist() == [False, True]


def test_box_origin_0_takes_the_numbers_as_edges(tree):
    tree.add("a", ("dog", (0, 0, 60, 40)))
    table = read_annotation(tree.folder / "Annotations/a.xml", box_origin=0)
    assert table.corners.tolist() == [[0, 0, 60, 40]]


@pytest.mark.parametrize(
    "box",
    [
        (0, 1, 10, 10),
        (1, 1, 61, 40),
        (1, 1, 60, 41),
        (10, 10, 5, 20),
        (1, 1, "inf", 5),
        ("1_0", 1, 20, 5),
        ("\u0663", 1, 20, 5),
        (1, 1, "20</xmax><xmax>30", 5),
        (1, 1, "2<b/>0", 5),
    ],
)
def test_a_wrong_box_is_refused_with_the_files_name(tree, box):
    tree.add("a", ("dog", box))
    with pytest.raises(BadInput, match=r"a\.xml: .*(data.box|correct or remove)"):
        read_annotation(tree.folder / "Annotations/a.xml")


@pytest.mark.parametrize("width", ["-60", "60.5", "1e300", "2147483648"])
def test_a_size_that_no_image_has_is_refused(tree, width):
    tree.add("a", size=(60, 40))
    path = tree.folder / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<width>60<", f"<width>{width}<"))
    with pytest.raises(BadInput, match=r"a\.xml: <size/width> is .*not a number of pixels; correct it"):
        read_annotation(path)


@pytest.mark.parametrize("name", ["<name> </name>", ""])
def test_an_object_without_a_class_is_refused(tree, name):
    tree.add("a", ("dog", (1, 1, 10, 10)))
    path = tree.folder / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<name>dog</name>", name))
    with pytest.raises(BadInput, match=r"a\.xml: <name> is empty; "):
        read_annotation(path)


@pytest.mark.parametrize("number", ["", "nan", " "])
def test_an_object_without_numbers_and_a_missing_size_are_no_errors(tree, number):
    tree.add("a", ("dog", (1, 1, 10, number)), ("", (number, number, number, number)), ("cat", (1, 1, 10, 10)))
    path = tree.folder / "Annotations/a.xml"
    text = path.read_text()
    assert read_annotation(path).names.tolist() == ["cat"]
    for size in ("", text[text.index("<size>") : text.index("</size>") + 7].replace("60", number).replace("40", "0")):
        path.write_text(text[: text.index("<size>")] + size + text[text.index("</size>") + 7 :])
        width, height, objects = read_record(str(path))
        assert (width, height, len(objects)) == (0, 0, 3)


def test_namespaces_and_declared_encodings_are_read(tree):
    tree.add("a", ("dog", (1, 1, 30, 20)))
    path = tree.folder / "Annotations/a.xml"
    text = path.read_text()
    expected = (60, 40, [("dog", False, 1, 1, 30, 20)])
    path.write_text(text.replace("<annotation>", '<annotation xmlns="http://host/VOC">'))
    assert read_record(str(path)) == expected
    path.write_text(re.sub(r"<(/?)", r"<\1v:", text).replace("<v:annotation>", '<v:annotation xmlns:v="http://host">'))
    assert read_record(str(path)) == expected
    path.write_text('<?xml version="1.0" encoding="gb2312"?>' + text.replace("dog", "安全帽"), encoding="gb2312")
    assert read_record(str(path))[2][0][0] == "安全帽"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        "<html/>",
        "not xml",
        '<?xml version="1.0" encoding="unicode_escape"?><annotation/>',
        '<?xml version="1.0" encoding="none"?><annotation/>',
        '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation><folder>&b;</folder></annotation>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation><folder>&b;</folder></annotation>',
    ],
)
def test_a_broken_or_hostile_file_is_refused_with_its_name(tmp_path, text):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"a\.xml: "):
        read_annotation(path)


def test_a_file_too_large_is_not_read(tmp_path):
    with (tmp_path / "a.xml").open("wb") as file:
        file.truncate((32 << 20) + 1)
    assert "33,554,433 bytes are more than the limit" in read_record(str(tmp_path / "a.xml"))


def test_utf_16_is_read_like_utf_8(tree):
    tree.add("a", ("dog", (1, 1, 30, 20)))
    path = tree.folder / "Annotations/a.xml"
    for encoding in ("utf-8", "utf-16"):
        path.write_text(path.read_text(), encoding=encoding)
        assert read_record(str(path)) == (60, 40, [("dog", False, 1, 1, 30, 20)])


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "other.png", ""])
def test_the_file_name_in_the_annotation_is_not_followed(tree, name):
    tree.add("a", ("dog", (1, 1, 30, 20)))
    path = tree.folder / "Annotations/a.xml"
    path.write_text(path.read_text().replace("a.jpg", name))
    assert read_annotation(path).corners.tolist() == [[0, 0, 30, 20]]
    assert VocTree(tree.folder).images.file("a") == str(tree.folder / "JPEGImages/a.jpg")


def test_an_unknown_class_is_refused_with_the_known_ones(tree):
    tree.add("a", ("unicorn", (1, 1, 10, 10)))
    with pytest.raises(BadInput, match=r"a\.xml: class 'unicorn' is not in data\.classes \(background, aeroplane"):
        read_annotation(tree.folder / "Annotations/a.xml", label_of=LABEL_OF)


def test_reading_agrees_with_torchvision_on_real_voc(voc_root):
    from torchvision.datasets import VOCDetection

    reference = VOCDetection(str(voc_root), year="2007", image_set="val", download=False)
    tree = VocTree(voc_root / "VOCdevkit" / "VOC2007")
    ids, _ = tree.ids("val")
    assert len(ids) == len(reference) == 193
    for image_id, number in zip(ids, range(len(reference)), strict=True):
        theirs = reference.parse_voc_xml(ElementTree.parse(reference.annotations[number]).getroot())
        mine = read_annotation(Path(tree.annotation_file(image_id)))
        expected = theirs["annotation"]["object"]
        assert mine.names.tolist() == [item["name"] for item in expected]
        boxes = [[float(item["bndbox"][edge]) for edge in ("xmin", "ymin", "xmax", "ymax")] for item in expected]
        assert (mine.corners + np.array([1, 1, 0, 0])).tolist() == boxes
