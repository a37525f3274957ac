"""Any network that is a chain of modules, as a backbone: in stages, with its maps at several strides."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from onebox.errors import BadInput, check, is_integer
from onebox.model.features import Features, FeatureShape, InputRecord, MapShape
from onebox.model.weights import load_weights, weights_hash

CONTAINERS = {"features", "blocks", "stages", "layers", "trunk_output"}  # their children are steps of the chain


class _Step(NamedTuple):
    """One link: `function(x, *args, **kwargs)`, or the module of that name."""

    function: str | Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class StagedNet(nn.Module):
    """A network up to its last map; `pooled` is the mean over that map's positions.

    Parameters keep the network's own names, below `net`. A stage begins at each link of the chain that has weights of
    its own to multiply with (convolution, block), is named after it, and goes on over norms, activations and pools.

    Args:
        net: the network; what comes after its last map is taken off.
        name: of the network, for messages.
        method: of `net`, that gives its output.
        image_size: side of the square input, px.
        levels: strides of the maps to give, such as [16, 32]; of each the last map that the network makes.
        pretrained: whether its weights are pretrained ones, or a file of such to load.
        input: the images that it is made for.

    Attributes:
        feature_shape: sizes of the features.
        stages: names of the stages, in the order in which an image goes through them.
        weights_fingerprint: hash of pretrained weights, None where there are none.

    Raises:
        BadInput: it is no chain, has no map of such a stride, the image does not fit, or see `load_weights`.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        method: str,
        image_size: int,
        levels: Sequence[int],
        pretrained: bool | str,
        input: InputRecord,
    ) -> None:
        super().__init__()
        check(
            isinstance(pretrained, bool | str),
            f"model.backbone.pretrained must be true, false or a file of weights, not {pretrained}",
        )
        check(is_integer(image_size, 1), f"image_size must be a number >= 1, not {image_size}")
        check(bool(levels), f"model.backbone.levels must name at least one stride, such as [32], not {levels}")
        self.net = net
        self.input = input
        self._steps = _chain(net, method, name)
        usual = self._shapes(input.size, name)
        is_map = [len(shape) == 4 and shape[2] == shape[3] > 1 for shape in usual]
        check(any(is_map), f"model.backbone.name={name}: gives no map with positions")
        last = max(number for number, found in enumerate(is_map) if found)
        self._steps = self._steps[: last + 1]
        self._take_off_the_rest()
        if isinstance(pretrained, str):
            load_weights(net, pretrained)
        self.weights_fingerprint = weights_hash(net) if pretrained else None

        strides = {
            # The nearest power of two: networks without padding lose a row or two.
            2 ** round(math.log2(input.size / shape[2])): number + 1
            for number, shape in enumerate(usual[: last + 1])
            if is_map[number]
        }
        missing = [level for level in levels if level not in strides]
        check(
            not missing,
            f"model.backbone.levels={list(levels)}: {name} has maps of stride {', '.join(map(str, strides))}",
        )
        self._levels = sorted(strides[level] for level in set(levels))  # numbers of steps after which a map is there
        shapes = usual if image_size == input.size else self._shapes(image_size, name)
        self.feature_shape = FeatureShape(
            maps=tuple(MapShape(*shapes[number - 1][1:]) for number in self._levels), pooled=shapes[last][1]
        )

        begins = [number for number, step in enumerate(self._steps) if number == 0 or self._multiplies(step)]
        self.stages = tuple(str(self._steps[number].function) for number in begins)
        self._ends = dict(zip(self.stages, [*begins[1:], len(self._steps)], strict=True))

    def forward(self, images: Tensor) -> Features:
        """[B, 3, image_size, image_size] float32, normalised, to features."""
        return self._features(self._go((images,), 0, len(self._steps)))

    def prefix(self, images: Tensor, *, until: str) -> tuple[Tensor, ...]:
        """The first stages, `until` included.

        Returns:
            What `suffix` needs to go on: the maps that are among the features, then the stage's output.
        """
        return self._go((images,), 0, self._ends[until])

    def suffix(self, state: tuple[Tensor, ...], *, after: str) -> Features:
        """The stages after `after`, from what `prefix` gave until there, to features."""
        return self._features(self._go(state, self._ends[after], len(self._steps)))

    def stage_of(self, parameter_name: str) -> str:
        """The stage that a parameter, named as by `named_parameters()`, belongs to."""
        for stage, (begin, end) in zip(self.stages, pairwise([0, *self._ends.values()]), strict=True):
            if any(parameter_name.startswith(f"net.{step.function}.") for step in self._steps[begin:end]):
                return stage
        raise KeyError(parameter_name)

    def _go(self, state: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
        *maps, x = state
        for number in range(start, stop):
            if number in self._levels:
                maps.append(x)
            x = self._run(self._steps[number], x)
        return (*maps, x)

    def _features(self, state: tuple[Tensor, ...]) -> Features:
        maps = state if len(self._steps) in self._levels else state[:-1]
        return Features(maps, state[-1].mean((2, 3)))

    def _run(self, step: _Step, x: Tensor) -> Tensor:
        function = self.net.get_submodule(step.function) if isinstance(step.function, str) else step.function
        out: Tensor = function(x, *step.args, **step.kwargs)
        return out

    def _shapes(self, image_size: int, name: str) -> list[tuple[int, ...]]:
        """The shape that each step gives for one image; leaves the network in training mode."""
        shapes = []
        self.net.eval()
        try:
            with torch.no_grad():
                x = torch.zeros(1, 3, image_size, image_size)
                for step in self._steps:
                    x = self._run(step, x)
                    shapes.append(tuple(x.shape))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise BadInput(f"image_size={image_size} does not fit {name}: {reason}; {self.input.size} does") from error
        self.net.train()
        return shapes

    def _multiplies(self, step: _Step) -> bool:
        if not isinstance(step.function, str):
            return False
        return any(parameter.ndim > 1 for parameter in self.net.get_submodule(step.function).parameters())

    def _take_off_the_rest(self) -> None:
        used = {step.function.partition(".")[0] for step in self._steps if isinstance(step.function, str)}
        for name, _ in list(self.net.named_children()):
            if name not in used:
                delattr(self.net, name)


class _Tracer(fx.Tracer):
    """Follows an image through the network's own `forward`, but not into its parts."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not (type(m) is nn.Sequential and module_qualified_name in CONTAINERS)


def _chain(net: nn.Module, method: str, name: str) -> list[_Step]:
    """The steps from image to output, each of which reads what the one before gives and nothing else.

    Raises:
        BadInput: the network branches outside of its parts.
    """
    no_chain = f"model.backbone.name={name} is no chain of modules, which a backbone must be; resnet18 is one"
    try:
        before, *nodes, output = _Tracer(method).trace(net).nodes
    except Exception as error:  # whatever its code does with what is no tensor
        raise BadInput(no_chain) from error
    steps = []
    for node in nodes:
        check(node.all_input_nodes == [before] and node.args[:1] == (before,), no_chain)
        function = getattr(Tensor, str(node.target)) if node.op == "call_method" else node.target
        steps.append(_Step(function, tuple(node.args[1:]), dict(node.kwargs)))
        before = node
    check(output.all_input_nodes == [before], no_chain)
    return steps
