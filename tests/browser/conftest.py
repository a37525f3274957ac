"""Pages and TensorBoard in a headless Chromium; without one these tests are skipped."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import SMALL_FIT, made_once
from tests.nursery import Nursery

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
from benchmarks import browser as driver  # noqa: E402

Open = Callable[..., Any]


@pytest.fixture(scope="module")  # not longer: Playwright's event loop is in the way of others in the same process
def chromium() -> Iterator[Any]:
    if driver.chromium() is None:
        pytest.skip(driver.MISSING)
    with driver.open_browser() as browser:
        yield browser


@pytest.fixture
def window(chromium: Any) -> Iterator[Open]:
    """Opens empty pages, in which nothing may go wrong and, unless `online`, nothing be loaded."""
    faults, contexts = [], []

    def make(width: int = 1280, height: int = 900, *, dark: bool = False, online: bool = False) -> Any:
        scheme = "dark" if dark else "light"
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(driver.PATIENCE)
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}") or dialog.dismiss())
        known = ("file:", "data:", "blob:", "about:", *(["http://127.0.0.1:"] if online else []))
        page.on("request", lambda asked: None if asked.url.startswith(known) else faults.append(asked.url))
        return page

    yield make
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="session")
def sweep(nursery: Nursery, shapes_root: Path, shared_folder: Path) -> Path:
    """The folder of a real sweep: two losses, two seeds."""

    def train(folder: Path) -> None:
        overrides = [
            "-m",
            "loss/loc=l1,giou",
            "seed=0,1",
            "hydra/launcher=basic",
            f"hydra.sweep.dir={folder / 'losses'}",
            f"data.root={shapes_root}",
            "data.source=null",
            f"data.cache_dir={folder / 'cache'}",
            *SMALL_FIT,
            "trainer.accelerator=cpu",
        ]
        assert nursery.run(*overrides, log=folder / "log") == 0, (folder / "log").read_text()

    return made_once(shared_folder / "browser", train) / "losses"


@pytest.fixture(scope="session")
def run(sweep: Path) -> Path:
    """The directory of a real run, of seed 0."""
    return min(path.parent for path in sweep.glob("*/run.json") if '"seed": 0' in path.read_text())


def serious_faults(page: Any) -> list[str]:
    """What axe-core calls a serious or critical fault of accessibility."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {node['target']} {node['failureSummary']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def faulty_looks(window: Open, path: Path) -> list[str]:
    """What is wrong on a desktop in the light and on a phone in the dark: accessibility, and wider than the screen."""
    faults = []
    for width, dark in ((1280, False), (390, True)):
        page = window(width, dark=dark)
        page.goto(path.as_uri())
        driver.scroll_through(page)
        needed = page.evaluate("document.documentElement.scrollWidth")
        faults += [f"{path.name} is {needed} px wide at {width}"] * (needed > width)
        faults += [f"{path.name} at {width} px: {fault}" for fault in serious_faults(page)]
    return faults
