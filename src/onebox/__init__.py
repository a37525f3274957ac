"""Single-object localisation + classification experiments on PASCAL VOC."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onebox.runs.load import load_run as load_run

# albumentations asks the network for its newest version at import unless this is set beforehand.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`load_run`, whose imports take seconds, only when it is asked for."""
    if name == "load_run":
        from onebox.runs.load import load_run

        return load_run
    raise AttributeError(f"module 'onebox' has no attribute {name!r}")
