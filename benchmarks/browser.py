"""Looks at pages and at TensorBoard in a headless Chromium, which must be installed: nothing is downloaded."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, FrameLocator, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "no Chromium: install it (apt-get install chromium), or name its program in ONEBOX_CHROMIUM"
# Root, as in a container, has no sandbox; TensorBoard's projector needs WebGL, which here no GPU draws.
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")

# Tab of TensorBoard -> a selector of what it shows.
TABS = {
    "timeseries": "scalar-card canvas, scalar-card svg",
    "scalars": "tf-scalar-card",
    "custom_scalars": "tf-custom-scalar-multi-line-chart-card",
    "images": "tf-image-loader img",
    "pr_curves": "tf-pr-curve-card",
    "histograms": "vz-histogram-timeseries svg path",
    "distributions": "vz-distribution-chart svg",
    "graphs": "tf-graph-scene .node",
    "text": "tf-text-loader tf-markdown-view",
    "hparams": "tf-hparams-table-view vaadin-grid-cell-content",
    "projector": "canvas",
}
# All visible text below an element, those of web components too, a line each.
TEXT = """element => {
  const lines = [];
  const walk = node => {
    if (node.nodeType === Node.TEXT_NODE) lines.push(node.data.trim());
    if (node.nodeType !== Node.ELEMENT_NODE || /^(style|script|template)$/i.test(node.tagName) || !shown(node)) return;
    for (const child of (node.shadowRoot ?? node).childNodes) walk(child);
    for (const child of node.shadowRoot ? node.childNodes : []) if (child.assignedSlot) walk(child);
  };
  const shown = node => node.checkVisibility() || getComputedStyle(node).display === "contents";
  walk(element);
  return lines.filter(Boolean).join("\\n");
}"""
PATIENCE = 120_000  # ms, of a machine that does other things


def chromium() -> str | None:
    """The program, if there is one."""
    found = os.environ.get("ONEBOX_CHROMIUM")
    return found or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium."""
    program = chromium()
    if program is None:
        raise SystemExit(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS], timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard server on a folder; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("tensorboard")
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [program, "--logdir", folder, "--port", str(port), "--host", "127.0.0.1"], stdout=log, stderr=log
        )
        try:
            for address in (f"http://127.0.0.1:{port}/data/plugins_listing", f"http://127.0.0.1:{port}/data/runs"):
                while not _answers(address):
                    if server.poll() is not None:
                        log.seek(0)
                        raise RuntimeError(f"TensorBoard has ended: {log.read().decode(errors='replace')}")
                    time.sleep(0.3)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def open_tab(page: Page, address: str, tab: str) -> Page | FrameLocator:
    """Open a tab of TensorBoard, and wait until it shows something; where its elements are."""
    page.goto("about:blank")  # else only the address changes, and nothing is loaded
    page.goto(f"{address}/#{tab}", timeout=PATIENCE)
    place = page.frame_locator("iframe").frame_locator("iframe") if tab == "projector" else page
    place.locator(TABS[tab]).first.wait_for(timeout=PATIENCE)
    page.wait_for_load_state("networkidle", timeout=PATIENCE)
    return place


def scroll_through(page: Page) -> None:
    """Let all be drawn that is drawn when it comes into sight."""
    height = page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 500):
        page.evaluate("top => window.scrollTo(0, top)", top)
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.evaluate("window.scrollTo(0, 0)")


def text_of(place: Page | FrameLocator, selector: str = "body") -> str:
    """All that can be read in an element, a line each."""
    text: str = place.locator(selector).first.evaluate(TEXT)
    return text


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.read().strip() not in (b"", b"[]")
    except OSError:
        return False
