"""The page of a sweep: what its scripts do."""

import json
import runpy
from pathlib import Path

import pytest

from onebox.files import write_text
from onebox.sweep.reading import table
from onebox.sweep.reading.page import write_page
from onebox.sweep.reading.table import read_sweep

HERE = Path(__file__).parent
make_run = runpy.run_path(str(HERE.parent / "runs" / "conftest.py"))["make_run"]
faulty_looks = runpy.run_path(str(HERE / "conftest.py"))["faulty_looks"]
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture
def page_file(make_run, tmp_path, monkeypatch):
    """Of three learning rates, two losses with names that would like to run, and two seeds; one job failed."""
    monkeypatch.setattr(table, "source_fingerprint", lambda: "aaaaaaaaaaaa")
    folder = tmp_path / "outputs" / "sweeps" / "lr"
    jobs = [(rate, name, seed) for rate in (0.001, 0.01, 0.1) for name in ("plain", EVIL) for seed in (0, 1)]
    for number, (rate, name, seed) in enumerate(jobs):
        facts = {"metrics": {"joint_acc": rate * 5 + (name == EVIL) / 100 + seed / 50, "acc": 0.5, "iou": 1 - rate}}
        if number == 3:
            facts = {"status": "failed", "error": {"type": "ValueError", "message": EVIL}}
        make_run(f"sweeps/lr/{number}", f"optimizer.lr={rate}", f"loss.name={name!r}", f"seed={seed}", **facts)
        rows = [f"{epoch},{rate + seed + epoch},{3 - epoch}" for epoch in range(3)]
        write_text(folder / str(number) / "metrics.csv", "\n".join(["epoch,val/joint_acc,val/loss", *rows]))
        write_text(folder / str(number) / "report.html", f"<title>report {number}</title>")
    return write_page(read_sweep(folder))


def test_a_sweep_page_is_accessible_and_fits_on_a_phone(window, page_file):
    assert faulty_looks(window, page_file) == []


def test_its_tables_are_sorted_and_filtered(window, page_file):
    page = window()
    page.goto(page_file.as_uri())
    data = json.loads(page.locator("#data").text_content())

    def shown(key, table="rows"):
        rows = page.locator(f"table[data-table={table}] tbody tr:visible").evaluate_all("rows => rows.map(row => row.dataset.row)")  # fmt: skip
        return [data[table][key][int(row)] for row in rows]

    def click(key, table="rows"):
        page.locator(f"table[data-table={table}] th[data-key='{key}'] button").click()

    assert shown("best/joint_acc") == sorted(data["rows"]["best/joint_acc"], reverse=True)
    for key, is_lower_first in (("optimizer.lr", True), ("best/joint_acc", False), ("loss.name", True)):
        click(key)
        assert shown(key) == sorted(data["rows"][key], reverse=not is_lower_first)
        click(key)
        assert shown(key) == sorted(data["rows"][key], reverse=is_lower_first)
    page.get_by_role("searchbox").fill("lr=0.1")
    assert shown("optimizer.lr") == [0.1, 0.1]
    assert page.locator("#count").text_content() == "2 of 6 rows"
    page.locator("#seeds").check()
    assert shown("optimizer.lr", "jobs") == [0.1] * 4
    page.get_by_role("searchbox").fill("")
    click("best/joint_acc", "jobs")
    values = shown("best/joint_acc", "jobs")
    assert len(values) == 12 and values[-1] is None  # what failed stays last
    assert values[:-1] == sorted(values[:-1], reverse=True)


def test_its_charts_are_drawn_and_lead_to_the_reports(window, page_file):
    page = window()
    page.goto(page_file.as_uri())
    borders = page.locator("#strips .key i").evaluate_all(
        "all => all.map(one => getComputedStyle(one).borderLeftWidth)"
    )
    assert borders == ["0px"] * 3  # signs as in the charts: a dot, a diamond, a dashed line
    strip = page.locator("[data-strip='0']")
    strip.scroll_into_view_if_needed()
    dots = strip.locator(".scatterlayer .trace").first.locator("path.point")
    dots.first.wait_for()
    assert dots.count() == 11
    texts = strip.locator(".xtick text").all_text_contents()
    assert {"plain", "0.001", "0.01", "0.1"} & set(texts) == set(texts) & {"plain", "0.001", "0.01", "0.1"} != set()

    def heights():
        return dots.evaluate_all("dots => dots.map(dot => dot.getAttribute('transform'))")

    before = heights()
    page.locator("#metric").select_option("test/iou")
    page.wait_for_function("before => document.querySelector('[data-strip=\"0\"] .trace path.point').getAttribute('transform') !== before", arg=before[0])  # fmt: skip
    assert heights() != before
    curve = page.locator("[data-curve]").first
    curve.scroll_into_view_if_needed()
    curve.locator(".scatterlayer .trace").first.wait_for()
    lines = curve.locator(".scatterlayer .trace").count()
    button = page.locator("[data-line='0']")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert curve.locator(".scatterlayer .trace").count() == lines - 2  # its line and its band
    for kind in ("parallel", "importances"):
        chart = page.locator(f"[data-{kind}]")
        chart.scroll_into_view_if_needed()
        chart.locator(".trace").first.wait_for()
    assert page.locator("[data-parallel] .scatterlayer .trace").count() == 11
    strip.scroll_into_view_if_needed()
    box = dots.first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    strip.locator(".hoverlayer .hovertext").first.wait_for()
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url("**/report.html")
    assert page.title().startswith("report ")
