"""Random forwards: what is traced is right at any weights, not only at those it was wrapped with."""

import pytest
import torch
import torch.nn.functional as F
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.tracing.proof import trace


def in_place_part(z: Tensor, loc: Tensor) -> Tensor:
    z = z.clone()
    z[:, 0] = loc[:, 0]
    return z


def without_gradients(z: Tensor, s: Tensor) -> Tensor:
    with torch.no_grad():
        return z * s


# What may happen to the noise on its way. `g` is a parameter that starts at zero: it hides what it multiplies at the
# weights that are wrapped. `m` is the identity to begin with.
STEPS = {
    "add": lambda z, v: z + v.loc,
    "add in place": lambda z, v: z.add_(v.loc),
    "scale": lambda z, v: z * v.s,
    "scale in place": lambda z, v: z.mul_(v.s),
    "divide": lambda z, v: z / v.s,
    "addcmul": lambda z, v: torch.addcmul(v.loc, v.s, z),
    "subtract": lambda z, v: z - v.loc,
    "negate": lambda z, v: -z,
    "from one": lambda z, v: 1 - z,
    "double": lambda z, v: z + z,
    "times three": lambda z, v: 3 * z,
    "copy": lambda z, v: z.clone().view(len(z), -1).float().to(z),
    "add twice": lambda z, v: z * v.s + z * v.loc.exp(),
    "detached location": lambda z, v: z + v.loc.detach(),
    "hidden location": lambda z, v: z + v.g * v.loc,
    "hidden shift": lambda z, v: z + v.g,
    "hidden gate": lambda z, v: z * (1 + v.g * z.tanh()),
    "hidden divisor": lambda z, v: z / (1 + v.g * z),
    "hidden gate of data": lambda z, v: z * (1 + v.g * v.loc),
    "square": lambda z, v: z * z,
    "matrix": lambda z, v: z @ v.m,
    "roll": lambda z, v: z.roll(1, 1),
    "cut and join": lambda z, v: torch.cat([z[:, :2], z[:, 2:]], 1),
    "part in place": lambda z, v: in_place_part(z, v.loc),
    "relu far out": lambda z, v: F.relu(z + 50) - 50,
    "number from data": lambda z, v: z * (1 + v.x.mean().item()),
    "number from weights": lambda z, v: z * (1 + v.g.item()),
    "no gradients": lambda z, v: without_gradients(z, v.s),
    "second draw": lambda z, v: z + v.g * torch.randn_like(z),
    "second draw, wrapped": lambda z, v: z + v.g.detach() * torch.autograd.Variable(torch.randn_like(z)),
    "second draw in place": lambda z, v: z + v.g * torch.empty_like(z).normal_(),
    "sample around it": lambda z, v: torch.normal(z, 0.1),
    "mean of the batch": lambda z, v: z - z.mean(0),
    "detach": lambda z, v: z.detach(),
    "dropout": lambda z, v: F.dropout(z, 0.5, v.training),
}
ENDS = {
    "nothing": lambda out, v: out,
    "hidden skip": lambda out, v: out + v.g * v.x,
    "hidden noise": lambda out, v: out + v.g * v.noise.sum(1)[:, None, None, None],
    "sigmoid": lambda out, v: torch.sigmoid(out),
}


class Random(zoo.Base):
    def __init__(self, steps: list[str], end: str) -> None:
        super().__init__()
        self.steps, self.end = steps, end
        self.g = nn.Parameter(torch.zeros(()))
        self.m = nn.Parameter(torch.eye(zoo.LATENTS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.x = x
        self.loc, log_var = self.split(x)
        self.s = (0.5 * log_var).exp()
        self.noise = z = torch.randn_like(self.loc)
        for name in self.steps:
            z = STEPS[name](z, self)
        return ENDS[self.end](self.data(z), self), self.loc


@settings(max_examples=60)
@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4),
    end=st.sampled_from(sorted(ENDS)),
    seed=st.integers(0, 3),
)
def test_what_is_traced_is_right_at_any_weights(steps, end, seed):
    torch.manual_seed(seed)
    vae = Random(steps, end).double()
    x = zoo.example(vae)[0].double()
    try:
        parts = trace(vae, Batch(x))
    except WrapError:
        return
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.3 * torch.randn_like(p))
    vae.eval()
    u = torch.randn(len(x), *parts.latent_shape, dtype=torch.float64)
    once = parts.infer(x)  # the pass as a whole, with u in the place of its noise
    z, _ = once.push(u)
    posterior, decoded = once, once.decoded
    if not posterior.scale.isfinite().all():  # a scale that became negative is reported, not used
        return
    jacobian = torch.autograd.functional.jacobian(lambda u: parts.infer(x).push(u)[0], u)
    jacobian = jacobian.reshape(u.numel(), u.numel())
    torch.testing.assert_close(jacobian, torch.diag(posterior.scale.flatten()))
    torch.testing.assert_close(posterior.loc + posterior.scale * u, z)
    for data in (x, x.flip(0), torch.rand_like(x)):
        parts.placeholder, parts.lean = data[:1], False
        torch.testing.assert_close(parts.decode(z).mean, decoded.mean)


@pytest.mark.parametrize(
    ("steps", "end"),
    [
        (["scale", "add"], "nothing"), (["scale in place", "add in place"], "sigmoid"), (["addcmul"], "nothing"),
        (["double", "add twice", "detached location"], "nothing"), (["scale", "add", "matrix"], "nothing"),
        (["copy", "divide", "subtract", "roll", "square"], "nothing"), (["scale", "hidden location"], "nothing"),
    ],
    ids=str,
)  # fmt: skip
def test_these_are_traced(steps, end):
    """So that the test above is not true because all is refused."""
    torch.manual_seed(0)
    vae = Random(steps, end)
    assert trace(vae, Batch(zoo.example(vae)[0])).latent_shape == (zoo.LATENTS,)


@pytest.mark.parametrize(
    ("steps", "end"),
    [
        (["scale", "add", "roll", "hidden gate of data"], "nothing"),
        (["scale", "add"], "hidden skip"), (["scale", "add"], "hidden noise"), (["scale", "second draw"], "nothing"),
        (["scale", "second draw, wrapped"], "nothing"), (["scale", "second draw in place"], "nothing"),
        (["scale", "sample around it"], "nothing"),
        (["scale", "hidden gate", "add"], "nothing"), (["scale", "roll", "add"], "nothing"),
        (["scale", "hidden divisor", "add"], "nothing"),
        (["scale", "add", "detach"], "nothing"), (["no gradients", "add"], "nothing"),
        (["scale", "part in place"], "nothing"), (["scale", "mean of the batch", "add"], "nothing"),
    ],
    ids=str,
)  # fmt: skip
def test_these_are_refused(steps, end):
    torch.manual_seed(0)
    vae = Random(steps, end)
    with pytest.raises(WrapError, match="cannot be traced"):
        trace(vae, Batch(zoo.example(vae)[0]))


class Branching(zoo.Base):
    """Reads values into Python; one branch shows the decoder the data."""

    def __init__(self, read: str) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        loc, log_var = self.split(x)
        z = self.draw(torch.distributions.Normal(loc, 1.0).mean, log_var)  # whose checks are no branches of the user's
        out = self.data(z)
        if self.read == "bool" and x.max() > 2:
            out = out + x
        if self.read == "item" and z.mean().item() > 100:
            out = 2 * out
        if self.read == "is_nonzero" and torch.is_nonzero(z.mean() > 100):
            out = 2 * out
        assert self.gain > 0  # is of neither
        return out


@pytest.mark.parametrize("read", ["bool", "item", "is_nonzero", "nothing"])
def test_branches_that_the_example_does_not_take_are_followed_and_said(read):
    vae = Branching(read)
    vae.gain = nn.Parameter(torch.ones(()))
    (x,) = zoo.example(vae)
    parts = trace(vae, Batch(x))
    assert any(f"reads values into Python, by {read}:" in line for line in parts.assumed) == (read != "nothing")
    if read == "bool":
        z = torch.randn(len(x), zoo.LATENTS)
        torch.testing.assert_close(parts.follow(Batch(3 + x), replacement=z)[1].mean, vae.data(z) + 3 + x)


class RandomGradient(torch.autograd.Function):
    """The identity, whose gradient is drawn."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.rand(())


def test_gradients_that_are_random_in_training_alone_are_refused():
    class Drawn(zoo.Base):
        def data(self, z: Tensor) -> Tensor:
            out = super().data(z)
            return RandomGradient.apply(out) if self.training and drawn else out

    for drawn in (True, False):
        vae = Drawn()
        if drawn:
            with pytest.raises(WrapError, match="in training mode its gradients change with the random state"):
                trace(vae, Batch(zoo.example(vae)[0]))
        else:
            trace(vae, Batch(zoo.example(vae)[0]))
