"""Pictures of all pages and of each tab of TensorBoard, as wide as a desktop and as a phone.

python -m benchmarks.screenshots FOLDER RUN SWEEP [PAGE.html ...]    all of a run, of a sweep, and of further pages
python -m benchmarks.screenshots --readme docs RUN SWEEP             the two pictures of the README
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

from benchmarks.browser import TABS, open_browser, open_tab, scroll_through, tensorboard

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
VIEWS = ("PARALLEL COORDINATES VIEW", "SCATTER PLOT MATRIX VIEW")  # of HPARAMS, beside the table
PICTURE = 1180, 1340  # of the README, px of the page
LEFT_OUT = {  # there, so that it shows what others do not have
    "report": "header > :not(h1, .when), #result > .wide, #result > .wide ~ *",
    "sweep": "header > .facts, #table > p",
}
MAX_BYTES = 150_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="receives the pictures")
    parser.add_argument("shown", nargs="+", type=Path, help="directories of runs and sweeps, and pages")
    parser.add_argument("--readme", action="store_true", help="only the beginning of each page, in a small file")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        for path in given.shown:
            page = page_of(path)
            if given.readme:
                readme_picture(browser, page, given.folder / f"{page.stem}.webp")
                continue
            for file in page_pictures(browser, page, given.folder):
                print(file)
            if path.is_dir():
                with tensorboard(path) as address:
                    for file in tab_pictures(browser, address, given.folder, page.stem):
                        print(file)


def page_of(path: Path) -> Path:
    """The page of a run or of a sweep, or the page itself."""
    pages = [path] if path.is_file() else [path / "report.html", path / "sweep.html"]
    found = next((page for page in pages if page.is_file()), None)
    if found is None:
        raise SystemExit(f"{path}: has neither report.html nor sweep.html (onebox show RUN, onebox sweep NAME --html)")
    return found.resolve()


def page_pictures(browser: Browser, path: Path, folder: Path) -> Iterator[Path]:
    """A page from top to bottom, light and dark."""
    for size, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(path.as_uri())
            scroll_through(page)
            yield shot(page, folder / f"{path.stem}-{size}-{scheme}.png", full_page=True)
            page.close()


def tab_pictures(browser: Browser, address: str, folder: Path, name: str) -> Iterator[Path]:
    """Each tab of TensorBoard; it scrolls inside, so the window is high."""
    for size, (width, height) in SIZES.items():
        page = browser.new_page(viewport={"width": width, "height": 2 * height})
        for tab in TABS:
            open_tab(page, address, tab)
            page.wait_for_timeout(2000)  # charts move into their places
            yield shot(page, folder / f"{name}-tensorboard-{tab}-{size}.png")
            for view in VIEWS if tab == "hparams" else ():
                page.get_by_text(view).click()
                page.wait_for_timeout(2000)
                yield shot(page, folder / f"{name}-tensorboard-{tab}-{view.split()[0].lower()}-{size}.png")
        page.close()


def readme_picture(browser: Browser, path: Path, file: Path) -> None:
    """The beginning of a page, in at most `MAX_BYTES`."""
    width, height = PICTURE
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
    page.goto(path.as_uri())
    left_out = LEFT_OUT.get(path.stem, "#none")
    page.add_style_tag(content=f"{left_out} {{ display: none; }} section, .headline {{ margin-top: 32px !important; }}")
    scroll_through(page)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        for quality in range(80, 10, -10):
            content = io.BytesIO()
            image.save(content, "WEBP", quality=quality, method=6)
            if content.tell() <= MAX_BYTES:
                break
    page.close()
    file.write_bytes(content.getvalue())
    print(f"{file}, {len(content.getvalue()) / 1000:.0f} KB")


def shot(page: Page, file: Path, *, full_page: bool = False) -> Path:
    page.screenshot(path=file, full_page=full_page)
    return file


if __name__ == "__main__":
    main()
