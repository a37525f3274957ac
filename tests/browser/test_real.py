"""A real run and a real sweep, in their pages and in a real TensorBoard."""

import csv
import json
import re
import runpy
from pathlib import Path

import pytest
from benchmarks import browser as driver

faulty_looks = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["faulty_looks"]
pytestmark = pytest.mark.long


def test_the_pages_of_a_run_and_of_its_sweep_are_accessible_and_fit_on_a_phone(window, run, sweep):
    for path in (run / "report.html", sweep / "sweep.html"):
        assert faulty_looks(window, path) == []


def test_tensorboard_shows_all_of_a_run(window, run):
    metrics = json.loads((run / "metrics.json").read_text())
    classes = [name for name, values in metrics["per_class"].items() if values["images"]]
    shows = {
        "timeseries": ["best", "step", "test", "train", "val"],
        "scalars": ["best", "step", "test", "train", "val", "best/joint_acc"],
        "custom_scalars": ["training and validation", "box against class", "joint_acc", "losses", "Matches (4)"],
        "images": ["train/augmented", "val/predictions", "val/worst", "val/confusion"],
        "pr_curves": ["pr"],
        "histograms": ["val/iou_spread", "val/probability_right", "val/probability_wrong"],
        "distributions": ["val/iou_spread"],
        "graphs": ["images", "normalise", "backbone", "loc_head", "cls_head", "box_coder"],
        "text": ["config/text_summary", "seed: 0", "overrides", "results"],
        "hparams": ["loss/loc", "optimizer.lr", "best/joint_acc"],
        "projector": ["1 tensor found", "PCA", "Points:"],
    }
    assert shows.keys() == driver.TABS.keys()
    page = window(online=True)
    with driver.tensorboard(run) as address:
        for tab, wanted in shows.items():
            place = driver.open_tab(page, address, tab)
            text = wait_for_lines(page, place, wanted, tab)
            if tab == "images":
                pictures = page.locator(driver.TABS[tab])
                assert all(pictures.evaluate_all("all => all.map(one => one.naturalWidth > 300)"))
            if tab == "pr_curves":
                assert {line for line in text if line.startswith("pr/")} <= {f"pr/{name}" for name in classes}
            if tab == "graphs":  # what the box's coder computes is inside of it
                nodes = text[text.index("images", text.index("Legend")) :]
                assert not {"unbind", "stack", "mul", "add"} & set(nodes)
            if tab == "projector":
                drawn = place.locator("canvas").evaluate_all("all => all.map(one => one.width * one.height)")
                assert max(drawn) > 10_000
                points = text[text.index("Points:") + 1]
                assert int(points) == sum(1 for _ in validated(run))


def test_tensorboard_compares_the_jobs_of_a_sweep(window, sweep):
    page = window(online=True)
    with driver.tensorboard(sweep) as address:
        place = driver.open_tab(page, address, "scalars")
        wait_for_lines(page, place, ["best/joint_acc"], "scalars")
        names = {line for line in lines_of(place) if "seed=" in line}
        assert len(names) == 4 or {"loc=l1", "loc=giou"} <= set(re.findall(r"loc=\w+", " ".join(lines_of(place))))
        place = driver.open_tab(page, address, "hparams")
        text = wait_for_lines(page, place, ["loss/loc", "seed", "giou", "l1"], "hparams")
        keys = text[text.index("Hyperparameters") + 1 : text.index("Metrics")]
        assert [key for key in keys if key in ("loss/loc", "seed", "augment")][:2] == [
            "loss/loc",
            "seed",
        ]  # what varies
        page.get_by_text("PARALLEL COORDINATES VIEW").click()
        lines = page.locator("tf-hparams-parallel-coords-plot .foreground path")
        lines.first.wait_for()
        assert lines.count() == 4
        axes = page.locator(
            "tf-hparams-parallel-coords-plot .axis text.label, tf-hparams-parallel-coords-plot .axis > text"
        )
        titles = axes.all_text_contents()
        assert titles[:2] == ["loss/loc", "seed"] and "best/joint_acc" in titles


def validated(run):
    record = json.loads((run / "run.json").read_text())
    return range(int(re.match(r"\d+", record["data"]["val"])[0]))


def lines_of(place):
    return [line for line in driver.text_of(place).split("\n") if line]


def wait_for_lines(page, place, wanted, tab):
    """What a tab shows as soon as it shows `wanted`."""
    for _ in range(120):
        lines = lines_of(place)
        if set(wanted) <= set(lines):
            return lines
        page.wait_for_timeout(500)
    raise AssertionError(f"{tab}: {set(wanted) - set(lines)} not in {lines}")


def test_a_report_shows_the_images_of_a_cell_and_sorts_and_filters_them(window, run):
    page = window()
    page.goto((run / "report.html").as_uri())
    driver.scroll_through(page)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.gallery > :not([hidden]) img')].every(one => one.naturalWidth > 0)"
    )
    shots = page.locator(".gallery > *:visible")
    assert 0 < shots.count() <= 24
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))

    def data(name):
        return shots.evaluate_all("(all, name) => all.map(one => one.dataset[name])", name)

    for order, column, is_falling in (
        ("iou", "iou", False),
        ("probability", "probability", True),
        ("loss", "loss", True),
    ):
        page.locator("[name=order]").select_option(order)
        values = [float(value) for value in data(column)]
        assert values == sorted(values, reverse=is_falling)
    for kind in ("right", "error_cls", "error_loc", "error_both"):
        page.locator("[name=kind]").select_option(kind)
        assert set(data("kind")) <= {kind}
    cell = page.locator("button[data-true]").first
    true, predicted = cell.get_attribute("data-true"), cell.get_attribute("data-predicted")
    cell.click()
    page.wait_for_function(
        "count => document.querySelectorAll('.gallery > :not([hidden])').length === count", arg=int(cell.text_content())
    )
    assert set(data("true")) == {true} and set(data("predicted")) == {predicted}
    wanted = [row for row in rows if (row["true_label"], row["predicted_label"]) == (true, predicted)]
    assert shots.count() == len(wanted) == int(cell.text_content())


def test_what_a_sweep_logs_are_lines_of_one_sort(sweep):
    log = (sweep.parent / "log").read_text()
    assert "4 jobs: 4 new" in log.splitlines()
    assert not re.search(r"^\[.*\]\[", log, re.MULTILINE)
