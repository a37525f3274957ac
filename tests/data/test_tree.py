"""Where annotations and images lie, and what lists mean."""

import errno
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import OBJECT_XML, VOC_XML

from onebox.data.layout import Layout
from onebox.data.tree import VocTree, find_trees
from onebox.errors import BadInput


def write(path, *, size=(60, 40)):
    """An image and its XML; `path` is that of the image, without suffix, of which "I" becomes "A" in the XML's."""
    annotation = path.parent.parent / path.parent.name.replace("I", "A") / f"{path.name}.xml"
    for file in (path, annotation):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(f"{path}.jpg")
    items = OBJECT_XML.format(name="dog", box=(1, 1, 30, 20), difficult=0)
    annotation.write_text(VOC_XML.format(name=path.name, width=size[0], height=size[1], objects=items))


def test_a_missing_folder_or_list_is_named(tree, tmp_path):
    with pytest.raises(BadInput, match=r"nowhere: no such folder; point data\.root"):
        VocTree(tmp_path / "nowhere")
    tree.list("train", "a")
    with pytest.raises(BadInput, match=r"test\.txt: no such list \(there are: train\)"):
        VocTree(tree.folder).ids("test")
    (tree.folder / "ImageSets/Main/train.txt").write_bytes(b"a\xff\n")
    with pytest.raises(BadInput, match=r"train\.txt: not a list of ids in UTF-8"):
        VocTree(tree.folder).ids("train")


def test_two_images_of_one_id_are_refused_unless_the_first_will_do(tree):
    tree.add("a")
    (tree.folder / "JPEGImages/a.PNG").touch()
    with pytest.raises(BadInput, match=r"a\.jpg: a\.PNG has the same id; keep one of the two"):
        VocTree(tree.folder)
    voc = VocTree(tree.folder, strict=False)
    assert voc.images.file("a").endswith("a.PNG")
    assert [path.name for path in voc.images.ambiguous["a"]] == ["a.PNG", "a.jpg"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a", (["a"], 0)),
        ("\ufeffa\r", (["a"], 0)),
        ("a.jpg", (["a"], 0)),
        ("a.xml 1", (["a"], 0)),
        ("a  -1", ([], 1)),
        ("a 0", (["a"], 0)),
        ("a 17", (["a"], 0)),
        ("./JPEGImages/a.jpg", (["a"], 0)),
        ("C:\\pictures\\a.jpg", (["a"], 0)),
        ("JPEGImages/a.jpg Annotations/a.xml", (["a"], 0)),
        ("a picture of 2020 16.00", (["a picture of 2020 16.00"], 0)),
        ("a picture of 2020 16.00.jpg -1", ([], 1)),
        ("deep", (["below/deep"], 0)),
        ("../../etc/passwd", (["../../etc/passwd"], 0)),  # no file is called so, and none is looked for
    ],
)
def test_a_line_of_a_list_means_an_image_that_is_there(tree, line, expected):
    for name in ("a", "a picture of 2020 16.00"):
        tree.add(name)
    write(tree.folder / "JPEGImages" / "below" / "deep")
    (tree.folder / "ImageSets/Main/train.txt").write_text(f"{line}\n\n", encoding="utf-8")
    assert VocTree(tree.folder).ids("train") == expected


def test_a_line_that_can_be_read_in_two_ways_is_refused_with_both(tree):
    tree.add("a")
    tree.add("a 1")
    tree.list("train", "a 1")
    with pytest.raises(BadInput, match="'a 1' is the image a 1, or a with the number 1"):
        VocTree(tree.folder).ids("train")


@pytest.mark.parametrize("images, annotations", [("images", "annotations"), ("Imgs", "xml"), ("JPEGImages", "Labels")])
def test_usual_names_of_folders_are_found(tree, images, annotations):
    tree.add("a")
    (tree.folder / "JPEGImages").rename(tree.folder / images)
    (tree.folder / "Annotations").rename(tree.folder / annotations)
    assert VocTree(tree.folder).ids("*") == (["a"], 0)
    assert VocTree(tree.folder).annotation_file("a").endswith(f"{annotations}/a.xml")


def test_other_folders_are_named_in_the_message_and_taken_when_they_are_set(tree):
    tree.add("a")
    (tree.folder / "JPEGImages").rename(tree.folder / "my photos")
    (tree.folder / "Annotations").rename(tree.folder / "my boxes")
    with pytest.raises(BadInput, match=r"set data\.annotations=my boxes and data\.images=my photos"):
        VocTree(tree.folder)
    assert VocTree(tree.folder, Layout("voc", "my photos", "my boxes")).ids("*") == (["a"], 0)
    with pytest.raises(BadInput, match=r"nowhere: no such folder; correct data\.images"):
        VocTree(tree.folder, Layout("voc", "nowhere", "my boxes"))


def test_one_folder_may_hold_both(tmp_path):
    for name in ("train/a", "valid/b", "test/c"):
        write(tmp_path / name)
    tree = VocTree(tmp_path)
    assert tree.ids("*") == (["test/c", "train/a", "valid/b"], 0)
    assert "data.splits={test:[test/*],train:[train/*],val:[valid/*]}" in str(tree.remarks)
    assert VocTree(tmp_path / "train").ids("*") == (["a"], 0)


def test_annotations_are_paired_by_a_name_that_only_one_folder_has(tmp_path):
    write(tmp_path / "JPEGImages" / "a")
    (tmp_path / "Annotations").mkdir(exist_ok=True)
    shutil.move(tmp_path / "JPEGAmages" / "a.xml", tmp_path / "Annotations" / "a.xml")
    (tmp_path / "JPEGImages" / "dog").mkdir()
    shutil.move(tmp_path / "JPEGImages" / "a.jpg", tmp_path / "JPEGImages" / "dog" / "a.jpg")
    assert VocTree(tmp_path).annotation_file("dog/a") == str(tmp_path / "Annotations/a.xml")
    (tmp_path / "JPEGImages" / "cat").mkdir()
    shutil.copy(tmp_path / "JPEGImages" / "dog" / "a.jpg", tmp_path / "JPEGImages" / "cat" / "a.jpg")
    assert VocTree(tmp_path).annotation_id("dog/a") is None  # it could be that of either


def test_annotations_may_have_no_suffix(tree):
    tree.add("a")
    (tree.folder / "Annotations/a.xml").rename(tree.folder / "Annotations/a")
    (tree.folder / "Annotations/LICENSE").touch()
    assert VocTree(tree.folder).annotation_file("a") == str(tree.folder / "Annotations/a")
    (tree.folder / "JPEGImages/a.jpg").unlink()
    assert VocTree(tree.folder).ids("*") == ([], 0)


def test_hidden_files_suffixes_in_capitals_and_decomposed_letters(tree):
    for name in ("a", "é"):
        tree.add(name)
    folder = tree.folder / "Annotations"
    (folder / "a.xml").rename(folder / "a.XML")
    (folder / "é.xml").rename(folder / (unicodedata.normalize("NFD", "é") + ".xml"))
    (folder / "._a.xml").write_bytes(b"\0\5\x16\7")
    (tree.folder / "JPEGImages" / ".DS_Store.jpg").touch()
    voc = VocTree(tree.folder)
    assert voc.ids("*") == (["a", "é"], 0)
    assert all(os.path.exists(voc.annotation_file(name)) for name in ("a", "é"))


def test_pipes_and_loops_of_links_do_not_hang(tree):
    tree.add("a")
    os.mkfifo(tree.folder / "JPEGImages" / "pipe.jpg")
    (tree.folder / "JPEGImages" / "loop").symlink_to(tree.folder / "JPEGImages")
    (tree.folder / "JPEGImages" / "nowhere.jpg").symlink_to("gone.jpg")
    assert VocTree(tree.folder).ids("*") == (["a"], 0)


def test_a_folder_that_is_closed_is_named(tree, monkeypatch):
    """Nothing is closed to root, as whom CI runs: the system's answer stands in."""
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    (tree.folder / "JPEGImages" / "closed").mkdir()
    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(BadInput, match=r"closed.*: cannot be read \(Permission denied\); make it readable"):
        VocTree(tree.folder)


def test_trees_are_found_in_a_folder_or_its_vocdevkit(tree, tmp_path):
    tree.add("a")
    shutil.copytree(tree.folder, tmp_path / "root/VOCdevkit/VOC2007")
    assert find_trees(tree.folder) == [tree.folder]
    assert find_trees(tmp_path / "root") == [tmp_path / "root/VOCdevkit/VOC2007"]
    with pytest.raises(BadInput, match=r"has no annotations and images itself; set data\.root=.*VOC2007"):
        VocTree(tmp_path / "root")
