"""The forms that annotations have, each with its reader."""

from functools import partial
from pathlib import Path

from onebox.data.layout import Layout, Tree
from onebox.data.tree import VocTree


def open_tree(folder: Path, layout: Layout, cache_dir: Path | None, *, strict: bool = True) -> Tree:
    """A folder of images and annotations.

    Args:
        folder: where it is.
        layout: its form and its parts.
        cache_dir: folder that keeps what was read; None keeps nothing.
        strict: whether two images of one id are refused; otherwise the first by name is taken.

    Raises:
        BadInput: there is no such tree, or its files cannot be read.
    """
    if layout.form == "voc":
        return VocTree(folder, layout, cache_dir=cache_dir, strict=strict)
    # A run of VOC, which is most of them, imports no other reader.
    from onebox.data.coco import read_coco
    from onebox.data.csv_file import read_csv
    from onebox.data.manifest import ManifestTree
    from onebox.data.yolo import YoloTree

    if layout.form == "yolo":
        return YoloTree(folder, layout, cache_dir=cache_dir, strict=strict)
    if layout.form == "coco":
        return ManifestTree(folder, layout, read=read_coco, suffix="json", cache_dir=cache_dir, strict=strict)
    read = partial(read_csv, columns=layout.columns)
    return ManifestTree(folder, layout, read=read, suffix="csv", cache_dir=cache_dir, strict=strict)
