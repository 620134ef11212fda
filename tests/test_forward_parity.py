"""Whatever way the parts came, they are what the VAE's own forward does, or it is said or refused (issue 9)."""

import re
import time
import warnings
from typing import Any

import pytest
import torch
import zoo_wild
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo_core import shake
from zoo_wild import EVENT, LATENT, Plain

import vae2aef
from vae2aef.parts import CallableParts
from vae2aef.testing import check_jacobian
from vae2aef.tracing.parts import TracedParts

pytestmark = pytest.mark.usefixtures("float64")
AS_VAE = {"core": "noise", "core_flow": "none", "kl": "sampled", "likelihood": 1.0}


def data(rows: int = 6) -> Tensor:
    return torch.rand(rows, *EVENT)


def followed(said: Exception, vae: Any, example: Any, **options: Any) -> vae2aef.AEF:
    """Wrap as the last line of a message says: it is taken from the text, and run."""
    line = re.search(r"Pass (.*)$", str(said))
    assert line, said
    more = eval(f"dict({line[1]})", {"torch": torch, "vae": vae, "x": example, "vae2aef": vae2aef, "nn": nn})
    return vae2aef.wrap(more.pop("vae", vae), example=example, **{**options, **more})


def refused(vae: Any, match: str, example: Any = None, **options: Any) -> Exception:
    with pytest.raises(vae2aef.WrapError, match=match) as error:
        vae2aef.wrap(vae, example=data() if example is None else example, **options)
    return error.value


def same_as_forward(vae: Any, aef: vae2aef.AEF, x: Tensor) -> None:
    """With the same random seed, z and reconstruction are those of the VAE's own forward, at any weights."""
    for _ in range(3):
        vae.eval(), aef.eval()
        with torch.no_grad():
            loc, scale = vae.posterior(x)
            torch.manual_seed(5)
            out = vae(x)
            own = out["recon"] if isinstance(out, dict) else out[0]
            torch.manual_seed(5)
            u = torch.randn_like(loc)
            posterior = aef.parts.encode(x)
            torch.testing.assert_close(posterior.loc, loc, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(posterior.scale, scale, rtol=1e-6, atol=1e-6)
            z = posterior.push(u)[0]
            torch.testing.assert_close(aef.decode(z), own.view_as(x), rtol=1e-6, atol=1e-6)
            if isinstance(aef.parts, TracedParts):
                once = aef.parts.infer(x)
                torch.testing.assert_close(once.push(u)[0], z, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(once.decoded.mean.view_as(x), own.view_as(x), rtol=1e-6, atol=1e-6)
        shake(vae)


# ---------------------------------------------------------------------- trace before guess


@pytest.mark.parametrize("cls", zoo_wild.VARIANTS.values(), ids=zoo_wild.VARIANTS.keys())
@pytest.mark.parametrize("said", [None, "right"])
def test_what_forward_does_with_its_methods_is_read(cls, said):
    """By names five of these were taken wrongly in silence. Saying the scale turns tracing off no more."""
    vae, x = cls(), data()
    scale = None if said is None else "log_std" if cls is zoo_wild.Softplus else "log_var"
    aef = vae2aef.wrap(vae, example=x, encoder_scale=scale)
    assert isinstance(aef.parts, TracedParts)
    same_as_forward(vae, aef, x)
    z = torch.randn(4, LATENT)
    torch.testing.assert_close(aef.decode(z), vae.recon(z))
    if said and cls in (zoo_wild.Softplus, zoo_wild.Clamped):
        assert f'assumed: encoder_scale="{scale}" is not used: the scale is that of its own forward' in repr(aef)


@pytest.mark.remedy('encoder_scale="{}", but the forward of {} ta')
def test_a_word_that_contradicts_forward_is_refused():
    vae, x = Plain(), data()
    error = refused(vae, 'encoder_scale="log_std", but the forward of Plain takes', x, encoder_scale="log_std")
    assert error.fix == 'Pass encoder_scale="log_var"'
    same_as_forward(vae, followed(error, vae, x, encoder_scale="log_std"), x)
    refused(vae, "expected encoder_scale to be one of 'std'.*'sigma'", x, encoder_scale="sigma")


def test_what_only_forward_takes_does_not_go_to_encode_and_decode():
    vae, x = zoo_wild.Softplus(), data()
    same_as_forward(vae, vae2aef.wrap(vae, example=(x, {"step": 3})), x)

    class Noisy(zoo_wild.Softplus):
        """Draws twice, so that it cannot be traced."""

        def forward(self, x: Tensor, step: Tensor) -> Any:
            return super().forward(x + 0.1 * torch.randn_like(x))

        def reparameterize(self, mu: Tensor, logvar: Tensor, step: int = 0) -> Tensor:
            return super().reparameterize(mu, logvar)

    vae = Noisy()
    aef = vae2aef.wrap(vae, example=(x, torch.arange(6)), encoder_scale="log_var")
    assert "not compared with its forward: it draws 2 times" in repr(aef)
    assert aef(x, torch.arange(6)).isfinite()
    torch.testing.assert_close(aef.parts.encode(x, torch.arange(6)).loc, vae.body(x).chunk(2, 1)[0])
    assert aef.sample(6, torch.arange(6)).shape == x.shape


@pytest.mark.remedy("what is the decoder's second output")
@pytest.mark.parametrize("kind", ["std", "log_std", "var", "log_var"])
def test_the_decoders_second_output_is_what_it_is_said_to_be(kind):
    """A log variance of about 1.28 was read as a standard deviation."""

    class Both(zoo_wild.TwoOutputs):
        def forward(self, x: Tensor) -> Any:
            return self.decode(self.reparameterize(*self.encode(x)))

    vae, x = Both(), data()
    options = {"output": lambda out: out, **AS_VAE, "likelihood": "decoder"}
    error = refused(vae, r"what is the decoder's second output\? On the example it ranges from 1\.\d+ to", x, **options)
    assert kind in error.fix
    aef = vae2aef.wrap(vae, example=x, **options, decoder_scale=kind)
    z = torch.randn(6, LATENT)
    second = vae.decode(z)[1]
    scale = {"std": second, "log_std": second.exp(), "var": second.sqrt(), "log_var": (0.5 * second).exp()}[kind]
    torch.testing.assert_close(aef.parts.decode(z).scale, scale)


class Negative(zoo_wild.TwoOutputs):
    """Its second output is a log variance, and negative; without a forward."""

    forward = nn.Module.forward

    def decode(self, z: Tensor) -> Any:
        mean = self.tail(z)
        return mean, -0.1 * mean.square() - 1


class Described(Negative):
    """The same, whose adapter knows that."""


class DescribedParts(vae2aef.VAEParts):
    def __init__(self, vae: Described) -> None:
        self.vae = vae

    def encode(self, x: Tensor) -> vae2aef.Posterior:
        return vae2aef.Posterior(*self.vae.posterior(x))

    def decode(self, z: Tensor) -> vae2aef.Decoded:
        mean, log_var = self.vae.decode(z)
        return vae2aef.Decoded(mean, (0.5 * log_var).exp())


vae2aef.register_adapter(f"{Described.__module__}.Described")(lambda vae, x, **kwargs: DescribedParts(vae))


@pytest.mark.parametrize(
    ("cls", "said", "match"),
    [
        (Negative, "std", 'decoder_scale="std", but on the example .* is not positive'),
        (Described, "log_var", 'decoder_scale="log_var", but DescribedParts knows it to be a "std"'),
    ],
)
def test_the_lines_about_a_decoder_scale_work(cls, said, match):
    vae, x = cls(), data()
    options = {"encoder_scale": "log_var", "decoder_scale": said, "likelihood": "decoder"}
    aef = followed(refused(vae, match, x, **options), vae, x, **options)
    terms = aef(x, terms=True)
    mean, log_var = vae.decode(terms.z)
    expected = torch.distributions.Normal(mean, (0.5 * log_var).exp()).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(terms.residual, expected)


# ---------------------------------------------------------------------- forward parity


def given(vae: Any, **more: Any) -> dict[str, Any]:
    return {"encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var", **more}


def test_parts_that_are_given_are_compared():
    vae, x = Plain(), data()
    aef = vae2aef.wrap(vae, example=x, **given(vae))
    assert isinstance(aef.parts, CallableParts)
    assert "encoder and decoder: compared: of the same noise, its own forward makes this z and this output" in repr(aef)
    same_as_forward(vae, aef, x)


@pytest.mark.parametrize("kind", ["std", "log_std", "var"])
def test_a_wrong_scale_of_parts_that_are_given(kind):
    vae, x = Plain(), data()
    with torch.no_grad():
        vae.body[-1].bias[LATENT:] += 2  # so that all are possible
    error = refused(vae, f'encoder_scale="{kind}", but the forward of Plain', x, **given(vae, encoder_scale=kind))
    assert error.fix == 'Pass encoder_scale="log_var"'
    same_as_forward(vae, followed(error, vae, x, **given(vae, encoder_scale=kind)), x)


@pytest.mark.parametrize("cls", [c for c in zoo_wild.VARIANTS.values() if c not in (
    zoo_wild.EncodeDraws, zoo_wild.TwoInputs, zoo_wild.TwoOutputs, zoo_wild.LogitsOfDecode,
)], ids=lambda cls: cls.__name__)  # fmt: skip
def test_methods_given_that_forward_uses_otherwise_are_refused_and_the_line_works(cls):
    vae, x = cls(), data()
    error = refused(vae, "the forward of", x, **given(vae))
    assert error.fix == "Pass encoder=None, decoder=None, encoder_scale=None"
    same_as_forward(vae, followed(error, vae, x, **given(vae)), x)
    assert ("maps z = loc" in str(error)) == (cls in (zoo_wild.Projection, zoo_wild.FlowInside, zoo_wild.ScaledLatent))


@pytest.mark.remedy("of the same z, the forward of")
def test_another_function_of_the_same_output_is_no_mismatch():
    """Forward returns probabilities, and the user wants logits: the same z, the same meaning."""
    vae, x = zoo_wild.LogitsOfDecode(), data().round()
    aef = vae2aef.wrap(vae, example=x, **given(vae), likelihood="bernoulli_logits")
    assert "this z and this output" in repr(aef)
    other = given(vae, decoder=lambda z: vae.decode(-z))
    error = refused(vae, "returns another output than the decoder: off by up to", x, **other)
    followed(error, vae, x, **given(vae))


@pytest.mark.remedy("the forward of {} maps z = loc")
def test_a_posterior_flow_is_not_dropped():
    """By following our own advice, 1.44 nats of log-determinant were."""
    vae, x = zoo_wild.PlanarFlow(), data()
    for options in (given(vae), {"encoder_scale": "log_var"}, given(vae, encoder_scale="log_std")):
        error = refused(vae, "a posterior flow, or a projection, would be lost", x, **options)
        assert "vae2aef.Posterior(vae.encode(x)[0], (0.5 * vae.encode(x)[1]).exp(), vae.flow)" in error.fix
        aef = followed(error, vae, x, **{**options, "encoder_scale": None})
        same_as_forward(vae, aef, x)
        u = torch.randn(6, LATENT)
        loc, scale = vae.posterior(x)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda row: vae.flow(row[None])[0][0]))(loc + scale * u)
        torch.testing.assert_close(vae.flow(loc + scale * u)[1], jacobian.slogdet().logabsdet)
        expected = scale.log().sum(1) + vae.flow(loc + scale * u)[1]
        torch.testing.assert_close(aef.parts.encode(x).push(u)[1], expected)


def test_a_skip_connection_in_forward_is_named():
    """Found by their names, encode and decode were said to be another function, and could be wrapped without it."""

    class Skips(Plain):
        def forward(self, x: Tensor, label: Any = None) -> Any:
            out, mu, logvar = super().forward(x)
            return out + (0.1 * x if label is None else label), mu, logvar

    vae, x = Skips(), data()
    for options in ({}, {"encoder_scale": "log_var"}):
        error = refused(vae, "^the forward of Skips .* a decoder that sees the data beside z", x, **options)
        assert error.fix.startswith("Pass example=(x, c), if what it sees beside z is a condition c")
    assert vae2aef.wrap(vae, example=(x, torch.rand(6, 1, 5)))(x, torch.rand(6, 1, 5)).isfinite()
    error = refused(vae, "returns another output than the decoder", x, **given(vae))
    assert followed(error, vae, x, **given(vae))(x).isfinite()


class Untraceable(Plain):
    """Draws without gradients, which cannot be traced, and decodes something else than its methods say."""

    shift = 0.0

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return torch.distributions.Normal(mu, (0.5 * logvar).exp()).sample()

    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu + self.shift, logvar)), mu, logvar


@pytest.mark.remedy("of the same noise, the forward of")
def test_names_where_tracing_cannot_are_compared_all_the_same():
    vae, x = Untraceable(), data()
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_var")
    assert "this z and this output" in repr(aef)
    same_as_forward(vae, aef, x)
    error = refused(vae, 'treats the second output as "log_var"', x, encoder_scale="log_std")
    same_as_forward(vae, followed(error, vae, x), x)
    vae.shift = 0.3
    error = refused(vae, "the forward of Untraceable makes another z", x, encoder_scale="log_var")
    assert error.fix.endswith("Pass vae=torch.nn.ModuleList([vae]), encoder=vae.encode, decoder=vae.decode")
    aef = followed(error, vae, x, encoder_scale="log_var")
    torch.testing.assert_close(aef.parts.encode(x).loc, vae.encode(x)[0])


class Named(zoo_wild.NormalisedInput):
    """Its adapter has overlooked that forward normalises."""


@vae2aef.register_adapter(f"{Named.__module__}.Named")
def _adapt(vae: Named, x: Tensor, **kwargs: Any) -> CallableParts:
    return CallableParts(vae.encode, vae.decode, "log_var")


def test_an_adapter_that_does_not_read_what_forward_does():
    vae, x = Named(), data()
    error = refused(vae, "the forward of Named makes another z", x)
    assert error.fix == "Pass encoder=None, decoder=None, encoder_scale=None, output=lambda out: out[0]"
    same_as_forward(vae, followed(error, vae, x), x)


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (nn.Module.forward, "not compared with a forward, which it does not have"),
        (lambda self, x: self.decode(self.encode(x)[0]), "not compared with its forward: it draws no noise"),
        (lambda self, x, target: None, "not compared with its forward: it fails on the example with TypeError"),
        (lambda self, x: self.decode(torch.rand(6, LATENT)), "not compared with its forward: it draws 1 times"),
        (
            lambda self, x: nn.functional.dropout(Plain.forward(self, x)[0] + 1, 0.3, True),
            r"not compared with its forward: it draws|random beyond its draw",
        ),
    ],
)
def test_what_is_not_compared_is_said(forward, says):
    kind = type("Kind", (Plain,), {"forward": forward})
    vae = kind()
    aef = vae2aef.wrap(vae, example=data(), **given(vae))
    assert re.search(says, repr(aef)), repr(aef)


def test_noise_of_either_sign_and_an_output_of_either_order_are_the_same():
    class Turned(Plain):
        """Subtracts its noise; forward returns what falls where the decoder's output rises."""

        def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
            return mu - (0.5 * logvar).exp() * torch.randn_like(mu)

        def forward(self, x: Tensor) -> Any:
            out, mu, logvar = super().forward(x)
            return (-out).sigmoid(), mu, logvar

    vae = Turned()
    assert "makes this z and this output" in repr(vae2aef.wrap(vae, example=data(), **given(vae)))


def test_the_same_output_is_no_parity_where_it_says_nothing_of_z():
    class Constant(Plain):
        def decode(self, z: Tensor) -> Tensor:
            return self.tail(0 * z)

    class Steps(Plain):
        """Is flat around its latents, which its encoder puts at 2.2."""

        def encode(self, x: Tensor) -> Any:
            mu, logvar = super().encode(x)
            return 2.2 + 0.01 * mu, logvar - 12

        def decode(self, z: Tensor) -> Tensor:
            return self.tail((z / 5).round())

    vae = Constant()
    twice = lambda x: tuple(2 * t for t in vae.encode(x))  # noqa: E731
    refused(vae, "the forward of Constant makes another z", **given(vae, encoder=twice))
    vae = Steps()
    assert "this z and this output" in repr(vae2aef.wrap(vae, example=data(), **given(vae)))
    error = refused(vae, 'takes that output as "log_var"', **given(vae, encoder_scale="log_std"))
    assert error.fix == 'Pass encoder_scale="log_var"'


def test_flattened_data_are_compared_flattened():
    class Flat(Untraceable):
        shift = 0.3

        def __init__(self) -> None:
            super().__init__()
            self.body = self.body[1:]

        def posterior(self, x: Tensor) -> Any:
            return super().posterior(x.flatten(1))

        def forward(self, x: Tensor) -> Any:
            return super().forward(x.flatten(1))

    vae, x = Flat(), data()
    refused(vae, "the forward of Flat makes another z", x, encoder_scale="log_var")
    vae.shift = 0.0
    same_as_forward(vae, vae2aef.wrap(vae, example=x, encoder_scale="log_var"), x)


def test_what_output_makes_of_forward_is_compared_too():
    class Alone(Plain):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x)[0]

    vae, x = Alone(), data()
    aef = vae2aef.wrap(vae, example=x, **given(vae), output=torch.square)
    assert "this z and this output" in repr(aef)
    z = torch.randn(4, LATENT)
    torch.testing.assert_close(aef.decode(z), vae.decode(z).square())


def test_conditions_in_lists_are_compared_whole():
    class Named(Plain):
        def decode(self, z: Tensor, names: list[str]) -> Tensor:
            return self.tail(z) + torch.tensor([float(len(name)) for name in names])[:, None, None]

        def forward(self, x: Tensor, names: list[str]) -> Any:
            mu, logvar = self.encode(x)
            return self.decode(self.reparameterize(mu, logvar), names), mu, logvar

    vae, x = Named(), data(12)
    parts = {"encoder": lambda x, names: vae.encode(x), "decoder": vae.decode, "encoder_scale": "log_var"}
    aef = vae2aef.wrap(vae, example=(x, list("abcdefgh") + ["long"] * 4), **parts)
    assert "this z and this output" in repr(aef)


def test_one_scale_below_its_floor():
    """Traced, z had the raw scale and the log-determinant the floor: -27.6 against autograd's -30.2."""

    class Narrow(Plain):
        def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
            return mu + (0.5 * logvar - 16).exp() * torch.randn_like(mu)

    for in_place in (False, True):
        vae, x = Narrow(), data()
        if in_place:
            vae.reparameterize = lambda mu, v: torch.randn_like(mu).mul_((0.5 * v - 16).exp()).add_(mu)
        aef = vae2aef.wrap(vae, example=x, core="linear", core_flow="coupling").eval()
        assert isinstance(aef.parts, TracedParts)
        check_jacobian(aef, x)
        u = torch.randn(6, LATENT)
        once = aef.parts.infer(x)
        z, log_det = once.push(u)
        torch.testing.assert_close(log_det, torch.full((6,), 1e-6).log() * LATENT)
        torch.testing.assert_close(z - aef.parts.encode(x).loc, 1e-6 * u, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(once.decoded.mean, vae.tail(z))


def test_wrapping_stays_quick():
    vae, x = Plain(), data(64)
    vae2aef.wrap(vae, example=x)
    best = []
    for options in ({}, given(vae)):
        times = []
        for _ in range(3):
            start = time.process_time()
            vae2aef.wrap(vae, example=x, **options)
            times.append(time.process_time() - start)
        best.append(min(times))
    assert max(best) < 0.3, best  # of this process alone: a machine under load is no failure


# ---------------------------------------------------------------------- generated VAEs

SCALES = {"log_var": lambda raw: (0.5 * raw).exp(), "log_std": torch.exp, "std": torch.clone, "var": torch.sqrt}
OUTPUTS = {"mean": lambda t: t, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "affine": lambda t: 2 * t + 1}


class Generated(Plain):
    """A VAE drawn from many styles.

    Args:
        style: of its encoder: "pair", "triple" with z, "distribution".
        scale: what its encoder's second output is.
        after: what comes after the draw: "nothing", "projection", "flow" whose end is returned, "gate" of the data.
        output: what forward makes of the decoder's output.
        draws: "one", "noise" after z, "none"; "sample", which draws data around the mean too, "penalty", which draws
            latents of the prior too: these do not count.
        norm: whether there is batch normalisation.
        leak: "none", "attribute", "output".
        prior: "standard", "method" (a density of z that is called `log_p_z`), "module" (a distribution, `prior()`).
    """

    def __init__(
        self, style: str, scale: str, after: str, output: str, draws: str, norm: bool, leak: str, prior: str
    ) -> None:
        super().__init__()
        if prior != "standard":
            self.centre = nn.Parameter(torch.randn(LATENT))
        if prior == "method":
            self.log_p_z = lambda z: self.own_prior().log_prob(z)
        elif prior == "module":
            self.prior = self.own_prior
        self.style, self.scale, self.after, self.output = style, scale, after, output
        self.draws, self.leak = draws, leak
        self.project, self.flow = nn.Linear(LATENT, LATENT), zoo_wild.Planar()
        if norm:
            self.body.insert(2, nn.BatchNorm1d(8))
            self.tail.insert(1, nn.BatchNorm1d(8))
        for name in {"projection": ("flow",), "flow": ("project",)}.get(after, ("flow", "project")):
            delattr(self, name)

    def own_prior(self) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Normal(self.centre, 0.5), 1)

    def gate(self, x: Tensor) -> Tensor:
        return 1 + x.mean((1, 2))[:, None] if self.after == "gate" else torch.ones(len(x), 1)

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = self.body(x).chunk(2, 1)
        if self.scale in ("std", "var"):
            raw = nn.functional.softplus(raw) + 0.1
        return mu, raw

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = self.raw(x)
        return self.gate(x) * mu, self.gate(x) * SCALES[self.scale](raw)

    def reparameterize(self, mu: Tensor, raw: Tensor) -> Tensor:
        return mu if self.draws == "none" else mu + SCALES[self.scale](raw) * torch.randn_like(mu)

    def encode(self, x: Tensor) -> Any:
        if self.leak == "attribute":
            self.kept = x
        mu, raw = self.raw(x)
        if self.style == "triple":
            return self.reparameterize(mu, raw), mu, raw
        return torch.distributions.Normal(mu, SCALES[self.scale](raw)) if self.style == "distribution" else (mu, raw)

    def decode(self, z: Tensor) -> Any:
        mean = self.tail(z)
        return mean + 0.5 * self.kept if self.leak == "attribute" else mean

    def forward(self, x: Tensor) -> Any:
        out = self.encode(x)
        if self.style == "distribution":
            z = out.mean if self.draws == "none" else out.rsample()
        else:
            z = out[0] if self.style == "triple" else self.reparameterize(*out)
        z = z + 0.1 * torch.randn_like(z) if self.draws == "noise" else z
        found: dict[str, Tensor] = {}
        if self.after == "projection":
            z = self.project(z)
        elif self.after == "flow":
            z, found["log_det"] = self.flow(z)
            found["z"] = z
        elif self.after == "gate":
            z = z * self.gate(x)
        mean = OUTPUTS[self.output](self.decode(z))
        if self.draws == "sample":
            found["sample"] = mean.detach() + torch.randn_like(mean)
        elif self.draws == "penalty":
            found["distance"] = (self.tail(torch.randn_like(z)) - mean).square().mean()
        return {"recon": mean + 0.1 * x if self.leak == "output" else mean, **found}


WAYS = ["nothing", "encoder_scale", "wrong scale", "callables", "callables, wrong scale"]


def way_of(way: str, vae: Generated) -> dict[str, Any]:
    """What the user passes."""
    wrong = {"log_var": "log_std", "log_std": "log_var", "std": "log_std", "var": "log_var"}[vae.scale]
    scale = {} if way in ("nothing",) else {"encoder_scale": wrong if "wrong" in way else vae.scale}
    return {"encoder": vae.raw, "decoder": vae.decode, **scale} if way.startswith("callables") else scale


def as_decoded(vae: Generated, aef: vae2aef.AEF, x: Tensor) -> None:
    """Of a decoder that was given, forward returns a function."""
    if not isinstance(aef.parts, TracedParts):
        vae.output = "mean"
    same_as_forward(vae, aef, x)


def takes_its_prior(vae: Generated, aef: vae2aef.AEF, x: Tensor, warned: list, **options: Any) -> None:
    """A prior of its own was named, and the line takes it; a standard one was not."""
    own = [one.message for one in warned if "has a prior of its own" in str(one.message)]
    assert len(own) == hasattr(vae, "centre"), warned
    for message in own:
        aef = followed(message, vae, x, **options)
        terms = aef(x, terms=True)
        torch.testing.assert_close(terms.prior, vae.own_prior().log_prob(terms.z))


generated = hypothesis_given(
    style=st.sampled_from(["pair", "triple", "distribution"]),
    scale=st.sampled_from(["log_var", "log_std", "std", "var"]),
    after=st.sampled_from(["nothing", "projection", "flow", "gate"]),
    output=st.sampled_from(sorted(OUTPUTS)),
    draws=st.sampled_from(["one", "one", "one", "noise", "none", "sample", "penalty"]),
    norm=st.booleans(),
    leak=st.sampled_from(["none", "none", "none", "attribute", "output"]),
    prior=st.sampled_from(["standard", "standard", "method", "module"]),
    way=st.sampled_from(WAYS),
    seed=st.integers(0, 9),
)


@pytest.mark.parametrize("seed", range(6))
def test_an_order_that_is_kept_by_chance_is_no_parity(seed):
    """Of seed 4: forward decodes z times a gate of x that is nearly the same for all x, and was taken for theirs."""
    drawn = {"style": "pair", "scale": "log_std", "norm": False, "leak": "none", "prior": "standard", "draws": "one"}
    examine("callables", seed, after="gate", output="affine", **drawn)


@settings(max_examples=25)
@generated
def test_wrapped_means_parity_and_refused_that_none_was_possible(way, seed, **drawn):
    examine(way, seed, **drawn)


@pytest.mark.slow
@settings(max_examples=300)
@generated
def test_the_same_for_many(way, seed, **drawn):
    examine(way, seed, **drawn)


def examine(way: str, seed: int, **drawn: Any) -> None:
    """Wrapped means parity with its own forward to 1e-6, refused that no parity was possible."""
    torch.manual_seed(seed)
    vae, x = Generated(**drawn), data()
    options, once = way_of(way, vae), drawn["draws"] in ("one", "sample", "penalty")
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", vae2aef.WrapWarning)
            aef = vae2aef.wrap(vae, example=x, **options)
    except vae2aef.WrapError as error:
        possible = once and drawn["leak"] == "none" and drawn["after"] != "flow"
        contradicted = "wrong" in way or (way == "callables" and drawn["after"] in ("projection", "gate"))
        assert not possible or contradicted, error
        if possible:  # then what the error says works
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", vae2aef.WrapWarning)
                aef = followed(error, vae, x, **options)
            as_decoded(vae, aef, x)
        return
    assert drawn["leak"] != "attribute"
    said = aef.parts.compared
    if isinstance(aef.parts, TracedParts) or said.startswith("compared"):
        assert once and drawn["leak"] == "none" and drawn["after"] != "flow"
        takes_its_prior(vae, aef, x, warned, **options)
        as_decoded(vae, aef, x)
    else:
        assert drawn["draws"] != "one" and said.startswith("not compared with its forward: "), said
