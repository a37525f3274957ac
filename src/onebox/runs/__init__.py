"""Run directories. The package itself can be called: `onebox.runs("outputs")` is the table of all runs."""

import sys

import onebox

sys.modules[__name__].__class__ = onebox.Both
