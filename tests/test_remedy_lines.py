"""Remedies that no other test follows: the line is taken from the message, and run; then what was refused works."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
import zoo_hierarchy
import zoo_wild
from test_remedies import TwoLatentsProgram
from torch import Tensor, nn
from zoo_core import SmallVAE
from zoo_wild import EVENT, LATENT, Plain

import vae2aef
from vae2aef.preprocess import Standardize
from vae2aef.tracing import refusal

remedy = pytest.mark.remedy


def small(**more: Any) -> tuple[SmallVAE, dict[str, Any]]:
    return SmallVAE(EVENT, (LATENT,), **more), {"example": torch.rand(6, *EVENT), "encoder_scale": "log_std"}


def refused(vae: Any, **options: Any) -> Any:
    with pytest.raises((vae2aef.WrapError, TypeError)) as error:
        vae2aef.wrap(vae, **options)
    return error.value


def written(error: Any, **names: Any) -> dict[str, Any]:
    """Run what stands behind "pass" or "use" in the remedy, as options."""
    line = re.search(r"(?:[Pp]ass|[Uu]se) (.*)$", error.fix)
    assert line, error
    return eval(f"dict({line[1]})", {"torch": torch, "nn": nn, "vae2aef": vae2aef, **names})


def follow(vae: Any, error: Any, **options: Any) -> vae2aef.AEF:
    more = written(error, vae=vae, x=options["example"])
    aef = vae2aef.wrap(more.pop("vae", vae), **{**options, **more})
    assert aef(options["example"]).isfinite()
    return aef


# ---------------------------------------------------------------------- options


OPTIONS: list[Any] = [
    pytest.param({"core": "center", "vae": lambda: SmallVAE(EVENT, (20,))},
                 marks=remedy("a partition needs a latent")),
    pytest.param({"likelihood": "decoder"}, marks=remedy('residual="decoder" needs')),
    pytest.param({"core": "center", "likelihood": "poisson_log", "counts": True},
                 marks=remedy("core={}: a core that is part")),
    pytest.param({"likelihood": "bernoulli", "bits": True}, marks=remedy('likelihood="{}" takes')),
    pytest.param({"likelihood": "poisson_log", "counts": True, "preprocess": "standardize"},
                 marks=remedy("preprocess= belongs")),
    pytest.param({"start": "exact", "noise": 0.0}, marks=remedy('start="exact" begins as the VAE, whose loss')),
    pytest.param({"start": "exact", "core": "center"}, marks=remedy('start="exact" begins as the VAE, whose late')),
    pytest.param({"start": "exact", "noise": 1.0, "core": nn.Sequential(nn.Flatten(), nn.Linear(10, LATENT))},
                 marks=remedy('start="exact" needs features that begin at h')),
    pytest.param({"start": "exact", "noise": 1.0, "core_flow": Standardize(torch.zeros(LATENT), torch.ones(LATENT))},
                 marks=remedy('start="exact" needs a core flow that begins')),
    pytest.param({"encoder_scale": "std"}, marks=remedy("{}: {}; with negative values")),
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_the_option_that_is_written_works(options: dict[str, Any]) -> None:
    vae, said = small()
    options = {**said, **options}
    vae = options.pop("vae", lambda: vae)()
    if options.pop("counts", False):
        options["example"] = torch.randint(0, 9, (6, *EVENT)).float()
    if options.pop("bits", False):
        options["example"] = options["example"].round()
    error = refused(vae, **options)
    if "log_var" in error.fix:
        assert written(error.__class__(error.reason + " ", error.fix.split(", or")[0]))["encoder_scale"] == "log_var"
        error = vae2aef.WrapError(error.reason + " ", error.fix.split(", or")[0])
    follow(vae, error, **options)


@remedy("LogisticMixture: expected images (1, ...) or")
def test_a_mixture_of_what_are_no_images() -> None:
    with pytest.raises(vae2aef.WrapError) as error:
        vae2aef.likelihood.LogisticMixture(EVENT)
    vae, options = small()
    options["example"] = torch.randint(0, 256, (6, *EVENT), dtype=torch.uint8)
    follow(vae, error.value, **options)


@remedy("{}: expected the decoder to return the logit")
def test_zeros_that_the_decoder_does_not_return() -> None:
    vae, options = small()
    options["example"] = torch.randint(0, 9, (6, *EVENT)).float()
    poisson = vae2aef.likelihood.Poisson
    error = refused(vae, **options, likelihood=poisson(EVENT, log=True, zeros="decoder"))
    assert vae2aef.wrap(vae, **options, likelihood=poisson(EVENT, log=True, **written(error)))


@remedy("core={}: the partition family takes its one")
def test_a_partition_of_several_latents() -> None:
    class Own(zoo_hierarchy.TwoLevels):  # an adapter of its own, which other tests do not meet
        pass

    vae = Own()
    name = f"{type(vae).__module__}.{type(vae).__qualname__}"
    vae2aef.register_adapter(name)(lambda vae, x, **kwargs: zoo_hierarchy.Parts(vae))
    options = {"example": torch.rand(6, zoo_hierarchy.N), "core": "center"}
    follow(vae, refused(vae, **options), **options)


class Flowing(Plain):
    forward = nn.Module.forward

    def flowing(self, x: Tensor) -> vae2aef.Posterior:
        return vae2aef.Posterior(*self.posterior(x), lambda z: (z + 1, z.new_zeros(len(z))))


@remedy("a partition core cannot be generated through")
def test_a_partition_and_a_posterior_flow() -> None:
    vae = Flowing()
    options = {"example": torch.rand(6, *EVENT), "core": "center", "encoder": vae.flowing, "decoder": vae.decode}
    follow(vae, refused(vae, **options), **options)


@remedy("x is of {}, and a density needs continuous d", "preprocess has `dequantize`, which leaves fl")
def test_grey_levels() -> None:
    vae, options = small()
    grey = torch.randint(0, 256, (6, *EVENT), dtype=torch.uint8)
    error = refused(vae, **{**options, "example": grey})
    line = re.search(r'preprocess=\["dequantize", \.\.\.\]', error.fix)[0].replace(", ...", "")  # type: ignore[index]
    assert vae2aef.wrap(vae, **{**options, "example": grey}, **eval(f"dict({line})"))(grey).isfinite()
    assert vae2aef.wrap(vae, **{**options, "example": vae2aef.dequantize(grey)})
    error = refused(vae, **{**options, "example": grey / 255}, preprocess="dequantize")
    again = eval(error.fix.removeprefix("Pass integers: "), {"x": grey / 255, "torch": torch})
    assert torch.equal(again, grey)
    assert vae2aef.wrap(vae, **{**options, "example": again}, preprocess="dequantize")(again).isfinite()


# ---------------------------------------------------------------------- parts


class Dicts(Plain):
    """No forward, and parts that return more than is asked."""

    forward = nn.Module.forward

    def encode(self, x: Tensor) -> Any:
        mu, log_var = super().encode(x)
        return mu, log_var, {"features": x}

    def decode(self, z: Tensor) -> Any:
        return {"mean": self.tail(z)}


@remedy("expected the encoder to return two tensors (", "expected the decoder to return a tensor shap")
def test_parts_that_return_something_else() -> None:
    vae, x = Dicts(), torch.rand(6, *EVENT)
    options: dict[str, Any] = {"example": x, "encoder_scale": "log_var"}
    pick = {"encoder": lambda x: vae.encode(x)[:2], "decoder": lambda z: vae.decode(z)["mean"]}
    for name, pattern in (
        ("encoder", "encoder=lambda x: (loc, scale) that picks"),
        ("decoder", "decoder=lambda z: ..."),
    ):
        assert pattern in refused(vae, **options).fix
        options[name] = pick[name]
    torch.testing.assert_close(vae2aef.wrap(vae, **options).parts.encode(x).loc, vae.encode(x)[0])


@remedy("expected the decoder to return a tensor shap")
def test_a_decoder_that_returns_too_much() -> None:
    vae, options = Dicts(), {"example": torch.rand(6, *EVENT), "encoder_scale": "log_var"}
    options |= {"encoder": lambda x: vae.encode(x)[:2], "decoder": lambda z: (vae.tail(z),) * 3}
    error = refused(vae, **options)
    assert "output=lambda out: ..." in error.fix
    aef = vae2aef.wrap(vae, **options, output=lambda out: out[0])
    z = torch.randn(6, LATENT)
    torch.testing.assert_close(aef.decode(z), vae.tail(z))


@remedy("expected the decoder to return {}, shaped li")
def test_channels_last() -> None:
    vae, options = small()
    turned = {"encoder": vae.encoder, "decoder": lambda z: vae.decoder(z).mT}
    error = refused(None, **options, **turned)
    assert "decoder=lambda z: ... that permutes them" in error.fix
    aef = vae2aef.wrap(vae, **options, encoder=vae.encoder, decoder=lambda z: turned["decoder"](z).mT)
    z = torch.randn(6, LATENT)
    torch.testing.assert_close(aef.decode(z), vae.decoder(z))


@remedy("expected the decoder to return {}, shaped li")
def test_data_flattened_by_the_loader() -> None:
    """The decoder returns images: neither in their shape nor flattened."""

    class Images(zoo_wild.Plain):
        def forward(self, x: Tensor) -> Any:
            out, mu, _ = super().forward(x)
            return mu, {"image": out.reshape(-1, 5, 2)}

    vae, x = Images(), torch.rand(6, 10)
    error = refused(vae, example=x)
    assert error.fix == "Pass output=lambda out: out[1]['image'].reshape(-1, 10)"
    z = torch.randn(6, LATENT)
    aef = vae2aef.wrap(vae, example=x, output=eval(error.fix.split("=", 1)[1]))
    torch.testing.assert_close(aef.decode(z), vae.decode(z).flatten(1))
    parts = {"encoder": vae.encode, "decoder": lambda z: vae.decode(z).mT.reshape(-1, 5, 2), "encoder_scale": "log_var"}
    error = refused(None, example=x, **parts)
    assert error.fix == "Pass output=lambda out: out.reshape(-1, 10)"
    aef = vae2aef.wrap(None, example=x, **parts, output=eval(error.fix.split("=", 1)[1]))
    torch.testing.assert_close(aef.decode(z), vae.decode(z).mT.flatten(1))


@remedy('decoder_scale="{}", but what forward returns')
def test_a_decoder_scale_that_forward_does_not_return() -> None:
    """It was told of `residual=`, which nobody had passed."""

    class MeanAlone(zoo_wild.Plain):
        def decode(self, z: Tensor) -> Any:
            mean = self.tail(z)
            return mean, 0.1 * mean - 1

        def forward(self, x: Tensor) -> Any:
            mu, log_var = self.encode(x)
            return self.decode(self.reparameterize(mu, log_var))[0], mu, log_var

    vae, x = MeanAlone(), torch.rand(6, *zoo_wild.EVENT)
    error = refused(vae, example=x, decoder_scale="log_var")
    assert error.fix == "Pass decoder_scale=None"
    z = torch.randn(6, LATENT)
    torch.testing.assert_close(vae2aef.wrap(vae, example=x, decoder_scale=None).decode(z), vae.tail(z))
    aef = vae2aef.wrap(  # as the message says besides
        vae, example=x, encoder=vae.encode, decoder=vae.decode, encoder_scale="log_var", decoder_scale="log_var"
    )
    torch.testing.assert_close(aef.parts.decode(z).scale, (0.5 * vae.decode(z)[1]).exp())


@remedy("no module is found in {}, nor behind forward")
def test_networks_that_are_not_found() -> None:
    hidden = {f"layer{i}": nn.Linear(4, 4) for i in range(120)}  # more than are looked through
    forward = lambda x: hidden["layer1"](hidden["layer0"](x) + torch.randn_like(x))  # noqa: E731
    options = {"example": torch.rand(6, 4), "forward": forward}
    fix = refused(None, **options).fix
    vae = eval(re.search(r"vae=(\S+)", fix)[1].replace("...", "*used"), {"nn": nn, "used": list(hidden.values())[:2]})  # type: ignore[index]
    aef = vae2aef.wrap(vae, **options)
    assert any(p is hidden["layer0"].weight for p in aef.parameters())


@remedy("refusal: {}")
def test_a_module_without_parts() -> None:
    vae, x = nn.ModuleList([Plain()]), torch.rand(6, *EVENT)
    fix = refused(vae, example=x).fix
    call = re.search(r"vae2aef\.wrap\(.*\)", fix)[0]  # type: ignore[index]
    call = call.replace("(loc, log_var)", "vae[0].encode(x)").replace("z: mean", "z: vae[0].decode(z)")
    aef = eval(call, {"vae": vae, "x": x, "vae2aef": vae2aef})
    torch.testing.assert_close(aef.parts.encode(x).loc, vae[0].encode(x)[0])


# ---------------------------------------------------------------------- distributions and flows as priors


class Odd(torch.distributions.Distribution):
    """Of a kind of its own."""

    def __init__(self, secret: Tensor, rebuilt: Any = None) -> None:
        super().__init__(batch_shape=torch.Size((LATENT,)), validate_args=False)
        self.loc = secret if rebuilt is None else rebuilt
        self.inner = torch.distributions.Normal(secret, torch.ones(LATENT))

    support = torch.distributions.constraints.real

    def log_prob(self, value: Tensor) -> Tensor:
        return self.inner.log_prob(value)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.inner.sample(torch.Size(sample_shape))


class Maker(nn.Module):
    """What the messages ask for: a module that makes the distribution."""

    def log_prob(self, z: Tensor) -> Tensor:
        return Odd(torch.ones(LATENT)).log_prob(z).sum(1)

    def sample(self, n: int) -> Tensor:
        return Odd(torch.ones(LATENT)).sample(torch.Size((n,)))


@remedy("do not know how to rebuild a {};")
def test_a_distribution_of_an_unknown_kind() -> None:
    vae, options = small()
    fix = refused(vae, **options, prior=Odd(torch.ones(LATENT))).fix
    assert "pass a module with log_prob(z)" in fix and "sample(n)" in fix
    aef = vae2aef.wrap(vae, **options, prior=Maker())
    terms = aef(options["example"], terms=True)
    torch.testing.assert_close(terms.prior, Odd(torch.ones(LATENT)).log_prob(terms.z).sum(1))
    assert aef.sample(3).shape == (3, *EVENT)


@remedy("`{}` of {} was computed from parameters when")
def test_a_distribution_of_parameters() -> None:
    vae, options = small()
    raw = nn.Parameter(torch.zeros(LATENT))
    error = refused(vae, **options, prior=torch.distributions.Normal(raw.exp(), 1.0))
    assert "Pass a module instead that builds the object in its forward" in error.fix

    class Prior(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = raw

        def log_prob(self, z: Tensor) -> Tensor:
            return torch.distributions.Normal(self.raw.exp(), 1.0).log_prob(z).sum(1)

        def sample(self, n: int) -> Tensor:
            return torch.distributions.Normal(self.raw.exp(), 1.0).sample((n,))

    aef = vae2aef.wrap(vae, **options, prior=Prior())
    aef(options["example"]).backward()
    assert raw.grad is not None


@remedy("the transform {} has {};")
def test_a_transform_without_a_log_determinant() -> None:
    class NoLogDet(torch.distributions.Transform):
        bijective, domain, codomain = True, torch.distributions.constraints.real, torch.distributions.constraints.real

        def _call(self, x: Tensor) -> Tensor:
            return 2 * x

        def _inverse(self, y: Tensor) -> Tensor:
            return y / 2

    class Whole(NoLogDet):
        def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.full_like(x, 2.0).log()

    vae, options = small()
    error = refused(vae, **options, core_flow=NoLogDet())
    assert all(name in vars(Whole) or name in vars(NoLogDet) for name in re.findall(r"`(\w+)`", error.fix))
    assert vae2aef.wrap(vae, **options, core_flow=Whole())(options["example"]).isfinite()


@remedy("this zuko distribution holds tensors compute")
def test_a_zuko_distribution_that_was_built() -> None:
    zuko = pytest.importorskip("zuko")
    vae, options = small()
    flow = zuko.flows.NSF(LATENT)
    error = refused(vae, **options, prior=flow())
    line = re.search(r"pass the lazy flow itself, (prior=\w+),", error.fix)[1]  # type: ignore[index]
    assert vae2aef.wrap(vae, **options, **eval(f"dict({line})", {"flow": flow}))(options["example"]).isfinite()


# ---------------------------------------------------------------------- tracing


@remedy("it draws no noise, neither in eval mode nor")
@pytest.mark.parametrize("cls", [zoo.Deterministic, zoo.VectorQuantised])
def test_no_noise(cls: type) -> None:
    """The line works for a VAE that is trained elsewhere (tests/test_wild_entries.py); here there is no other way."""
    vae: Any = cls()
    fix = refused(vae, example=zoo.example(vae)).fix
    assert fix.startswith("Pass forward=lambda x: ...") and fix.endswith("there is no other way")


@remedy("its noise is drawn by {}, which is not Gauss")
@pytest.mark.parametrize("cls", [zoo.Categorical, zoo.GammaLatent, zoo.VonMisesLatent, zoo.LaplaceLatent])
def test_posteriors_that_have_no_aef(cls: type) -> None:
    """It is said plainly; and what `encode` returns is not read as if it were Gaussian."""
    vae: Any = cls()
    for options in ({}, {"encoder_scale": "std"}):
        assert refused(vae, example=zoo.example(vae), **options).fix == refusal.NONE
    assert refusal.NONE.startswith("There is no remedy")


@remedy("the output depends on the noise alone, and n")
def test_noise_alone() -> None:
    vae = zoo.NoiseOnly()
    assert refused(vae, example=zoo.example(vae)).fix == refusal.NONE


@pytest.mark.parametrize("cls", [
    pytest.param(zoo.SkipConnection, marks=remedy("{}noise after z, or a decoder that sees the")), zoo.DataDetached,
    pytest.param(zoo.DataInNumbers, marks=remedy("with the same z, other data give another out")),
    zoo.DetachedLatentAndData, zoo.NoiseReachesDecoder,
])  # fmt: skip
def test_a_decoder_that_sees_the_data_has_no_remedy(cls: type) -> None:
    """It is said so; handing the data over as a condition, or leaving the skip out, is refused for its own reason."""
    vae: Any = cls()
    (x,) = zoo.example(vae)
    assert "If it is a part of x, such as a skip connection, there is no remedy" in refused(vae, example=x).fix

    class Told(zoo.Base):
        def forward(self, x: Tensor, c: Tensor) -> Any:
            return self.data(self.draw(*self.split(x))) + c

    assert "is the data, as they are or scaled" in str(refused(Told(), example=(x, x.clone())))
    assert vae2aef.wrap(Told(), example=(x, x.flip(0)))(x, x.flip(0)).isfinite()


@remedy("expected one Gaussian draw, got {}: noise on")
@pytest.mark.parametrize("flat", [False, True])
def test_a_denoising_vae_is_told_of_forward(flat: bool) -> None:
    """It was told to describe its latents in a program, and has one."""

    class Denoising(zoo_wild.Plain):
        def forward(self, x: Tensor, clean: bool = False) -> Any:
            noisy = x if clean else x + 0.1 * torch.randn_like(x.flatten(1) if flat else x).reshape(x.shape)
            mu, scale = self.posterior(noisy)
            return self.recon(mu + scale * torch.randn_like(mu)), mu, scale

        encode = reparameterize = None  # not found by name

    vae, x = Denoising(), torch.rand(6, *zoo_wild.EVENT)
    assert "noise on x, which forward=lambda x: ... can leave out" in refused(vae, example=x).reason
    aef = vae2aef.wrap(vae, example=x, forward=lambda x: vae(x, clean=True))
    z = torch.randn(6, LATENT)
    torch.testing.assert_close(aef.decode(z), vae.decode(z))


@remedy("{}, such as where it returns its loss; it re")
@pytest.mark.parametrize("several", [False, True])
def test_a_forward_that_returns_its_loss_alone_is_told_of_its_parts(several: bool) -> None:
    """No output= makes data of it, which it was told to pass."""

    class Loss(zoo_wild.Plain):
        def forward(self, x: Tensor) -> Any:
            mu, scale = self.posterior(x)
            error, rate = (self.recon(mu + scale * torch.randn_like(mu)) - x).square().sum(), (mu**2 + scale).sum()
            return {"loss": error + rate, "error": error, "rate": rate} if several else error + rate

        encode = None  # not found by name

    vae, x = Loss(), torch.rand(6, *zoo_wild.EVENT)
    error = refused(vae, example=x)
    assert error.fix == 'Pass encoder=lambda x: (loc, log_var), decoder=lambda z: mean, encoder_scale="log_var"'
    parts = {"encoder": lambda x: vae.body(x).chunk(2, 1), "decoder": vae.decode, "encoder_scale": "log_var"}
    z = torch.randn(6, LATENT)
    torch.testing.assert_close(vae2aef.wrap(vae, example=x, **parts).decode(z), vae.decode(z))


@remedy("expected one Gaussian draw, got {}: several")
def test_noise_after_z_is_a_latent_of_the_program() -> None:
    vae: Any = zoo.NoiseAfterZ()
    (x,) = zoo.example(vae)
    assert "vae2aef.VAEProgram, registered by vae2aef.register_adapter" in refused(vae, example=x).fix

    class Noisy(TwoLatentsProgram):
        def run(self, place: Any, state: Any) -> vae2aef.Decoded:
            prior = vae2aef.StandardNormal((zoo.LATENTS,))
            first = place("z", prior, None if state is None else vae2aef.Posterior(state[0], (0.5 * state[1]).exp()))
            one = torch.ones_like(first)
            after = place("noise", prior, None if state is None else vae2aef.Posterior(0 * one, one))
            return vae2aef.Decoded(zoo.Base.data(vae, first + 0.1 * after))

    vae2aef.register_adapter("zoo.NoiseAfterZ")(lambda vae, x: Noisy(vae))
    try:
        aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none", kl="sampled").eval()
    finally:
        vae2aef.registry._by_name.pop("zoo.NoiseAfterZ")
    torch.manual_seed(3)
    mean = aef(x, terms=True).reconstruction
    torch.manual_seed(3)
    torch.testing.assert_close(mean.reshape(len(x), -1), vae.eval()(x)[0].reshape(len(x), -1))


@remedy("{}; it returns {}")
def test_an_output_of_another_shape() -> None:
    vae: Any = zoo.WrongShape()
    (x,) = zoo.example(vae)
    assert "output=lambda out: ..." in refused(vae, example=x).fix
    aef = vae2aef.wrap(vae, example=x, output=lambda out: F.pad(out[0], (0, x.shape[-1] - 3)))
    assert aef(x).isfinite()


@remedy("what output= returns does not depend on the")
def test_an_output_that_is_no_mean() -> None:
    vae: Any = zoo.Base()
    (x,) = zoo.example(vae)
    assert "output=lambda out: ..." in refused(vae, example=x, output=lambda out: out[1]).fix
    assert vae2aef.wrap(vae, example=x, output=lambda out: out[0])(x).isfinite()


@remedy("it is scripted, and random draws in it canno", "`{}` is compiled, and draws in it cannot be")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_and_compiled_modules() -> None:
    class Simple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.tail = nn.Linear(6, 4), nn.Linear(2, 6)

        def forward(self, x: Tensor) -> Tensor:
            mu, log_std = self.body(x).chunk(2, 1)
            return self.tail(mu + log_std.exp() * torch.randn_like(mu))

    vae, x = Simple(), torch.rand(6, 6)
    assert refused(torch.jit.script(vae), example=x).fix == "Wrap the module it was made from"
    vae.body = torch.compile(vae.body, backend="eager")
    assert "Wrap first, compile after: torch.compile(aef)" in refused(vae, example=x).fix
    vae.body = vae.body._orig_mod
    assert torch.compile(vae2aef.wrap(vae, example=x), backend="eager") is not None


@remedy("forward draws noise again, by {}, or elsewhe", "forward takes another path than when it was",
        "the forward of {} {} in this pass, unlike wh")  # fmt: skip
def test_a_forward_that_was_changed() -> None:
    vae, x = Plain(), torch.rand(6, *EVENT)
    changes = (
        lambda mu, v: mu + (0.5 * v).exp() * torch.normal(torch.zeros_like(mu), 1.0),
        lambda mu, v: mu - (0.5 * v).exp() * -torch.randn_like(mu),
        lambda mu, v: mu,
    )
    for change in changes:
        vae.reparameterize = Plain.reparameterize.__get__(vae)
        aef = vae2aef.wrap(vae, example=x)
        vae.reparameterize = change
        with pytest.raises(vae2aef.WrapError) as error:
            aef(x)
        assert error.value.fix.startswith("Wrap it anew if it was changed")
        if change is not changes[-1]:
            assert vae2aef.wrap(vae, example=x)(x).isfinite()
    described = {"encoder": lambda x: vae.encode(x), "decoder": lambda z: vae.decode(z), "encoder_scale": "log_var"}
    assert all(f"{name}=" in error.value.fix for name in described)
    assert vae2aef.wrap(vae, example=x, **described)(x).isfinite()


# ---------------------------------------------------------------------- leaks


@remedy("{}: the decoder sees the data beside z, and")
def test_what_leads_past_z_is_taken_out_or_handed_over() -> None:
    vae, options = zoo_wild.HiddenSkips(), {"example": torch.rand(6, *EVENT), "encoder_scale": "log_var"}
    fix = refused(vae, **options).fix
    assert "Take out what leads from encoder to decoder beside z" in fix and "example=(x, c)" in fix
    assert vae2aef.wrap(vae, **options, encoder=vae.encode, decoder=vae.tail)(options["example"]).isfinite()
    c = torch.rand(6, *EVENT)
    aef = vae2aef.wrap(
        vae, example=(options["example"], c), encoder=lambda x, c: vae.body(x).chunk(2, 1),
        decoder=lambda z, c: vae.tail(z) + c, encoder_scale="log_var",
    )  # fmt: skip
    assert aef(options["example"], c).isfinite()


@remedy("{} is the data, as they are or scaled, and")
def test_a_condition_that_is_the_data_is_left_out() -> None:
    vae, x = zoo_wild.Plain(), torch.rand(6, *EVENT)
    vae.forward = lambda x, c=0.0: zoo_wild.Plain.forward(vae, x)[0] + c
    assert "Leave it out of example=" in refused(vae, example=(x, x.clone())).fix
    assert vae2aef.wrap(vae, example=x)(x).isfinite()
    label = torch.rand(6, 1, 1)
    assert vae2aef.wrap(vae, example=(x, label))(x, label).isfinite()


@remedy("{}: the loss of a row is then no density of")
@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm1d(8)])
def test_rows_are_normalised_by_themselves(norm: nn.Module) -> None:
    vae, x = zoo_wild.Plain(), torch.rand(6, *EVENT)
    vae.tail.insert(1, nn.BatchNorm1d(8, track_running_stats=False))
    fix = refused(vae, example=x).fix
    assert all(name in fix for name in ("nn.GroupNorm", "nn.LayerNorm", "with running statistics"))
    vae.tail[1] = norm
    assert vae2aef.wrap(vae, example=x)(x).isfinite()


# ---------------------------------------------------------------------- a likelihood that must be known


@remedy(
    "log_prob needs a p(x | z)",
    'prior="{}" would be',
    "fit_scale=True fits",
)
@pytest.mark.slow
def test_a_likelihood_that_must_be_known() -> None:
    vae, options = small()
    x, more = options.pop("example"), {**options, "num_samples": 8, "seed": 0}
    with pytest.raises(vae2aef.WrapError) as error:
        vae2aef.log_prob(vae, x, **more)
    lines = re.findall(r"(likelihood=[\d.]+|fit_scale=True)", error.value.fix)
    assert len(lines) == 4
    for line in lines:
        assert vae2aef.log_prob(vae, x, **more, **eval(f"dict({line})")).value.isfinite().all()
    with pytest.raises(vae2aef.WrapError) as error:
        vae2aef.log_prob(vae, x, **more, likelihood=1.0, prior="coupling")
    assert error.value.fix.startswith("leave it out")
    with pytest.raises(vae2aef.WrapError) as error:
        vae2aef.log_prob(vae, x, **more, likelihood="laplace", fit_scale=True)
    for one in re.findall(r'"(\w+)"', error.value.fix):
        assert vae2aef.log_prob(vae, x, **more, likelihood=one, fit_scale=True).value.isfinite().all()


@remedy('decoder_scale="{}", but on the example the s', "the decoder's second output ranges from {} t")
def test_a_dispersion_and_a_scale_that_are_logarithms() -> None:
    vae, x = Plain(), torch.randint(0, 9, (6, *EVENT)).float()
    vae.forward = nn.Module.forward.__get__(vae)
    both = {
        "encoder_scale": "log_var",
        "encoder": vae.encode,
        "decoder": lambda z: (vae.decode(z), vae.decode(z).abs().neg() - 1),
    }
    error = refused(vae, example=x, **both, likelihood="decoder", decoder_scale="std")
    assert vae2aef.wrap(vae, example=x, **{**both, **written(error)}, likelihood="decoder")
    binomial = vae2aef.likelihood.NegativeBinomial(EVENT, "decoder", log=True)
    error = refused(vae, example=x, **both, likelihood=binomial)
    assert error.fix == "pass decoder=lambda z: (mean, log_dispersion.exp())"
    both["decoder"] = lambda z: (vae.decode(z), (vae.decode(z).abs().neg() - 1).exp())
    assert vae2aef.wrap(vae, example=x, **both, likelihood=binomial)(x).isfinite()


# ---------------------------------------------------------------------- more of the VAE


@remedy("what is the second output of {}?", "trial: {}")
def test_an_encoder_whose_second_output_is_asked_for() -> None:
    vae, options = small()
    del options["encoder_scale"]
    fix = refused(vae, **options).fix
    kinds = re.findall(r"'(\w+)'", fix)
    assert len(kinds) == 4
    aef = vae2aef.wrap(vae, **options, encoder_scale=kinds[1])
    torch.testing.assert_close(aef.parts.encode(options["example"]).scale, vae.encoder(options["example"])[1].exp())
    flat = nn.Linear(10, 2 * LATENT)
    given = {"decoder": vae.decoder, "encoder_scale": "log_std", "example": options["example"]}
    error = refused(flat, encoder=lambda x: flat(x).chunk(2, 1), **given)
    assert "encoder=lambda x: ... that takes it (x.flatten(1), say)" in error.fix
    both = nn.ModuleList([flat, vae])
    assert vae2aef.wrap(both, encoder=lambda x: flat(x.flatten(1)).chunk(2, 1), **given)(options["example"]).isfinite()


@remedy('decoder_scale="{}", but {} knows')
def test_a_decoder_scale_that_an_adapter_knows() -> None:
    from test_forward_parity import Described

    options = {"encoder_scale": "log_var", "decoder_scale": "log_var", "likelihood": "decoder"}
    vae, x = Described(), torch.rand(6, *EVENT)
    follow(vae, refused(vae, example=x, **options), example=x, **options)


class OneHot(zoo.Base):
    """Logits of one class, with its loss in forward."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.data(self.draw(*self.split(x))).flatten(1)
        return {"loss": F.cross_entropy(logits, x.flatten(1).argmax(1)), "logits": logits}


@remedy("{} goes into {}: it is not the mean")
def test_logits_of_one_class() -> None:
    vae = OneHot()
    x = torch.eye(zoo.PIXELS)[torch.arange(6) % zoo.PIXELS]
    vae.split = lambda x: zoo.Base.split(vae, x.reshape(-1, *zoo.EVENT))
    aef = vae2aef.wrap(vae, example=x, **written(refused(vae, example=x)), core="noise", core_flow="none").eval()
    torch.manual_seed(0)
    terms = aef(x, terms=True)
    torch.manual_seed(0)
    torch.testing.assert_close(-terms.residual.mean(), vae.eval()(x)["loss"])


class Augments(zoo.Base):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x + 0.01 * torch.rand_like(x))


@remedy("it also draws by {}")
def test_other_draws_are_left_out_or_have_no_aef() -> None:
    vae: Any = Augments()
    (x,) = zoo.example(vae)
    fix = refused(vae, example=x).fix
    assert fix.startswith("Draw only the noise of z") and "Gumbel-softmax, there is no remedy" in fix
    vae.forward = lambda x: zoo.Base.forward(vae, x)
    assert vae2aef.wrap(vae, example=x)(x).isfinite()


@remedy('the latent "{}" is placed twice')
def test_a_latent_that_is_placed_twice() -> None:
    class Named(vae2aef.VAEProgram):
        def __init__(self, vae: Any, second: str) -> None:
            self.vae, self.second = vae, second

        def infer(self, x: Tensor) -> Any:
            return self.vae.split(x)

        def run(self, place: Any, state: Any) -> vae2aef.Decoded:
            prior = vae2aef.StandardNormal((zoo.LATENTS,))
            posterior = None if state is None else vae2aef.Posterior(state[0], (0.5 * state[1]).exp())
            first = place("z1", prior, posterior)
            return vae2aef.Decoded(self.vae.data(first + place(self.second, prior, posterior)))

    class Twice(zoo.Base):
        forward = nn.Module.forward

    vae: Any = Twice()
    (x,) = zoo.example(vae)
    second = "z1"
    vae2aef.register_adapter(f"{Twice.__module__}.{Twice.__qualname__}")(lambda vae, x: Named(vae, second))
    assert refused(vae, example=x).fix == "give every latent a name of its own"
    second = "z2"
    assert vae2aef.wrap(vae, example=x)(x).isfinite()


class Shifted(torch.distributions.Normal):
    """Does something to its arguments, so that its attributes do not make it anew."""

    arg_constraints = torch.distributions.Normal.arg_constraints

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: Any = None) -> None:
        super().__init__(loc + 1, scale, validate_args)


@remedy("the distribution {} cannot be rebuilt")
def test_a_distribution_that_its_attributes_do_not_make() -> None:
    vae, options = small()
    error = refused(vae, **options, prior=Shifted(torch.zeros(LATENT), torch.ones(LATENT)))
    assert error.fix.startswith("pass a module with log_prob(z) and sample(n)")
    terms = vae2aef.wrap(vae, **options, prior=Maker())(options["example"], terms=True)
    expected = Shifted(torch.zeros(LATENT), torch.ones(LATENT)).log_prob(terms.z).sum(1)
    torch.testing.assert_close(terms.prior, expected)
