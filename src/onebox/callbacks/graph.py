"""The network as a graph of what is computed."""

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
    """Each operation between `image` and what `net` gives, in the module that calls it; nothing is compiled."""
    modes, scopes, hooks = [(module, module.training) for module in net.modules()], [""], []
    for name, module in net.named_modules():
        scope = name.replace(".", "/") + "/" * bool(name)
        hooks.append(module.register_forward_pre_hook(lambda *_, scope=scope: scopes.append(scope)))
        hooks.append(module.register_forward_hook(lambda *_: scopes.pop() and None, always_call=True))
    recorder = Recorder(image, scopes)
    try:
        net.eval()
        with torch.no_grad(), recorder:
            net(image)
    finally:
        for hook in hooks:
            hook.remove()
        for module, is_training in modes:
            module.training = is_training
    return recorder.graph


class Recorder(TorchFunctionMode):
    """Notes each operation on tensors that come from `image` as a node of `graph`, under the last of `scopes`."""

    def __init__(self, image: Tensor, scopes: list[str]) -> None:
        super().__init__()
        self.graph = GraphDef()
        self._scopes = scopes
        self._counts: Counter[str] = Counter()
        self._sources: dict[int, tuple[str, Tensor]] = {}  # by a tensor's id: its node, and itself, to keep the id
        self._note("images", [], [image])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        inputs = [self._sources[id(leaf)][0] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._sources]
        if made and inputs and func.__name__ != "__get__":
            self._note(func.__name__.strip("_"), inputs, made)
        return result

    def _note(self, operation: str, inputs: list[str], made: list[Tensor]) -> None:
        name = self._scopes[-1] + operation
        self._counts[name] += 1
        name += f"_{self._counts[name]}" * (self._counts[name] > 1)
        shapes = [TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in one.shape]) for one in made]
        about = {"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes))}
        self.graph.node.append(NodeDef(name=name, op=operation, input=inputs, attr=about))
        self._sources |= {id(one): (name, one) for one in made}
