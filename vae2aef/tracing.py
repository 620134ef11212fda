"""Follow the noise through a VAE's own forward: torch function modes that put u in the place of a Gaussian draw.

`Follow` runs one pass: the draw returns u, and the call that makes z, known by its place among the calls that touch
the noise, gives z and its scale dz/du. With a latent given, that one takes z's place instead. `Record` watches a
whole pass as a graph of calls; `vae2aef.traced` decides from it, once, which call makes z.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vae2aef.errors import WrapError

GAUSSIAN = {torch.randn, torch.randn_like, torch.normal, torch.Tensor.normal_}
NOT_GAUSSIAN = {
    torch.rand, torch.rand_like, torch.Tensor.uniform_, torch.randint, torch.randint_like, torch.randperm,
    torch.Tensor.random_, torch.bernoulli, torch.Tensor.bernoulli, torch.Tensor.bernoulli_, torch.Tensor.exponential_,
    torch.Tensor.cauchy_, torch.Tensor.log_normal_, torch.Tensor.geometric_, torch.multinomial,
    torch.Tensor.multinomial, torch.poisson, torch.binomial, torch._standard_gamma, torch._sample_dirichlet,
    F.gumbel_softmax, torch.nn.init.normal_,
}  # fmt: skip
DRAWS = GAUSSIAN | NOT_GAUSSIAN
DETACH = {torch.Tensor.detach, torch.Tensor.data.__get__, torch.detach}  # type: ignore[attr-defined]


class Site(NamedTuple):
    """Which call makes z: the `call`-th one that touches the noise, a function called `name`."""

    call: int
    name: str


class Draw(NamedTuple):
    """A call of a random function: what it was, what shape came, and whether gradients were on."""

    name: str
    shape: tuple[int, ...]
    grad: bool
    gaussian: bool

    def __str__(self) -> str:
        return f"{self.name} of shape {self.shape}" + ("" if self.grad else ", gradients off")


class Follow(TorchFunctionMode):
    """One pass of a VAE's forward with u in the place of its draw.

    Args:
        u: what the draw is to return, shape `(batch, *latent)`; None for zeros of the shape that is asked for.
        site: which call makes z.
        replacement: put these latents, `(batch, *latent)`, in the place of z.

    Attributes:
        drew: whether forward has drawn.
        done: whether z was reached; only then are there z and scale.
        u: what the draw returned, `(batch, *latent)`.
        z: latents, `(batch, *latent)`.
        scale: dz/du, `(batch, *latent)`; with gradients if gradients are on. Not there with a replacement.
    """

    u: Tensor
    z: Tensor
    scale: Tensor
    noise: Tensor

    def __init__(self, u: Tensor | None, site: Site | None, replacement: Tensor | None = None) -> None:
        super().__init__()
        if u is not None and not u.requires_grad:
            u = u.detach().requires_grad_()
        self.given, self.site, self.replacement = u, site, replacement
        self.grad = torch.is_grad_enabled()
        self.drew = self.done = False
        self.count = 0
        # Kept alive, so that an id stays that of one tensor.
        self.touched: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Intercept one call of a torch function."""
        kwargs = kwargs or {}
        if func in DRAWS:
            return self.draw(func, args, kwargs)
        if not self.drew or self.done:
            return func(*args, **kwargs)
        return self.step(func, args, kwargs)

    def draw(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Answer a random draw."""
        if self.drew or func not in GAUSSIAN:
            raise WrapError(
                f"forward draws noise again, by {func.__name__}; it drew once when it was wrapped. Wrap it anew if "
                "it was changed"
            )
        return self.substitute(func, args, kwargs)

    def substitute(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        """Return u in the shape and type that was asked for, and start to follow it."""
        asked = _blank(func, args, kwargs)
        self.u = self.fresh(asked).requires_grad_() if self.given is None else self.given
        if self.u.shape != asked.shape:
            raise WrapError(f"forward draws noise of shape {tuple(asked.shape)}, but u has {tuple(self.u.shape)}")
        with torch.enable_grad():
            noise = self.u.to(asked).clone()
            mean, std = _moments(func, args, kwargs)
            if not (isinstance(std, float) and std == 1.0):
                noise = noise * std
            if not (isinstance(mean, float) and mean == 0.0):
                noise = noise + mean
            if func is torch.Tensor.normal_ or kwargs.get("out") is not None:
                asked.requires_grad_(False).copy_(noise)
                noise = asked
        self.noise, self.drew = noise, True
        self.touched[id(noise)] = noise
        return noise

    def fresh(self, asked: Tensor) -> Tensor:
        """Make u when none was given."""
        return torch.zeros_like(asked)

    def step(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Make one call between the draw and z."""
        args, kwargs, hit = self.look(args, kwargs)
        if not hit:
            return func(*args, **kwargs)
        with torch.enable_grad():
            result = func(*args, **kwargs)
        made = tensors(result)
        if not made or func in DETACH:
            return result
        self.count += 1
        self.touched.update((id(t), t) for t in made)
        if self.site is not None and self.count == self.site.call:
            return self.arrive(func, args, result)
        return result

    def look(self, args: tuple, kwargs: dict) -> tuple[tuple, dict, bool]:
        """Say whether the arguments hold the noise; put it in the place of detached aliases of the draw."""
        hit = alias = False
        for t in tensors((args, kwargs)):
            if id(t) in self.touched:
                hit = True
            elif self.drew and self._is_alias(t):
                hit = alias = True
        if alias:
            args, kwargs = self._swap(args), self._swap(kwargs)
        return args, kwargs, hit

    def arrive(self, func: Any, args: tuple, result: Any) -> Any:
        """Take z and its scale from the call that makes z, or put the replacement there."""
        if not isinstance(result, Tensor) or plain_name(func) != self.site.name:  # type: ignore[union-attr]
            raise WrapError(
                f"forward takes another path than when it was wrapped: z was made by {self.site.name}, "  # type: ignore[union-attr]
                f"now {plain_name(func)} stands there. A VAE with branches must be described: encoder=, decoder="
            )
        in_place = bool(args) and result is args[0]
        if self.replacement is not None:
            self.z, self.done = self.replacement, True
            new = self.replacement.to(result)
            # A copy: the decoder may begin with an operation in place.
            return result.detach_().copy_(new) if in_place else new.clone()
        one = torch.ones_like(result)
        (self.scale,) = torch.autograd.grad(result, self.u, one, create_graph=self.grad, retain_graph=True)
        if not self.grad:
            result = result.detach_() if in_place else result.detach()
        self.z, self.done = result.clone(), True
        return result

    def _is_alias(self, t: Tensor) -> bool:
        """Whether `t` is the draw in another object, cut from the graph: by `Variable(...)`, `.data`, `.detach()`."""
        noise = self.noise
        if t.requires_grad or t.shape != noise.shape:
            return False
        return t.data_ptr() == noise.data_ptr() and t.stride() == noise.stride()

    def _swap(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.noise if id(value) not in self.touched and self._is_alias(value) else value
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return type(value)(self._swap(item) for item in value)
        if isinstance(value, dict):
            return {key: self._swap(item) for key, item in value.items()}
        return value


class Record(Follow):
    """One pass watched as a graph: which calls the data, the noise and their descendants go through.

    Args:
        u: what the first Gaussian draw is to return, or None for fresh noise of the shape that is asked for.
        x: the data, exactly the tensor handed to forward.

    Attributes:
        draws: every random draw.
        parents: for each node the nodes it was made from; node 0 is the data.
        source: the node of the substituted draw, None before it.
        affine: nodes that are elementwise affine in the noise, proved from the calls: {node: call index}.
        breaks: nodes made by calls that are not elementwise affine in the noise, {node: name}, for the error.
        calls: names of the calls that touch the noise, the first has index 1.
        grad_off: indices of those made with gradients off.
        values: what the affine ones returned, by index.
        losses: nodes that went into a loss, by its function's name.
    """

    LOSSES = frozenset({"binary_cross_entropy_with_logits", "cross_entropy", "nll_loss", "poisson_nll_loss"})

    def __init__(self, u: Tensor | None, x: Tensor) -> None:
        super().__init__(u, None)
        self.draws: list[Draw] = []
        self.parents: list[set[int]] = [set()]
        self.nodes: dict[int, int] = {id(x): 0}
        self.alive: list[Tensor] = [x]
        self.source: int | None = None
        self.affine: dict[int, int] = {}
        self.breaks: dict[int, str] = {}
        self.calls: list[str] = []
        self.grad_off: set[int] = set()
        self.values: dict[int, Tensor] = {}
        self.losses: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Make one call and note it."""
        kwargs = kwargs or {}
        if func in DRAWS:
            return self.draw(func, args, kwargs)
        args, kwargs, hit = self.look(args, kwargs)
        result = func(*args, **kwargs)
        made = [args[0]] if func is torch.Tensor.__setitem__ else tensors(result)
        if not made or func in DETACH:
            self.note(func, made, _values(func, args, kwargs), noisy=False)
            return result
        if hit:
            self.count += 1
            self.calls.append(plain_name(func))
            if not torch.is_grad_enabled():
                self.grad_off.add(self.count)
        self.note(func, made, _values(func, args, kwargs), noisy=hit)
        if hit:
            self.touched.update((id(t), t) for t in made)
        return result

    def fresh(self, asked: Tensor) -> Tensor:
        """Make u when none was given."""
        return torch.randn_like(asked)

    def draw(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """List the draw; substitute the first Gaussian one."""
        gaussian = func in GAUSSIAN
        if gaussian and self.source is None:
            operands = [t for t in tensors((args, kwargs)) if t.requires_grad or id(t) in self.nodes]
            # torch.normal(mean, std) of the encoder's outputs passes no gradient to them.
            blind = func is torch.normal and bool(operands)
            result = func(*args, **kwargs) if blind else self.substitute(func, args, kwargs)
            grad = torch.is_grad_enabled() and not blind
            self.source = self.node(result, set())
            self.affine[self.source] = 0
        else:
            result, grad = func(*args, **kwargs), torch.is_grad_enabled()
        self.draws.append(Draw(func.__name__, tuple(tensors(result)[0].shape), grad, gaussian))
        return result

    def node(self, t: Tensor, parents: set[int]) -> int:
        """Add a node for a new tensor, or for the new value of a tensor changed in place."""
        self.parents.append(parents)
        self.nodes[id(t)] = len(self.parents) - 1
        self.alive.append(t)
        return len(self.parents) - 1

    def note(self, func: Any, made: list[Tensor], operands: list[Tensor], noisy: bool) -> None:
        """Note one call."""
        name = plain_name(func)
        known = [self.nodes[id(t)] for t in operands if id(t) in self.nodes]
        if not known:
            return
        if name in self.LOSSES and id(operands[0]) in self.nodes:
            self.losses[name] = self.nodes[id(operands[0])]
        diagonal = noisy and len(made) == 1 and self._is_affine(name, operands, made[0])
        for t in made:
            new = self.node(t, set(known))
            if diagonal:
                self.affine[new] = self.count
                self.values[self.count] = t.detach().clone()
            elif noisy:
                self.breaks[new] = name

    def reaches(self, node: int, avoiding: int | None = None) -> set[int]:
        """Return all nodes that `node` was made from, itself included, on ways that avoid one node."""
        seen: set[int] = set()
        stack = [node]
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
        if name in ("add", "sub", "rsub", "neg", *COPIES):
            return True
        if name == "mul":
            return sum(affine) == 1
        if name == "div":
            return affine[0] and not any(affine[1:])
        return name == "addcmul" and sum(affine[1:]) <= 1


# Functions that return the values they were given; with the same shape, in the same places.
COPIES = {
    "clone", "contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda",
    "requires_grad", "view", "view_as", "reshape", "expand", "expand_as", "flatten", "squeeze",
}  # fmt: skip
SAME_NAME = {
    "multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "negative": "neg",
}  # fmt: skip


def plain_name(func: Any) -> str:
    """Return a function's name without its underscores, synonyms taken as one: `mul_`, `__imul__` are `mul`."""
    name = getattr(func, "__name__", type(func).__name__).strip("_")
    return SAME_NAME.get(name, name)


def tensors(value: Any) -> list[Tensor]:
    """List all tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors(item)]
    return []


def _values(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """List the tensors whose values, and not only shapes, a call uses."""
    name = getattr(func, "__name__", "")
    if name.endswith("_like") or name.startswith("new_") or name == "new":
        return []
    if name.endswith("_as") or name == "to":
        return tensors(args[:1])
    return tensors((args, kwargs))


def _blank(func: Any, args: tuple, kwargs: dict) -> Tensor:
    """Return a tensor such as the draw would, without drawing: torch's random state stays as it was."""
    if func is torch.Tensor.normal_:
        return args[0]
    kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
    if func is torch.randn:
        return torch.empty(*args, **kwargs)
    if func is torch.randn_like:
        return torch.empty_like(*args, **kwargs)
    mean, std = _moments(func, args, kwargs)
    size = kwargs.get("size", next((a for a in args if isinstance(a, (tuple, list))), None))
    if size is not None:
        return torch.empty(size, **{k: v for k, v in kwargs.items() if k not in ("size", "mean", "std")})
    return torch.empty_like(mean + std)


def _moments(func: Any, args: tuple, kwargs: dict) -> tuple[Any, Any]:
    """Mean and standard deviation that a draw asks for: floats or tensors."""
    if func not in (torch.normal, torch.Tensor.normal_):
        return 0.0, 1.0
    given = args[1:] if func is torch.Tensor.normal_ else args
    mean = given[0] if given else kwargs.get("mean", 0.0)
    std = given[1] if len(given) > 1 and not isinstance(given[1], (tuple, list)) else kwargs.get("std", 1.0)
    return (float(v) if isinstance(v, (int, float)) else v for v in (mean, std))  # type: ignore[return-value]
