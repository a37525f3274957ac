"""`onebox`: what is done beside training, before it and after it.

Nothing heavy is imported at the top, nor anywhere on the way to `--help`.
"""

import logging
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onebox.cli import evaluate, export, lr_find, new, predict, prune, reproduce, runs, show
from onebox.errors import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    BadInput,
    Preempted,
    exit_with,
    exit_with_os_error,
    print_json,
    printable,
    say,
)
from onebox.files import read_text
from onebox.project import enter
from onebox.streams import command_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

EPILOG = (
    "Exit codes: 0 success, 1 an error in onebox, 2 bad input, 130 stopped by Ctrl-C. ONEBOX_DEBUG=1 shows tracebacks."
)
CHECK_EPILOG = (
    "Exit codes: 0 training accepts the data (there may be warnings), 1 there are errors, 2 ROOT cannot be used."
)

app = typer.Typer(
    help="All but training, which is onebox-train: get and check data; find, compare and reproduce runs.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Get and check data, and see what is cached.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.command(epilog=reproduce.EPILOG)(reproduce.reproduce)
for command in (runs.runs, runs.sweep, runs.explain, evaluate.evaluate, lr_find.lr_find, prune.prune, export.export):
    app.command(epilog=EPILOG)(command)
app.command(epilog=EPILOG)(new.new)
app.command(epilog=runs.DIFF_EPILOG)(runs.diff)
app.command(epilog=predict.EPILOG)(predict.predict)
data_app.command(epilog=EPILOG)(show.show)


@data_app.command(epilog=EPILOG)
def download(
    name: Annotated[
        Literal["voc2007", "voc2012", "voc0712"],
        typer.Argument(help="What to fetch: 0.9, 2.0 or 2.9 GB.", show_default=False),
    ],
    overrides: reproduce.Changes = None,
    root: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder that receives VOCdevkit. [default: $ONEBOX_VOC_ROOT, or $ONEBOX_DATA_DIR, or ./data]",
        ),
    ] = None,
) -> None:
    """Fetch PASCAL VOC, unless it is there already.

    Stopped, the same command keeps the archives that it has. What is there is never changed.
    Without a network, put the official tar files beside VOCdevkit: they are verified and unpacked.

    \b
    Examples
      onebox data download voc2007
      onebox data download voc0712 --root /data/pascal
      onebox data download voc2012 data.source.timeout_s=120
      onebox data download voc2012 data.source.archives.voc2012_trainval.urls=[http://localhost/voc.tar]
    """
    from hydra.utils import instantiate

    from onebox.validation import told_as_bad_input

    cfg = reproduce.composed(f"data={name}", *(overrides or []))
    with told_as_bad_input():
        if root is not None:
            cfg.voc_root = str(root)
        # Only this part: the rest of cfg.data would import torch.
        source = instantiate(cfg.data.source, _convert_="all")
        folder = cfg.data.root
    source(folder, download=True)
    print(printable(f"{name} is in {Path(folder).resolve()}"))


CheckArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ROOT] [KEY=VALUE]...",
        help="Where the data are, and changes to data.*, as onebox-train takes them.",
        show_default=False,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(metavar="OPTION", help="Check lists and classes of an option of data, such as voc2007 or ilsvrc."),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="voc|FILE|NAME,NAME",
        help="The known classes: VOC's 20, a file with one per line, or a list. [default: any; where most objects are "
        "VOC's, others are warned of]",
    ),
]
Montage = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Write a picture of some images with their boxes.")
]


@data_app.command(epilog=CHECK_EPILOG)
def check(
    arguments: CheckArguments = None,
    data: DataOption = None,
    classes: Classes = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
    montage: Montage = None,
) -> None:
    """Say what is in data and what is wrong with them.

    ROOT is a folder with Annotations/ and JPEGImages/ (or other usual names), or one that holds such folders or
    VOCdevkit. All problems are listed, each with its file and what to do. Nothing is changed.

    \b
    Examples
      onebox data check data
      onebox data check my_folder --classes cat,dog --montage my_folder.png
      onebox data check my_folder data.box_origin=0 data.boxes=drop
      onebox data check --data ilsvrc data.root=/data/ILSVRC
      onebox data check data/VOCdevkit/VOC2007 --json > voc2007.json
    """
    from onebox.data import check_report
    from onebox.data.annotations import Conventions
    from onebox.data.check import check as check_data
    from onebox.data.layout import Layout

    overrides = [text for text in arguments or [] if "=" in text and not Path(text).exists()]
    roots = [text for text in arguments or [] if text not in overrides]
    if len(roots) > 1 or (not roots and data is None):
        raise BadInput(f"name one folder or an option of data, not {' '.join(roots) or 'neither'} (see --help)")
    voc = [str(name) for name in reproduce.composed("data=voc2007").data.classes]
    cfg = reproduce.composed(f"data={data or 'folder'}", *overrides).data
    survey = check_data(
        Path(roots[0] if roots else str(cfg.root)).expanduser(),
        conventions=_part(Conventions, cfg),
        classes=_class_names(classes, voc) or (list(map(str, cfg.classes)) if data and cfg.classes else None),
        voc_classes=voc,
        has_background=cfg.background_class,
        splits={split: list(lists) for split, lists in cfg.splits.items()} if data else None,
        layout=_part(Layout, cfg),
    )
    if montage is not None:
        from onebox.files import replacing

        with replacing(montage) as temporary:
            check_report.montage(survey).save(temporary, "PNG")
    if json_:
        print_json(check_report.as_json(survey))
    else:
        from rich.console import Console

        check_report.show(survey, Console())
    raise typer.Exit(EXIT_FAULT if survey.has_errors else 0)


def _class_names(option: str | None, voc: list[str]) -> list[str] | None:
    if option is None or option == "voc":
        return voc if option else None
    names = option.split(",")
    if os.path.exists(option) and not os.path.isdir(option):
        remedy = "give a text file with one class per line"
        names = read_text(option, remedy=remedy).splitlines()
    names = [name.strip() for name in names if name.strip()]
    if not names or any(os.sep in name for name in names):
        raise BadInput(
            f"--classes {option}: neither a file nor a list of names; give voc, a file, or a list such as cat,dog"
        )
    return names


@data_app.command(epilog=EPILOG)
def convert(
    root: Annotated[Path, typer.Argument(help="A folder of images and annotations.", show_default=False)],
    to: Annotated[Literal["voc", "coco", "yolo", "csv"], typer.Option(help="The new form.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The new folder.", show_default=False)],
    overrides: reproduce.Changes = None,
    data: Annotated[
        str, typer.Option(metavar="OPTION", help="How ROOT is read: folder, coco, yolo or csv.")
    ] = "folder",
) -> None:
    """Write images and annotations to a new folder in another form: VOC, COCO, YOLO or CSV.

    Boxes are written by the conventions of the new form, to a hundredth of a pixel; images are copied, lists kept.
    What is wrong is refused, or with data.on_error=skip left out and said.

    \b
    Examples
      onebox data convert my_voc --to coco --out my_coco
      onebox data convert my_yolo --data yolo --to voc --out my_voc
      onebox data convert my_folder data.box_origin=0 data.boxes=clip --to csv --out my_csv
    """
    from onebox.data.annotations import Conventions
    from onebox.data.convert import convert as convert_data
    from onebox.data.layout import Layout
    from onebox.overrides import as_text

    cfg = reproduce.composed(f"data={data}", as_text("data.root", str(root)), *(overrides or [])).data
    lists, said = convert_data(
        root.expanduser(),
        out.expanduser(),
        to,
        layout=_part(Layout, cfg),
        conventions=_part(Conventions, cfg),
        classes=list(map(str, cfg.classes)) if cfg.classes else None,
        skip=cfg.on_error == "skip",
        cache_dir=Path(cfg.cache_dir),
    )
    for text in said:
        print(printable(text))
    counts = ", ".join(f"{printable(name)} {len(images):,}" for name, images in lists.items())
    print(f"{sum(map(len, lists.values())):,} images in {printable(str(out))} ({counts})")


@data_app.command(epilog=EPILOG)
def cache(
    overrides: reproduce.Changes = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything that no process is writing.")] = False,
) -> None:
    """Show what data.cache_dir holds, and with --clear remove it.

    It keeps what each data set is read into once: the index of its annotations, decoded images (data.cache=disk), and
    features of frozen backbones (data.views with data.features=auto).
    All of it is made again when it is needed.

    \b
    Examples
      onebox data cache
      onebox data cache --clear
      onebox data cache data.cache_dir=/scratch/onebox
    """
    from onebox.data import cache as caches

    folder = Path(reproduce.composed(*(overrides or [])).data.cache_dir)
    if clear:
        freed, busy = caches.clear(folder)
        left = f"; left {busy} that other processes are writing" if busy else ""
        print(printable(f"{folder.resolve()}: {_megabytes(freed)} freed{left}"))
        return
    entries = caches.entries(folder)
    if not entries:
        print(printable(f"{folder.resolve()} has no cache"))
        return
    print(f"{'what':8} {'size':>10} {'images':>9} {'px':>9}  {'last use':16}  data set")
    for entry in entries:
        px = "x".join(str(side) for side in reversed(entry.size))
        used = entry.last_use.astimezone().strftime("%Y-%m-%d %H:%M")
        size = _megabytes(entry.num_bytes)
        print(f"{entry.kind:8} {size:>10} {entry.images:>9,} {px:>9}  {used}  {printable(entry.data)}")
    print(printable(f"{_megabytes(sum(entry.num_bytes for entry in entries))} in {folder.resolve()}"))


def _part(kind: Any, cfg: "DictConfig") -> Any:
    """A part of the data module from the keys that are its fields."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    return kind(**{item.name: values[item.name] for item in fields(kind)})


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def main() -> None:
    """The console command."""
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # no process of ours finds a module in the working directory
    try:
        with command_line("onebox"):  # which gives stdout its stream
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)  # stderr is for errors
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:  # which would leave temporary files
                    signal.signal(number, lambda received, frame: sys.exit(128 + received))
            enter()
            app()
    except BadInput as error:
        exit_with(error, str(error), "onebox")
    except OSError as error:
        exit_with_os_error(error, "onebox", elsewhere="another place")
    except Preempted as error:
        say(error)
        sys.exit(EXIT_PREEMPTED)
    except SystemExit as end:  # which Typer makes of a KeyboardInterrupt
        if end.code == EXIT_INTERRUPTED:
            say("stopped by Ctrl-C")
        raise


if __name__ == "__main__":
    main()
