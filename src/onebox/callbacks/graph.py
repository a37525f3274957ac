"""The network as a graph of what is computed."""

import inspect
from collections import Counter
from typing import Any

import torch
from lightning.pytorch import Callback
from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from onebox.callbacks.events import writers


class NetworkGraph(Callback):
    """Writes TensorBoard's graph of the network: what is computed of one black image in evaluation mode."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == 0 and writers(trainer):
            size = trainer.datamodule.image_size
            image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=pl_module.device)
            with trainer.precision_plugin.forward_context():
                graph = network_graph(pl_module.localizer, image)
            for writer in writers(trainer):
                writer._get_file_writer().add_event(Event(graph_def=graph.SerializeToString()), 0)


def network_graph(net: nn.Module, image: Tensor) -> GraphDef:
    """Each operation between `image` and what `net` gives, in the module whose method calls it; nothing is compiled."""
    modes = [(module, module.training) for module in net.modules()]
    recorder = Recorder(net, image)
    try:
        net.eval()
        with torch.no_grad(), recorder:
            net(image)
    finally:
        for module, is_training in modes:
            module.training = is_training
    return recorder.graph


class Recorder(TorchFunctionMode):
    """Notes each operation of `net` on tensors that come from `image` as a node of `graph`."""

    def __init__(self, net: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.graph = GraphDef()
        self._scopes = {module: name.replace(".", "/") + "/" for name, module in net.named_modules() if name}
        self._net = net
        self._counts: Counter[str] = Counter()
        self._sources: dict[int, tuple[str, Tensor]] = {}  # by a tensor's id: its node, and itself, to keep the id
        self._note("images", [], [image])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        inputs = [self._sources[id(leaf)][0] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._sources]
        is_idle = bool(args) and result is args[0] and not func.__name__.endswith("_")  # as float() of what is float
        if made and inputs and func.__name__ != "__get__" and not is_idle:
            self._note(self._scope() + func.__name__.strip("_"), inputs, made)
        return result

    def _scope(self) -> str:
        """The module that is at work; of the network itself, its method, unless that is private or `forward`."""
        frame = inspect.currentframe()
        while frame := frame and frame.f_back:
            caller = frame.f_locals.get("self")
            if isinstance(caller, nn.Module) and caller in self._scopes:
                return self._scopes[caller]
            if caller is self._net:
                name = frame.f_code.co_name
                return "" if name == "forward" or name.startswith("_") else f"{name}/"
        return ""

    def _note(self, name: str, inputs: list[str], made: list[Tensor]) -> None:
        operation = name.rpartition("/")[2]
        self._counts[name] += 1
        name += f"_{self._counts[name]}" * (self._counts[name] > 1)
        shapes = [TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in one.shape]) for one in made]
        about = {"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes))}
        self.graph.node.append(NodeDef(name=name, op=operation, input=inputs, attr=about))
        self._sources |= {id(one): (name, one) for one in made}
