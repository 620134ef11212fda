"""`wrap` runs what it has built: parts that would train silently to something else are refused (review)."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from test_hygiene import snapshot, unchanged
from torch import Tensor, nn
from zoo_core import ConditionalPrior, ExampleVAE, FlowPosteriorVAE, SmallVAE

import vae2aef
from vae2aef.adapters.pytorch_examples import measure_scale
from vae2aef.wrapping.options import build_preprocess
from vae2aef.wrapping.trial import modules_of


@pytest.fixture
def x() -> Tensor:
    return 0.02 + 0.96 * torch.rand(8, 2, 3)


@pytest.fixture
def vae() -> SmallVAE:
    return SmallVAE((2, 3), (3,))


def refused(vae: Any, match: str, **options: Any) -> None:
    """Wrapping fails with this message; the module is as before (weights of other parts may have been drawn)."""
    before = snapshot(vae) if isinstance(vae, nn.Module) else None
    with pytest.raises(vae2aef.WrapError, match=match):
        vae2aef.wrap(vae, **{"encoder_scale": "log_std", **options})
    if before is not None:
        unchanged(vae, before, random=False)


# ---------------------------------------------------------------------- what each part returns


class Prior(nn.Module):
    """A standard normal whose density is left in a shape of the test's choice."""

    def __init__(self, finish: Any) -> None:
        super().__init__()
        self.finish = finish

    def log_prob(self, z: Tensor) -> Tensor:
        return self.finish(-0.5 * (z.square() + math.log(2 * math.pi)))

    def sample(self, n: int) -> Tensor:
        return torch.randn(n, 3)


@pytest.mark.parametrize(
    ("finish", "got"),
    [
        (lambda p: p.sum(1, keepdim=True), r"\(4, 1\)"),
        (lambda p: p, r"\(4, 3\)"),
        (lambda p: p.sum(0), r"\(3,\)"),
        (lambda p: p.sum(), r"\(\)"),
        (lambda p: None, "NoneType"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_prior_that_does_not_sum_each_row(x, vae, finish, got, rows):
    """Three rows of a latent of three would fit by accident."""
    match = r"`prior`: expected log_prob of shape \(4,\) for 4 rows, got .*" + got
    refused(vae, match, example=x[:rows], prior=Prior(finish))
    assert vae2aef.wrap(vae, example=x[:rows], encoder_scale="log_std", prior=Prior(lambda p: p.sum(1)))(x).isfinite()


class Scale(vae2aef.Bijection):
    """y = 2 x, with a log-determinant left in a shape of the test's choice."""

    def __init__(self, finish: Any = lambda each: each.flatten(1).sum(1), output: Any = lambda y: y) -> None:
        super().__init__()
        self.finish, self.output = finish, output

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.output(2 * x), self.finish(torch.full_like(x, math.log(2.0)))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y / 2, -self.finish(torch.full_like(y, math.log(2.0)))


def test_a_bijection_with_an_elementwise_log_det(x, vae):
    each = Scale(lambda d: d)
    refused(
        vae, r"`core_flow`: expected log.det J. of shape \(4,\).*got \(4, 3\).*summed over", example=x, core_flow=each
    )
    refused(vae, r"`preprocess`.*of shape \(8,\); got .*\(8, 2, 3\)$", example=x, preprocess=each)
    refused(vae, r"`core_flow`: expected u of shape \(4, 3\)", example=x, core_flow=Scale(output=lambda y: y[:, :2]))
    refused(vae, r"`prior` fails on latents of shape \(4, 3\).*size of tensor", example=x, prior=each)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core_flow=Scale(), preprocess=Scale(), prior=Scale())
    assert aef(x).isfinite()


def test_own_features_of_another_shape(x, vae):
    one = nn.Sequential(nn.Flatten(), nn.Linear(6, 1))
    refused(vae, r"`core`: expected features of shape \(4, 3\).*got \(4, 1\)", example=x, core=one)
    refused(vae, r"`core` fails on data of shape \(4, 2, 3\).*RuntimeError", example=x, core=nn.Linear(6, 3))
    own = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    assert vae2aef.wrap(vae, example=x, encoder_scale="log_std", core=own)(x).isfinite()


class Density(nn.Module):
    def __init__(self, finish: Any) -> None:
        super().__init__()
        self.finish = finish

    def log_prob(self, delta: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
        return self.finish(-0.5 * delta.square())

    def sample(self, mean: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
        return torch.randn_like(mean)


def test_a_residual_that_sums_over_the_batch_or_before_the_core_is_left_out(x, vae):
    refused(vae, r"`residual`: expected log_prob of shape \(4, 2, 3\)", example=x, residual=Density(lambda r: r.sum(0)))
    summed = Density(lambda r: r.sum((1, 2)))
    refused(vae, r"`residual`: expected log_prob of shape \(4, 2, 3\)", example=x, core="center", residual=summed)
    assert vae2aef.wrap(vae, example=x, encoder_scale="log_std", residual=summed)(x).isfinite()


class Transformed(vae2aef.VAEParts):
    """A posterior flow whose log-determinant is left elementwise."""

    def __init__(self, vae: SmallVAE, transform: Any) -> None:
        self.vae, self.transform = vae, transform

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> vae2aef.Posterior:
        loc, log_std = self.vae.encoder(x)
        return vae2aef.Posterior(loc, log_std.exp(), self.transform)

    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> vae2aef.Decoded:
        return vae2aef.Decoded(self.vae.decoder(z))


class WithTransform(SmallVAE):
    transform: Any = None


@vae2aef.register_adapter(f"{WithTransform.__module__}.{WithTransform.__qualname__}")
def _adapt(vae: WithTransform, x: Tensor, **kwargs: Any) -> Transformed:
    return Transformed(vae, vae.transform)


class Bent(vae2aef.Posterior):
    """What follows the affine map is in `push` alone."""

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        z = (self.loc + self.scale * u).sinh()
        return z, (self.scale.log() + 0.5 * (1 + z.square()).log()).sum(1)


class BentParts(Transformed):
    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> vae2aef.Posterior:
        loc, log_std = self.vae.encoder(x)
        return Bent(loc, log_std.exp())


class BentVAE(SmallVAE):
    def parts(self) -> vae2aef.VAEParts:
        return BentParts(self, None)


@vae2aef.register_adapter(f"{BentVAE.__module__}.{BentVAE.__qualname__}")
def _adapt_bent(vae: BentVAE, x: Tensor, **kwargs: Any) -> vae2aef.VAEParts:
    return vae.parts()


@pytest.mark.remedy("the posterior's push(u) is another z")
def test_a_posterior_that_is_not_affine_says_so(x):
    """Its KL would be taken of N(loc + scale h, (scale sigma)^2); with a transform Eq. 10 is taken at one draw."""
    vae = BentVAE((2, 3), (3,))
    with pytest.raises(vae2aef.WrapError, match=r"push\(u\) is another z.*as its transform"):
        vae2aef.wrap(vae, example=x)

    def follow(z: Tensor) -> tuple[Tensor, Tensor]:
        return z.sinh(), (0.5 * (1 + z.sinh().square()).log()).sum(1)

    vae.parts = lambda: Transformed(vae, follow)
    aef = vae2aef.wrap(vae, example=x, noise=0.3)
    torch.manual_seed(0)
    analytic = aef(x)
    aef.kl = "sampled"
    torch.manual_seed(0)
    assert analytic == aef(x)


def test_a_posterior_flow_with_an_elementwise_log_det(x):
    vae = WithTransform((2, 3), (3,))
    vae.transform = lambda z: (2 * z, torch.full_like(z, math.log(2.0)))
    refused(vae, r"`posterior`: expected log.det. of shape \(4,\) for 4 rows, got \(4, 3\)", example=x)
    vae.transform = lambda z: 2 * z
    refused(vae, r"posterior's transform, .*fails on shape \(8, 3\).*unpack", example=x)
    vae.transform = lambda z: (2 * z, torch.full_like(z, math.log(2.0)).sum(1))
    assert vae2aef.wrap(vae, example=x, encoder_scale="log_std")(x).isfinite()


def test_a_partition_cannot_go_with_a_posterior_flow(x):
    match = 'a partition core cannot be generated through a posterior flow.*use core="linear"'
    with pytest.raises(vae2aef.WrapError, match=match):
        vae2aef.wrap(FlowPosteriorVAE((2, 3), (3,)), example=x, core="center")


def test_a_vae_for_one_batch_size(x, vae):
    refused(
        vae, "work on 8 rows of the example but fail on 4; an AEF needs a VAE that takes any batch size", example=x,
        encoder=lambda x: tuple(t.view(8, 3) for t in vae.encoder(x)),
    )  # fmt: skip


def test_conditions_reach_every_part_with_the_rows_they_belong_to(x):
    vae = SmallVAE((2, 3), (3,), classes=2)
    label = torch.rand(8, 2)
    seen = []

    class Watching(ConditionalPrior):
        def log_prob(self, z: Tensor, label: Tensor) -> Tensor:
            seen.append((len(z), len(label)))
            return super().log_prob(z, label)

    vae2aef.wrap(vae, example=(x, label), encoder_scale="log_std", prior=Watching(2, 3))
    assert seen and all(a == b for a, b in seen)


def test_what_wrap_draws_is_not_seen(x, vae):
    """The random state after wrapping is that after drawing the added weights."""
    torch.manual_seed(0)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core="noise", core_flow="none")
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert all(p.grad is None for p in aef.parameters())


# ---------------------------------------------------------------------- the decoder's own scale


def test_a_log_variance_in_the_place_of_the_decoder_scale(x, vae):
    def decoder(z: Tensor) -> tuple[Tensor, Tensor]:
        mean = vae.decoder(z)
        return mean, mean - mean.detach().amax() - 0.5

    match = (
        r"what is the decoder's second output\? On the example it ranges from -.* to -0.5, .*Pass decoder_scale=, one"
    )
    for residual in ("decoder", vae2aef.Residual((2, 3), "decoder", "laplace")):
        refused(vae, match, example=x, decoder=decoder, residual=residual)
        wrong = 'decoder_scale="std", but.*is not positive.*Pass decoder_scale="log_var"$'
        refused(vae, wrong, example=x, decoder=decoder, residual=residual, decoder_scale="std")
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", decoder=decoder)
    assert "assumed: the decoder's second output is not used; decoder_scale= takes it" in repr(aef)


@pytest.mark.parametrize("kind", ["std", "log_std", "var", "log_var"])
def test_a_decoder_scale_is_what_it_is_said_to_be(x, vae, kind):
    def decoder(z: Tensor) -> tuple[Tensor, Tensor]:
        mean = vae.decoder(z)
        return mean, torch.full_like(mean, 1.28)

    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", decoder=decoder, decoder_scale=kind)
    scale = {"std": 1.28, "log_std": math.exp(1.28), "var": math.sqrt(1.28), "log_var": math.exp(0.64)}[kind]
    terms = aef(x, terms=True)
    expected = torch.distributions.Normal(terms.reconstruction, scale).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(terms.residual, expected)


def test_a_decoder_scale_that_is_no_option_or_has_no_output(x, vae):
    refused(vae, "expected decoder_scale to be one of 'std'.*'sigma'", example=x, decoder_scale="sigma")
    refused(vae, "returned the mean alone", example=x, decoder_scale="std")


def test_a_decoder_scale_that_turns_negative_later_is_named(x):
    vae = SmallVAE((2, 3), (3,), own_scale=True)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", residual="decoder", decoder_scale="std")
    assert "second output is not used" not in repr(aef)
    assert aef(x).isfinite()
    aef.parts.decoder = lambda z: tuple(sign * t for sign, t in zip((1, -1), vae.decoder(z), strict=True))
    with pytest.raises(vae2aef.NonFiniteError, match="the term `residual` is not finite"):
        aef(x)


def test_a_decoder_scale_of_another_shape(x, vae):
    match = r"decoder's scale \(8, 3\) does not broadcast to its mean \(8, 2, 3\)"
    refused(vae, match, example=x, decoder=lambda z: (vae.decoder(z), torch.ones(8, 3)), residual="decoder")


# ---------------------------------------------------------------------- parameters that nobody sees


def test_modules_hidden_in_lambdas(x):
    encoder, decoder = nn.Linear(6, 6), nn.Linear(3, 6)
    options = {
        "example": x,
        "encoder": lambda x: encoder(x.flatten(1)).chunk(2, 1),
        "decoder": lambda z: decoder(z),
    }
    match = r"4 trainable tensors \(of shapes .*\(6,\).*not in aef.parameters\(\).*vae=nn.ModuleList"
    refused(None, match, **options)
    refused(nn.ModuleList([encoder]), "2 trainable tensors", **options)
    aef = vae2aef.wrap(nn.ModuleList([encoder, decoder]), encoder_scale="log_std", **options)
    assert {id(p) for p in decoder.parameters()} <= {id(p) for p in aef.parameters()}
    decoder.requires_grad_(False), encoder.requires_grad_(False)
    vae2aef.wrap(None, encoder_scale="log_std", **options)  # frozen: nothing to train


def test_a_free_tensor_that_requires_grad(x, vae):
    shift = torch.zeros(3, requires_grad=True)

    class Shifted(Prior):
        def log_prob(self, z: Tensor) -> Tensor:
            return super().log_prob(z - shift)

    refused(vae, r"1 trainable tensors \(of shapes \(3,\)\)", example=x, prior=Shifted(lambda p: p.sum(1)))


def test_a_condition_with_a_graph_of_its_own_is_no_hidden_parameter(x):
    embed = nn.Embedding(5, 2)
    vae = SmallVAE((2, 3), (3,), classes=2)
    for label in (embed(torch.arange(8) % 5), torch.rand(8, 2, requires_grad=True)):
        vae2aef.wrap(vae, example=(x, label), encoder_scale="log_std")
        vae2aef.wrap(vae, example=(x, {"label": label}), encoder_scale="log_std")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_wrapping_without_gradients(x, vae, mode):
    with mode():
        vae2aef.wrap(vae, example=x, encoder_scale="log_std")


# ---------------------------------------------------------------------- traces left behind


def test_batch_statistics_of_parts_outside_the_vae_stay(x):
    class Holder:
        def __init__(self) -> None:
            self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 6)).requires_grad_(False)

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(x).chunk(2, 1)

    class Encoder(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x).chunk(2, 1)

    module, holder = Encoder(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 6)), Holder()
    hidden = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 6)).requires_grad_(False)
    tail = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 6))
    encoders = {module: module, holder.net: holder.encode, hidden: lambda x: hidden(x).chunk(2, 1)}
    for net, encoder in encoders.items():
        options = {"example": x, "encoder": encoder, "decoder": tail}
        with pytest.raises(vae2aef.WrapError, match="second output of encoder given by you"):
            vae2aef.wrap(None, **options)
        vae2aef.wrap(None, encoder_scale="log_std", **options)
        assert net[1].num_batches_tracked == tail[0].num_batches_tracked == 0
        assert net.training and net[1].training and tail[0].training


def test_modules_behind_a_callable():
    one, two, three = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)

    def inner(x: Tensor) -> Tensor:
        return two(x)

    found = modules_of(one.forward, lambda x: inner(x), {"three": [three]}, one)
    assert {id(m) for m in found} == {id(m) for m in (one, two, three)} and len(found) == 3


# ---------------------------------------------------------------------- what an encoder's second output is


@pytest.mark.parametrize(
    "reparameterize",
    [
        lambda mu, v: mu + 0.1 * (0.5 * v).exp() * torch.randn_like(mu),
        lambda mu, v: mu + 2.0 * v * torch.randn_like(mu),
        lambda mu, v: 0.5 * mu + (0.5 * v).exp() * torch.randn_like(mu),
        lambda mu, v: mu + (0.5 * v).exp() * torch.rand_like(mu),
        lambda mu, v: mu + (0.5 * v).exp() * (1 + torch.randn_like(mu)),
        lambda mu, v: mu + torch.log1p(v.exp()) * torch.randn_like(mu),
        lambda mu, v: mu,
        lambda mu: mu,
        lambda mu, v: (mu, v),
    ],
)
@pytest.mark.parametrize("shape", [(5, 3), (1, 1), (2, 4, 8, 8)])
def test_a_measurement_that_fits_only_in_part_is_none(reparameterize, shape):
    assert measure_scale(reparameterize, torch.zeros(shape)) is None


@pytest.mark.parametrize("kind", ["std", "log_std", "var", "log_var"])
@pytest.mark.parametrize("shape", [(5, 3), (1, 1), (2, 4, 8, 8)])
def test_the_four_kinds_are_measured(kind, shape):
    assert measure_scale(ExampleVAE(treats_as=kind).reparameterize, torch.zeros(shape)) == kind


def test_a_scaled_reparameterize_is_traced():
    """It was taken for a log variance, ten times too wide."""

    class Narrow(ExampleVAE):
        def reparameterize(self, loc: Tensor, second: Tensor) -> Tensor:
            return loc + 0.1 * (0.5 * second).exp() * torch.randn_like(loc)

        def forward(self, x: Tensor) -> Tensor:
            loc, second = self.encode(x.flatten(1))
            return self.decode(self.reparameterize(loc, second)).view_as(x)

    vae, x = Narrow(), torch.rand(5, 3, 4)
    aef = vae2aef.wrap(vae, example=x)
    expected = 0.1 * (0.5 * vae.encode(x.flatten(1))[1]).exp()
    torch.testing.assert_close(aef.parts.encode(x).scale, expected)


# ---------------------------------------------------------------------- conditions for the prior


class Tempered(Prior):
    def log_prob(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        return super().log_prob(z / temperature)


class Named(ConditionalPrior):
    def log_prob(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return super().log_prob(z, torch.ones(len(z), 2) if label is None else label)


def test_labels_go_to_priors_that_ask_for_them(x):
    vae = SmallVAE((2, 3), (3,), classes=2)
    label = 2 + torch.rand(8, 2)
    tempered = Tempered(lambda p: p.sum(1))
    aef = vae2aef.wrap(vae, example=(x, label), encoder_scale="log_std", prior=tempered)
    terms = aef(x, label, terms=True)
    torch.testing.assert_close(terms.prior, tempered.log_prob(terms.z))
    named = Named(2, 3)
    aef = vae2aef.wrap(vae, example=(x, {"label": label}), encoder_scale="log_std", prior=named)
    terms = aef(x, label=label, terms=True)
    torch.testing.assert_close(terms.prior, named.log_prob(terms.z, label))


# ---------------------------------------------------------------------- the order of the decoder's values


def test_channels_last_is_not_reshaped():
    vae, x = SmallVAE((3, 4, 4), (2,)), torch.rand(6, 3, 4, 4)
    for decoder in (lambda z: vae.decoder(z).permute(0, 2, 3, 1), lambda z: vae.decoder(z).permute(0, 1, 3, 2)[:, [0]]):
        refused(vae, r"decoder to return \(6, 3, 4, 4\), shaped like the data", example=x, decoder=decoder)
    match = r"got \(6, 4, 4, 3\); its dimensions stand in another order: pass decoder="
    refused(vae, match, example=x, decoder=lambda z: vae.decoder(z).permute(0, 2, 3, 1))
    match = (
        r"got \(6, 12, 4\); if its values stand in the order of the data's: Pass output=lambda out: out\.reshape\(-1, 3"
    )
    refused(vae, match, example=x, decoder=lambda z: vae.decoder(z).flatten(1, 2))


def test_shapes_of_the_mean_that_keep_the_order():
    vae, x = SmallVAE((1, 4, 3), (2,)), torch.rand(6, 1, 4, 3)
    z = torch.randn(2, 2)
    for shape in ((1, 4, 3), (12,), (4, 3), (4, 3, 1), (1, 1, 4, 3)):
        own = vae2aef.wrap(
            vae, example=x, encoder_scale="log_std", decoder=lambda z, s=shape: vae.decoder(z).reshape(-1, *s)
        )
        assert torch.equal(own.decode(z), vae.decoder(z))


# ---------------------------------------------------------------------- grey levels


@pytest.mark.parametrize(
    ("levels", "line"),
    [
        (lambda k: k.float(), r"whole numbers.*: x.to\(torch.uint8\)$"),
        (lambda k: k.double(), r"x.to\(torch.uint8\)$"),
        (lambda k: k.float() / 255, r"multiples of 1/255.*\(x \* 255\).round\(\).to\(torch.uint8\)$"),
        (lambda k: k.half() / 255, r"multiples of 1/255"),
        (lambda k: k.float() / 256, r"multiples of 1/256.*\(x \* 256\).round\(\)"),
        (lambda k: (k > 128).float(), r"x.to\(torch.uint8\), with vae2aef.Dequantize\(2\)"),
    ],
)
def test_grey_levels_that_nothing_would_dequantise(vae, levels, line):
    k = torch.randint(0, 256, (8, 2, 3))
    for preprocess in ("dequantize", ["dequantize", "logit"], [vae2aef.Dequantize(), vae2aef.Logit()]):
        refused(vae, line, example=levels(k), preprocess=preprocess)
    assert vae2aef.wrap(vae, example=k, encoder_scale="log_std", preprocess="dequantize")(k).isfinite()


def test_floats_that_are_dequantised_already_pass(x, vae):
    vae2aef.wrap(vae, example=x, encoder_scale="log_std", preprocess=["dequantize", "logit"])
    vae2aef.wrap(vae, example=torch.zeros(4, 2, 3), encoder_scale="log_std", preprocess="dequantize")  # shapes only


# ---------------------------------------------------------------------- errors with names


@pytest.mark.parametrize("kind", [["logit", "standardize"], ["dequantize", "logit", "standardize"]])
def test_a_logit_before_statistics_is_named(vae, kind):
    x = 255 * torch.rand(8, 2, 3)
    match = r"ranging from .* to 2.*, is not finite after logit, which takes data in \[0, 1\]"
    with pytest.raises(ValueError, match=match):
        build_preprocess(kind, x)
    refused(vae, match, example=x, preprocess=kind)


def test_an_encoder_that_cannot_take_the_data(x, vae):
    flat = nn.Linear(6, 6)
    options = {"example": x, "encoder": lambda x: flat(x).chunk(2, 1), "decoder": vae.decoder}
    refused(vae, r"(?s)encoder fails on data of shape \(8, 2, 3\).*mat1.*Pass encoder=", **options)
    refused(vae, r"encoder given by you fails on data of shape \(8, 2, 3\)", **options, encoder_scale=None)
    refused(SmallVAE((2, 3), (3,), classes=2), r"encoder fails on data of shape \(8, 2, 3\)", example=x)


def test_a_mask_of_numpy(x, vae):
    mask = np.zeros((2, 3), dtype=bool)
    mask[0] = True
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core=mask)
    assert aef.core.exact and torch.equal(aef.core.mask, torch.from_numpy(mask))
