"""`onebox predict`: boxes and classes of images, by a run or by the file that `onebox export` made of it."""

import contextlib
import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onebox.cli.reproduce import Outputs, Trust
from onebox.errors import EXIT_FAULT, BadInput, check, printable, say

if TYPE_CHECKING:
    from onebox.runs.reading.predict import Decoded, Detection, Model

EPILOG = (
    "Exit codes: 0 success, 1 some files could not be read (each is named; the others are done), 2 bad input, "
    "130 stopped by Ctrl-C."
)
TREES = ("voc", "coco", "yolo")
LIST = "predicted"  # the list of a tree
COLUMNS = ("image", "width", "height", "class", "probability", "xmin", "ymin", "xmax", "ymax")

Row = dict[str, Any]
Put = Callable[["Decoded", "Detection"], None]

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN|FILE.onnx",
        help="A run directory, latest, latest~1, the first digits of a fingerprint, or an exported ONNX file.",
        show_default=False,
    ),
]
Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES...",
        help="Files, folders, patterns such as 'photos/*.jpg', or - for a list on standard input.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Write to this new folder instead of the terminal.", file_okay=False),
]
Format = Annotated[
    Literal["csv", "jsonl", "voc", "coco", "yolo"] | None,
    typer.Option(
        "--format",
        help="A table, a line of JSON for each image, or a tree of images and annotations that data=folder, coco or "
        "yolo reads. [default: csv with --out, else lines for people]",
        show_default=False,
    ),
]
Pictures = Annotated[bool, typer.Option("--pictures", help="Also draw each box, into FOLDER/pictures.")]
MinProbability = Annotated[
    float, typer.Option(min=0, max=1, metavar="P", help="Leave out images whose class is less probable.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Write into a folder that holds files, over those of equal names.")
]


def predict(
    run: Run,
    images: Images,
    out: Out = None,
    format_: Format = None,
    pictures: Pictures = False,
    min_probability: MinProbability = 0.0,
    force: Force = False,
    trust: Trust = None,
    outputs: Outputs = Path("outputs"),
) -> None:
    """Find the object of each image: its box, its class, and how probable that is.

    Boxes are edges in pixels of the image, counted from 0, as a person sees it: turned as its EXIF data ask.
    Whatever Pillow opens is read; a file that cannot be is named, and the others are done.

    \b
    Examples
      onebox predict latest photo.jpg
      onebox predict RUN photos --out predicted --pictures
      onebox predict RUN photos --format voc --out pseudo --min-probability .9   labels to train on
      find /photos -name '*.jpg' | onebox predict model.onnx - --format jsonl > found.jsonl
    """
    from onebox.data.processes import progress
    from onebox.runs.reading.predict import detect_files, image_files

    check(out is not None or not (pictures or format_ in TREES), "name the folder to write to: --out FOLDER")
    is_new = out is None or not out.exists() or not any(out.iterdir())
    check(is_new or force, f"{out}: holds files; name a new folder, or add --force to write over those of equal names")
    names = [name for name in images if name != "-"]
    names += [line.rstrip("\r\n") for line in (sys.stdin if "-" in images else ()) if line.strip()]
    paths = image_files(names)
    check(bool(paths), "no image is named; give files, folders or patterns")
    unread = 0
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    with (
        _opened(run, trust or [], outputs) as model,
        _writing(out, format_, folder, model, pictures=pictures) as put,
    ):
        found = detect_files(model, paths, keep_shown=pictures)
        if out is not None or not sys.stdout.isatty():  # where the detections themselves are not seen to come
            found = progress(found, total=len(paths), description="predicting")
        for decoded, detection in found:
            if isinstance(decoded.image, BadInput):
                say(decoded.image)
                unread += 1
            elif detection is not None and detection.probability >= min_probability:
                put(decoded, detection)
    if out is not None:
        print(printable(f"{len(paths) - unread:,} of {len(paths):,} images predicted; see {out}"))
    raise typer.Exit(EXIT_FAULT if unread else 0)


@contextlib.contextmanager
def _opened(name: str, trust: Sequence[str], outputs: Path) -> Iterator["Model"]:
    """The network, which computes each batch in one thread, as `detect_files` has a thread a core."""
    if name.endswith(".onnx"):
        from onebox.runs.reading.onnx_model import OnnxModel

        yield OnnxModel(Path(name), threads=1)
        return
    import torch

    from onebox.runs.reading.find import find_run
    from onebox.runs.reading.load import load_run

    model, threads = load_run(find_run(name, outputs).path, trust=trust), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield model
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _writing(out: Path | None, format_: str | None, folder: Path, model: "Model", *, pictures: bool) -> Iterator[Put]:
    """What is called with each detection; `out` appears at the end, as a whole."""
    if out is None:
        with _lines(format_, sys.stdout) as put:
            yield put
        return
    out = Path(os.path.abspath(out))  # `.` has a name then
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        with contextlib.ExitStack() as stack:
            if format_ in TREES:
                puts = [stack.enter_context(_tree(format_, temporary, folder, model.class_names))]
            else:
                file = temporary / f"predictions.{format_ or 'csv'}"
                text = stack.enter_context(file.open("w", encoding="utf-8", newline=""))
                puts = [stack.enter_context(_lines(format_ or "csv", text))]
            if pictures:
                puts.append(lambda decoded, detection: _draw(temporary / "pictures", folder, decoded, detection))

            def put_all(decoded: "Decoded", detection: "Detection") -> None:
                for put in puts:
                    put(decoded, detection)

            yield put_all
        if out.exists():
            shutil.copytree(temporary, out, dirs_exist_ok=True)
        else:
            temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _lines(format_: str | None, file: Any) -> Iterator[Put]:
    """A line for each detection."""
    table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    if format_ == "csv":
        table.writeheader()

    def put(decoded: "Decoded", detection: "Detection") -> None:
        box = [round(edge, 2) for edge in detection.box_px.tolist()]
        about = (str(decoded.path), decoded.width, decoded.height, detection.label, round(detection.probability, 6))
        row = dict(zip(COLUMNS, (*about, *box), strict=True))
        if format_ == "csv":
            table.writerow(row)
        elif format_ == "jsonl":
            print(json.dumps(row), file=file)
        else:
            x1, y1, x2, y2 = (f"{edge:.0f}" for edge in box)
            text = f"{decoded.path}: {detection.label} {detection.probability:.1%}, box {x1} {y1} to {x2} {y2}"
            print(printable(f"{text} of {decoded.width}x{decoded.height} px"), file=file)

    yield put


@contextlib.contextmanager
def _tree(form: str, out: Path, folder: Path, classes: Sequence[str]) -> Iterator[Put]:
    """A tree of images and annotations, see `onebox data convert`."""
    from PIL import Image

    from onebox.data.convert import WRITERS
    from onebox.data.layout import Labelled, without_suffix
    from onebox.runs.reading.predict import read_any

    images = out / ("JPEGImages" if form == "voc" else "images")
    labelled: dict[str, Labelled] = {}

    def put(decoded: "Decoded", detection: "Detection") -> None:
        name = os.path.relpath(decoded.path.absolute(), folder)
        image_id = without_suffix(name)
        suffix = ".png" if decoded.is_turned else name[len(image_id) :].lower()
        check(
            image_id not in labelled,
            f"{decoded.path}: {labelled.get(image_id, ('',))[0]} has the same id; predict them into two folders",
        )
        place = images / f"{image_id}{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        if decoded.is_turned:  # the box belongs to the pixels as a person sees them
            Image.fromarray(read_any(decoded.path)[0]).save(place)
        else:
            shutil.copyfile(decoded.path, place)
        x1, y1, x2, y2 = detection.box_px.tolist()
        objects = [(detection.label, False, x1, y1, x2, y2)]
        labelled[image_id] = Labelled(image_id + suffix, decoded.width, decoded.height, objects)

    yield put
    WRITERS[form](out, {LIST: list(labelled.values())}, classes)


def _draw(out: Path, folder: Path, decoded: "Decoded", detection: "Detection") -> None:
    from onebox.draw import PREDICTED_COLOUR, Mark, draw_marks

    assert decoded.shown is not None
    box = detection.box_px / ([decoded.width, decoded.height] * 2)
    mark = Mark(box.tolist(), f"{detection.label} {detection.probability:.0%}", PREDICTED_COLOUR)
    place = out / f"{os.path.relpath(decoded.path.absolute(), folder)}.jpg"
    place.parent.mkdir(parents=True, exist_ok=True)
    draw_marks(decoded.shown, [mark], width=decoded.shown.shape[1]).save(place, quality=90)
