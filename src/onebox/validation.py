"""What can be wrong with a config as a whole; each part checks its own arguments where it is made."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from onebox.errors import is_integer, refuse

GROUPS = ("data", "augment", "model", "loss", "optimizer", "param_groups", "trainer", "callbacks", "logger")


def validate(cfg: DictConfig) -> None:
    """Refuse a config that cannot give a run, before anything is read or written.

    Raises:
        BadInput: names every problem.
    """

    def get(key: str) -> Any:
        return OmegaConf.select(cfg, key)

    refuse({f"{group} is null; choose an option of the group (see --help)": get(group) is None for group in GROUPS})
    from onebox.metrics import NAMES
    from onebox.module import TRAIN_METRICS
    from onebox.sweep.job import RERUN

    losses = [f"{name}{kind}" for name in ("loss_loc", "loss_cls") for kind in ("", "_weighted")]
    tags = [f"train/{name}" for name in ("loss", *losses, *TRAIN_METRICS)]
    tags += [f"val/{name}" for name in ("loss", *losses, *NAMES, *(f"{name}_macro" for name in NAMES))]
    objective = get("objective")
    wrong = [tag for tag in ([objective] if isinstance(objective, str) else objective or [None]) if tag not in tags]
    monitor, mode = get("monitor"), get("monitor_mode")
    refuse(
        {
            f"seed must be a number >= 0 and below 2^32, not {get('seed')}": not is_integer(get("seed"), 0, 2**32 - 1),
            f"image_size must be a number >= 1, not {get('image_size')}": not is_integer(get("image_size"), 1),
            f"monitor={monitor} is nothing that is logged; it must be one of {', '.join(tags)}": monitor not in tags,
            f"resume must be auto, never or the folder of a run, not {get('resume')}": get("resume")
            not in ("auto", "never"),
            f"objective={objective} is nothing that is logged; it takes {', '.join(tags)}, or a list of them": bool(
                wrong
            ),
            f"rerun must be one of {', '.join(RERUN)}, not {get('rerun')}": get("rerun") not in RERUN,
            f"threads must be null or a number >= 1, not {get('threads')}": get("threads") is not None
            and not is_integer(get("threads"), 1),
            f"monitor_mode must be max or min, not {mode}": mode not in ("max", "min"),
            f"monitor={monitor} but trainer.limit_val_batches=0; set monitor=train/loss monitor_mode=min": str(
                monitor
            ).startswith("val/")
            and get("trainer.limit_val_batches") == 0,
        }
        | {
            f"callbacks.{name}.monitor={part.monitor} is nothing that is logged (see metrics.csv of any run)": True
            for name, part in cfg.callbacks.items()
            if part is not None and part.get("monitor", None) not in (None, *tags)
        }
        | {
            f"scheduler.monitor={get('scheduler.monitor')} is nothing that is logged; val/loss is": get(
                "scheduler.monitor"
            )
            not in (None, *tags)
        }
        | {
            f"{key} must be a number >= 1, not {get(key)}": not is_integer(get(key), 1)
            for key in ("trainer.max_epochs", "trainer.log_every_n_steps", "trainer.check_val_every_n_epoch")
        }
    )
