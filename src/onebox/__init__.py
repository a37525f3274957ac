"""Single-object localisation + classification experiments on PASCAL VOC."""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onebox.runs.reading.load import load_run as load_run
    from onebox.runs.reading.table import runs as runs

# albumentations asks the network for its newest version at import unless this is set beforehand.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# OpenCV may follow another size in an image file than the one that was looked at; see onebox.data.image.MAX_PIXELS.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "100000000")

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`load_run` and `runs`, whose imports take seconds, only when they are asked for."""
    if name == "load_run":
        from onebox.runs.reading.load import load_run

        return load_run
    if name == "runs":
        return import_module("onebox.runs")  # can be called, see there
    raise AttributeError(f"module 'onebox' has no attribute {name!r}")
