"""What a backbone takes and gives, and any network that is a chain of modules as one. B = batch size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from onebox.errors import BadInput, check, is_integer


@dataclass(frozen=True)
class InputRecord:
    """The images that a backbone is made for; with pretrained weights, those that the weights were trained on."""

    size: int  # side of the square, px; other sizes work too, see `image_size` in conf/train.yaml
    mean: Sequence[float]  # of each channel, for images in [0, 1]
    std: Sequence[float]  # standard deviation of each channel, for images in [0, 1]
    interpolation: str  # how they were resized; others work too, see `interpolation` in conf/train.yaml

    def __post_init__(self) -> None:
        given = "model.backbone.input"
        check(is_integer(self.size, 1), f"{given}.size must be a number >= 1, not {self.size}")
        check(len(self.mean) == 3, f"{given}.mean needs three numbers, not {self.mean}")
        check(len(self.std) == 3 and min(self.std) > 0, f"{given}.std needs three numbers > 0, not {self.std}")


class Features(NamedTuple):
    """What the heads see: maps with positions, the finest first, and features without."""

    maps: tuple[Tensor, ...]  # [B, channels, height, width] each
    pooled: Tensor  # [B, pooled]


class MapShape(NamedTuple):
    """Sizes of one of the maps."""

    channels: int
    height: int
    width: int


class FeatureShape(NamedTuple):
    """The sizes of `Features`, from which heads are built."""

    maps: tuple[MapShape, ...]
    pooled: int


Step = str | Callable[[Tensor], Tensor]  # one link of a chain: the name of a module, or a function
Shape = tuple[int, ...]


class Backbone(nn.Module):
    """A chain of steps from images to `Features`, cut into stages at which it can be left and entered.

    A stage begins at each step that has weights to multiply with (convolution, block), is named after it, and includes
    the norms, activations and pools that follow. Any module with these attributes and methods is a backbone too.

    Attributes:
        input: the images that it is made for.
        feature_shape: sizes of the features.
        stages: names of its stages, in the order in which an image passes through them.
        weights_fingerprint: hash of the pretrained weights that it began with, None where there were none.
    """

    feature_shape: FeatureShape
    stages: tuple[str, ...]

    def __init__(self, input: InputRecord) -> None:
        super().__init__()
        self.input = input
        self.weights_fingerprint: str | None = None
        self._steps: list[Step] = []
        self._map_ends: list[int] = []  # how many steps make each of the maps that are among the features
        self._stage_of_step: list[str] = []  # a step after the last stage may pool

    def _add_stages(self, steps: Sequence[Step], *, root: str = "") -> None:
        """Add steps, in stages whose names leave out `root`."""
        for step in steps:
            multiplies = isinstance(step, str) and any(item.ndim > 1 for item in self.get_submodule(step).parameters())
            begins = multiplies or not self._stage_of_step
            self._stage_of_step.append(str(step).removeprefix(root) if begins else self._stage_of_step[-1])
        self._steps += steps
        self.stages = tuple(dict.fromkeys(self._stage_of_step))

    def forward(self, images: Tensor) -> Features:
        """[B, 3, image_size, image_size] float32, normalised, to features."""
        return self._finish((images,), 0)

    def prefix(self, images: Tensor, *, until: str) -> tuple[Tensor, ...]:
        """The first stages, `until` included: the maps among the features that they make, then the stage's output."""
        return self._go((images,), 0, self._end(until))

    def suffix(self, state: tuple[Tensor, ...], *, after: str) -> Features:
        """The stages after `after`: `suffix(prefix(images, until=s), after=s)` is `forward(images)`, bit for bit."""
        return self._finish(state, self._end(after))

    def stage_of(self, parameter_name: str) -> str:
        """The stage that a parameter, named as by `named_parameters()`, belongs to."""
        steps = zip(self._steps, self._stage_of_step, strict=False)
        return next(stage for step, stage in steps if parameter_name.startswith(f"{step}."))

    def _end(self, stage: str) -> int:
        """How many steps an image has gone through at the end of a stage."""
        return len(self._stage_of_step) - self._stage_of_step[::-1].index(stage)

    def _finish(self, state: tuple[Tensor, ...], start: int) -> Features:
        *maps, pooled = self._go(state, start, len(self._steps))
        return Features(tuple(maps), pooled)

    def _go(self, state: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
        *maps, x = state
        for number in range(start, stop):
            if number in self._map_ends:
                maps.append(x)
            x = self._run(self._steps[number], x)
        return (*maps, x)

    def _run(self, step: Step, x: Tensor) -> Tensor:
        return (self.get_submodule(step) if isinstance(step, str) else step)(x)


class StagedNet(Backbone):
    """A network up to its last map, as a backbone; `pooled` is the mean over that map's positions.

    Parameters keep the network's own names, below `net`. The libraries' own ways do not give this: timm's
    `features_only` leaves out what follows the last block and renames parameters, and neither it nor torchvision's
    feature extraction has a second half that starts at a stage.

    Args:
        net: the network; what comes after its last map is taken off.
        name: of the network, for messages.
        method: of `net`, that gives its output.
        image_size: side of the square input, px.
        levels: the maps to give: a stride, such as 16, stands for the last map of it that the network makes, and the
            name of a stage for that stage's own.
        input: the images that it is made for.

    Raises:
        BadInput: it is no chain, has no map of such a stride, or the image does not fit.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        method: str,
        image_size: int,
        levels: Sequence[int | str],
        input: InputRecord,
    ) -> None:
        super().__init__(input)
        check(bool(levels), f"model.backbone.levels must name at least one stride, such as [32], not {levels}")
        self.net = net
        steps = _chain(net, method, name)
        steps = self._taken_apart(steps, self._shapes(steps, input.size, name))
        shapes = self._shapes(steps, input.size, name)
        ends = [
            number for number, shape in enumerate(shapes) if number and len(shape) == 4 and shape[2] == shape[3] > 1
        ]
        check(bool(ends), f"model.backbone.name={name}: gives no feature map")
        steps = steps[: ends[-1]]
        for child, _ in list(net.named_children()):
            if not any(f"{step}.".startswith(f"net.{child}.") for step in steps):
                delattr(net, child)

        self._add_stages(steps, root="net.")
        strides: dict[int | str, int] = {2 ** _halvings(shapes[0], shapes[number]): number for number in ends}
        stages: dict[int | str, int] = {stage: self._end(stage) for stage in self.stages if self._end(stage) in ends}
        check(
            set(levels) <= {*strides, *stages},
            f"model.backbone.levels={list(levels)}: {name} has maps of stride {', '.join(map(str, strides))} and of "
            f"the stages {', '.join(map(str, stages))}",
        )
        self._map_ends = sorted({(strides | stages)[level] for level in levels})
        if image_size != input.size:
            shapes = self._shapes(steps, image_size, name)
        maps = tuple(MapShape(*shapes[number][1:]) for number in self._map_ends)
        self.feature_shape = FeatureShape(maps, pooled=shapes[ends[-1]][1])
        self._steps.append(_mean)

    def _shapes(self, steps: Sequence[Step], image_size: int, name: str) -> list[Shape]:
        """The shapes of one image and of what each step makes of it; leaves the network in training mode."""
        x = torch.zeros(1, 3, image_size, image_size)
        shapes = [tuple(x.shape)]
        self.net.eval()
        try:
            with torch.no_grad():
                for step in steps:
                    x = self._run(step, x)
                    shapes.append(tuple(x.shape))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise BadInput(f"image_size={image_size} does not fit {name}: {reason}; {self.input.size} does") from error
        self.net.train()
        return shapes

    def _taken_apart(self, steps: Sequence[Step], shapes: list[Shape]) -> list[Step]:
        """The steps, with the children of each Sequential that halves its map three times: it holds several stages."""
        parts: list[Step] = []
        for step, (before, after) in zip(steps, pairwise(shapes), strict=True):
            module = self.get_submodule(step) if isinstance(step, str) else None
            is_large = len(after) == 4 and after[2] > 1 and _halvings(before, after) >= 3
            children = module.named_children() if type(module) is nn.Sequential and is_large else ()
            parts += [f"{step}.{child}" for child, _ in children] or [step]
        return parts


def _mean(maps: Tensor) -> Tensor:
    return maps.mean((2, 3))


def _halvings(before: Shape, after: Shape) -> int:
    """How often a map became half as high, to the nearest: networks without padding lose a row or two."""
    return round(math.log2(before[2] / after[2]))


class _Tracer(fx.Tracer):
    """Follows an image through a method of a network, but not into its modules."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _chain(net: nn.Module, method: str, name: str) -> list[Step]:
    """The steps from image to output, each of which reads what the one before gives and nothing else.

    Raises:
        BadInput: the network branches outside of its modules.
    """
    no_chain = f"model.backbone.name={name} is not a chain of modules, as a backbone must be; resnet18 is one"
    try:
        before, *nodes, output = _Tracer(method).trace(net).nodes
    except Exception as error:  # whatever the network's code raises when it is given no tensor
        raise BadInput(no_chain) from error
    for node in (*nodes, output):
        check(node.all_input_nodes == [before] and node.args[:1] == (before,), no_chain)
        before = node
    return [f"net.{node.target}" if node.op == "call_module" else _function(node) for node in nodes]


def _function(node: fx.Node) -> Callable[[Tensor], Tensor]:
    function: Any = getattr(Tensor, str(node.target)) if node.op == "call_method" else node.target
    rest, options = node.args[1:], node.kwargs
    return lambda x: function(x, *rest, **options)
