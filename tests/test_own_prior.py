"""A VAE's own prior is not lost in silence: a warning ends in the line that takes it, and the line works (issue 9)."""

import copy
import math
import warnings
from typing import Any

import pytest
import torch
import zoo_wild
from test_forward_parity import followed
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from zoo_core import ConditionalPrior, SmallVAE
from zoo_wild import EVENT, LATENT, Plain

import vae2aef


def data(rows: int = 6) -> Tensor:
    return torch.rand(rows, *EVENT)


def expected(vae: Any, z: Tensor) -> Tensor:
    return Normal(vae.centre, 0.5).log_prob(z).sum(1)


class Elementwise(zoo_wild.OwnPrior):
    log_p_z = None  # type: ignore[assignment]

    def log_prior(self, z: Tensor) -> Tensor:
        return Normal(self.centre, 0.5).log_prob(z)


class MakesPrior(zoo_wild.OwnPrior):
    log_p_z = None  # type: ignore[assignment]

    def prior(self) -> Any:
        return Independent(Normal(self.centre, 0.5), 1)


class HoldsPrior(zoo_wild.OwnPrior):
    log_p_z = None  # type: ignore[assignment]

    @property
    def p_z(self) -> Any:
        return Normal(self.centre, 0.5)


class PriorModule(zoo_wild.OwnPrior):
    """A submodule whose forward is the density."""

    log_p_z = None  # type: ignore[assignment]

    class Density(nn.Module):
        def __init__(self, centre: nn.Parameter) -> None:
            super().__init__()
            self.centre = centre

        def forward(self, z: Tensor) -> Tensor:
            return Normal(self.centre, 0.5).log_prob(z).sum(1)

    def __init__(self) -> None:
        super().__init__()
        self.prior = self.Density(self.centre)


LINES = {
    zoo_wild.OwnPrior: "Pass prior=vae.log_p_z",
    Elementwise: "Pass prior=lambda z: vae.log_prior(z).flatten(1).sum(1)",
    MakesPrior: "Pass prior=lambda z: vae.prior().log_prob(z)",
    HoldsPrior: "Pass prior=lambda z: vae.p_z.log_prob(z).flatten(1).sum(1)",
    PriorModule: "Pass prior=lambda z: vae.prior(z)",
}


@pytest.mark.remedy("own_prior: {}")
@pytest.mark.parametrize("cls", LINES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("options", [{}, {"encoder_scale": "log_var"}], ids=["nothing", "scale"])
def test_a_density_of_its_own_is_named_and_the_line_works(cls, options):
    vae, x = cls(), data()
    with pytest.warns(vae2aef.WrapWarning, match="has a prior of its own, and the standard normal is taken") as warned:
        wrong = vae2aef.wrap(vae, example=x, **options)
    assert warned[0].filename == __file__ and warned[0].message.fix == LINES[cls]
    aef = followed(warned[0].message, vae, x, **options)  # and warns of nothing
    terms = aef(x, terms=True)
    torch.testing.assert_close(terms.prior, expected(vae, terms.z))
    assert (terms.prior - wrong.prior.log_prob(terms.z)).abs().max() > 0.1
    terms.loss.backward()
    assert vae.centre.grad is not None  # it is trained


def test_a_function_in_the_place_of_a_prior():
    vae, x = zoo_wild.OwnPrior(), data()
    aef = vae2aef.wrap(vae, example=x, prior=vae.log_p_z, noise=0.3)
    assert "added: core linear, core flow none, residual learned, prior log_p_z" in repr(aef)
    assert aef.log_prob(x, num_samples=300, seed=0).value.isfinite().all()  # without draws from the prior
    with pytest.raises(ValueError, match=r"given as a function of z, from which nothing can be sampled"):
        aef.sample(3)
    twin = copy.deepcopy(aef)
    assert twin.prior.function.__self__ is twin.vae
    torch.testing.assert_close(twin(x, terms=True).prior.shape, torch.Size([6]))
    held = vae2aef.wrap(vae, example=x, prior=lambda z: vae.log_p_z(z))
    with pytest.raises(TypeError, match="its prior is a function"):
        copy.deepcopy(held)
    with pytest.raises(vae2aef.WrapError, match=r"`prior`: expected log_prob of shape \(4,\) for 4 rows, got"):
        vae2aef.wrap(vae, example=x, prior=lambda z: -0.5 * z.square())
    outside = torch.randn(LATENT, requires_grad=True)
    with pytest.raises(vae2aef.WrapError, match=r"trainable tensors .* not in aef\.parameters"):
        vae2aef.wrap(vae, example=x, prior=lambda z: (z * outside).sum(1))


def test_a_function_takes_conditions_if_it_asks_for_them():
    vae, x, label = SmallVAE((2, 3), (3,), classes=2), torch.rand(6, 2, 3), torch.rand(6, 2)
    density = ConditionalPrior(2, 3)
    whole = nn.ModuleList([vae, density])
    options = {"encoder": vae.encoder, "decoder": vae.decoder, "encoder_scale": "log_std"}
    aef = vae2aef.wrap(whole, example=(x, label), prior=lambda z, c: density.log_prob(z, c), **options)
    terms = aef(x, label, terms=True)
    torch.testing.assert_close(terms.prior, density.log_prob(terms.z, label))
    plain = vae2aef.wrap(whole, example=(x, label), prior=lambda z: -0.5 * z.square().sum(1), **options)
    assert plain(x, label).isfinite()


def test_a_standard_normal_is_nothing_to_warn_of():
    class Standard(Plain):
        prior = Normal(0.0, 1.0)

        def log_p_z(self, z: Tensor) -> Tensor:
            return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)

    vae2aef.wrap(Standard(), example=data())  # a warning would be an error


def test_pseudo_inputs_and_parameters_without_part_in_the_outputs():
    class Vamp(Plain):
        """Its prior is the mixture of the posteriors of learned data, known to its own loss alone."""

        def __init__(self) -> None:
            super().__init__()
            self.pseudo_inputs = nn.Parameter(torch.rand(4, *EVENT))

        def mixture(self, z: Tensor) -> Tensor:
            mu, log_var = self.encode(self.pseudo_inputs)
            each = Normal(mu, (0.5 * log_var).exp()).log_prob(z[:, None]).sum(2)
            return each.logsumexp(1) - math.log(4)

    class Hidden(Vamp):
        def __init__(self) -> None:
            super().__init__()
            self.means = nn.Linear(4, 10)
            del self.pseudo_inputs
            self.inputs = nn.Parameter(torch.rand(4, *EVENT))

    class Frozen(Plain):
        """A body that runs without gradients has its part all the same."""

        def encode(self, x: Tensor) -> Any:
            with torch.no_grad():
                h = self.body[:-1](x)
            return self.body[-1](h).chunk(2, 1)

    x = data()
    unused = r"3 trainable parameters of Hidden \(`inputs`, `means.weight`, `means.bias`\) have no part in its outputs"
    for vae, says in ((Vamp(), "`pseudo_inputs` seems to be of pseudo-inputs"), (Hidden(), unused)):
        for options in ({}, {"encoder_scale": "log_var"}):
            with pytest.warns(vae2aef.WrapWarning, match=says) as warned:
                vae2aef.wrap(vae, example=x, **options)
            assert warned[0].message.fix.startswith("Pass prior=lambda z: log_p(z)")
    vae = Vamp()
    aef = vae2aef.wrap(vae, example=x, prior=vae.mixture)
    terms = aef(x, terms=True)
    torch.testing.assert_close(terms.prior, vae.mixture(terms.z))
    vae2aef.wrap(Frozen(), example=x)  # a warning would be an error


def test_an_adapter_that_knows_the_class_has_read_its_prior():
    class Known(zoo_wild.OwnPrior):
        pass

    class Parts(vae2aef.parts.CallableParts):
        known = True

    vae2aef.register_adapter(f"{Known.__module__}.{Known.__qualname__}")(
        lambda vae, x, **kwargs: Parts(vae.encode, vae.decode, "log_var")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae2aef.wrap(Known(), example=data())


def test_a_standard_normal_without_its_constant_is_no_prior_of_its_own():
    """As vae_vampprior writes it; a warning is an error here."""
    vae, x = SmallVAE((6,), (2,)), torch.rand(8, 6)
    vae.log_p_z = lambda z: -0.5 * z.square().sum(1)
    vae2aef.wrap(vae, example=x, encoder_scale="log_std")
    vae.log_p_z = lambda z: -0.7 * z.square().sum(1)
    with pytest.warns(vae2aef.WrapWarning, match="prior of its own"):
        vae2aef.wrap(vae, example=x, encoder_scale="log_std")


class Adversarial(Plain):
    """Parts of its training that are no prior, and one that is."""

    def __init__(self, name: str, part: nn.Module) -> None:
        super().__init__()
        setattr(self, name, part)


NO_PRIOR = {
    "discriminator": nn.Sequential(nn.Linear(LATENT, 4), nn.Linear(4, 2)), "text_encoder": nn.Embedding(10, 4),
    "ema": nn.Linear(3, 3), "critic2": nn.Linear(LATENT, 1),
    "features": nn.Sequential(nn.Flatten(), nn.Linear(10, 4), nn.Linear(4, 1)),  # is run on data
}  # fmt: skip
PRIOR = {"schema": nn.Linear(3, 3), "prior_encoder": nn.Linear(4, 3), "net": nn.Linear(LATENT, 1)}


@pytest.mark.parametrize("name", [*NO_PRIOR, *PRIOR])
def test_what_is_plainly_no_prior_is_not_taken_for_one(name):
    vae, x = Adversarial(name, {**NO_PRIOR, **PRIOR}[name]), data()
    if name in NO_PRIOR:
        vae2aef.wrap(vae, example=x)  # a warning would be an error
        return
    with pytest.warns(vae2aef.WrapWarning, match=rf"2 trainable parameters of Adversarial \(`{name}.weight`") as warned:
        wrong = vae2aef.wrap(vae, example=x, core="noise", core_flow="none")
    line = warned[0].message.fix.split(", or ")[1].removesuffix(" if they are of something else")
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none", **eval(f"dict({line})", {"torch": torch}))
    z = torch.randn(6, LATENT)
    torch.testing.assert_close(aef.prior.log_prob(z), wrong.prior.log_prob(z))


class KeptBehind(zoo_wild.OwnPrior):
    """Reads a tensor that is no buffer, as the pseudo-inputs of vae_vampprior are."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = torch.eye(LATENT)

    def log_p_z(self, z: Tensor) -> Tensor:
        return super().log_p_z(z @ self.idle)


@pytest.mark.remedy("{} `{}` is a tensor")
def test_a_tensor_that_double_has_left_behind_is_named_and_the_line_works():
    """It was refused with torch's own words about types, or its density was overlooked."""
    vae, x = KeptBehind().double(), data().double()
    with pytest.warns(vae2aef.WrapWarning, match="has a prior of its own") as warned:
        vae2aef.wrap(vae, example=x)
    assert warned[0].message.fix == "Pass prior=vae.log_p_z"
    with pytest.raises(
        vae2aef.WrapError, match=r"`idle` is a tensor of torch\.float32 on cpu that is no buffer"
    ) as error:
        followed(warned[0].message, vae, x)
    assert vae.idle.dtype == torch.float32  # nothing of it is changed
    exec(error.value.fix, {"vae": vae, "torch": torch})
    aef = followed(warned[0].message, vae, x)
    terms = aef(x, terms=True)
    torch.testing.assert_close(terms.prior, expected(vae, terms.z))
    vae.idle = vae.idle.float()
    with pytest.raises(vae2aef.WrapError) as error:  # an error of another kind does not speak of it
        vae2aef.wrap(vae, example=x, prior=lambda z: z[:, :1])
    assert "idle" not in str(error.value)


class InForward(zoo_wild.OwnPrior):
    """Has no density that can be called; `how` its forward, or what it holds, shows one all the same."""

    log_p_z = None  # type: ignore[assignment]

    def __init__(self, how: str, centre: float = 1.0) -> None:
        super().__init__()
        self.how, self.place = how, centre
        if how in ("buffer", "attribute"):
            del self.centre
            where = torch.full((LATENT,), centre)
            self.register_buffer("prior_mean", where) if how == "buffer" else setattr(self, "prior_mean", where)

    def forward(self, x: Tensor) -> Any:
        out, mu, log_var = super().forward(x)
        if self.how in ("buffer", "attribute"):
            return out, mu, log_var
        centre = self.place + 0 * self.centre
        p = Normal(centre.expand_as(mu), 1.0) if self.how == "each" else Normal(centre, 1.0)
        q = Normal(mu, (0.5 * log_var).exp())
        if self.how == "tensor":
            return {"recon": out, "q": q, "prior_mu": centre.expand_as(mu)}
        if self.how == "loss":
            return {"recon": out, "kl": torch.distributions.kl_divergence(q, Normal(self.centre, 1.0)).sum(1)}
        return out, p, q


SAYS = {
    "buffer": "`prior_mean` seems", "attribute": "`prior_mean` seems", "each": r"forward\(x\)\[1\] seems",
    "one": r"forward\(x\)\[1\] seems", "tensor": r"forward\(x\)\['prior_mu'\] seems",
    "loss": r"1 trainable parameters of InForward \(`centre`\) have a part in its loss alone",
}  # fmt: skip


@pytest.mark.remedy("own_prior: {}")
@pytest.mark.parametrize("how", SAYS)
@pytest.mark.parametrize("options", [{}, {"encoder_scale": "log_var"}], ids=["nothing", "scale"])
def test_a_prior_that_only_forward_or_a_name_shows(how, options):
    """A (reconstruction, p, q), or a KL term with centres that are learned, was wrapped without a word."""
    vae, x = InForward(how), data()
    with pytest.warns(vae2aef.WrapWarning, match=SAYS[how]) as warned:
        wrong = vae2aef.wrap(vae, example=x, core="noise", core_flow="none", **options)
    assert len(warned) == 1
    line = warned[0].message.fix.split(", or ")[1].removesuffix(" if they are of something else")
    said = eval(f"dict({line})", {"torch": torch})
    z = torch.randn(6, LATENT)
    torch.testing.assert_close(vae2aef.wrap(vae, example=x, **said).prior.log_prob(z), wrong.prior.log_prob(z))
    taken = vae2aef.wrap(vae, example=x, prior=lambda z: Normal(1.0, 1.0).log_prob(z).sum(1))
    torch.testing.assert_close(taken.prior.log_prob(z), Normal(1.0, 1.0).log_prob(z).sum(1))


@pytest.mark.parametrize("how", [how for how in SAYS if how != "loss"])
def test_a_standard_normal_that_forward_returns_is_nothing_to_warn_of(how):
    vae = InForward(how, 0.0)
    if hasattr(vae, "centre"):
        vae.centre.requires_grad_(False)
    vae2aef.wrap(vae, example=data())  # a warning would be an error


def test_what_a_loss_in_forward_trains_beside_is_no_prior():
    class Beside(Plain):
        """A scale of the data, and a classifier of the latent."""

        def __init__(self) -> None:
            super().__init__()
            self.log_sigma, self.classifier = nn.Parameter(torch.zeros(())), nn.Linear(LATENT, 2)

        def forward(self, x: Tensor) -> Any:
            out, mu, _ = super().forward(x)
            return out, ((out - x) / self.log_sigma.exp()).square().sum() + self.classifier(mu).sum()

    vae = Beside()
    with pytest.MonkeyPatch.context() as patch:
        with pytest.warns(vae2aef.WrapWarning, match="`log_sigma` of Beside seems to be the scale of the data"):
            vae2aef.wrap(vae, example=data())  # another warning would be an error
        vae.log_sigma.requires_grad_(False)
        vae2aef.wrap(vae, example=data())
        patch.setattr("vae2aef.wrapping.own_prior.ELSEWHERE", ())
        with pytest.warns(vae2aef.WrapWarning, match="have a part in its loss alone"):
            vae2aef.wrap(vae, example=data())


def test_parameters_that_were_replaced_or_are_not_trained_are_no_prior():
    """A warning would be an error."""

    class Halves(Plain):
        forward = nn.Module.forward

    vae, x = Halves(), data()
    vae2aef.wrap(vae, example=x, encoder=vae.encode, decoder=Plain().tail, encoder_scale="log_var")
    vae = Adversarial("net", nn.Linear(LATENT, 1).requires_grad_(False))
    vae2aef.wrap(vae, example=x)


def test_a_prior_that_an_adapter_brings_and_a_head_that_forward_uses_are_nothing_to_warn_of():
    """A warning would be an error."""

    class Brought(zoo_wild.OwnPrior):
        pass

    class Parts(vae2aef.parts.CallableParts):
        known = False

    def adapter(vae: Any, x: Tensor, **kwargs: Any) -> Any:
        parts = Parts(vae.encode, vae.decode, "log_var")
        parts.prior = vae2aef.priors.StandardNormal((LATENT,))
        return parts

    class Headed(Plain):
        """Cannot be traced; its head has no name that says what it is."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(LATENT, 1)

        def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
            return Normal(mu, (0.5 * logvar).exp()).sample()

        def forward(self, x: Tensor) -> Any:
            out, mu, logvar = super().forward(x)
            return out, mu, logvar, self.net(mu).expand(-1, 7)

    vae2aef.register_adapter(f"{Brought.__module__}.{Brought.__qualname__}")(adapter)
    vae2aef.wrap(Brought(), example=data())
    vae2aef.wrap(Headed(), example=data(), encoder_scale="log_var")


@pytest.mark.parametrize("standard", [False, True])
def test_a_prior_of_two_tensors_is_named(standard):
    """What the second one is, is not known, so that no line can be written; of the standard normal nothing is said."""

    class Made(Plain):
        def prior(self) -> tuple[Tensor, Tensor]:
            return torch.zeros(1, LATENT), torch.full((1, LATENT), 1.0 if standard else 0.25)

    vae, x = Made(), data()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        vae2aef.wrap(vae, example=x)
    said = [str(one.message) for one in warned]
    assert len(said) == (0 if standard else 1), said
    if said:
        assert "`prior()` seems to be of a prior of Made's own; the standard normal is taken" in said[0]
        aef = vae2aef.wrap(vae, example=x, prior=lambda z: Normal(0.0, 0.5).log_prob(z).sum(1))
        assert aef(x).isfinite()


class Draws(Plain):
    """Nothing of these is a density of z: draws, the weight of a term, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_weight = torch.tensor(0.5)
        self.register_buffer("prior_probs", torch.full((10,), 0.1))

    def prior(self, n: int = 10) -> Tensor:
        return torch.randn(n, LATENT)

    def forward(self, x: Tensor) -> Any:
        out, *_ = super().forward(x)
        return {"out": out, "z_prior": 2 * torch.randn(len(x), LATENT)}


def test_draws_and_weights_are_no_prior():
    vae = Draws()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae2aef.wrap(vae, example=data())


def test_a_prior_of_rows_is_named():
    class Rows(Plain):
        def prior(self) -> tuple[Tensor, Tensor]:
            return torch.zeros(4, LATENT), torch.full((4, LATENT), 2.0)

    with pytest.warns(vae2aef.WrapWarning, match=r"`prior\(\)` seems to be of a prior of Rows"):
        vae2aef.wrap(Rows(), example=data())


class ByName(nn.Module):
    """A VAE and a prior whose mean is a condition, which both take by name."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(6, 4), nn.Linear(2, 6)

    def encode(self, x: Tensor, *, level: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_var = self.enc(x).chunk(2, dim=1)
        return loc + level, log_var

    def decode(self, z: Tensor, *, level: Tensor) -> Tensor:
        return self.dec(z - level)

    def log_prob(self, z: Tensor, *, level: Tensor) -> Tensor:
        return torch.distributions.Normal(level, 1.0).log_prob(z).sum(1)

    def sample(self, n: int, *, level: Tensor, temperature: float = 1.0) -> Tensor:
        return level + temperature * torch.randn(n, 2)


def test_a_prior_that_takes_a_condition_by_name_is_given_it():
    """Scored and drawn with it: at temperature 0 a draw is the prior's mean."""
    vae, x, level = ByName(), torch.rand(8, 6), 5 * torch.randn(8, 1)
    aef = vae2aef.wrap(
        vae, example=(x, {"level": level}), encoder=vae.encode, decoder=vae.decode, encoder_scale="log_var", prior=vae,
        noise=0.0,
    )  # fmt: skip
    joint = aef(x, level=level, terms=True)
    torch.testing.assert_close(joint.prior, vae.log_prob(joint.z, level=level))
    drawn = aef.sample(8, level=level, temperature=0.0)
    torch.testing.assert_close(drawn, vae.decode(level.expand(8, 2), level=level))
