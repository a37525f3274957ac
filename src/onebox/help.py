"""What `onebox-train --help` prints. Hydra can print the same, but takes half a second more to list the groups."""

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

TEXT = """\
onebox-train: train one single-object localisation + classification experiment, or sweep over many.

Examples
  onebox-train experiment=baseline                      train and test the baseline on the embedded data set
  onebox-train experiment=baseline data=voc2007         the same on PASCAL VOC 2007 (ONEBOX_VOC_ROOT holds VOCdevkit)
  onebox-train data=voc2012 data.download=true          fetch VOC first, if it is not there
  onebox-train experiment=overfit_one                   fit a single image, the first thing to try with a new idea
  onebox-train loss.weights.loc=30 model/box_coder=xywh change a value, choose another option
  onebox-train sweep=loss_weights                       a sweep that is kept as a file
  onebox-train -m optimizer.lr=1e-3,3e-3 seed=0,1,2     a sweep from the command line
  onebox-train debug=fast                               any experiment in a few seconds
  onebox-train resume=outputs/baseline/2026-...         go on with a run that was killed or stopped
  onebox-train ... --cfg job                            show the composed config and do nothing

Groups: GROUP=OPTION chooses
{groups}

Everything else is KEY=VALUE: see --cfg job. Results go to outputs/<name>/<date>_<time>/.
Exit codes: 0 done, 1 a fault of onebox, 2 something to put right in config or data, 75 stopped by SIGTERM (the same
command with the same hydra.run.dir goes on), 130 stopped by hand.
ONEBOX_DEBUG=1 shows tracebacks. Tab completion: eval "$(onebox-train -sc install=bash)". More flags: --hydra-help
"""


def help_text() -> str:
    """The whole text, with each config group and its options as they lie in conf/."""
    groups = "\n".join(f"  {group}: {', '.join(options)}" for group, options in _groups(files("onebox.conf"), ""))
    return TEXT.format(groups=groups)


def _groups(folder: Traversable, prefix: str) -> Iterator[tuple[str, list[str]]]:
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir() and not item.name.startswith(("_", "hydra")):
            options = sorted(file.name.removesuffix(".yaml") for file in item.iterdir() if file.name.endswith(".yaml"))
            if options:
                yield prefix + item.name, options
            yield from _groups(item, f"{prefix}{item.name}/")
