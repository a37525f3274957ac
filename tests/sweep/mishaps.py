"""A callback that goes wrong in the middle of a fit, once or always."""

import os
import signal
import time
from pathlib import Path

from lightning.pytorch import Callback


class Mishap(Callback):
    """Does what `plan` says of this seed (raise, kill or hang) in the second epoch; kill and hang only once.

    Each fit that comes to its end adds a line to `folder/ended`.
    """

    def __init__(self, seed, plan, folder, pause_s):
        self.seed, self.what, self.folder, self.pause_s = seed, plan.get(seed), Path(folder), pause_s

    def on_train_batch_end(self, trainer, *args):
        time.sleep(self.pause_s)
        if trainer.current_epoch != 1 or self.what is None:
            return
        if self.what == "raise":
            raise RuntimeError(f"seed {self.seed} always fails")
        mark = self.folder / f"{self.what}.{self.seed}"
        if mark.exists():
            return
        mark.touch()
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(3600)

    def on_fit_end(self, trainer, pl_module):
        with (self.folder / "ended").open("a") as file:
            file.write(f"{self.seed}\n")
