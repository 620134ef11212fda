"""Every wrong input gets the error it deserves, and leaves the user's module as it was (issue 2)."""

import math
from typing import Any

import pytest
import torch
from test_hygiene import snapshot, unchanged
from torch import Tensor, nn
from zoo_core import ConditionalPrior, SmallVAE

import vae2aef
from vae2aef.errors import require_finite_data


@pytest.fixture
def x() -> Tensor:
    return 0.02 + 0.96 * torch.rand(8, 2, 3)


@pytest.fixture
def vae() -> SmallVAE:
    return SmallVAE((2, 3), (3,))


def refused(vae: Any, error: type[Exception], match: str, **options: Any) -> None:
    """Wrapping fails with this message, and nothing changed in the user's module."""
    before = snapshot(vae) if isinstance(vae, nn.Module) else None
    with pytest.raises(error, match=match):
        vae2aef.wrap(vae, **options)
    if before is not None:
        unchanged(vae, before)


# ---------------------------------------------------------------------- wrong data


def test_nan_in_the_data(x, vae):
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std")
    x[[2, 5], 0, 1] = math.nan
    before = snapshot(vae)
    with pytest.raises(vae2aef.NonFiniteError, match=r"the data x holds NaN or infinite values in rows 2, 5 of"):
        aef(x)
    with pytest.raises(ValueError, match="the data x"):
        aef(x, terms=True)
    unchanged(vae, before)
    refused(vae, vae2aef.WrapError, "holds NaN or lies outside", example=x, encoder_scale="log_std")


def test_what_is_finite_is_taken_though_its_sum_is_not():
    """Faults: the sum of the data taken for the data; infinities that cancel, or one alone, overlooked."""
    require_finite_data(torch.full((4, 3), torch.finfo(torch.get_default_dtype()).max))
    for bad in ([math.inf, -math.inf], [math.inf, 0], [math.nan, math.inf]):
        with pytest.raises(vae2aef.NonFiniteError, match=r"in rows 1 of the batch"):
            require_finite_data(torch.tensor([[0.0, 1.0], bad]))


def test_data_outside_the_unit_interval_with_the_logit(x, vae):
    options = {"encoder_scale": "log_std", "preprocess": "logit"}
    aef = vae2aef.wrap(vae, example=x, **options)
    x[1] *= 255
    with pytest.raises(
        vae2aef.NonFiniteError, match=r"`preprocess` is not finite in rows 1 of.*logit takes data in \[0, 1\]"
    ):
        aef(x)
    refused(vae, vae2aef.WrapError, r"ranging from .* outside \[0, 1\], where the logit", example=x, **options)


def test_integers_without_dequantise(x, vae):
    levels = torch.randint(0, 2, (8, 2, 3))
    for preprocess in (None, "logit", "standardize"):
        options = {"encoder_scale": "log_std", "preprocess": preprocess}
        aef = vae2aef.wrap(vae, example=x, **options)
        with pytest.raises(TypeError, match=r"torch.int64.*vae2aef.dequantize\(x\)"):
            aef(levels)
        refused(vae, TypeError, r"torch.int64.*vae2aef.dequantize\(x\)", example=levels, **options)
    aef = vae2aef.wrap(vae, example=levels, encoder_scale="log_std", preprocess=[vae2aef.Dequantize(2), "logit"])
    assert aef(levels).isfinite()


@pytest.mark.parametrize("shape", [(8, 3, 2), (8, 6), (6,), (8, 2, 3, 1), ()])
def test_a_wrong_shape_at_the_call(x, vae, shape):
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std")
    for call in (aef, aef.encode, aef.reconstruct, aef.expanded_log_prob, aef.log_prob):
        with pytest.raises(ValueError, match=r"expected data of shape \(batch, 2, 3\), got"):
            call(torch.zeros(shape))


@pytest.mark.parametrize(
    ("example", "match"),
    [
        (None, r"expected example=x.*got nothing"),
        ("x", "got an object of type str"),
        ((), "got a tuple of 0"),
        (torch.zeros(0, 2, 3), r"at least one row, got shape \(0, 2, 3\)"),
        (torch.tensor(1.0), r"at least one row, got shape \(\)"),
    ],
)
def test_wrong_examples(vae, example, match):
    refused(vae, vae2aef.WrapError, match, example=example, encoder_scale="log_std")


@pytest.mark.remedy("the data of the example are a tensor of")
def test_sparse_examples(vae, x):
    for example in (x.to_sparse(), (x.to_sparse(),)):
        refused(vae, vae2aef.WrapError, r"of layout torch.sparse_coo: pass x.to_dense\(\)", example=example)
    assert vae2aef.wrap(vae, example=x.to_sparse().to_dense(), encoder_scale="log_std")(x).isfinite()  # the remedy


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_part_that_is_no_function(vae, x, name):
    """Whatever its truth value is: that of a tensor is an error of torch, and a container without modules is false."""
    for part in (torch.zeros(3), nn.ModuleList()):
        match = f"(?s)the {name} fails on .*(not callable|missing the required)"
        refused(vae, vae2aef.WrapError, match, example=x, encoder_scale="log_std", **{name: part})


# ---------------------------------------------------------------------- wrong VAEs


def test_a_missing_encoder_scale(x, vae):
    """It cannot be guessed: the four choices and the measured range are shown."""
    raw = vae.encoder(x)[1]
    low, high = f"{raw.min().item():.4g}", f"{raw.max().item():.4g}"
    match = rf"second output of SmallVAE.encoder.*{low} to {high}.*=, one of 'std', 'log_std', 'var', 'log_var'"
    refused(vae, vae2aef.WrapError, match, example=x)


@pytest.mark.parametrize("kind", ["std", "var"])
def test_a_wrong_encoder_scale_by_its_range(x, vae, kind):
    match = rf'encoder_scale="{kind}" says.*ranges from -.*can only be a logarithm'
    refused(vae, vae2aef.WrapError, match, example=x, encoder_scale=kind)


def test_an_unknown_encoder_scale(x, vae):
    refused(
        vae, vae2aef.WrapError, "expected encoder_scale to be one of 'std'.*'sigma'", example=x, encoder_scale="sigma"
    )


def test_a_scale_that_turns_negative_later_is_named(x):
    """The range of one batch may hide it; the loss does not."""
    aef = vae2aef.wrap(
        None, example=x, encoder=lambda x: (x.flatten(1)[:, :2], x.flatten(1)[:, 2:4]),
        decoder=lambda z: torch.cat([z, z, z], 1), encoder_scale="std",
    )  # fmt: skip
    with pytest.raises(
        vae2aef.NonFiniteError, match=r"`encoder_scale` is not finite in rows 0, .*a scale must be positive"
    ):
        aef(-x)


def test_encoder_and_decoder_that_disagree(x, vae):
    vae.outer = nn.Linear(5, 6)
    match = r"decoder fails on latents of shape \(8, 3\).*data of shape \(8, 2, 3\).*must agree.*mat1"
    refused(vae, vae2aef.WrapError, match, example=x, encoder_scale="log_std")


@pytest.mark.parametrize(
    ("encoder", "match"),
    [
        (lambda x: x.flatten(1), r"two tensors \(location, scale\), got a tensor of shape \(8, 6\)"),
        (lambda x: (x, x, x), "got a tuple of 3"),
        (lambda x: {"loc": x}, r"keys \['loc'\]"),
        (lambda x: (x.flatten(1), x.flatten(1)[:, :2]), r"of one shape .* got \(8, 6\) and \(8, 2\)"),
        (lambda x: (x[:3], x[:3]), r"batch = 8, got \(3, 2, 3\)"),
        (lambda x: (x, x / 0), "scale is not positive and finite"),
    ],
)
def test_encoders_of_another_kind(x, vae, encoder, match):
    options = {"encoder": encoder, "decoder": lambda z: z, "encoder_scale": "std"}
    refused(vae, vae2aef.WrapError, match, example=x, **options)


@pytest.mark.parametrize(
    ("decoder", "match"),
    [
        (lambda z: z, r"decoder to return \(8, 2, 3\), shaped like the data.*got \(8, 3\)"),
        (lambda z: torch.zeros(8, 2, 3) / 0, "decoder's mean is not finite"),
        (lambda z: {"sample": z}, r"keys \['sample'\].*decoder=lambda z"),
        (lambda z: (z, z, z), "got a tuple of 3"),
        (lambda z: None, "got an object of type NoneType"),
    ],
)
def test_decoders_of_another_kind(x, vae, decoder, match):
    refused(vae, vae2aef.WrapError, match, example=x, decoder=decoder, encoder_scale="log_std")


def test_an_object_without_parts(x):
    with pytest.raises(vae2aef.WrapError, match=r"^the forward of Linear cannot be traced: it draws no noise"):
        vae2aef.wrap(nn.Linear(3, 3), example=x)
    for nothing in (None, 3):
        match = r"no encoder and decoder found in \w+. Tried:\n.*\nPass them: vae2aef.wrap\(vae, example=x, encoder="
        with pytest.raises(vae2aef.WrapError, match=r"(?s)" + match):
            vae2aef.wrap(nothing, example=x)


def test_wrapping_twice(x, vae):
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std")
    refused(aef, TypeError, r"an AEF already.*aef\.vae", example=x)
    assert vae2aef.wrap(aef.vae, example=x, encoder_scale="log_std").vae is vae


# ---------------------------------------------------------------------- wrong options


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"core": "middle"},
            ValueError,
            r'"linear", "patch", "normalized", "noise", "center", "corner", "random", a mask or a module.*middle',
        ),
        ({"core": 3}, ValueError, "a mask or a module; got 3"),
        (
            {"core": torch.ones(2, 2, dtype=torch.bool)},
            vae2aef.WrapError,
            r"mask of the data's shape \(2, 3\), got \(2, 2\)",
        ),
        (
            {"core": torch.ones(2, 3, dtype=torch.bool)},
            vae2aef.WrapError,
            r"selects 6 core variables.*holds 3: they must",
        ),
        ({"core": "center", "noise": 0.1}, ValueError, "exact likelihood and takes no noise, got noise=0.1"),
        ({"core": "noise", "noise": 0.5}, ValueError, "the VAE itself, whose noise is 1"),
        ({"core_flow": "glow"}, ValueError, r'expected a flow "none", "coupling", "maf".*glow'),
        ({"core_flow": nn.Linear(3, 3)}, TypeError, "Linear"),
        ({"prior": "vamp"}, ValueError, r'"none", "coupling", "maf".*vamp'),
        ({"prior": 3}, TypeError, r"prior None.*log_prob\(z\)"),
        ({"prior": nn.Linear(3, 3)}, TypeError, r"log_prob\(z\)"),
        ({"residual": "gauss"}, ValueError, 'expected a likelihood "gaussian", "laplace"'),
        ({"likelihood": "bernouilli"}, ValueError, 'expected a likelihood .*"bernoulli"'),
        ({"likelihood": "laplace", "residual": "learned"}, TypeError, "one option: pass likelihood= alone"),
        ({"residual": -1.0}, ValueError, "positive residual scale, got -1"),
        ({"preprocess": "sigmoid"}, ValueError, 'expected preprocess "dequantize", "logit" or "standardize"'),
        ({"preprocess": nn.Sigmoid()}, TypeError, "vae2aef.Bijection, got Sigmoid"),
        ({"noise": -1.0}, ValueError, "expected noise 0 .*, got -1"),
        ({"noise": math.nan}, ValueError, "expected noise 0 .*, got nan"),
        ({"noise": "0.3"}, TypeError, "expected noise as a number >= 0, or None for the default, got '0.3'"),
        ({"noise": True}, TypeError, "expected noise as a number"),
        ({"noise": [0.3]}, TypeError, r"expected noise as a number >= 0, or None for the default, got \[0.3\]"),
        ({"residual": True}, TypeError, "expected a likelihood by name, a number.*got bool"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(x, vae, options, error, match):
    before = snapshot(vae)
    with pytest.raises(error, match=match):
        vae2aef.wrap(vae, example=x, encoder_scale="log_std", **options)
    unchanged(vae, before, random=False)  # weights of other parts may have been drawn


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda aef, x: aef.sample(2, event_shape="28"), TypeError, r"a tuple such as \(2, 3\), got '28'"),
        (lambda aef, x: aef.sample(2, temperature=-1.0), ValueError, "temperature that is finite and at least 0, got"),
        (lambda aef, x: aef.sample(2, temperature=math.nan), ValueError, "temperature that is finite"),
        (lambda aef, x: aef.log_prob(x, num_samples=2.5), ValueError, "num_samples as a whole number, got 2.5"),
        (lambda aef, x: aef.log_prob(x, chunk_size="8"), ValueError, "chunk_size as a whole number, got '8'"),
        (lambda aef, x: aef.log_prob(x, proposal=7), ValueError, 'a proposal None, "laplace", "tuned" or from'),
        (lambda aef, x: aef.log_prob(x, observed=[True]), TypeError, r"bool tensor of shape \(8, 2, 3\), got list"),
        (lambda aef, x: aef.check_log_prob(4.0), ValueError, "whole number, got 4.0"),
        (lambda aef, x: aef.impute(x, x > 0, num_samples=1.5), ValueError, "num_samples as a whole number, got 1.5"),
        (lambda aef, x: setattr(aef, "core", "linear"), TypeError, "core as an Expansion or a Partition.*got .*str"),
        (lambda aef, x: setattr(aef, "core_flow", None), TypeError, "core_flow as a vae2aef.Bijection, got .*None"),
        (lambda aef, x: setattr(aef, "noise", "0.3"), TypeError, "expected noise as a number, got '0.3'"),
        (lambda aef, x: setattr(aef, "noise", None), TypeError, "expected noise as a number, got None"),
        (lambda aef, x: setattr(aef, "noise", True), TypeError, "expected noise as a number, got True"),
        (lambda aef, x: aef.sample(2, temperature="1"), ValueError, "finite and at least 0, got '1'"),
        (lambda aef, x: aef.log_prob(x, target_error="x"), ValueError, "target_error"),
        (lambda aef, x: vae2aef.as_vae(aef.vae), TypeError, "expected an AEF, got .*SmallVAE: wrap it first"),
    ],
)  # fmt: skip
def test_calls_that_make_no_sense(x, vae, call, error, match):
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std")
    before = snapshot(aef)
    with pytest.raises(error, match=match):
        call(aef, x)
    unchanged(aef, before)
    assert aef.noise == 0.3


def test_a_partition_larger_than_the_data(x):
    vae = SmallVAE((2, 3), (7,))
    with pytest.raises(vae2aef.WrapError, match=r'7 core variables of 6 values; use core="linear"'):
        vae2aef.wrap(vae, example=x, encoder_scale="log_std", core="center")


def test_a_decoder_scale_that_is_not_there(x, vae):
    match = r'residual="decoder" needs a decoder that returns \(mean, scale\)'
    refused(vae, vae2aef.WrapError, match, example=x, encoder_scale="log_std", residual="decoder")


def test_a_prior_without_temperature(x):
    vae = SmallVAE((2, 3), (3,), classes=2)
    label = torch.rand(8, 2)
    aef = vae2aef.wrap(vae, example=(x, label), encoder_scale="log_std", prior=ConditionalPrior(2, 3))
    assert aef.sample(8, label).shape == x.shape
    with pytest.raises(ValueError, match="the prior ConditionalPrior has no temperature"):
        aef.sample(8, label, temperature=0.5)
    with pytest.raises(TypeError, match="label"):  # an error of the prior's own is not dressed up
        aef.sample(8)


@pytest.mark.parametrize("name", ["core", "z", "decoder", "prior", "residual"])
def test_terms_that_diverge_are_named(x, vae, name):
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core_flow="none", prior="coupling")
    part = {
        "core": aef.core.features.linear.bias,
        "z": vae.heads.bias,
        "decoder": vae.mean.bias,
        "prior": aef.prior.flow.bijections[0].permutation,
        "residual": aef.residual.raw_scale,
    }[name]
    if name == "prior":
        part = next(aef.prior.parameters())
    with torch.no_grad():
        part.fill_(math.nan)
    expected = {"z": "encoder_location"}.get(name, name)
    with pytest.raises(
        vae2aef.NonFiniteError, match=f"the term `{expected}` is not finite in rows 0, 1, 2, 3, 4, ... .8 in"
    ):
        aef(x)


def test_an_overflowing_sum_is_told_apart():
    x = torch.full((4, 1), 1.8e19)
    aef = vae2aef.wrap(
        None, example=torch.zeros(4, 1), encoder=lambda x: (0 * x, torch.ones_like(x)), decoder=lambda z: 0 * z,
        encoder_scale="std", residual=1.0, core="noise", core_flow="none",
    )  # fmt: skip
    with pytest.raises(vae2aef.NonFiniteError, match="each of its terms is: it overflowed when summed"):
        aef(x)


def test_a_batch_with_nan_changes_nothing():
    """Neither weights nor gradients nor running statistics nor the random state; and training goes on after it."""

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.inner, self.outer = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(2, 4)

        def encode(self, x):
            return self.inner(self.norm(x)).chunk(2, 1)

        def decode(self, z):
            return self.outer(z)

    x = torch.rand(8, 4)
    aef = vae2aef.wrap(Normalised(), example=x, encoder_scale="log_std", noise=0.3).train()
    before, random = {k: v.clone() for k, v in aef.state_dict().items()}, torch.get_rng_state()
    bad = x.clone()
    bad[2, 1], bad[5, 0] = torch.nan, torch.inf
    with pytest.raises(vae2aef.NonFiniteError, match="NaN or infinite values in rows 2, 5 of the batch"):
        aef(bad)
    assert all(torch.equal(v, before[k]) for k, v in aef.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and all(p.grad is None for p in aef.parameters())
    aef(x).backward()
