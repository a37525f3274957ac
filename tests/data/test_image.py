import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from onebox.data.image import MAX_PIXELS, Header, read_header, read_image
from onebox.errors import BadInput

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
FORMATS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"lossless": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),  # with a VP8X header
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
]


def encoded(format="JPEG", mode="RGB", size=None, **options):
    picture = Image.fromarray(PIXELS).convert(mode)
    buffer = io.BytesIO()
    (picture.resize(size) if size else picture).save(buffer, format, **options)
    return buffer.getvalue()


def bomb(format, width, height):
    """A small file whose header asks for width x height px."""
    data = bytearray(encoded(format))
    if format == "JPEG":
        struct.pack_into(">HH", data, data.find(b"\xff\xc0") + 5, height, width)
    elif format == "PNG":
        struct.pack_into(">II", data, 16, width, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    elif format == "BMP":
        struct.pack_into("<ii", data, 18, width, -height)
    else:
        struct.pack_into("<HH", data, 26, width, height)
    return bytes(data)


def claiming(format, width, height):
    """An image of 53 x 37 px whose header says another size."""
    data = bytearray(encoded(format))
    if format == "BMP":
        struct.pack_into("<ii", data, 18, width, height)
    elif format == "PNG":
        return bomb(format, width, height)
    else:
        place = struct.unpack_from("<I", data, 4)[0]
        for entry in range(place + 2, place + 2 + 12 * struct.unpack_from("<H", data, place)[0], 12):
            if (tag := struct.unpack_from("<H", data, entry)[0]) in (256, 257):
                struct.pack_into("<HHII", data, entry, tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(53, 74), (106, 37)])
def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path, format, size):
    path = tmp_path / "a.png"
    path.write_bytes(claiming(format, *size))
    assert read_header(path.read_bytes()) == Header(*size)
    with pytest.raises(BadInput, match=r"not a readable image .cut short or corrupt"):
        read_image(path)
    path.write_bytes(claiming(format, 53, 37))
    assert (read_image(path) == PIXELS).all()


@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_every_format_is_read_under_any_name(tmp_path, format, options):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(format, **options))
    image = read_image(path)
    assert image.shape == PIXELS.shape and image.dtype == np.uint8
    assert read_header(path.read_bytes()) == Header(53, 37)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(image - expected).max() <= 2


def test_what_follows_the_end_of_a_jpeg_does_not_matter(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded() + b"\0\0 a film of two seconds, as telephones add it \xff\xda\0")
    assert read_image(path).shape == PIXELS.shape


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_become_rgb(tmp_path, mode):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(mode=mode, quality=95))
    image = read_image(path)
    assert image.shape == PIXELS.shape
    assert np.abs(image - np.asarray(Image.open(path).convert("RGB")).astype(int)).mean() < 3


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "an empty file"),
        (b"not an image", "not a whole JPEG, PNG, WebP, BMP or TIFF"),
        (b"\0" * 5000, "not a whole JPEG, PNG, WebP, BMP or TIFF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not a whole JPEG, PNG, WebP, BMP or TIFF"),
        (b"\xff\xd8", "not a whole JPEG, PNG, WebP, BMP or TIFF"),
        (encoded("GIF"), "a GIF, which may be many pictures"),
        (encoded()[: len(encoded()) // 2], "cut short"),
        (encoded()[:-1], "cut short"),
        (encoded()[: len(encoded()) // 2].ljust(len(encoded()), b"\0"), "cut short"),  # a download that was reserved
        (encoded("PNG")[:-200], "cut short"),
        (encoded("WEBP")[:-20], "not a whole"),
        (bomb("JPEG", 0, 10), "not a whole"),
    ],
)
def test_a_broken_file_is_one_line_with_a_remedy(tmp_path, content, word):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(
        BadInput, match=r"a\.jpg: not a readable image .*; restore (or convert the file.* data\.on_error=skip|the file)"
    ) as error:
        read_image(path)
    assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_turn_of_the_exif_data_is_made_when_it_is_asked_for(tmp_path, format, turn):
    tags = Image.Exif()
    tags[0x0112] = turn
    path = tmp_path / "a"
    path.write_bytes(encoded(format, exif=tags))
    header = read_header(path.read_bytes())
    assert (header.width, header.height, header.turn) == (53, 37, turn)
    assert read_image(path).shape == (37, 53, 3)
    upright = read_image(path, upright=True)
    assert upright.shape == (header.upright.height, header.upright.width, 3)
    with Image.open(path) as theirs:
        expected = np.asarray(ImageOps.exif_transpose(theirs).convert("RGB")).astype(int)
    assert np.abs(upright - expected).max() <= 2


def test_more_than_8_bits_are_told(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) << 8).save(path)
    assert read_header(path.read_bytes()).is_deep
    assert np.abs(read_image(path)[:, :, 0].astype(int) - PIXELS[:, :, 0]).max() <= 1


def test_a_folder_or_a_missing_file_is_named(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(BadInput, match=rf"{name}: cannot be read \("):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("format", "width", "height"),
    [
        ("JPEG", 60_000, 60_000),
        ("JPEG", 30_000, 30_000),  # below OpenCV's own limit: 11 seconds and 5 GB without ours
        ("PNG", 60_000, 60_000),
        ("PNG", 2**31 - 1, 2**31 - 1),
        ("BMP", 60_000, 60_000),
        ("BMP", 2**31 - 1, 2**31 - 1),
        ("WEBP", 16_383, 16_383),
    ],
)
def test_a_decompression_bomb_is_refused_before_anything_is_allocated(tmp_path, format, width, height):
    path = tmp_path / "a.jpg"
    path.write_bytes(bomb(format, width, height))
    refused = r"a\.jpg: (\d+x\d+ px are more than the limit of 100 million; shrink|not a readable image)"
    with pytest.raises(BadInput, match=refused):
        read_image(path)


def test_refusing_a_bomb_takes_no_memory(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(bomb("JPEG", 30_000, 30_000))
    code = f"""
import resource, pathlib
from onebox.data.image import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: read_image(pathlib.Path({str(path)!r}))
except Exception: pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 10_000  # kB


def test_an_image_just_within_the_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("onebox.data.image.MAX_PIXELS", 53 * 37)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded())
    assert read_image(path).shape == PIXELS.shape
    monkeypatch.setattr("onebox.data.image.MAX_PIXELS", 53 * 37 - 1)
    with pytest.raises(BadInput, match="53x37 px are more"):
        read_image(path)
    assert MAX_PIXELS == 100_000_000
