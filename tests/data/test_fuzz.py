"""Broken files, thousands of them: whatever the readers accept is right, the rest is a BadInput and never a crash.

ONEBOX_NIGHTLY=1 tries many more of them.
"""

import io
import math
import os
import re
from datetime import timedelta
from xml.dom import minidom

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import read_annotation

from onebox.data.image import read_image
from onebox.errors import BadInput

NIGHTLY = os.environ.get("ONEBOX_NIGHTLY") == "1"


def cases(few, many):
    return settings(
        max_examples=many if NIGHTLY else few,
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=10),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file"


def guarded(read, path, **options):
    """The reader's answer, or None when it refuses with one line that names the file and a remedy."""
    try:
        return read(path, **options)
    except BadInput as error:
        message = str(error)
    assert message.startswith(f"{path}: ") and ";" in message
    return None


# --- XML


OBJECTS = [("dog", (1, 1, 30, 20)), ("person", (5, 6, 60, 40)), ("tvmonitor", (2.5, 1.0, 59.75, 39.0))]
NUMBERS = ["nan", "inf", "-inf", "-1", "0", "1e308", "1e-400", "9" * 400, "1_0", "\uff11\uff12", " 7 ", "12.5", "0x10", "", "1,5", "+3", "1e1", "--2", "\u0663"]  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(
        [*NUMBERS, "<a>", "&amp;", "&x;", "<!-- 1 -->", "<![CDATA[3]]>", "]]>", "\0", "<object/>", "<bndbox>"]
    ),
    st.floats(width=32).map(repr),
    st.integers(-(10**12), 10**12).map(str),
)
ENCODINGS = ["utf-8", "utf-16", "utf-16-le", "latin-1", "utf-8-sig", "utf-32"]
DECLARED = ["", '<?xml version="1.0"?>', *(f'<?xml version="1.0" encoding="{name}"?>' for name in ("UTF-8", "UTF-16", "ISO-8859-1", "windows-1252", "big5", "shift_jis", "none", "rot13", "idna"))]  # fmt: skip


def annotation(objects):
    items = "".join(
        f"<object><name>{name}</name><difficult>0</difficult>\n<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    return (
        "<annotation><folder>VOC</folder><filename>a.jpg</filename>\n"
        f"<size><width>60</width><height>40</height><depth>3</depth></size>{items}</annotation>"
    )


@st.composite
def broken_xml(draw):
    """An annotation with some tags, numbers and bytes changed."""
    text = annotation(OBJECTS[: draw(st.integers(0, 3))])
    places_of = {
        "number": r"(?<=>)-?[\d.]+(?=<)",
        "drop tag": r"</?\w+>",
        "insert": r"(?<=>)",
        "drop element": r"<(\w+)>[^<]*</\1>|<(bndbox|object|size)>.*?</\2>",
        "double element": r"<(\w+)>[^<]*</\1>|<(bndbox|object|size)>.*?</\2>",
    }
    for _ in range(draw(st.integers(0, 3))):
        change = draw(st.sampled_from(list(places_of)))
        places = list(re.finditer(places_of[change], text, re.S))
        if places:
            place = draw(st.sampled_from(places))
            new = {"drop tag": "", "drop element": "", "double element": place[0] * 2}.get(change)
            text = text[: place.start()] + (draw(TEXTS) if new is None else new) + text[place.end() :]
    kind = draw(st.sampled_from(["plain", "plain", "plain", "encoding", "bytes"]))
    if kind == "encoding":
        text = draw(st.sampled_from(DECLARED)) + text
        return text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    return mutated(draw, text.encode(), draw(st.integers(1, 3)) if kind == "bytes" else 0)


def mutated(draw, data, count):
    """Some bytes replaced, cut off, removed, moved or put in."""
    for _ in range(count):
        at, end = draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["replace", "replace", "replace", "cut", "splice", "insert"]))
        new = draw(st.binary(min_size=1, max_size=1 if change == "replace" else 20))
        data = data[:at] + {
            "replace": new + data[at + 1 :],
            "cut": b"",
            "splice": data[end:],
            "insert": new + data[at:],
        }[change]  # fmt: skip
    return data


def plain_number(element, *tags):
    """The one number below `element`, read without the reader's library."""
    found = [element]
    for tag in tags:
        found = [child for parent in found for child in parent.childNodes if child.nodeName == tag]
    if not found:
        return math.nan
    (leaf,) = found
    assert not [child for child in leaf.childNodes if child.nodeType == child.ELEMENT_NODE]
    parts = [child.data for child in leaf.childNodes if child.nodeType in (child.TEXT_NODE, child.CDATA_SECTION_NODE)]
    text = "".join(parts)
    if text.strip().lower().lstrip("+-") in ("", "nan"):
        return math.nan
    assert re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", text, re.A), f"{text!r} was read as a number"
    return float(text)


def plain_reading(data):
    """Size and objects of a file that the reader accepted."""
    root = minidom.parseString(data).documentElement
    objects = [child for child in root.childNodes if child.nodeName == "object"]
    boxes = [[plain_number(item, "bndbox", edge) for edge in ("xmin", "ymin", "xmax", "ymax")] for item in objects]
    boxes = [box for box in boxes if not any(map(math.isnan, box))]  # an object without numbers is left out
    return [plain_number(root, "size", side) for side in ("width", "height")], boxes


@cases(few=600, many=20_000)
@given(data=broken_xml(), box_origin=st.sampled_from([1, 1, 0]))
def test_an_accepted_annotation_says_what_the_file_says(path, data, box_origin):
    path.write_bytes(data)
    read = guarded(read_annotation, path, box_origin=box_origin)
    if read is None:
        return
    if 0 in read.sizes:  # the picture is asked, and no box can be judged
        assert not len(read.corners)
        return
    if any(name in data[:60].lower() for name in (b"big5", b"shift_jis", b"idna")):  # which minidom does not know
        return
    (width, height), boxes = plain_reading(data)
    assert read.sizes.tolist() == [[height, width]]
    assert 1 <= width < 2**31 and 1 <= height < 2**31
    assert read.corners.tolist() == [[x1 - box_origin, y1 - box_origin, x2, y2] for x1, y1, x2, y2 in boxes]
    assert all(read.names) and len(read.names) == len(boxes)
    for x1, y1, x2, y2 in read.corners.tolist():
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


# --- JPEG


def jpeg(**options):
    y, x = np.mgrid[:48, :64]
    pixels = np.stack([x * 4, y * 5, (x * y) % 256], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


JPEGS = [
    jpeg(),
    jpeg(progressive=True),
    jpeg(mode="L"),
    jpeg(mode="CMYK"),
    jpeg(subsampling=0, restart_marker_blocks=2),
    jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
]


@st.composite
def broken_jpeg(draw):
    data = draw(st.sampled_from(JPEGS))
    if draw(st.booleans()):  # a number of a header, as half of the bytes are pixels
        marker = draw(st.sampled_from([b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xda", b"\xff\xdb", b"\xff\xe0"]))
        if (at := data.find(marker)) >= 0:
            at += draw(st.integers(0, 12))
            data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :]
    return mutated(draw, data, draw(st.integers(0, 4)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # on EXIF data, which only Pillow reads
@cases(few=300, many=5_000)
@given(data=broken_jpeg())
def test_an_accepted_image_is_the_one_that_pillow_sees(path, data):
    path.write_bytes(data)
    image = guarded(read_image, path)
    if image is None:
        return
    assert image.dtype == np.uint8
    with Image.open(io.BytesIO(data)) as theirs:
        assert image.shape == (theirs.height, theirs.width, 3)
        try:
            pixels = np.asarray(theirs.convert("RGB")).astype(int)
        except OSError:  # Pillow is stricter
            return
    if theirs.mode != "CMYK":  # whose conversion is a matter of taste
        assert np.abs(image - pixels).mean() < 2
