"""The page of `onebox data show`."""

import runpy
from html import escape
from pathlib import Path

from benchmarks import browser as driver

from onebox.build import read_data
from onebox.data.show import facts, write_page

faulty_looks = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["faulty_looks"]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def test_a_data_page_shows_its_images_and_runs_nothing_of_the_data(window, composed, tree, tmp_path):
    for number in range(6):
        name = escape((EVIL, "cat")[number % 2])
        tree.add(f"{number}", (name, (5 + number, 3, 30 + number, 20)), *[("cat", (1, 1, 9, 9))] * (number == 4))
    tree.list("train", *"01234")
    tree.list("test", "5")
    splits = ["data.splits={train:[train],val:[],test:[test]}", "data.holdout={val:0,test:0}"]
    cfg = composed("data=folder", f"data.root={tree.folder}", *splits, "augment=flip", small=False)
    data = read_data(cfg)
    write_page(data, facts(data), tmp_path / "page.html", name=EVIL, command=f"onebox data show {EVIL}")
    assert faulty_looks(window, tmp_path / "page.html") == []
    page = window()
    page.goto((tmp_path / "page.html").as_uri())
    driver.scroll_through(page)
    page.wait_for_function("() => [...document.images].every(one => one.naturalWidth > 0)")
    assert page.locator("img").count() >= 5 + 12  # training images, among them one that is left out, and 12 draws
    assert page.locator("h1").text_content() == EVIL
    page.get_by_role("link", name="several objects").click()
    assert "#" in page.url
