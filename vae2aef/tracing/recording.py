"""Record one pass of a VAE's forward as a graph of calls: where data and noise go, what is affine in the noise.

`vae2aef.tracing.decide` decides from it, once, which call makes z and which output is the mean of the data.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.tracing.alive import Notes
from vae2aef.tracing.calls import TO_PYTHON, in_checkpoint, in_torch, plain_name, tensors, used_values
from vae2aef.tracing.noise import DETACH, DRAWS, GAUSSIAN, Follow

# Functions that return the values they were given; with the same shape, in the same places.
COPIES = {
    "clone", "contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda",
    "requires_grad", "view", "view_as", "reshape", "expand", "expand_as", "flatten", "squeeze",
}  # fmt: skip


# Functions that mix the values of a datum.
MIXING = {
    "linear", "bilinear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot", "conv1d", "conv2d",
    "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "gru", "lstm", "rnn_tanh", "rnn_relu",
    "embedding", "multi_head_attention_forward", "scaled_dot_product_attention",
}  # fmt: skip


class Draw(NamedTuple):
    """A call of a random function: what it was, what shape came, and whether gradients pass to its arguments."""

    name: str
    shape: tuple[int, ...]
    grad: bool
    gaussian: bool

    def __str__(self) -> str:
        return f"{self.name} of shape {self.shape}" + ("" if self.grad else ", without gradients to its arguments")


class Record(Follow):
    """One pass recorded as a graph: which calls the data, the noise and their descendants go through.

    Args:
        x: the data, exactly the tensor handed to forward.
        place: which draw is replaced by noise that is followed; None for the first Gaussian one.

    Attributes:
        draws: every random draw.
        draw_nodes: the node of each.
        mixing: nodes that went into a function that mixes the values of a datum, as weights do.
        place: which of them is followed, None before it.
        parents: for each node the nodes it was made from; node 0 is the data.
        source: the node of the substituted draw, None before it.
        affine: nodes that are elementwise affine in the noise, proved from the calls: {node: call index}.
        breaks: nodes made by calls that are not elementwise affine in the noise, {node: name}, for the error.
        calls: names of the calls that touch the noise, the first has index 1.
        grad_off: indices of those that pass no gradient to what the noise meets there, gradients being off.
        repeated: indices of those made inside `torch.utils.checkpoint`, which repeats them; 0 is the draw.
        values: what the affine ones returned, by index.
        shapes: of the nodes.
        losses: nodes that went into a loss, by its function's name.
        decided: functions by which the user's code has read values that depend on the data or on a draw.
    """

    touched: Notes
    LOSSES = frozenset(
        {"binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "nll_loss", "poisson_nll_loss"}
    )

    def __init__(self, x: Tensor, place: int | None = None) -> None:
        super().__init__(None, None)
        self.place = place
        self.draws: list[Draw] = []
        self.draw_nodes: list[int] = []
        self.drawn_at: dict[int, int] = {}
        self.mixing: set[int] = set()
        self.parents: list[set[int]] = [set()]
        self.nodes, self.touched = Notes(), Notes()
        self.nodes.note(x, 0)
        self.held: list[Tensor] = [x]
        self.shapes: list[torch.Size] = [x.shape]
        self.source: int | None = None
        self.affine: dict[int, int] = {}
        self.breaks: dict[int, str] = {}
        self.calls: list[str] = []
        self.grad_off: set[int] = set()
        self.repeated: set[int] = set()
        self.values: dict[int, Tensor] = {}
        self.losses: dict[str, int] = {}
        self.decided: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Make one call and note it."""
        kwargs = kwargs or {}
        if func in DRAWS:
            return self.draw(func, args, kwargs)
        args, kwargs, hit = self.with_noise(args, kwargs)
        result = func(*args, **kwargs)
        made = [args[0]] if func is torch.Tensor.__setitem__ else tensors(result)
        if plain_name(func) in TO_PYTHON and not in_torch() and any(map(self.seen, tensors((args, kwargs)))):
            self.decided.add(plain_name(func))
        if not made or func in DETACH:
            self.note(func, made, used_values(func, args, kwargs), noisy=False)
            return result
        if hit:
            self.count += 1
            self.calls.append(plain_name(func))
            if not torch.is_grad_enabled() and self._matters(args, kwargs):
                self.grad_off.add(self.count)
            if in_checkpoint():
                self.repeated.add(self.count)
        self.note(func, made, used_values(func, args, kwargs), noisy=hit)
        if hit:
            self.touch(made)
        return result

    def touch(self, made: list[Tensor]) -> None:
        """Note results that are made of the noise; those of its size, which may be latents, are kept."""
        for t in made:
            self.touched.note(t, t if t.numel() == self.noise.numel() else None)

    def fresh(self, asked: Tensor) -> Tensor:
        """Make u when none was given."""
        return torch.randn_like(asked)

    def draw(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """List the draw; substitute the one that is followed."""
        gaussian = func in GAUSSIAN
        here = len(self.draws)
        chosen = here == self.place if self.place is not None else gaussian
        # torch.normal(mean, std) of the encoder's outputs passes no gradient to them; constants need none.
        grad = not gaussian or func is not torch.normal or not self._matters(args, kwargs)
        if chosen and self.source is None:
            self.place = here
            result = self.substitute(func, args, kwargs) if grad else func(*args, **kwargs)
            self.source = node = self.node(result, set())
            self.affine[node] = 0
            if in_checkpoint():
                self.repeated.add(0)
        else:
            overwritten = func.__name__.endswith("_")
            parents = [self._known(t) for t in used_values(func, args[overwritten:], kwargs)]
            result = func(*args, **kwargs)
            node = self.node(tensors(result)[0], {parent for parent in parents if parent is not None})
            self.held.append(tensors(result)[0])  # so that no other tensor gets its place in memory
            self.drawn_at[tensors(result)[0].data_ptr()] = node
        self.draws.append(Draw(func.__name__, tuple(tensors(result)[0].shape), grad, gaussian))
        self.draw_nodes.append(node)
        return result

    def _matters(self, args: tuple, kwargs: dict) -> bool:
        """Whether an argument, other than the noise, depends on the data or on parameters."""
        others = [t for t in tensors((args, kwargs)) if id(t) not in self.touched]
        return any(t.requires_grad or id(t) in self.nodes for t in others)

    def node(self, t: Tensor, parents: set[int]) -> int:
        """Add a node for a new tensor, or for the new value of a tensor changed in place."""
        self.parents.append(parents)
        self.nodes.note(t, len(self.parents) - 1)
        self.shapes.append(t.shape)
        return len(self.parents) - 1

    def note(self, func: Any, made: list[Tensor], operands: list[Tensor], noisy: bool) -> None:
        """Note one call."""
        name = plain_name(func)
        known = [node for t in operands if (node := self._known(t)) is not None]
        if not known:
            return
        if name in self.LOSSES and id(operands[0]) in self.nodes:
            self.losses[name] = self.nodes[id(operands[0])]
        if name in MIXING:
            self.mixing.update(known)
        diagonal = noisy and len(made) == 1 and self._is_affine(name, operands, made[0])
        for t in made:
            new = self.node(t, set(known))
            if diagonal:
                self.affine[new] = self.count
                self.values[self.count] = t.detach().clone()
            elif noisy:
                self.breaks[new] = name

    def _known(self, t: Tensor) -> int | None:
        """Return the node of a tensor; an alias of a draw, as `Variable(...)` makes one, counts as the draw."""
        return self.nodes.get(id(t), self.drawn_at.get(t.data_ptr()) if self.drawn_at else None)

    def seen(self, t: Tensor) -> bool:
        """Whether a tensor depends on the data or on a draw."""
        return self._known(t) is not None

    def reaches(self, *nodes: int, avoiding: int | None = None) -> set[int]:
        """Return all nodes that some were made from, themselves included, on ways that avoid one node."""
        seen: set[int] = set()
        stack = list(nodes)
        while stack:
            n = stack.pop()
            if n not in seen and n != avoiding:
                seen.add(n)
                stack.extend(self.parents[n])
        return seen

    def _is_affine(self, name: str, operands: list[Tensor], made: Tensor) -> bool:
        """Whether a call is elementwise affine in the noise, given that it was before: by the function alone."""
        if not self.drew or made.shape != self.noise.shape:
            return False
        on_the_way = [id(t) in self.touched for t in operands]
        affine = [self.nodes.get(id(t)) in self.affine for t in operands]
        if any(touched and not a for touched, a in zip(on_the_way, affine, strict=True)):
            return False
        if any(t.shape != made.shape for t, a in zip(operands, affine, strict=True) if a):
            return False
        return _keeps_affine(name, affine)


def _keeps_affine(name: str, affine: list[bool]) -> bool:
    """Whether a function of operands, of which some are affine in the noise, is affine in it too."""
    if name in ("add", "sub", "rsub", "neg", *COPIES):
        return True
    if name == "mul":
        return sum(affine) == 1
    if name == "div":
        return affine[0] and not any(affine[1:])
    return name == "addcmul" and sum(affine[1:]) <= 1


class Known(Record):
    """One pass whose noise is known, whatever its gradients: of `Normal(loc, scale).sample()`, too.

    Args:
        x: the data, exactly the tensor handed to forward.
        u: what the first Gaussian draw is to return; None for fresh noise.
    """

    def __init__(self, x: Tensor, u: Tensor | None = None) -> None:
        super().__init__(x)
        self.given = u

    def draw(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """List the draw; substitute the first Gaussian one."""
        gaussian = func in GAUSSIAN
        first = gaussian and self.source is None
        result = self.substitute(func, args, kwargs) if first else func(*args, **kwargs)
        if first:
            self.place = len(self.draws)
            self.source = self.node(result, set())
            self.affine[self.source] = 0
        self.draws.append(Draw(func.__name__, tuple(tensors(result)[0].shape), True, gaussian))
        return result
