"""Run directories. The package itself can be called: `onebox.runs("outputs")` is the table of all runs."""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class _Package(ModuleType):
    # A function `runs` in `onebox` would be replaced by this package as soon as any of its modules is imported.
    def __call__(self, folder: str | Path = "outputs") -> "pd.DataFrame":
        from onebox.runs.reading.table import runs

        return runs(folder)


sys.modules[__name__].__class__ = _Package
