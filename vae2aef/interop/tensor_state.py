"""Tensors of a plain object (a distribution, a transform), kept by a module so that `.to()` and `state_dict` work."""

from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.errors import WrapError


class TensorState(nn.Module):
    """Keeps tensors under names: leaves that require gradients as parameters, all others as buffers.

    An `nn.Parameter` is kept itself, so an optimizer that has it already goes on training it. Another leaf tensor
    that requires gradients becomes a parameter over the same memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, torch.Size] = {}

    def keep(self, name: str, value: Tensor, owner: str) -> None:
        """Keep `value` under `name`.

        Args:
            name: an attribute of the object it comes from.
            value: any shape.
            owner: what the object is, for the error.

        Raises:
            WrapError: if `value` was computed from parameters, so that it would go stale when they are trained.
        """
        self.shapes[name] = value.shape
        if not value.requires_grad:
            self.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))
            return
        leaf = value if value.is_leaf else _only_leaf(value)
        if leaf is None:
            raise WrapError(
                f"`{name}` of {owner} was computed from parameters when the object was made, and would not follow "
                "them in training. ",
                "Pass a module instead that builds the object in its forward: for a prior, one with log_prob(z) and "
                "sample(n)",
            )
        self.register_parameter(name, leaf if isinstance(leaf, nn.Parameter) else nn.Parameter(leaf.detach()))

    def kept(self, name: str) -> Tensor:
        """Return what is kept under `name`, in the shape it came in."""
        value = getattr(self, name)
        return value if value.shape == self.shapes[name] else value.expand(self.shapes[name])


def _only_leaf(value: Tensor) -> Tensor | None:
    """The one leaf that `value` is an expanded view of, or a normalised (log) probability vector of; else None."""
    leaves: dict[int, Tensor] = {}
    todo, seen = [value.grad_fn], set()
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        todo += [following for following, _ in node.next_functions]
    if len(leaves) != 1:
        return None
    leaf = next(iter(leaves.values()))
    try:
        candidates = [leaf.expand(value.shape)]
    except RuntimeError:
        return None
    if leaf.dim():  # Categorical normalises what it is given, and does so again when it is rebuilt
        candidates += [leaf - leaf.logsumexp(-1, keepdim=True), leaf / leaf.sum(-1, keepdim=True)]
    return leaf if any(c.shape == value.shape and torch.equal(c, value) for c in candidates) else None
