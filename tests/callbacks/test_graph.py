"""The graph that TensorBoard shows."""

import torch
from torch import nn

from onebox.callbacks.graph import network_graph


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return images + self.norm(self.conv(images)).relu()


def test_each_operation_is_a_node_in_its_module_joined_to_what_it_takes():
    net = nn.Sequential(Residual(), nn.Dropout())
    net[0].norm.eval()
    state = torch.get_rng_state()
    graph = network_graph(net, torch.zeros(1, 3, 8, 8))
    nodes = {node.name: list(node.input) for node in graph.node}
    assert nodes["0/conv/conv2d"] == ["images"]
    assert nodes["0/norm/batch_norm"] == ["0/conv/conv2d"]
    assert nodes["0/add"] == ["images", "0/relu"]
    assert [dim.size for dim in graph.node[1].attr["_output_shapes"].list.shape[0].dim] == [1, 3, 8, 8]
    assert net.training and net[1].training and not net[0].norm.training  # as they were
    assert torch.equal(state, torch.get_rng_state())
    assert not net[0]._forward_hooks and not net[0]._forward_pre_hooks


class Coder(nn.Module):
    def decode(self, codes):
        return codes + 1


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.coder = nn.Conv2d(3, 4, 3), Coder()

    def normalise(self, images):
        return (images.float() - 0.5).mul_(2)

    def forward(self, images):
        return self.coder.decode(self.backbone(self.normalise(images)).float().mean((2, 3)))


def test_what_no_forward_does_stands_in_its_module_or_method_and_what_does_nothing_is_left_out():
    graph = network_graph(Whole(), torch.zeros(1, 3, 8, 8))
    names = ["images", "normalise/sub", "normalise/mul", "backbone/conv2d", "mean", "coder/add"]
    assert [node.name for node in graph.node] == names
    assert [list(node.input) for node in graph.node[1:]] == [[name] for name in names[:-1]]
