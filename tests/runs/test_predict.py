"""`onebox predict` and `onebox export`: a trained run finds boxes in images."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import onebox
from onebox.cli import app
from onebox.data.image import read_image
from onebox.data.layout import Layout, open_tree
from onebox.errors import BadInput
from onebox.runs.reading import export
from onebox.runs.reading.onnx_model import OnnxModel
from onebox.runs.reading.predict import read_any

ORIENTATION = 0x0112


def call(*arguments: object, stdin: str | None = None, code: int = 0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, catch_exceptions=True)
    raised = done.exception if isinstance(done.exception, BadInput) else None
    assert (2 if raised else done.exit_code) == code, (done.output, done.exception)
    return str(raised) if raised else done.output


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(trained):
    return onebox.load_run(trained)


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    """The run as a file of ONNX."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    said = call("export", trained, "--out", path)
    assert "images of its test split: largest difference of a box" in said
    return path


@pytest.fixture
def photos(tmp_path, shapes_root):
    """A folder of images of many kinds, and what a person sees of each: name -> pixels."""
    pixels = read_image(shapes_root / "JPEGImages" / "000001.jpg")
    (tmp_path / "photos/below").mkdir(parents=True)
    image, turned = Image.fromarray(pixels), Image.Exif()
    turned[ORIENTATION] = 6  # to be turned clockwise
    image.save(tmp_path / "photos/plain.png")
    image.rotate(90, expand=True).save(tmp_path / "photos/below/turned.png", exif=turned)
    image.quantize(16).save(tmp_path / "photos/few.gif")
    image.convert("L").save(tmp_path / "photos/grey.BMP")
    return tmp_path / "photos"


def test_predicting_files_gives_what_training_has_tested(trained, run, tmp_path):
    kept = run.predictions
    call("predict", trained, *kept["path"], "--out", tmp_path / "out")
    rows = rows_of(tmp_path / "out/predictions.csv")
    assert [row["image"] for row in rows] == kept["path"].tolist()
    assert [row["class"] for row in rows] == kept["predicted_label"].tolist()
    assert np.array([float(row["probability"]) for row in rows]) == pytest.approx(kept["probability"], abs=1e-5)
    for edge, side in (("xmin", "width"), ("ymin", "height"), ("xmax", "width"), ("ymax", "height")):
        name = f"predicted_{edge[0]}{1 if 'min' in edge else 2}"
        expected = kept[name].clip(0, kept[side])
        assert np.array([float(row[edge]) for row in rows]) == pytest.approx(expected, abs=0.011)


def test_images_of_any_kind_are_seen_as_a_person_sees_them(trained, run, photos, tmp_path):
    said = call("predict", trained, photos, "--out", tmp_path / "out", "--format", "jsonl", "--pictures")
    assert "4 of 4 images predicted" in said
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    found = {row["image"].rpartition("/")[2]: row for row in rows}
    plain, turned = found["plain.png"], found["turned.png"]
    assert {key: plain[key] for key in plain if key != "image"} == {key: turned[key] for key in plain if key != "image"}
    assert {row["width"] for row in rows} == {plain["width"]}
    assert read_any(photos / "grey.BMP")[0].shape == (plain["height"], plain["width"], 3)
    with Image.open(tmp_path / "out/pictures/below/turned.png.jpg") as picture:
        assert picture.size == (plain["width"], plain["height"])
    (one,) = run.predict(photos / "below/turned.png")
    assert one.box_px.tolist() == pytest.approx([plain[name] for name in ("xmin", "ymin", "xmax", "ymax")], abs=0.01)


@pytest.mark.parametrize("form", ["voc", "coco", "yolo"])
def test_predictions_are_labels_to_train_on(trained, photos, tmp_path, form):
    (photos / "few.gif").unlink()
    call("predict", trained, photos, "--out", tmp_path / "out", "--format", form)
    call("predict", trained, photos, "--out", tmp_path / "table")
    tree = open_tree(tmp_path / "out", Layout(form), None)
    ids, _ = tree.ids("predicted")
    files = {image_id.rpartition("/")[2]: tree.images.paths[image_id] for image_id in ids}
    assert sorted(files) == ["grey", "plain", "turned"]
    assert read_image(files["turned"]).shape == read_image(files["plain"]).shape
    table = tree.table()
    labels = dict(zip(np.repeat(table.ids, np.diff(table.first)).tolist(), table.names.tolist(), strict=True))
    rows = rows_of(tmp_path / "table/predictions.csv")
    assert {name: labels[tree.annotation_id(name)] for name in ids} == {
        image_id: row["class"]
        for row in rows
        for image_id in ids
        if image_id.rpartition("/")[2] == Path(row["image"]).stem
    }
    said = json.loads(call("data", "check", "--data", "folder" if form == "voc" else form, f"data.root={tmp_path / 'out'}", "--json"))  # fmt: skip
    assert not [one for one in said["problems"] if one["level"] == "error"]


def test_what_cannot_be_read_is_named_and_the_others_are_done(trained, photos):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    said = call(
        "predict", trained, "-", stdin=f"{photos}/plain.png\n\n{photos}/broken.jpg\n{photos}/gone.jpg\n", code=1
    )
    lines = said.splitlines()
    assert len(lines) == 3
    assert ": " in lines[0] and "plain.png" in lines[0] and "px" in lines[0]
    assert any("broken.jpg: not a readable image" in line for line in lines)
    assert any("gone.jpg: cannot be read (No such file" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photos}", "--pictures"], "--out FOLDER"),
        (["{photos}", "--format", "voc"], "--out FOLDER"),
        (["{photos}", "--out", "{photos}"], "holds files"),
        (["{photos}/*.tif"], "no file is called like this"),
        (["-"], "no image is named"),
        (["{empty}"], "no image in this folder"),
    ],
)
def test_a_line_says_what_is_wrong(trained, photos, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    names = {"photos": photos, "empty": tmp_path / "empty"}
    assert message in call("predict", trained, *(text.format(**names) for text in arguments), stdin="\n", code=2)
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_working_directory_may_be_where_predictions_go(trained, photos, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    call("predict", trained, photos / "plain.png", "--out", ".")
    assert len(rows_of(tmp_path / "empty/predictions.csv")) == 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_force_writes_over_files_of_equal_names_alone(trained, photos, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("mine.txt", "predictions.csv"):
        (tmp_path / "out" / name).write_text("mine")
    call("predict", trained, f"{photos}/*.png", "--out", tmp_path / "out", "--force", "--min-probability", 1)
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
    assert rows_of(tmp_path / "out/predictions.csv") == []


def test_diverged_weights_give_no_boxes(run, photos, monkeypatch):
    monkeypatch.setattr(run.localizer, "normalise", lambda images: images.float() * np.nan)
    with pytest.raises(BadInput, match="NaN"):
        run.predict(photos / "plain.png")


def test_the_exported_file_predicts_the_same_without_torch(trained, model, photos, tmp_path):
    expected = call("predict", trained, photos, "--format", "csv")
    absent = ("torch", "torchvision", "lightning", "hydra", "omegaconf", "pandas", "matplotlib", "tensorboard")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); from onebox.cli import main; main()"
    command = [sys.executable, "-c", code, "predict", str(model), str(photos), "--format", "csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    pairs = list(zip(csv.DictReader(expected.splitlines()), csv.DictReader(done.stdout.splitlines()), strict=True))
    assert len(pairs) == 4
    for one, other in pairs:
        assert (one["image"], one["class"]) == (other["image"], other["class"])
        for name in ("probability", "xmin", "ymin", "xmax", "ymax"):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=0.011)
    about = OnnxModel(model).about
    assert about["class_names"] == onebox.load_run(trained).class_names
    assert about["fingerprint"] == json.loads((trained / "run.json").read_text())["fingerprint"]


def test_an_exported_file_can_resize_by_itself(trained, run, photos, tmp_path):
    said = call("export", trained, "--any-size", "--out", tmp_path / "any.onnx")
    assert "with the resize of training instead" in said
    image = read_image(photos / "plain.png")
    (expected,) = run.predict(image)
    boxes, probabilities = OnnxModel(tmp_path / "any.onnx").run(image[None])
    assert boxes[0] * ([*image.shape[1::-1]] * 2) == pytest.approx(expected.box_px, abs=0.5)
    assert probabilities[0] == pytest.approx(expected.probabilities, abs=0.01)


def test_a_program_of_torch_export_computes_the_same(trained, tmp_path):
    said = call("export", trained, "--to", "torch", "--out", tmp_path / "model.pt2")
    assert re.search(r"box \d\.\de-0[6-9]|box 0", said) and "every class the same" in said


@pytest.mark.parametrize(
    "heads",
    [
        ["model/loc_head=pyramid_edges", "model/box_coder=bins", "loss/loc=l1_giou_bins", "model/cls_head=box_pool"],
        [
            *("model/loc_head=cells", "model/box_coder=cells", "loss/loc=cells"),
            *("model.second_look=1.5", "model.flip_average=true"),
        ],
    ],
)
def test_what_a_pyramid_gives_is_exported_as_it_is(nursery, shapes_root, tmp_path, heads):
    network = ["model/backbone=small_cnn", "model.backbone.levels=[4,block3]", *heads]
    data = [f"data.root={shapes_root}", "data.source=null", f"data.cache_dir={tmp_path / 'cache'}", "image_size=64"]
    small = ["trainer.max_epochs=1", "callbacks.pictures=null", f"hydra.run.dir={tmp_path / 'run'}"]
    assert nursery.run(*network, *data, *small, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    said = call("export", tmp_path / "run", "--out", tmp_path / "model.onnx")
    assert re.search(r"box \d\.\de-0[6-9]|box 0", said) and "every class the same" in said


def test_a_file_that_computes_something_else_is_not_written(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert "not written" in call("export", trained, "--to", "torch", "--out", tmp_path / "model.pt2", code=2)
    assert list(tmp_path.iterdir()) == []
    assert "ends in .onnx" in call("export", trained, "--out", tmp_path / "model.pt2", code=2)


def test_files_of_others_are_refused(model, photos, tmp_path):
    import onnx

    foreign = onnx.load(model)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "damaged.onnx").write_bytes(model.read_bytes()[:5000])
    shutil.copy(photos / "plain.png", tmp_path / "picture.onnx")
    for name in ("foreign", "damaged", "picture"):
        said = call("predict", tmp_path / f"{name}.onnx", photos, code=2)
        assert said.startswith(f"{tmp_path}/{name}.onnx: no network that onebox has written")
    assert "cannot be read" in call("predict", tmp_path / "none.onnx", photos, code=2)
