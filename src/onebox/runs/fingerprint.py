"""A short name for everything in a config that can change a run's result."""

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any


def fingerprint(config: dict[str, Any], ignore: Sequence[str]) -> str:
    """Hash of a resolved config, as 12 hexadecimal digits.

    Args:
        config: plain dicts, lists and scalars.
        ignore: dotted keys that cannot change the result; a key that is not there is passed over.
    """
    kept = copy.deepcopy(config)
    for key in ignore:
        *parents, last = key.split(".")
        node: Any = kept
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    text = json.dumps(_plain(kept), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """The value with 10.0 written as 10: which of the two was typed cannot change a result."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
