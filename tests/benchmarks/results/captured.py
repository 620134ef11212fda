"""A step of training as one captured CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn


def captured(update: Callable[[], None], model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Warm up and capture `update`; return what replays it. Weights and optimizer begin anew afterwards.

    Args:
        update: a step without a look at values, its gradients zeroed in place and its optimizer `capturable`.
        model: whose weights the step changes.
        optimizer: whose state it changes.
    """
    weights = copy.deepcopy(model.state_dict())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            update()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(weights[name])
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
    return graph.replay
