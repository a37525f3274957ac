"""Single-object localisation + classification experiments on PASCAL VOC.

In Python, `__all__` is all that is promised: see docs/python.md.
"""

import os
from importlib import import_module
from inspect import getdoc, signature
from types import ModuleType
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

if TYPE_CHECKING:
    from onebox.api import compose as compose
    from onebox.api import train as train
    from onebox.errors import BadInput as BadInput
    from onebox.runs.reading.find import Run as Run
    from onebox.runs.reading.load import load_run as load_run
    from onebox.runs.reading.table import runs as runs

# albumentations asks the network for its newest version at import unless this is set beforehand.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# OpenCV may follow another size in an image file than the one that was looked at; see onebox.data.image.MAX_PIXELS.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "100000000")

__version__ = "0.1.0"
__all__ = ["BadInput", "Run", "compose", "load_run", "runs", "train"]

_PLACES = {  # of what takes seconds to import, and so is imported when it is asked for
    "BadInput": "onebox.errors",
    "Run": "onebox.runs.reading.find",
    "compose": "onebox.api",
    "load_run": "onebox.runs.reading.load",
    "runs": "onebox.runs.reading.table",
    "train": "onebox.api",
}


def _found(name: str) -> Any:
    name = name.removeprefix("onebox.")
    with catch_warnings(action="ignore"):  # of libraries, such as tqdm's in a notebook without widgets
        return getattr(import_module(_PLACES[name]), name)


class Both(ModuleType):
    """A module that is a function too: importing `onebox.train` replaces what `onebox` had of that name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _found(self.__name__)(*args, **kwargs)

    __doc__ = property(lambda self: getdoc(_found(self.__name__)))
    __signature__ = property(lambda self: signature(_found(self.__name__)))


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'onebox' has no attribute {name!r}")
    return import_module(f"onebox.{name}") if name in ("runs", "train") else _found(name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
