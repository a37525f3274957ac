"""A run that begins where another has ended (`extend=RUN`): it gets a checkpoint as its own, and is then resumed."""

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from onebox.errors import check
from onebox.files import MAX_LONG, read_bytes, replacing
from onebox.runs.checkpoint import AtomicCheckpointIO, read_checkpoint
from onebox.runs.fingerprint import changed_keys
from onebox.runs.reading.find import Run
from onebox.runs.record import read_record, why_no_checkpoint
from onebox.trust import stored_file

LENGTH, STOPPING = "trainer.max_epochs", "callbacks.early_stopping"
MAY_CHANGE = (  # keys begin so; the checkpoint says nothing of them, or is told
    *("trainer", "scheduler", "augment", "seed", "data.batch_size", "data.eval_batch_size"),
    *(f"optimizer.{key}" for key in ("lr", "weight_decay", "betas", "eps", "momentum", "nesterov")),
    *(STOPPING, "callbacks.freeze"),
)


def extension(
    run: Run, config: Mapping[str, Any], given: Collection[str], swept: Collection[str]
) -> dict[str, str | int | None]:
    """What `extend` is in the `config` of a run that extends another.

    `given` are the keys and groups that were typed for it, and `swept` those that have a value in its jobs only.

    Raises:
        BadInput: it cannot be extended, or not so.
    """
    status, place = run.record.get("status"), f"extend={run.path}"
    remedy = f"{'like' if status == 'pruned' else 'resume'}={run.path} brings it to its end"
    check(status == "completed", f"{place}: the run is {status}; {remedy}")
    checkpoint = last_checkpoint(run.path)
    before = checkpoint["onebox"]["config"]
    depends = _depends_on_length(before)
    check(
        not depends or _differs(given, "scheduler"),
        f"{place}: its schedule ({before['scheduler']}) has come to its end; give one for the epochs to come, such as "
        "scheduler=none or scheduler=cosine",
    )
    changed = check_changes(checkpoint, config, swept)
    is_same = changed == {LENGTH} and not depends and not _stores_frozen(before)
    is_same = is_same and not (before.get("extend") or {}).get("fingerprint")
    prints = {"fingerprint": "fingerprint", "seedless": "fingerprint_seedless"}
    about = {key: None if is_same else run.record.get(name) for key, name in prints.items()}
    return {"run": str(run.path.absolute()), "epochs": checkpoint["fit"]["position"][0], **about}


@functools.lru_cache(maxsize=1)  # all jobs of a sweep extend one run
def last_checkpoint(folder: Path) -> dict[str, Any]:
    """The checkpoint with which a run has ended.

    Raises:
        BadInput: there is none.
    """
    record, path = read_record(folder) or {}, folder / "checkpoints" / "last.ckpt"
    why = why_no_checkpoint(record) or "extend=RUN trains on from it"
    check(path.exists(), f"{path}: no such file; {why}; like={folder} with more epochs trains all of them")
    checkpoint = read_checkpoint(stored_file(folder, "checkpoints/last.ckpt"), fingerprint=record.get("fingerprint"))
    check(checkpoint.get("fit", {}).get("done"), f"{path}: is not of the end of the run; resume={folder} trains to it")
    is_whole = "current_model_state" not in checkpoint or checkpoint["fit"].get("trained")
    check(is_whole, f"{path}: holds the averaged weights alone (it is of an older version); init={folder} takes them")
    return checkpoint


def check_changes(checkpoint: Mapping[str, Any], config: Mapping[str, Any], swept: Collection[str] = ()) -> set[str]:
    """The keys in which the `config` of a run differs from that of the `checkpoint` that it extends.

    Raises:
        BadInput: it has no more epochs, or differs in what a checkpoint fits to.
    """
    changed = {*changed_keys(checkpoint["onebox"]["config"], config), *(key.replace("/", ".") for key in swept)}
    changed = {key for key in changed if not key.startswith("extend.")}
    refused = ", ".join(sorted(key for key in changed if not key.startswith(MAY_CHANGE)))
    check(not refused, f"extend=RUN: {refused} cannot change within a run; init=RUN begins a new run with its weights")
    epochs, total = checkpoint["fit"]["position"][0], config["trainer"]["max_epochs"]
    check(
        LENGTH in swept or total > epochs,
        f"extend=RUN: the run has {epochs} epochs; give {LENGTH}, which counts them too, a larger number than {total}",
    )
    states, callbacks = checkpoint["callbacks"], config["callbacks"]
    has_trace = callbacks.get("trace") is None or "StepTrace" in states
    check(has_trace, "extend=RUN: the run has no trace.csv for the steps to come to follow; give callbacks.trace=null")
    has_last = callbacks.get("checkpoint_last") is not None
    check(has_last, "extend=RUN: needs callbacks.checkpoint_last; do not set it null")
    stopping = [] if _differs(changed, STOPPING) else _stopping(states).values()
    check(
        not any(state["stopped_epoch"] or state["wait_count"] >= state["patience"] for state in stopping),
        f"extend=RUN: early stopping has ended the run after {epochs} epochs; give callbacks/early_stopping=none or "
        "another callbacks.early_stopping.patience",
    )
    return changed


def begin(folder: Path, config: Mapping[str, Any], fingerprint: str) -> None:
    """Give the directory of a run that has no checkpoint those of the run that it extends, and its trace.

    With another optimizer or schedule, what the optimizer has accumulated stays, and its options and the schedule begin
    anew; so does early stopping, if that is another.

    Raises:
        BadInput: see `last_checkpoint` and `check_changes`.
    """
    if any((folder / "checkpoints" / name).exists() for name in ("last.ckpt", "previous.ckpt")):
        return
    parent, wanted = Path(config["extend"]["run"]), config["extend"]["fingerprint"]
    last = last_checkpoint(parent)
    changed = check_changes(last, config)
    is_known = wanted == last["onebox"]["fingerprint"] if wanted else changed == {LENGTH}
    check(is_known, f"{parent}: is not the run that was to be extended; give extend={parent} again")
    is_new = _depends_on_length(config) or _differs(changed, "scheduler", "optimizer")
    dropped = _stopping(last["callbacks"]) if _differs(changed, STOPPING) else {}
    trained = {"current_model_state": last["fit"]["trained"]} if last["fit"].get("trained") else {}  # beside averages
    last = {
        **(last | trained),
        "fit": last["fit"] | {"done": False, "trained": {}},
        "new_schedule": is_new,
        "lr_schedulers": [] if is_new else last["lr_schedulers"],
        "callbacks": {name: state for name, state in last["callbacks"].items() if name not in dropped},
    }
    (folder / "checkpoints").mkdir(exist_ok=True)
    if config["callbacks"].get("trace") is not None and (parent / "trace.csv").exists():
        with replacing(folder / "trace.csv") as temporary:
            temporary.write_bytes(read_bytes(stored_file(parent, "trace.csv"), MAX_LONG))
    checkpoints = {"last.ckpt": last}  # written last: then all is there
    if any(state.get("best_model_path") for state in last["callbacks"].values()):  # else none was validated
        checkpoints = {"best.ckpt": read_checkpoint(stored_file(parent, "checkpoints/best.ckpt")), **checkpoints}
    for name, checkpoint in checkpoints.items():
        facts = checkpoint["onebox"] | {"fingerprint": fingerprint, "config": config}
        AtomicCheckpointIO().save_checkpoint(checkpoint | {"onebox": facts}, folder / "checkpoints" / name)


def _depends_on_length(config: Mapping[str, Any]) -> bool:
    """Whether the learning rate of a step follows from the number of all steps, as it may in an unknown schedule."""
    return (config.get("scheduler") or {}).get("_target_") not in (None, "onebox.optim.Plateau")


def _stores_frozen(config: Mapping[str, Any]) -> bool:
    """Whether the run took stored features of what a longer one would train later, and so compute in every epoch."""
    freeze, data = config["callbacks"].get("freeze") or {}, config["data"]
    is_stored = data.get("views") is not None and data.get("features") != "off"
    return is_stored and any(epoch >= config["trainer"]["max_epochs"] for epoch, _ in freeze.get("unfreeze", ()))


def _differs(changed: Collection[str], *names: str) -> bool:
    return any(key.startswith(names) for key in changed)


def _stopping(states: Mapping[str, Any]) -> dict[str, Any]:
    """The states of early stopping, among those of all callbacks."""
    return {name: state for name, state in states.items() if name.startswith("EarlyStopping")}
