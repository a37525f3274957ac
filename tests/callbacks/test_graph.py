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
