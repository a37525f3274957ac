"""What a search draws from: Optuna's distributions of sweeps in Hydra's notation."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from onebox.errors import BadInput, check


def distribution(override: Override) -> BaseDistribution:
    """What Optuna draws from for a sweep in Hydra's notation.

    Raises:
        BadInput: Optuna refuses the range.
    """
    value: Any = override.value()
    is_log = "log" in getattr(value, "tags", ())
    try:
        if isinstance(value, IntervalSweep):
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=is_log)
            return FloatDistribution(float(value.start or 0), float(value.end or 0), log=is_log)
        if isinstance(value, RangeSweep) and not value.shuffle:
            numbers: Any = list(value.range())  # without its end, as Python has it
            kind: Any = IntDistribution if isinstance(numbers[0], int) else FloatDistribution
            return kind(numbers[0], numbers[-1], step=value.step)
        choices: Any = list(override.sweep_iterator(transformer=Transformer.encode))
        return CategoricalDistribution(choices)
    except (ValueError, IndexError) as error:
        raise BadInput(f"{override.input_line}: {error}") from error


def values_of(key: str, part: Any) -> Sequence[Any]:
    """All values of a distribution, for a grid."""
    if isinstance(part, CategoricalDistribution):
        return part.choices
    step = part.step
    check(step is not None and not part.log, f"{key}: a grid needs single values, such as {key}=1,2 or range(1,9)")
    return [part.low + number * step for number in range(round((part.high - part.low) / step) + 1)]


def describe(part: Any) -> str:
    """A distribution for people."""
    if isinstance(part, CategoricalDistribution):
        return ", ".join(map(str, part.choices))
    return f"{part.low:g} to {part.high:g}" + (", by its logarithm" if part.log else "")


def ends_of(part: Any) -> Sequence[Any]:
    """Each choice of a distribution, or both ends of its range."""
    return part.choices if isinstance(part, CategoricalDistribution) else (part.low, part.high)
