"""Every remedy that tracing prints is followed, and then works: the VAE is wrapped, and equals its own forward.

`WITHOUT` are the errors that print none, or whose remedy leaves it to the user what to write.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.distributions import Normal

import vae2aef
from vae2aef.tracing import refusal
from vae2aef.tracing.outputs import candidates, leaves


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


Options = dict[str, Any]


def as_written(vae: nn.Module, fix: str) -> Options:
    """Run what stands behind "Pass"."""
    return eval(f"dict({re.search(r'Pass (.*)', fix)[1]})", {"vae": vae, "torch": torch})  # type: ignore[index]


def drawn_so(vae: Any, fix: str) -> Options:
    """Put the expression of the message in the place of the draw."""
    expression = re.search(r"loc \+ [^,]*", fix)[0]  # type: ignore[index]
    vae.draw = lambda loc, log_var: eval(expression, {"torch": torch, "loc": loc, "scale": (0.5 * log_var).exp()})
    if isinstance(vae, zoo.DetachedLatent):
        vae.forward = lambda x: zoo.Base.forward(vae, x)
    return {}


def plain_draw(vae: Any, fix: str) -> Options:
    """Leave the sampling out of the checkpoint, or make z in one way, in both modes."""
    vae.draw = lambda loc, log_var: zoo.Base.draw(vae, loc, log_var)
    return {}


def without_other_draws(vae: Any, fix: str) -> Options:
    vae.data, vae.forward = (lambda z: zoo.Base.data(vae, z)), (lambda x: zoo.Base.forward(vae, x))
    return {}


def one_sample(vae: Any, fix: str) -> Options:
    vae.forward = lambda x: zoo.Base.forward(vae, x)
    return {}


def not_reentrant(vae: Any, fix: str) -> Options:
    vae.reentrant = eval(re.search(r"use_reentrant=(\w+)", fix)[1])  # type: ignore[index]
    return {}


def absolute_scale(vae: Any, fix: str) -> Options:
    said = re.search(r'encoder_scale="(\w+)"', fix)[1]  # type: ignore[index]

    def encoder(x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = vae.split(x)
        scale = raw if isinstance(vae, zoo.ScaleOfAnySign) else -(0.5 * raw).exp()
        return eval(re.search(r"\(loc, .*?\)\)", fix)[0], {"loc": loc, "scale": scale})  # type: ignore[index]

    return {"encoder": encoder, "decoder": vae.data, "encoder_scale": said}


def flow(vae: Any, fix: str) -> Options:
    """Give location, scale and what comes after them, with its log-determinant."""

    def encoder(x: Tensor) -> vae2aef.Posterior:
        loc, log_var = vae.split(x)
        scale, body = (0.5 * log_var).exp(), vae.body(x)

        def transform(z: Tensor) -> tuple[Tensor, Tensor]:
            lower = torch.ones(zoo.LATENTS, zoo.LATENTS).tril(-1)
            if isinstance(vae, zoo.FullCovariance):
                by_draws = z.reshape(-1, *loc.shape)
                return z + (((by_draws - loc) / scale) @ lower.T).reshape(z.shape), z.new_zeros(len(z))
            if isinstance(vae, zoo.PosteriorFlow):  # its gate is shut at the start
                return z * vae.gate(torch.cat([body.repeat(len(z) // len(body), 1), z], 1)).exp(), z.new_zeros(len(z))
            moved, weight = vae.planar(z).tanh(), vae.planar.weight
            jacobian = torch.eye(zoo.LATENTS) + 0.1 * (1 - moved.square())[..., None] * weight
            return z + 0.1 * moved, jacobian.slogdet()[1]

        return vae2aef.Posterior(loc, scale, transform)

    assert "vae2aef.Posterior(loc, scale, transform)" in fix
    return {"encoder": encoder, "decoder": vae.data}


class TwoLatentsProgram(vae2aef.VAEProgram):
    def __init__(self, vae: zoo.TwoLatents) -> None:
        self.vae = vae

    def infer(self, x: Tensor) -> Any:
        return self.vae.split(x)

    def run(self, place: Any, state: Any) -> vae2aef.Decoded:
        scale = None if state is None else (0.5 * state[1]).exp()
        prior = vae2aef.StandardNormal((zoo.LATENTS,))
        first = place("first", prior, None if state is None else vae2aef.Posterior(state[0], scale))
        second = place("second", prior, None if state is None else vae2aef.Posterior(first.tanh(), scale))
        return vae2aef.Decoded(self.vae.data(second + first))


def program(vae: Any, fix: str) -> Options:
    assert "vae2aef.VAEProgram, registered by vae2aef.register_adapter" in fix
    vae2aef.register_adapter("zoo.TwoLatents")(lambda vae, x: TwoLatentsProgram(vae))
    return {}


def sampler_in_eval(vae: Any, fix: str) -> Options:
    vae.draw = lambda loc, log_var: zoo.Base.draw(vae, loc, log_var)
    return {}


FOLLOW: dict[type[nn.Module], Callable[[Any, str], Options]] = {
    zoo.SampleWithoutGradient: drawn_so, zoo.NormalOfOutputs: drawn_so, zoo.NoGradSampling: drawn_so,
    zoo.DetachedLatent: drawn_so, zoo.SameNoiseForAll: drawn_so, zoo.NumpyNoise: drawn_so,
    zoo.TwoSamplers: sampler_in_eval, zoo.TwoLatents: program,
    zoo.CheckpointedDraw: plain_draw, zoo.CheckpointedDrawWhenTraining: plain_draw, zoo.RepeatedDraw: plain_draw,
    zoo.AnotherPathWhenTraining: plain_draw, zoo.ReentrantCheckpoint: not_reentrant,
    zoo.FullCovariance: flow, zoo.PosteriorFlow: flow, zoo.FlowWithoutData: flow, zoo.ManySamples: one_sample,
    zoo.NegativeScale: absolute_scale, zoo.ScaleOfAnySign: absolute_scale,
    zoo.FunctionalDropout: without_other_draws, zoo.DrawsTwiceWhenTraining: without_other_draws,
    zoo.EditsItsInput: as_written, zoo.TwoReconstructions: as_written,
}  # fmt: skip
"""What a user does who is told so."""

WITHOUT = {
    zoo.VectorQuantised, zoo.Deterministic, zoo.Categorical, zoo.GammaLatent, zoo.VonMisesLatent, zoo.LaplaceLatent,
    zoo.NoiseOnly, zoo.Quadratic,  # no AEF
    zoo.WrongShape, zoo.NoiseAfterZ,  # what it models must be said
    zoo.DetachedLatentAndData, zoo.NoiseReachesDecoder, zoo.SkipConnection, zoo.DataInNumbers, zoo.DataDetached,
    zoo.NeedsLabels,  # by conditions, below
}  # fmt: skip


def test_every_refusal_is_here() -> None:
    assert FOLLOW.keys() | WITHOUT == zoo.REFUSED.keys() and not FOLLOW.keys() & WITHOUT


def told(vae: nn.Module, example: Any) -> str:
    with pytest.raises(vae2aef.WrapError, match="cannot be traced") as error:
        vae2aef.wrap(vae, example=example)
    return error.value.fix


def is_its_own_forward(vae: Any, example: tuple, **options: Any) -> vae2aef.AEF:
    """With its noise drawn the AEF returns what forward returns, for the same random state."""
    aef = vae2aef.wrap(vae, example=example, core="noise", core_flow="none", kl="sampled", **options).eval()
    vae.eval()
    x = example[0]
    torch.manual_seed(3)
    terms = aef(*example, terms=True)
    torch.manual_seed(3)
    with torch.no_grad():
        out = options["output"](vae(x)) if "output" in options else vae(x.clone(), *example[1:])
    expected = candidates(leaves(out), x.shape)[0][2]
    torch.testing.assert_close(terms.reconstruction, expected.reshape(x.shape))
    return aef


MET: dict[type[nn.Module], str] = {
    zoo.SampleWithoutGradient: "the noise is drawn without", zoo.NoGradSampling: "z is made with gradients off",
    zoo.DetachedLatent: "no gradient flows from the output", zoo.TwoSamplers: "it draws in training mode only",
    zoo.TwoLatents: "expected one Gaussian draw", zoo.SameNoiseForAll: "expected a draw of the batch's size",
    zoo.CheckpointedDraw: "z is made inside torch.utils", zoo.CheckpointedDrawWhenTraining: "in training mode",
    zoo.RepeatedDraw: "its gradients change", zoo.ReentrantCheckpoint: "{} fails with {}",
    zoo.FullCovariance: "{}a full covariance", zoo.FlowWithoutData: "{} is shaped like the latent",
    zoo.ManySamples: "only {} of {} latent variables", zoo.NegativeScale: "expected dz/du > 0",
    zoo.NumpyNoise: "its output is random, but no draw is seen: {",
    zoo.FunctionalDropout: "with the same noise it returns", zoo.EditsItsInput: "it changes its input",
    zoo.TwoReconstructions: "{}; it returns {}", zoo.AnotherPathWhenTraining: "proof: {}",
}  # fmt: skip
"""Which error each of them meets; see `remedy_sites`."""


@pytest.mark.parametrize("cls", [
    pytest.param(cls, id=cls.__name__, marks=[pytest.mark.remedy(MET[cls])] if cls in MET else []) for cls in FOLLOW
])  # fmt: skip
def test_the_remedy_works(cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae2aef.registry._by_name", dict(vae2aef.registry._by_name))
    torch.manual_seed(0)
    vae: Any = cls()
    x = zoo.example(vae)
    options = FOLLOW[cls](vae, told(vae, x))
    if cls not in (zoo.NegativeScale, zoo.ScaleOfAnySign):
        aef = is_its_own_forward(vae, x, **options)
    else:  # of minus the noise
        aef = vae2aef.wrap(vae, example=x, **options)
        raw = vae.split(x[0])[1]
        expected = raw.abs() if cls is zoo.ScaleOfAnySign else (0.5 * raw).exp()
        torch.testing.assert_close(aef.parts.encode(*x).scale, expected)
    aef.train()(*x).backward()


class WithCondition(zoo.Base):
    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        return self.data(self.draw(loc, log_var)) + 0.1 * c, loc, log_var


class OfItself(WithCondition):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x, x.flip(0))


@pytest.mark.parametrize("cls", [OfItself, zoo.NeedsLabels], ids=lambda cls: cls.__name__)
def test_what_a_decoder_sees_beside_z_is_handed_over_as_a_condition(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    vae = cls()
    x, c = torch.rand(2, 5, *zoo.EVENT)
    fix = told(vae, x)
    assert re.search(r"Pass example=\(x, (c|\*conditions)\)", fix), fix
    is_its_own_forward(WithCondition() if cls is OfItself else vae, (x, c))


def test_what_comes_of_dropping_a_flow_is_told() -> None:
    """The advice for a flow is not to drop it: its log-determinant is in the loss."""
    torch.manual_seed(0)
    vae = zoo.FlowWithoutData()
    (x,) = zoo.example(vae)
    options = FOLLOW[zoo.FlowWithoutData](vae, told(vae, x))
    aef = is_its_own_forward(vae, (x,), **options)
    torch.manual_seed(3)
    terms = aef(x, terms=True)
    torch.manual_seed(3)
    u = torch.randn(len(x), zoo.LATENTS, requires_grad=True)
    loc, log_var = vae.split(x)

    def z_of(u: Tensor) -> Tensor:
        z = loc + (0.5 * log_var).exp() * u
        return z + 0.1 * vae.planar(z).tanh()

    jacobian = torch.stack([torch.autograd.functional.jacobian(z_of, u)[i, :, i] for i in range(len(x))])
    torch.testing.assert_close(terms.log_det, jacobian.slogdet()[1])
    torch.testing.assert_close(terms.prior, Normal(0.0, 1.0).log_prob(z_of(u)).sum(1))


@pytest.mark.remedy("the loss uses {} trainable tensors")
def test_networks_and_loose_tensors_get_a_container_of_their_kind() -> None:
    vae = zoo.Base()
    (x,) = zoo.example(vae)
    shift = torch.zeros(zoo.LATENTS, requires_grad=True)
    options = {"example": x, "decoder": lambda z: vae.data(z + shift), "encoder": vae.split, "encoder_scale": "log_var"}
    with pytest.raises(vae2aef.WrapError, match="loose tensors") as error:
        vae2aef.wrap(vae, **options)
    shift = nn.Parameter(shift.detach())
    exec(
        re.search(r"vae\.extra = .*", error.value.fix)[0].replace("...", "shift"),
        {"vae": vae, "nn": nn, "shift": shift},
    )  # type: ignore[index]
    assert any(p is shift for p in vae2aef.wrap(vae, **options).parameters())

    weight = torch.randn(zoo.PIXELS, 2 * zoo.LATENTS, requires_grad=True)
    options = {
        "example": x.flatten(1), "encoder": lambda x: (x @ weight).chunk(2, 1), "encoder_scale": "log_var",
        "decoder": lambda z: z @ weight[:, : zoo.LATENTS].T,
    }  # fmt: skip
    with pytest.raises(vae2aef.WrapError, match="loose tensors") as error:
        vae2aef.wrap(None, **options)
    weight = nn.Parameter(weight.detach())
    line = re.search(r"vae=(\S+)", error.value.fix)[1].replace("...", "weight")  # type: ignore[index]
    aef = vae2aef.wrap(eval(line, {"nn": nn, "weight": weight}), **options)
    assert any(p is weight for p in aef.parameters())

    net = nn.Linear(zoo.PIXELS, 2 * zoo.LATENTS)
    options |= {"encoder": lambda x: net(x).chunk(2, 1), "decoder": lambda z: z @ net.weight[: zoo.LATENTS]}
    with pytest.raises(vae2aef.WrapError, match="belong to modules") as error:
        vae2aef.wrap(None, **options)
    line = re.search(r"vae=(\S+)", error.value.fix)[1].replace("...", "net")  # type: ignore[index]
    assert net in vae2aef.wrap(eval(line, {"nn": nn, "net": net}), **options).vae


def test_every_remedy_of_tracing_is_one_of_these() -> None:
    """So that a new one is met here."""
    known = {refusal.NONE, refusal.PARTS, refusal.ENTRY, refusal.FLOW, refusal.CONDITION, refusal.DRAW, refusal.SEVERAL,
             refusal.ONLY_Z, refusal.OUTSIDE, refusal.EACH_ROW, refusal.OTHER_LATENT}  # fmt: skip
    assert known == {value for name, value in vars(refusal).items() if name.isupper()}
