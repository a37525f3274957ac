import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tests.conftest import OBJECT_XML, VOC_XML

from onebox.data import check_report
from onebox.data.annotations import Conventions
from onebox.data.check import check
from onebox.errors import BadInput

DOG = ("dog", (1, 1, 30, 20))
VOC = ["cat", "dog", "person"]


@pytest.fixture
def survey_of(tree):
    def make(root=tree.folder, *, box_origin=1, classes=None):
        return check(root, conventions=Conventions(box_origin=box_origin), classes=classes, voc_classes=VOC)

    return make


def images(tree):
    return tree.folder / "JPEGImages"


def save(tree, name, size=(60, 40), mode="RGB", format="JPEG", **options):
    Image.new(mode, size, "red" if mode == "RGB" else 0).save(images(tree) / f"{name}.jpg", format, **options)


def exif(turn):
    tags = Image.Exif()
    tags[0x0112] = turn
    return tags


def xml(tree, name="a"):
    return tree.folder / "Annotations" / f"{name}.xml"


def truncate(path):
    path.write_bytes(path.read_bytes()[:900])


def folder_in_place_of(path):
    path.unlink()
    path.mkdir()


def bomb(path):
    data = bytearray(path.read_bytes())
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xea\x60\xea\x60"
    path.write_bytes(data)


def test_nothing_is_wrong_with_the_embedded_data(shapes_root):
    survey = check(shapes_root, conventions=Conventions(), classes=None, voc_classes=VOC)
    assert not survey.problems
    assert {name: len(members) for name, members in survey.lists.items()} == {
        "train": 60,
        "val": 20,
        "test": 20,
        "trainval": 80,
    }
    assert len(survey.listed) == 100


@pytest.mark.parametrize(
    ("spoil", "level", "kind", "file", "words"),
    [
        (lambda t: (images(t) / "a.jpg").unlink(), "error", "missing image", "JPEGImages/a.jpg", "no such image"),
        (lambda t: t.list("val", "gone"), "error", "missing annotation", "Annotations/gone.xml", "no such file"),
        (lambda t: t.add("a", ("background", (1, 1, 6, 20))), "error", "unknown class", "Annotations/a.xml", "background"),
        (lambda t: truncate(images(t) / "a.jpg"), "error", "unreadable image", "JPEGImages/a.jpg", "cut short"),
        (lambda t: (images(t) / "a.jpg").write_bytes(b""), "error", "unreadable image", "JPEGImages/a.jpg", "empty"),
        (lambda t: folder_in_place_of(images(t) / "a.jpg"), "error", "missing image", "JPEGImages/a.jpg", "no such image"),
        (lambda t: bomb(images(t) / "a.jpg"), "error", "unreadable image", "JPEGImages/a.jpg", "60000x60000 px"),
        (lambda t: save(t, "a", (40, 60), exif=exif(6)), "error", "EXIF turn", "JPEGImages/a.jpg", "orientation 6"),
        (lambda t: save(t, "a", exif=exif(3)), "warning", "EXIF turn", "JPEGImages/a.jpg", "orientation 3"),
        (lambda t: save(t, "a", mode="CMYK"), "warning", "not RGB", "JPEGImages/a.jpg", "CMYK"),
        (lambda t: save(t, "a", mode="L"), "warning", "not RGB", "JPEGImages/a.jpg", "grey"),
        (lambda t: save(t, "a", format="PNG"), "warning", "other format", "JPEGImages/a.jpg", "PNG content under a .jpg"),
        (lambda t: save(t, "a", format="WEBP"), "warning", "other format", "JPEGImages/a.jpg", "WEBP content"),
        (lambda t: save(t, "a", (61, 40)), "error", "size mismatch", "JPEGImages/a.jpg", "61x40 px but .* says 60x40"),
        (lambda t: t.add("a", ("dog", (9, 9, 8, 20))), "error", "wrong box", "Annotations/a.xml", "xmax < xmin"),
        (lambda t: t.add("a", ("dog", (1, 1, 61, 20))), "error", "wrong box", "Annotations/a.xml", "outside"),
        (lambda t: t.add("a", ("yak", (1, 1, 6, 20))), "error", "unknown class", "Annotations/a.xml", "'yak'"),
        (lambda t: xml(t).write_text("<annotation>"), "error", "wrong annotation", "Annotations/a.xml", "not a readable"),
        (lambda t: t.list("train", "a", "a"), "warning", "repeated id", "ImageSets/Main/train.txt", "a appears 2 times"),
        (lambda t: t.list("val", "a"), "error", "id in two splits", "ImageSets/Main/val.txt", "in train and in val"),
        (lambda t: t.list("val", "../b"), "error", "missing image", "JPEGImages/../b.jpg", "no such image"),
        (lambda t: shutil.copy(images(t) / "a.jpg", images(t) / "a.png"), "error", "ambiguous id", "JPEGImages/a.jpg", "a.png"),
        (
            lambda t: (t.folder / "ImageSets/Main/val.txt").write_bytes(b"\xff"),
            "error", "unreadable list", "ImageSets/Main/val.txt", "UTF-8",
        ),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_its_file_and_a_remedy(tree, survey_of, spoil, level, kind, file, words):
    tree.add("a", DOG)
    tree.list("train", "a")
    spoil(tree)
    survey = survey_of(classes=["dog"])
    (found,) = [problem for problem in survey.problems if problem.kind == kind]
    assert (found.level, str(found.file)) == (level, file)
    assert re.search(words, found.message)
    assert found.remedy
    assert survey.has_errors == any(problem.level == "error" for problem in survey.problems)


def test_all_objects_of_a_file_are_judged_not_only_the_first(tree, survey_of):
    tree.add("a", ("dog", (1, 1, 61, 20)), ("yak", (1, 1, 5, 5)), ("dog", (5, 5, 5, 4)), ("emu", (1, 1, 9, 9)))
    survey = survey_of(classes=["dog"])
    assert [problem.kind for problem in survey.problems] == ["unknown class"] * 2 + ["wrong box"] * 2
    assert survey.listed.table.names.tolist() == ["yak", "emu"]


def test_an_image_of_no_list_is_only_warned_of(tree, survey_of):
    tree.add("a", DOG)
    tree.add("bb", DOG)
    tree.list("train", "a")
    xml(tree, "bb").write_text("<annotation>")
    (problem,) = survey_of().problems
    assert problem.level == "warning" and problem.message.endswith("(in no list)")


@pytest.mark.parametrize(("other", "level"), [("val", "error"), ("train", "warning")])
def test_the_same_picture_under_two_names_is_found(tree, survey_of, other, level):
    tree.add("a", DOG)
    tree.add("b", DOG)
    data = (images(tree) / "a.jpg").read_bytes()
    (images(tree) / "b.jpg").write_bytes(data[:2] + b"\xff\xfe\0\x04by" + data[2:])  # with a comment
    tree.list("train", "a", *["b"] * (other == "train"))
    tree.list("val", *["b"] * (other == "val"))
    (problem,) = survey_of().problems
    assert (problem.level, str(problem.file)) == (level, "JPEGImages/b.jpg")
    assert "the same picture as a.jpg" in problem.message


@pytest.mark.parametrize(
    ("boxes", "told"),
    [
        ([(0, 0, 30, 20), (5, 5, 60, 40)], r"set data\.box_origin=0, with which 0 boxes are wrong instead of 4 of 8"),
        ([(1, 1, 61, 41), (5, 5, 30, 20)], r"set data\.box_end=exclusive, with which 0 boxes are wrong"),
    ],
)
def test_the_convention_that_fits_all_boxes_is_named_as_the_remedy(tree, survey_of, boxes, told):
    for number in range(4):
        tree.add("a" * (number + 1), *(("dog", box) for box in boxes))
    wrong = [problem for problem in survey_of().problems if problem.kind == "wrong box"]
    assert len(wrong) == 4
    assert re.search(told, wrong[0].remedy)
    if "origin" in told:
        assert not survey_of(box_origin=0).problems


def test_trainval_is_no_split_of_its_own_and_class_lists_are_none(tree, survey_of):
    tree.add("a", DOG)
    tree.add("bb", DOG)
    tree.list("train", "a")
    tree.list("val", "bb")
    tree.list("trainval", "a", "bb")
    tree.list("dog_train", "a  1")
    survey = survey_of()
    assert not survey.problems
    assert list(survey.lists) == ["train", "val", "trainval"]


@pytest.mark.parametrize("below", ["", "VOCdevkit"])
def test_all_trees_of_a_folder_are_checked(tree, tmp_path, survey_of, below):
    root = tmp_path / "root"
    tree.add("a", ("yak", (1, 1, 30, 20)))
    tree.list("train", "a")
    for name in ("VOC2007", "mine"):
        shutil.copytree(tree.folder, root / below / name)
    survey = survey_of(root)
    assert sorted(survey.lists) == ["VOC2007/train", "mine/train"]
    assert {problem.kind for problem in survey.problems} == {"same picture twice"}


def test_where_most_objects_are_of_vocs_classes_the_others_are_warned_of(tree, survey_of):
    tree.add("a", DOG, ("person", (1, 1, 9, 9)), ("dogg", (1, 1, 30, 20)))
    (problem,) = survey_of().problems
    assert (problem.level, problem.kind) == ("warning", "unknown class")


def test_a_list_of_one_class_is_one_only_if_the_tree_has_that_class(tree, survey_of):
    tree.add("a", DOG)
    tree.list("dog_train", "a 1")
    tree.list("train_fold0", "a")
    assert list(survey_of().lists) == ["train_fold0"]


def test_the_lists_of_an_option_are_those_that_are_checked(tree, survey_of):
    tree.add("a", DOG)
    tree.list("train_loc", "a")
    tree.list("other", "gone")
    survey = check(
        tree.folder, conventions=Conventions(), classes=["dog"], voc_classes=VOC, splits={"train": ["train_loc"]}
    )
    assert list(survey.lists) == ["train_loc"]
    assert not survey.problems


@pytest.mark.parametrize("made", [[], ["root"], ["root/Annotations"], ["root/Annotations", "root/JPEGImages"]])
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, survey_of, made):
    for folder in made:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(BadInput, match=r"root.*; "):
        survey_of(tmp_path / "root")


def test_what_is_called_right_is_accepted_by_training(tree, survey_of, composed):
    from onebox.build import build_data

    for number in range(6):
        tree.add("a" * (number + 1), DOG)
    save(tree, "a", mode="CMYK")
    save(tree, "aa", format="PNG", exif=exif(3))
    assert not survey_of().has_errors
    data = build_data(composed("data=folder", f"data.root={tree.folder}", small=False))
    data.setup()
    assert sum(len(data.dataset(split)) for split in ("train", "val", "test")) == 6


def test_the_order_does_not_depend_on_threads(tree, survey_of):
    for number in range(30):
        tree.add("a" * (number + 1), ("dog", (1, 1, 99, 9)))
    first, again = (json.dumps(check_report.as_json(survey_of())) for _ in range(2))
    assert first == again
    files = [problem["file"] for problem in json.loads(first)["problems"]]
    assert files == sorted(files) and len(files) == 30


def test_the_json_document_is_plain_and_complete(tree, survey_of):
    tree.add("a", DOG, ("person", (1, 1, 60, 40)), difficult=[0])
    tree.add("bb", DOG)
    tree.list("train", "a", "bb", "gone")
    document = json.loads(json.dumps(check_report.as_json(survey_of())))
    assert document["schema"] == 1
    assert document["lists"]["train"] == {
        "images": 3,
        "objects": 3,
        "difficult": 1,
        "objects_per_image": {"0": 1, "1": 1, "2": 1},
        "classes": {"dog": 2, "person": 1},
        "classes_of_single": {"dog": 1},
    }
    assert document["box_quantiles"]["width"]["50%"] == 0.5
    assert {problem["file"] for problem in document["problems"]} == {"JPEGImages/gone.jpg", "Annotations/gone.xml"}


def test_the_tables_fit_eighty_columns_and_show_names_as_they_are(tree, survey_of):
    tree.add("other_name", ("[red]dog", (1, 1, 30, 20)))
    for number in range(8):
        tree.add("b" * (number + 1), ("dog", (1, 1, 99, 9)))
    console = Console(width=80, record=True, file=io.StringIO())
    check_report.show(survey_of(), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "[red]dog" in text
    assert "error: wrong box (8)" in text and "and 3 more" in text and "to do: correct it" in text
    assert text.rstrip().endswith("8 errors, 0 warnings: training would stop, or its metrics would be wrong")


def test_the_montage_shows_boxes(tree, survey_of):
    for number in range(3):
        tree.add("a" * (number + 1), DOG, size=(64, 40))
    save(tree, "aa", (64, 40))
    truncate(images(tree) / "aaa.jpg")
    picture = np.array(check_report.montage(survey_of()))
    assert picture.shape[1] > 600  # two tiles beside each other
    assert (np.abs(picture.astype(int) - (0x4C, 0xB5, 0xF5)).sum(-1) == 0).sum() > 500


def test_real_voc_has_its_known_counts_and_nothing_wrong(voc_root, composed):
    survey = check(voc_root, conventions=Conventions(), classes=None, voc_classes=composed("data=voc2007").data.classes)
    document = check_report.as_json(survey)
    lists = document["lists"]
    assert {name: counts["images"] for name, counts in lists.items()} == {
        "VOC2007/train": 1288,
        "VOC2007/val": 193,
        "VOC2007/test": 198,
        "VOC2007/trainval": 1481,
        "*": 1679,
    }
    single = {name: counts["objects_per_image"]["1"] for name, counts in lists.items()}
    assert single == {
        "VOC2007/train": 1169,
        "VOC2007/val": 167,
        "VOC2007/test": 183,
        "VOC2007/trainval": 1336,
        "*": 1519,
    }
    assert lists["*"]["objects"] == 2215 and lists["*"]["difficult"] == 166
    assert len(lists["*"]["classes"]) == 20 and lists["*"]["classes"]["person"] == 435
    assert document["problems"] == []


def test_a_folder_as_ilsvrc_has_it_is_checked(tmp_path):
    picture, annotation = (
        tmp_path / kind / "CLS-LOC/train/n1" / name
        for kind, name in (("Data", "n1_1.JPEG"), ("Annotations", "n1_1.xml"))
    )
    for path in (picture, annotation, tmp_path / "ImageSets/CLS-LOC/train.txt"):
        path.parent.mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(picture)
    items = "".join(OBJECT_XML.format(name="n1", box=box, difficult=0) for box in ((1, 1, 30, 20), (1, 1, 61, 20)))
    annotation.write_text(VOC_XML.format(name="n1_1", width=60, height=40, objects=items))
    (tmp_path / "ImageSets/CLS-LOC/train.txt").write_text("n1/n1_1\nn1/n1_2\n")
    survey = check(tmp_path, conventions=Conventions(), classes=None, voc_classes=VOC)
    assert list(survey.lists) == ["train"]
    assert [problem.kind for problem in survey.problems] == ["missing annotation", "missing image", "wrong box"]
