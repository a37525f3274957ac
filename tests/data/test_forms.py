"""COCO, YOLO and CSV, in the layouts that tools write: each is the same data set as the VOC tree that it was."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from onebox.build import build_data
from onebox.cli import app
from onebox.errors import BadInput

SPLITS = "data.splits={train:[train],val:[val],test:[]}"
ALL = ["data.splits={train:['*'],val:[],test:[]}", "data.holdout={val:0,test:0}"]
CAT, DOG, BIRD = ("cat", (1, 1, 30, 20)), ("dog", (12, 5, 60, 40)), ("bird", (33, 1, 47, 11))


@pytest.fixture
def data_of(composed):
    """Builds and sets up an option of data on a folder."""

    def make(form: str, folder: Path, *overrides: str):
        data = build_data(composed(f"data={form}", f"data.root='{folder}'", *overrides, small=False))
        data.setup()
        data.decode()
        return data

    return make


@pytest.fixture
def boxes_of(data_of):
    """Id -> class and box in px of all images."""

    def make(form: str, folder: Path, *overrides: str) -> dict[str, tuple]:
        data = data_of(form, folder, *ALL, *overrides)
        index = data.indexes["train"]
        boxes = (index.boxes * index.sizes[:, [1, 0, 1, 0]]).round(decimals=2).tolist()
        names = [data.class_names[label] for label in index.labels.tolist()]
        return {image_id: (name, *box) for image_id, name, box in zip(index.ids, names, boxes, strict=True)}

    return make


def picture(path: Path, size=(60, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).convert("RGB").save(path)


def convert(folder: Path, out: Path, *arguments: str) -> None:
    app(["data", "convert", str(folder), "--out", str(out), *arguments], standalone_mode=False)


def test_the_same_images_in_four_forms_have_one_fingerprint(tree, tmp_path, data_of, capsys):
    for number in range(50):
        size = (60 + 7 * number, 41 + 13 * number)
        box = (1 + number, 2, size[0] - number % 3, size[1] - number)
        tree.add(f"{number:03}", (f"class {number % 3}", box), size=size)
    tree.add("several", CAT, DOG, difficult=[1])
    tree.add("nothing")
    names = [f"{number:03}" for number in range(50)]
    tree.list("val", *names[10:20][::-1])  # in an order of its own
    tree.list("train", *names[:10], *names[20:45], "several", "nothing")
    tree.list("trainval", *names[:45])
    options, expected = [[SPLITS], []], []
    for overrides in options:
        expected.append(data_of("folder", tree.folder, *overrides).fingerprint())
    source, form = tree.folder, "folder"
    for to in ("coco", "csv", "voc", "yolo", "coco"):
        out = tmp_path / f"{form} to {to}"
        convert(source, out, "--data", form, "--to", to, f"data.cache_dir={tmp_path / 'cache'}")
        source, form = out, "folder" if to == "voc" else to
        assert [data_of(form, out, *overrides).fingerprint() for overrides in options] == expected, out
    printed = capsys.readouterr()
    assert "left out: the list trainval, as some of its images are in another list" in printed.out
    assert "1 objects are marked difficult, which YOLO has no mark for" in printed.out
    assert "52 images in " in printed.out and "(train 37, val 10, unlisted 5)" in printed.out
    assert data_of("csv", tmp_path / "coco to csv", "data.include_difficult=false", SPLITS).indexes["train"].ids[
        -1
    ] == ("several")


def coco(path: Path, *images: tuple[str, str, list[float]], size=(60, 40), **more) -> None:
    names = sorted({name for _, name, _ in images})
    files = list(dict.fromkeys(file for file, _, _ in images))
    document = {
        "images": [
            {"id": 70 + number, "file_name": file, "width": size[0], "height": size[1]}
            for number, file in enumerate(files)
        ],
        "annotations": [
            {"id": number, "image_id": 70 + files.index(file), "category_id": 5 + names.index(name), "bbox": box}
            for number, (file, name, box) in enumerate(images)
        ],
        "categories": [{"id": 5 + number, "name": name} for number, name in enumerate(names)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document | more))


def test_coco_is_read_in_the_layouts_of_its_tools(tmp_path, boxes_of, data_of):
    root = tmp_path / "official"
    for name in ("train2017/1.jpg", "val2017/1.jpg", "val2017/2.jpg"):
        picture(root / name)
    coco(root / "annotations/instances_train2017.json", ("1.jpg", "cat", [0, 0, 30, 20]))
    coco(
        root / "annotations/instances_val2017.json", ("1.jpg", "cat", [0, 0, 60, 40]), ("2.jpg", "dog", [1, 2, 3.5, 4])
    )
    (root / "annotations/captions_val2017.json").write_text('{"images": [], "annotations": []}')
    assert boxes_of("coco", root) == {
        "train2017/1": ("cat", 0, 0, 30, 20),
        "val2017/1": ("cat", 0, 0, 60, 40),
        "2": ("dog", 1, 2, 4.5, 6),
    }
    splits = "data.splits={train:[instances_train2017],val:[instances_val2017],test:[]}"
    assert data_of("coco", root, splits).indexes["val"].ids == ("val2017/1", "2")

    root = tmp_path / "roboflow"
    for split in ("train", "valid"):
        picture(root / split / "a.jpg")
        coco(root / split / "_annotations.coco.json", ("a.jpg", split, [1, 1, 9, 9]))
    data = data_of("coco", root, "data.splits={train:[train],val:[valid],test:[]}")
    assert data.class_names[1:] == ["train", "valid"]
    assert (data.indexes["train"].ids, data.indexes["val"].ids) == (("train/a",), ("valid/a",))
    told = "lists or folders are called like splits; to take them so, set data.splits={train:[train],val:[valid]}"
    assert told in data_of("coco", root, *ALL).notes

    root = tmp_path / "paths"
    picture(root / "images/deep/a.jpg")
    coco(root / "result.json", ("C:\\label\\deep\\a.jpg", "cat", [0, 0, 10, 10]))
    assert boxes_of("coco", root) == {"a": ("cat", 0, 0, 10, 10)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.write_text("{"), "a.json: cannot be read ("),
        (lambda path: path.write_text("[" * 100_000), "a.json: cannot be read ("),
        (lambda path: path.write_text("[]"), "a.json: not COCO's, which has images, annotations, categories"),
        (lambda path: coco(path, ("a.jpg", "cat", [0, 0, 9, 9]), images=[{}]), "something has no 'id'"),
        (lambda path: coco(path, ("a.jpg", "cat", [0, 0, 9, 9]), images=[3]), "are not as COCO has them"),
        (lambda path: coco(path, ("a.jpg", "cat", [0, 0, 9, 9]), annotations=[{"image_id": 3}]), "an image 3 that is not"),
        (lambda path: coco(path, ("a.jpg", "cat", [0, 0, 9, 9]), categories=[]), "category_id is 5, for which"),
        (lambda path: coco(path, ("a.jpg", "cat", [0, 0, 9])), "a.json: a: annotation 0: its bbox is [0, 0, 9], not four"),
        (lambda path: coco(path, ("a.jpg", "cat", [0, 0, 99, 9])), "outside the image of 60x40; correct it, or set"),
        (lambda path: coco(path, ("a.jpg", "cat", [0, 0, 0.5, 0.5])), "set data.box_units=relative"),
        (lambda path: coco(path, ("b.jpg", "cat", [0, 0, 9, 9])), "b.jpg: no such image; add it, take b out of its list"),
        (lambda path: coco(path, ("../../a.jpg", "cat", [0, 0, 9, 9]), ("a.jpg", "dog", [0, 0, 9, 9])), "names a 2 times"),
        (lambda path: coco(path.with_name("b.json"), ("a.jpg", "cat", [0, 0, 9, 9])), "a is also in a.json; name the lists"),
        (lambda path: coco(path, ("a.jpg", "cat", [0, 0, 9, 9]), size=(40, 60)), "the image is 60x40 px but its"),
        (lambda path: coco(path, ("a.jpg", "cat", [0, 0, 9, 9]), size=(-1, 1e99)), "its width and height are"),
        (lambda path: path.unlink(), "no .json file with annotations; name it or its folder in data.annotations"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_coco_is_one_line(tmp_path, data_of, change, told):
    picture(tmp_path / "t/images/a.jpg")
    coco(tmp_path / "t/annotations/a.json", ("a.jpg", "cat", [0, 0, 30, 20]))
    change(tmp_path / "t/annotations/a.json")
    with pytest.raises(BadInput) as error:
        data_of("coco", tmp_path / "t", *ALL)
    assert told in str(error.value)


def test_odd_objects_of_coco_are_left_out_or_count_as_difficult(tmp_path, boxes_of, data_of):
    for name in "abc":
        picture(tmp_path / f"t/images/{name}.jpg")
    boxes = [("a.jpg", "cat", [0, 0, 30, 20]), ("a.jpg", "cat", []), ("b.jpg", "cat", [0, 0, 9, 9])]
    path = tmp_path / "t/a.json"
    coco(path, *boxes, ("b.jpg", "cat", [0, 0, 60, 40]))
    document = json.loads(path.read_text())
    document["annotations"][3]["iscrowd"] = 1
    document["images"].append({"id": 1, "file_name": "c.jpg"})  # without objects, nor a size
    path.write_text(json.dumps(document))
    assert boxes_of("coco", tmp_path / "t", "data.include_difficult=false").keys() == {"a", "b"}
    data = data_of("coco", tmp_path / "t", *ALL)
    assert data.indexes["train"].ids == ("a",)
    assert "1 dropped (no object), 1 dropped (several objects), 1 empty objects left out" in str(data.indexes["train"])


def yolo(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_yolo_is_read_in_the_layouts_of_its_tools(tmp_path, boxes_of, data_of):
    root = tmp_path / "ultralytics"
    for split, line in (("train", "0 0.25 0.25 0.5 0.5\n"), ("val", "1 0.5 0.5 1 1\n")):
        picture(root / f"images/{split}/a.jpg")
        yolo(root / f"labels/{split}/a.txt", line)
    yolo(root / "data.yaml", "path: ../datasets/x\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")
    yolo(root / "README.txt", "no labels")
    assert boxes_of("yolo", root) == {"train/a": ("cat", 0, 0, 30, 20), "val/a": ("dog", 0, 0, 60, 40)}
    data = data_of("yolo", root, SPLITS)
    assert (data.indexes["train"].ids, data.indexes["val"].ids, data.notes) == (("train/a",), ("val/a",), {})

    root = tmp_path / "roboflow"
    for split in ("train", "valid"):
        picture(root / f"{split}/images/{split}.jpg")
        yolo(root / f"{split}/labels/{split}.txt", "0 .1 .1 .9 .1 .9 .9 .1 .9")  # a polygon
    yolo(root / "data.yaml", "train: ../train/images\nval: /content/x/valid/images\nnames: [cat]\nnc: 1\n")
    assert boxes_of("yolo", root)["train"] == ("cat", 6, 4, 54, 36)
    assert data_of("yolo", root, SPLITS).indexes["val"].ids == ("valid",)
    yolo(root / "data.yaml", "kpt_shape: [2, 2]\nnames: [cat]\n")
    assert boxes_of("yolo", root, "data.boxes=clip")["train"] == pytest.approx(
        ("cat", 0, 2, 33, 6)
    )  # a box and two points

    root = tmp_path / "darknet"
    for name, text in (("a", "1 .5 .5 .2 .2"), ("b", ""), ("c", None)):
        picture(root / f"{name}.png")
        if text is not None:
            yolo(root / f"{name}.txt", text)
    yolo(root / "obj.names", "cat\ndog\n\n")
    yolo(root / "train.txt", "data/obj_train_data/b.png\ndata/obj_train_data/a.png\n")
    data = data_of("yolo", root, *ALL)
    assert str(data.indexes["train"]) == "1 of 3 images, 1 dropped (no annotation), 1 dropped (no object)"
    assert boxes_of("yolo", root) == {"a": ("dog", 24, 16, 36, 24)}
    yolo(root / "b.txt", "0 .5 .5 1 1")
    assert data_of("yolo", root, "data.splits={train:[train]}", ALL[1]).indexes["train"].ids == ("b", "a")  # its order

    (root / "obj.names").unlink()
    yolo(root / "d.txt", "0 .5 .5 1 1")
    data = data_of("yolo", root, *ALL)
    assert data.class_names[1:] == ["0", "1"]
    assert any("classes have no names" in note for note in data.notes)
    yolo(root / "mine", "x\ny")
    assert data_of("yolo", root, *ALL, "data.names=mine").class_names[1:] == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "names", "told"),
    [
        ("cat 0.5 0.5 1 1", None, "a.txt: line 1 is 'cat 0.5 0.5 1 1'; a line is a class and x, y"),
        ("0 0.5 0.5 1 nan", None, "line 1 is"),
        ("\n-1 0.5 0.5 1 1", None, "line 2 is"),
        ("0.5 0.5 0.5 1 1", None, "line 1 is"),
        ("0 0.5 0.5 1 1 0.9", None, "line 1 has 5 numbers behind the class"),
        ("0 0.5 0.5 1", None, "line 1 has 3 numbers behind the class"),
        ("0 30 20 60 40", None, "data.box_units=relative, but half of the numbers of the 1 boxes are above 1"),
        ("0 0.9 0.5 0.5 1", None, "outside the image of 60x40"),
        ("7 0.5 0.5 1 1", None, "a.txt: class 7 is not one of the 1 that have names"),
        ("0 0.5 0.5 1 1", "names: [a, a]", "two classes are called 'a'"),
        ("0 0.5 0.5 1 1", "names: {x: a}", "the names of the classes are no list; set data.names=FILE"),
    ],
)
def test_what_is_wrong_in_yolo_is_one_line(tmp_path, data_of, text, names, told):
    picture(tmp_path / "t/images/a.jpg")
    yolo(tmp_path / "t/labels/a.txt", text)
    yolo(tmp_path / "t/data.yaml", names or "names: [cat]")
    with pytest.raises(BadInput) as error:
        data_of("yolo", tmp_path / "t", *ALL)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,60,40,cat,6,4,36,20\n", []),  # TensorFlow's
        ("\ufeffFileName;Label;X1;Y1;X2;Y2\r\nx/images/a.jpg;cat;6;4;36;20\r\n", []),
        ("label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n"
         "cat,6,4,30,16,a.jpg,60,40\n", []),  # Makesense
        ('image_id,width,height,bbox,label\na,60,40,"[6.0, 4.0, 30, 16]",cat\n', []),  # Kaggle
        ("image\tlabel\tx\ty\twidth\theight\na.jpg\tcat\t6\t4\t30\t16\n", []),
        ("a.jpg,6,4,36,20,cat\nb.jpg,,,,,\n", ["data.columns={image:0,xmin:1,ymin:2,xmax:3,ymax:4,class:5}"]),  # RetinaNet
        ("img,what,l,t,r,b\na.jpg,cat,6,4,36,20\n", ["data.columns={image:img,class:what,xmin:l,ymin:t,xmax:r,ymax:b}"]),
        ("ImageID,LabelName,XMin,XMax,YMin,YMax\na,cat,0.1,0.6,0.1,0.5\n", ["data.box_units=relative"]),  # Open Images
    ],
)  # fmt: skip
def test_csv_is_read_with_the_columns_of_its_tools(tmp_path, boxes_of, text, overrides):
    picture(tmp_path / "t/images/a.jpg")
    picture(tmp_path / "t/images/b.jpg")
    (tmp_path / "t/labels.csv").write_bytes(text.encode())
    assert boxes_of("csv", tmp_path / "t", *overrides) == {"a": ("cat", 6, 4, 36, 20)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "labels.csv: which columns are image, class, xmin, ymin, xmax and ymax? There are: ; set data.columns="),
        (
            "a.jpg,6,4,36,20,cat",
            "There are: a.jpg, 6, 4, 36, 20, cat; set data.columns={image: NAME, ...}, with places",
        ),
        ("image,class,xmin,ymin,xmax,ymax\na.jpg,cat,6,4,36", "line 2 has 5 columns"),
        ("image,class,xmin,ymin,xmax,ymax\n,cat,6,4,36,20", "line 2 names no image"),
        ("image,class,xmin,ymin,xmax,ymax\na.jpg,,6,4,36,20", "labels.csv: a: line 2 has a class of 0 letters"),
        ("image,class,xmin,ymin,xmax,ymax\na.jpg,cat,6,4,1e999,x", "line 2 has '1e999' for xmax, not a number"),
        ("image,class,bbox\na.jpg,cat,1 2 3", "line 2 has a bbox of 3 numbers"),
        ("image,class,xmin,ymin,xmax,ymax\na.jpg,cat,6,4,99,20", "outside the image of 60x40"),
        (
            'image,class,xmin,ymin,xmax,ymax,note\na.jpg,cat,6,4,36,20,"odd\nb.jpg,cat,6,4,36,20,\n',
            "labels.csv: not a table (unexpected end of data); repair it",
        ),
    ],
)
def test_what_is_wrong_in_csv_is_one_line(tmp_path, data_of, text, told):
    picture(tmp_path / "t/images/a.jpg")
    (tmp_path / "t/labels.csv").write_text(text)
    with pytest.raises(BadInput) as error:
        data_of("csv", tmp_path / "t", *ALL)
    assert told in str(error.value)


def test_a_place_of_a_column_counts_from_the_front(tmp_path, data_of):
    picture(tmp_path / "t/images/a.jpg")
    (tmp_path / "t/labels.csv").write_text("a.jpg,6,4,36,cat,20\n")
    columns = "data.columns={image:0,xmin:1,ymin:2,xmax:3,ymax:-1,class:4}"
    with pytest.raises(BadInput, match="has no column -1"):
        data_of("csv", tmp_path / "t", columns, *ALL)


def test_the_check_says_why_a_table_gives_no_image(tmp_path):
    picture(tmp_path / "t/images/a.jpg")
    (tmp_path / "t/labels.csv").write_text('"image,class,xmin,ymin,xmax,ymax\na.jpg,cat,6,4,36,20\n')
    with pytest.raises(BadInput, match="not a table"):
        app(["data", "check", str(tmp_path / "t"), "--data", "csv"], standalone_mode=False)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path, boxes_of, monkeypatch):
    picture(tmp_path / "t/images/a.jpg")
    path = tmp_path / "t/a.json"
    for box in ([0, 0, 9, 9], [0, 0, 8, 8]):
        coco(path, ("a.jpg", "cat", box))
        assert boxes_of("coco", tmp_path / "t")["a"] == ("cat", *map(float, box))
    monkeypatch.setattr("onebox.data.manifest.read_coco", None)
    assert boxes_of("coco", tmp_path / "t")["a"] == ("cat", 0, 0, 8, 8)


def test_another_form_is_recognised_where_voc_is_expected(tree, tmp_path, data_of):
    for form in ("yolo", "coco", "csv"):
        shutil.rmtree(tree.folder)
        tree.__init__(tree.folder)
        tree.add("a", CAT)
        convert(tree.folder, tmp_path / form, "--to", form, f"data.cache_dir={tmp_path / 'cache'}")
        with pytest.raises(BadInput, match=f"files as of {form.upper()}; set data={form} "):
            data_of("folder", tmp_path / form)


def test_convert_refuses_what_training_refuses_and_leaves_nothing(tree, tmp_path, capsys, monkeypatch):
    tree.add("a", CAT)
    tree.add("b", ("dog", (0, 1, 99, 20)))
    out, cache = tmp_path / "out", f"data.cache_dir={tmp_path / 'cache'}"
    with pytest.raises(BadInput, match=r"b\.xml: box xmin=0.*data.on_error=skip leaves such images out"):
        convert(tree.folder, out, "--to", "coco", cache)
    assert not [*tmp_path.glob("*out*")]
    convert(tree.folder, out, "--to", "coco", cache, "data.on_error=skip")
    printed = capsys.readouterr().out
    assert "left out: " in printed and "b.xml: box" in printed and "1 images in" in printed
    with pytest.raises(BadInput, match="is there already; name a new folder"):
        convert(tree.folder, out, "--to", "coco", cache)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(BadInput, match="is there already; name a new folder"):
        convert(tree.folder, Path("."), "--to", "coco", cache)
    convert(tree.folder, tmp_path / "clipped", "--to", "csv", cache, "data.boxes=clip", "data.rename={cat: lion}")
    assert "1 boxes cut at the edge" in capsys.readouterr().out
    assert (tmp_path / "clipped/unlisted.csv").read_text().splitlines()[1:] == [
        "a.jpg,60,40,lion,0,0,30,20,0",
        "b.jpg,60,40,dog,0,0,60,20,0",
    ]
