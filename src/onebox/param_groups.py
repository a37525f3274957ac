"""Learning rate and weight decay of each part of the network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from onebox.errors import check, is_number
from onebox.model.localizer import Localizer

PARTS = ("backbone", "loc_head", "cls_head", "loss")


class _Setting(NamedTuple):
    name: str
    lr_factor: float
    weight_decay_factor: float


class ParamGroups:
    """Splits parameters into an optimizer's groups, each with a share of its learning rate and weight decay.

    Where no setting differs there is one group, `all`. Otherwise a group is named after its part: backbone, loc_head,
    cls_head or loss (what a weighting learns), and backbone_1, backbone_2, ... for pieces of a backbone.

    Args:
        lr_factors: part -> times the optimizer's lr. For the backbone also a list: its stages, in forward order, are
            cut into so many pieces, as even as they can be; [0.01, 0.1] gives lr/100 and lr/10.
        weight_decay_factors: part -> times the optimizer's weight_decay.
        decay_norms_and_biases: whether parameters with less than two dimensions are decayed.
    """

    def __init__(
        self,
        *,
        lr_factors: Mapping[str, float | Sequence[float]],
        weight_decay_factors: Mapping[str, float],
        decay_norms_and_biases: bool,
    ) -> None:
        pieces = lr_factors["backbone"]
        self._backbone = list(pieces) if isinstance(pieces, Sequence) else [pieces]
        numbers = {f"lr_factors.{part}": lr_factors[part] for part in PARTS[1:]}
        numbers |= {f"lr_factors.backbone[{number}]": factor for number, factor in enumerate(self._backbone)}
        numbers |= {f"weight_decay_factors.{part}": weight_decay_factors[part] for part in PARTS}
        for key, value in numbers.items():
            check(is_number(value, 0), f"param_groups.{key} must be a number >= 0, not {value}")
        check(bool(self._backbone), "param_groups.lr_factors.backbone must name at least one factor")
        self._lr_factors = lr_factors
        self._weight_decay_factors = weight_decay_factors
        self._decay_norms_and_biases = decay_norms_and_biases

    def optimizer(self, make: Callable[..., Optimizer], localizer: Localizer, loss: nn.Module) -> Optimizer:
        """The optimizer of all parameters.

        Args:
            make: makes it from parameter groups.
            localizer: the network.
            loss: may have parameters too.

        Raises:
            BadInput: the backbone has fewer stages than it is to be cut into.
        """
        settings = list(self._settings(localizer, loss))
        if len({setting[1:] for setting, _ in settings}) == 1:
            settings = [(_Setting("all", *setting[1:]), parameter) for setting, parameter in settings]
        groups: dict[_Setting, list[nn.Parameter]] = {}
        for setting, parameter in settings:
            groups.setdefault(setting, []).append(parameter)
        optimizer = make([{"params": parameters, "name": setting.name} for setting, parameters in groups.items()])
        for setting, group in zip(groups, optimizer.param_groups, strict=True):
            group["lr"] *= setting.lr_factor
            group["weight_decay"] *= setting.weight_decay_factor
        return optimizer

    def _settings(self, localizer: Localizer, loss: nn.Module) -> Iterator[tuple[_Setting, nn.Parameter]]:
        pieces = self._pieces(localizer)
        modules: dict[str, Any] = {part: getattr(localizer, part) for part in PARTS[:-1]} | {"loss": loss}
        for part, module in modules.items():
            for name, parameter in module.named_parameters():
                group = part
                lr_factor: Any = self._lr_factors[part]  # a list only for the backbone, whose pieces have one each
                if part == "backbone":
                    piece = pieces[module.stage_of(name)] if len(self._backbone) > 1 else 0
                    group = f"backbone_{piece + 1}" if len(self._backbone) > 1 else part
                    lr_factor = self._backbone[piece]
                decays = self._decay_norms_and_biases or parameter.ndim > 1
                yield _Setting(group, lr_factor, self._weight_decay_factors[part] if decays else 0.0), parameter

    def _pieces(self, localizer: Localizer) -> dict[str, int]:
        """The number of the piece that each stage is in."""
        if len(self._backbone) == 1:
            return {}
        stages = localizer.backbone.stages
        check(
            len(stages) >= len(self._backbone),
            f"param_groups.lr_factors.backbone={self._backbone} but the backbone has only the stages "
            f"{', '.join(stages)}; name fewer factors",
        )
        return {stage: number * len(self._backbone) // len(stages) for number, stage in enumerate(stages)}
