"""Follow the noise through a VAE's own forward: a torch function mode that puts u in the place of a Gaussian draw.

The draw returns u, and the call that makes z, known by its place among the calls that touch
the noise, gives z and its scale dz/du. With a latent given, that one takes z's place instead.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vae2aef.errors import WrapError
from vae2aef.tracing.calls import blank, moments, plain_name, tensors

GAUSSIAN = {torch.randn, torch.randn_like, torch.normal, torch.Tensor.normal_}
NOT_GAUSSIAN = {
    torch.rand, torch.rand_like, torch.Tensor.uniform_, torch.randint, torch.randint_like, torch.randperm,
    torch.Tensor.random_, torch.bernoulli, torch.Tensor.bernoulli, torch.Tensor.bernoulli_, torch.Tensor.exponential_,
    torch.Tensor.cauchy_, torch.Tensor.log_normal_, torch.Tensor.geometric_, torch.multinomial,
    torch.Tensor.multinomial, torch.poisson, torch.binomial, torch._standard_gamma, torch._sample_dirichlet,
    F.gumbel_softmax, torch.nn.init.normal_,
}  # fmt: skip
DRAWS = GAUSSIAN | NOT_GAUSSIAN
_DATA: Any = torch.Tensor.data  # a property, though torch says that it is a tensor
DETACH = {torch.Tensor.detach, _DATA.__get__, torch.detach}


class LatentCall(NamedTuple):
    """Which call makes z.

    Attributes:
        calls: the calls that touch the noise, by name, from the first after the draw to that one.
        draws: all random draws of a pass, by name; those beside z's have no part in the mean of the data.
        place: which of them is the noise of z.
    """

    calls: tuple[str, ...]
    draws: tuple[str, ...] = ()
    place: int = 0

    @property
    def name(self) -> str:
        """The function that makes z."""
        return self.calls[-1]


class Follow(TorchFunctionMode):
    """One pass of a VAE's forward with u in the place of its draw.

    Args:
        u: what the draw is to return, shape `(batch, *latent)`; None for zeros of the shape that is asked for.
        latent_call: which call makes z.
        replacement: put these latents, `(batch, *latent)`, in the place of z.
        floor: of the scale; where dz/du is below it, z is moved to loc + floor * u.

    Attributes:
        drew: whether forward has drawn.
        done: whether z was reached; only then are there z and scale.
        u: what the draw returned, `(batch, *latent)`.
        z: latents, `(batch, *latent)`.
        scale: dz/du, `(batch, *latent)`; with gradients if gradients are on. Not there with a replacement.
        low: whether some of it was below the floor, or below 0.
    """

    u: Tensor
    z: Tensor
    scale: Tensor
    noise: Tensor

    def __init__(
        self,
        u: Tensor | None,
        latent_call: LatentCall | None,
        replacement: Tensor | None = None,
        floor: float = 0.0,
    ) -> None:
        super().__init__()
        self.floor = floor
        if u is not None and not (u.requires_grad and torch.is_grad_enabled()):
            u = u.detach().clone().requires_grad_()  # of its own: a view made without gradients cannot be followed
        self.given, self.latent_call, self.replacement = u, latent_call, replacement
        self.grad = torch.is_grad_enabled()
        self.drew = self.done = self.low = False
        self.count = self.drawn = 0
        # Kept alive, so that an id stays that of one tensor.
        self.touched: dict[int, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Intercept one call of a torch function."""
        kwargs = kwargs or {}
        if func in DRAWS:
            return self.draw(func, args, kwargs)
        if not self.drew or self.done:
            return func(*args, **kwargs)
        return self.step(func, args, kwargs)

    def draw(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Answer a random draw: with u, if it is the noise of z; those that the mean does not depend on are made."""
        known = self.latent_call or LatentCall((), (func.__name__,))
        here, self.drawn = self.drawn, self.drawn + 1
        if known.draws[here : here + 1] != (func.__name__,):
            raise WrapError(
                f"forward draws noise again, by {func.__name__}, or elsewhere: when it was wrapped, it drew by "
                f"{' and '.join(known.draws)} alone. ",
                "Wrap it anew if it was changed",
            )
        return self.substitute(func, args, kwargs) if here == known.place else func(*args, **kwargs)

    def substitute(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        """Return u in the shape and type that was asked for, and start to follow it."""
        asked = blank(func, args, kwargs)
        self.u = self.fresh(asked).requires_grad_() if self.given is None else self.given
        if self.u.shape != asked.shape:
            raise WrapError(f"forward draws noise of shape {tuple(asked.shape)}, but u has {tuple(self.u.shape)}")
        with torch.enable_grad():
            noise = self.u.to(asked).clone()
            mean, std = moments(func, args, kwargs)
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
        args, kwargs, hit = self.with_noise(args, kwargs)
        if not hit:
            return func(*args, **kwargs)
        with torch.enable_grad():
            result = func(*args, **kwargs)
        made = tensors(result)
        if not made or func in DETACH:
            return result
        self.count += 1
        self.touched.update((id(t), t) for t in made)
        return result if self.latent_call is None else self.compare(self.latent_call, func, args, result)

    def with_noise(self, args: tuple, kwargs: dict) -> tuple[tuple, dict, bool]:
        """Put the noise in the place of detached aliases of the draw; say whether the arguments hold it."""
        hit = alias = False
        for t in tensors((args, kwargs)):
            if id(t) in self.touched:
                hit = True
            elif self.drew and self._is_alias(t):
                hit = alias = True
        if alias:
            args, kwargs = self._swap(args), self._swap(kwargs)
        return args, kwargs, hit

    def compare(self, latent_call: LatentCall, func: Any, args: tuple, result: Any) -> Any:
        """Compare a call with the one that stood there when it was wrapped; at the last one, z is reached."""
        expected, name = latent_call.calls[self.count - 1], plain_name(func)
        if name != expected or (self.count == len(latent_call.calls) and not isinstance(result, Tensor)):
            raise WrapError(
                f"forward takes another path than when it was wrapped: after the draw came {expected}, now {name}. ",
                "Wrap it anew if it was changed; describe a VAE with branches by encoder=, decoder=, encoder_scale=",
            )
        return self.arrive(args, result) if self.count == len(latent_call.calls) else result

    def arrive(self, args: tuple, result: Tensor) -> Tensor:
        """Take z and its scale from the call that makes z, or put the replacement there."""
        in_place = bool(args) and result is args[0]
        if self.replacement is not None:
            self.z, self.done = self.replacement, True
            new = self.replacement.to(result)
            # A copy: the decoder may begin with an operation in place.
            return result.detach_().copy_(new) if in_place else new.clone()
        one = torch.ones_like(result)
        (self.scale,) = torch.autograd.grad(result, self.u, one, create_graph=self.grad, retain_graph=True)
        result = self._lift(result, in_place)
        if not self.grad:
            result = result.detach_() if in_place else result.detach()
        self.z, self.done = result.clone(), True
        return result

    def _lift(self, result: Tensor, in_place: bool) -> Tensor:
        """Give z and its scale the floor, where dz/du is below it."""
        low = self.scale < self.floor
        self.low = bool(low.any())
        if not self.low:  # nothing more to look at
            return result
        low = low & (self.scale >= 0)
        more = torch.where(low, (self.floor - self.scale) * self.u, 0.0).to(result.dtype)
        self.scale = torch.where(low, self.floor, self.scale)
        return result.add_(more) if in_place else result + more

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
