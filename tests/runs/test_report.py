import base64
import json
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.ops import box_iou

from onebox.files import write_json, write_text
from onebox.runs.predictions import per_image, read_predictions
from onebox.runs.reading.report import METRICS, write_report

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8ffff3f0005fe02fea7d6059b0000000049454e44ae426082"
)
ERRORS = {"error_cls": 0.25, "error_loc": 0.125, "error_both": 0.125}
TEST = {
    "joint_acc": 0.5,
    "acc": 0.625,
    "iou": 0.611,
    "loc_acc": 0.75,
    "loc_acc70": 0.402,
    "joint_acc_top5": 0.703,
    "joint_acc_50_95": 0.304,
    "loc_l1": 0.081,
    **ERRORS,
}
FLOOR = {
    "joint_acc": 0.09,
    "acc": 0.14,
    "iou": 0.45,
    "loc_acc": 0.54,
    "loc_acc70": 0.13,
    "joint_acc_top5": 0.35,
    "joint_acc_50_95": 0.025,
    "loc_l1": 0.135,
    "error_cls": 0.45,
    "error_loc": 0.05,
    "error_both": 0.41,
}
JUDGED = {
    name: {"difference": TEST[name] - FLOOR[name], "interval": [0.001, 0.5], "verdict": "better"} for name in METRICS
}
TAGS = ("loss", "loss_loc", "loss_cls", "joint_acc", "acc", "iou", "loc_acc")


class Page(HTMLParser):
    """What a browser would load, run or show: `loads`, `tags`, all `text`, and the cells of each table row."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.tags, self.rows, self.text, self.style, self.in_cell = [], [], [], "", "", False
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "srcset", "href", "xlink:href", "data")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        if self.lasttag == "style":
            self.style += data
            return
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data.strip() + " "


def make_run(
    folder: Path,
    *,
    test=TEST,
    floor=FLOOR,
    splits=("train", "val"),
    epochs=3,
    classes=("cat", "dog"),
    against_floor=None,
    **facts,
) -> Path:
    rows = [
        {f"{split}/{tag}": (i + 1) / 10 + epoch / 100 for split in splits for i, tag in enumerate(TAGS)}
        for epoch in range(epochs)
    ]
    run = {
        "schema": 1,
        "status": "running",
        "name": "baseline",
        "seed": 7,
        "fingerprint": "7e7b7ed9f3b9",
        "choices": {"sweep": None, "data": "voc2007", "model/backbone": "tiny_cnn"},
        "overrides": ["data=voc2007", "data.ids=['000028']"],
        "started": "2026-11-23T15:37:56+00:00",
        "command": ["onebox-train", "data=voc2007"],
        "host": "vm",
        "python": "3.11.7",
        "git": {"sha": "da611e5737249490", "branch": "main", "dirty": True},
        "packages": {"onebox": "0.1.0", "torch": "2.14.1"},
        "hardware": {"cpu": "Xeon", "cores": 2, "threads": 2, "gpus": []},
        "data": {split: "8 of 9 images" for split in splits},
        "parameters": 257553,
    }
    per_class = {name: {"images": 100 * (i + 1), **TEST} for i, name in enumerate(classes)} if test else {}
    metrics = {
        "schema": 1,
        "final": rows[-1],
        "best": {**rows[-1], "epoch": epochs - 1},
        "test": test,
        "floor": floor,
        "per_class": per_class,
        "against_floor": against_floor or (JUDGED if test else {}),
    }
    write_json(folder / "run.json", run | facts)
    write_json(folder / "metrics.json", metrics)
    write_text(folder / "config.yaml", "name: baseline\nmonitor: val/joint_acc\n")
    header = ["epoch", *rows[0]]
    lines = [",".join(header), *(f"{i}," + ",".join(map(str, row.values())) for i, row in enumerate(rows))]
    write_text(folder / "metrics.csv", "\n".join(lines) + "\n")
    return folder


def test_report_loads_nothing_and_embeds_the_picture(tmp_path):
    run = make_run(tmp_path)
    (run / "predictions.jpg").write_bytes(PIXEL)
    path = write_report(run)
    page = Page(path)
    assert path == run / "report.html"
    assert page.loads == ["data:image/jpeg;base64," + base64.b64encode(PIXEL).decode()]
    assert not (run / "predictions.jpg").exists()  # nothing is kept twice
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_report_shows_each_test_metric_beside_its_floor(tmp_path):
    rows = {row[0].split()[0]: row for row in Page(write_report(make_run(tmp_path))).rows if len(row) == 6}
    for name in METRICS:
        result, floor, difference = (cell.strip() for cell in rows[name][2:5])
        assert result == f"{TEST[name]:.3f}"
        assert floor == f"{FLOOR[name]:.3f}"
        assert float(difference.split()[0].replace("\N{MINUS SIGN}", "-")) == pytest.approx(
            TEST[name] - FLOOR[name], abs=6e-4
        )
        assert rows[name][5].strip() == "better"


CLASSES = ("cat", "dog", "<script>alert(1)</script>")


def write_table(run: Path, rng: np.random.Generator, n: int = 90, classes=CLASSES) -> pd.DataFrame:
    """Predictions of n images of 80 x 50 px, written as a run writes them; every third has its picture."""
    names = np.array(classes, dtype=object)
    corners = np.sort(rng.uniform(-0.1, 1.1, (n, 2, 2, 2)), axis=2)
    true, guess = (corners[:, which].reshape(n, 4) for which in (0, 1))
    guess = np.where(rng.random((n, 1)) < 0.6, true + 0.02, guess)
    true = true.clip(0, 1).round(2)
    shares = np.sort(rng.dirichlet(np.ones(len(names)), n), axis=1)[:, ::-1]
    order = rng.permuted(np.tile(np.arange(len(names)), (n, 1)), axis=1)
    image = run / "image.png"
    cv2.imwrite(str(image), rng.integers(0, 255, (50, 80, 3), dtype=np.uint8))
    sides = np.array([80, 50, 80, 50])
    columns = {
        "id": [f"{number:03d}" for number in range(n)],
        "path": [str(image if number % 3 == 0 else run / "gone.png") for number in range(n)],
        "width": 80,
        "height": 50,
        "true_label": names[rng.integers(len(names), size=n)],
        **{f"true_{edge}": column for edge, column in zip(("x1", "y1", "x2", "y2"), (true * sides).T, strict=True)},
        "predicted_label": names[order[:, 0]],
        **{
            f"predicted_{edge}": column
            for edge, column in zip(("x1", "y1", "x2", "y2"), (guess * sides).T, strict=True)
        },
        "iou": torch.diagonal(box_iou(torch.tensor(guess).clip(0, 1), torch.tensor(true))).nan_to_num().numpy(),
        "probability": shares[:, 0],
    }
    for number in range(min(5, len(names))):
        columns |= {f"top{number + 1}": names[order[:, number]], f"top{number + 1}_probability": shares[:, number]}
    table = pd.DataFrame(columns)
    table.to_csv(run / "predictions.csv", index=False)
    return table


def texts(page: Page, section: str) -> str:
    """What is read in a section."""
    html = page.html.split(f'<section id="{section}">')[1].split("</section>")[0]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def test_each_number_of_the_report_is_that_of_the_predictions(tmp_path):
    run = make_run(tmp_path)
    table = write_table(run, np.random.default_rng(0))
    page = Page(write_report(run, upright=False))
    scores = per_image(read_predictions(run))
    # The gallery: all of them, as few they are, the worst first.
    shots = [
        dict(re.findall(r'data-([a-z]+)="([^"]*)"', tag))
        for tag in re.findall(r"<figure class=\"shot[^>]*>", page.html)
    ]
    true_share = np.select(
        [table[f"top{n}"] == table["true_label"] for n in (1, 2, 3)], [table[f"top{n}_probability"] for n in (1, 2, 3)]
    )
    loss = -np.log(true_share) + 1 - table["iou"]
    order = np.argsort(-loss.to_numpy())
    assert [float(shot["loss"]) for shot in shots] == pytest.approx(loss[order].tolist())
    assert [float(shot["iou"]) for shot in shots] == pytest.approx(table["iou"][order].tolist())
    kinds = np.array(["right", "error_cls", "error_loc", "error_both"])[
        (scores["acc"] == 0) + 2 * (scores["loc_acc"] == 0)
    ]
    assert [shot["kind"] for shot in shots] == kinds[order].tolist()
    assert sum("worst" in shot["sets"] for shot in shots) == sum("spread" in shot["sets"] for shot in shots) == 24
    assert all("worst" in shot["sets"] for shot in shots[:24])
    # One picture of each image that is there, and a place for the others.
    assert page.html.count("data:image/jpeg;base64,") == 30 and page.html.count("no picture") == 60
    # The confusion matrix.
    counts = pd.crosstab(table["true_label"], table["predicted_label"])
    cells = re.findall(
        r'<button type="button" data-true="([^"]*)" data-predicted="([^"]*)" data-count="(\d+)"', page.html
    )
    assert {(unescape(a), unescape(b)): int(n) for a, b, n in cells} == {
        pair: n for pair, n in counts.stack().items() if n
    }
    # Size and place.
    sides = np.sqrt((table["true_x2"] - table["true_x1"]) * (table["true_y2"] - table["true_y1"]) / 4000)
    margins = pd.concat(
        [table["true_x1"] / 80, table["true_y1"] / 50, 1 - table["true_x2"] / 80, 1 - table["true_y2"] / 50], axis=1
    )
    where = texts(page, "where")
    for name, chosen in {
        "20\N{EN DASH}40 %": (sides >= 0.2) & (sides < 0.4),
        "at border": margins.min(axis=1) < 0.01,
    }.items():
        means = scores[chosen].mean()
        half = 1.96 * scores["iou"][chosen].std() / chosen.sum() ** 0.5
        numbers = f"{means['iou']:.3f} ± {half:.2f} {means['loc_acc']:.3f} {means['joint_acc']:.3f}"
        assert f"{name} {chosen.sum()} {numbers}" in where
    # Calibration.
    bins = (table["probability"] * 10).astype(int).clip(upper=9)
    gap = (scores["acc"] - table["probability"]).groupby(bins).sum().abs().sum() / len(table)
    calibration = texts(page, "calibration")
    assert f"{100 * table['probability'].mean():.1f} % on average" in calibration
    assert f"right in {100 * scores['acc'].mean():.1f} % of the images" in calibration
    assert f"weighted by images: {gap:.3f} ." in calibration
    assert (
        "<script>alert" not in page.html and page.tags.count("script") == 2
    )  # its own, and the data that it could read


def test_a_report_of_many_images_and_classes_stays_small(tmp_path):
    run = make_run(tmp_path)
    table = write_table(run, np.random.default_rng(1), n=3000, classes=[f"class {number}" for number in range(200)])
    page = Page(write_report(run, upright=False))
    assert page.html.count('<figure class="shot') == 240 and "240 of 3,000 test images" in page.html
    assert len(page.html) < 3e6 and page.html.count("<circle") < 1300
    wrong = table[table["true_label"] != table["predicted_label"]].value_counts(["true_label", "predicted_label"])
    cells = re.findall(r'data-true="([^"]*)" data-predicted="([^"]*)" data-count="(\d+)"', page.html)
    assert len(cells) == 60 and all(wrong[a, b] == int(n) for a, b, n in cells)  # no matrix of 200 x 200
    assert int(cells[0][2]) == wrong.max()


def test_a_report_without_pictures_of_a_run_that_asks_for_none_or_predicts_no_number(tmp_path):
    run = make_run(tmp_path)
    table = write_table(run, np.random.default_rng(0))
    assert "data:image" not in Page(write_report(run)).html
    table.assign(iou=np.nan).to_csv(run / "predictions.csv", index=False, na_rep="nan")
    assert 'id="images"' not in Page(write_report(run)).html


def test_names_of_classes_keep_their_blanks(tmp_path):
    run = make_run(tmp_path)
    write_table(run, np.random.default_rng(0), classes=("a  b", "cat"))
    page = Page(write_report(run))
    assert page.html.count('<option value="a  b">') == 2  # as the buttons of the matrix name it, two blanks and all


@pytest.mark.parametrize("best", [True, False])
def test_charts_say_when_they_show_the_best_epoch(tmp_path, best):
    run = make_run(tmp_path, epochs=4)
    write_table(run, np.random.default_rng(0))
    if not best:
        write_json(run / "metrics.json", json.loads((run / "metrics.json").read_text()) | {"best": {}})
    page = Page(write_report(run))
    assert page.html.count("best epoch:") == (len(TAGS) if best else 0)
    assert page.html.count("best epoch, 4") == (5 if best else 0)  # the texts of images and curves, three charts


def test_report_says_what_can_be_done_next(tmp_path):
    run = make_run(tmp_path / "a b")
    lines = unescape(Page(write_report(run)).html)
    assert f"onebox reproduce '{run}'" in lines and f"onebox evaluate '{run}' data=OPTION" in lines


def test_report_says_how_long_the_run_took_though_it_is_written_before_its_end(tmp_path):
    started = (datetime.now(UTC) - timedelta(minutes=5)).isoformat(timespec="milliseconds")
    assert "<span>5 min</span>" in Page(write_report(make_run(tmp_path, started=started))).html


def test_report_counts_errors_as_shares_of_all_images(tmp_path):
    text = " ".join(Page(write_report(make_run(tmp_path))).text.split())
    for share in ("50.0 % class and box right", "25.0 % only the class wrong", "12.5 % only the box wrong"):
        assert share in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("worse", "Not above the floor."), ("cannot tell", "too near to tell them apart"), ("better", None)],
)
def test_report_says_when_a_result_is_no_result(tmp_path, verdict, words):
    judged = {name: {"difference": 0.011, "interval": [-0.004, 0.026], "verdict": "better"} for name in METRICS}
    page = Page(write_report(make_run(tmp_path, against_floor=judged | {"joint_acc": judged["iou"] | {"verdict": verdict}})))  # fmt: skip
    assert ("a number near the floor is no result" in page.text) is (words is not None)
    assert words is None or words in page.text
    row = next(row for row in page.rows if row and row[0].startswith("joint_acc "))
    assert row[4].split()[1:] == ["\N{MINUS SIGN}0.004", "to", "+0.026"] and row[5].strip() == verdict
    assert page.html.count('class="word good"') == len(METRICS) - (verdict != "better")


@pytest.mark.parametrize(
    ("joint_acc", "images", "interval"),
    [(0.0, 32, "0.00 to 0.06"), (1.0, 32, "0.94 to 1.00"), (0.5, 32, "0.38 to 0.62"), (0.25, 300, "0.22 to 0.29")],
)
def test_report_gives_an_interval_that_has_a_width_at_both_ends(tmp_path, joint_acc, images, interval):
    run = make_run(tmp_path, test=TEST | {"joint_acc": joint_acc})
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["per_class"] = {name: {**TEST, "images": images} for name in ("cat", "dog")}
    write_json(run / "metrics.json", metrics)
    text = Page(write_report(run)).text
    assert f"With {2 * images} test images, joint_acc has a 95 % interval of {interval}." in text


def test_report_orders_classes_by_their_images(tmp_path):
    page = Page(write_report(make_run(tmp_path, classes=("rare", "usual", "common"))))
    assert [row[0].strip() for row in page.rows if row[0].strip() in ("rare", "usual", "common")] == [
        "common",
        "usual",
        "rare",
    ]


def test_report_escapes_what_others_have_named(tmp_path):
    evil = "<script>alert(1)</script>"
    run = make_run(
        tmp_path,
        name=evil,
        classes=(evil,),
        overrides=[f"name={evil}"],
        host=evil,
        choices={evil: evil},
        packages={evil: evil, "onebox": evil},
        data={"train": evil},
        git={"sha": evil, "branch": evil, "dirty": True},
    )
    write_text(run / "config.yaml", f"name: '</code></pre>{evil}'\nmonitor: {evil}\n")
    page = Page(write_report(run))
    assert "script" not in page.tags
    assert "<script" not in page.html
    assert page.text.count(evil) >= 10


def test_report_gives_a_command_that_a_shell_reads_back(tmp_path):
    overrides = ["data=voc2007", "data.ids=['000028']", "name=a b", "run_dir=/old/place"]
    run = make_run(tmp_path, overrides=overrides, choices={"sweep": "lr"})
    command = next(
        line for line in Page(write_report(run)).text.splitlines() if line.strip().startswith("onebox-train")
    )
    # A job of a sweep is repeated alone, and never over the directory of the run that is shown.
    assert shlex.split(command) == ["onebox-train", *overrides[:3], "hydra.mode=RUN"]


def test_report_of_training_images_only_says_so(tmp_path):
    page = Page(write_report(make_run(tmp_path, test={}, floor={}, splits=("train",))))
    assert "There is no test split" in page.text
    assert "training images themselves" in page.text
    assert "validation" not in page.text
    rows = {row[0].split()[0]: row for row in page.rows}
    assert rows["train/joint_acc"][-1].strip() == "0.420"


def test_report_of_validation_without_test_says_that_it_chose_the_epoch(tmp_path):
    page = Page(write_report(make_run(tmp_path, test={}, floor={})))
    assert "also chose the best epoch" in page.text
    assert any(row[0].startswith("val/iou") for row in page.rows)


@pytest.mark.parametrize("epochs", [1, 2, 400])
def test_report_draws_curves_for_any_number_of_epochs(tmp_path, epochs):
    path = write_report(make_run(tmp_path, epochs=epochs))
    page = Page(path)
    assert page.html.count('<figure class="card chart">') == len(TAGS)
    assert f"epoch {epochs}: val" in page.text
    assert "nan" not in page.html
    assert path.stat().st_size < 400_000


def test_report_leaves_out_values_that_are_not_numbers_and_says_so(tmp_path):
    run = make_run(tmp_path)
    write_text(run / "metrics.csv", "epoch,train/loss,val/loss\n0,1.5,\n1,nan,2.5\n2,inf,3.5\n")
    page = Page(write_report(run))
    assert "2 values are not numbers" in page.text
    assert "epoch 3: val 3.5" in page.text
    assert page.html.count('<figure class="card chart">') == 1


def test_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    write_text(run / "report.html", "the old one")
    before = sorted(path.name for path in run.iterdir())

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("onebox.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_text() == "the old one"
    assert sorted(path.name for path in run.iterdir()) == before


def test_report_imports_neither_torch_nor_pyplot(tmp_path):
    run = make_run(tmp_path)
    code = (
        "import json, pathlib, sys; from onebox.runs.reading.report import write_report; "
        "write_report(pathlib.Path(sys.argv[1])); "
        "print(json.dumps([m for m in ('torch', 'lightning', 'torchvision', 'matplotlib.pyplot') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
