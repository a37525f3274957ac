"""`onebox data show`: what a run would be trained on."""

import logging
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from onebox.cli.reproduce import Changes, Json, on_stderr
from onebox.errors import check, print_json, printable

Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page to open in a browser.")]


def show(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="An option of data, such as voc2007, or a folder.", show_default=False)
    ],
    overrides: Changes = None,
    html: Html = None,
    json_: Json = False,
) -> None:
    """Show what a run would be trained on: splits, classes, boxes, and what is left out and why.

    With --html one file that opens from disk: images of each class with their boxes, the distributions of class, size,
    place and aspect, images that the selection left out, and twelve draws of the augmentation on one image.
    Counts are of all images; at most 240 are drawn.
    Images that cannot be used are counted as bad samples, where training would stop at the first
    (data.on_error=raise); `onebox data check` looks for all that is wrong.

    \b
    Examples
      onebox data show voc2007
      onebox data show voc2007 experiment=transfer --html voc2007.html
      onebox data show my_folder augment=strong --html my_folder.html
      onebox data show coco data.root=my_coco data.select=largest
    """
    from onebox.overrides import as_text  # takes Hydra with it

    given = list(overrides or [])
    check("=" not in data, f"{data}: name DATA first, an option such as voc2007 or a folder")
    is_folder = "/" in data or Path(data).is_dir()
    chosen = ["data=folder", as_text("data.root", data)] if is_folder else [f"data={data}"]
    skip = [] if any(text.startswith("data.on_error=") for text in given) else ["data.on_error=skip"]
    if html is not None:
        check(html.absolute().parent.is_dir(), f"{html}: no such folder; create it, or choose another --html")
        check(not html.is_dir(), f"{html}: is a folder; name a file, such as {html / 'data.html'}")
    from onebox.validation import told_as_bad_input

    command = shlex.join(["onebox", "data", "show", data, *given, *(["--html", str(html)] if html else [])])
    with told_as_bad_input(given), on_stderr():
        found = _facts([*given, *chosen, *skip], html, name=data, command=command)
    if json_:
        print_json(found)
        return
    from rich.console import Console

    from onebox.data.show import show as print_facts

    print_facts(found, Console())
    print(printable(f"page  {html}") if html else "--html FILE draws it: samples, distributions, what is left out")


def _facts(overrides: list[str], html: Path | None, *, name: str, command: str) -> dict[str, Any]:
    """What there is to say of the data of a config, after the page is written."""
    from onebox.api import compose
    from onebox.build import build_data
    from onebox.data.show import facts, write_page

    logging.getLogger("onebox.data.datamodule").setLevel(logging.ERROR)  # what it says is in the tables
    data = build_data(compose(overrides))
    data.only_shown = True
    data.prepare_data()
    data.setup()
    found = facts(data)
    is_listed = any(split["listed"] for split in found["splits"].values())
    check(is_listed, f"{data.root}: no image is listed; name other lists in data.splits")
    if html is not None:
        data.decode()
        write_page(data, found, html, name=name, command=command)
    return found
