"""VAEs in the styles of public repositories: other entries, draws that do not count, true reasons and remedies."""

import copy
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
import zoo_repos as wild
from test_traced import assert_same, snapshot
from torch import Tensor, nn
from torch.distributions import Normal

import vae2aef
from vae2aef.tracing.parts import TracedParts


def raised(vae: Any, example: Any, match: str, **options: Any) -> Exception:
    with pytest.raises((vae2aef.WrapError, TypeError), match=match) as error:
        vae2aef.wrap(vae, example=example, **options)
    return error.value


def line_of(error: Any) -> dict[str, Any]:
    """Take the options to pass from a message's last line; those it leaves to the user are "..."."""
    line = re.search(r"[Pp]ass (.*)$", error.fix)
    assert line, error
    return {name: value.rstrip(", ") for name, value in re.findall(r"(\w+)=((?:(?!, \w+=).)*)", line[1])}


def by_hand(vae: Any, x: Tensor, **options: Any) -> vae2aef.AEF:
    net = getattr(vae, "net", vae)
    torch.manual_seed(1)
    return vae2aef.wrap(net, example=x, encoder=net.split, decoder=net.data, encoder_scale="log_var", **options)


def same(aef: vae2aef.AEF, other: vae2aef.AEF, x: Tensor, change: Any = lambda mean: mean) -> None:
    other.load_state_dict({**other.state_dict(), **aef.state_dict()}, strict=False)
    z = torch.randn(3, *aef.latent_shape)
    torch.testing.assert_close(aef.decode(z), change(other.decode(z.reshape(3, *other.latent_shape))))
    posterior, expected = aef.parts.encode(x), other.parts.encode(x)
    torch.testing.assert_close(posterior.loc.flatten(1), expected.loc)
    torch.testing.assert_close(posterior.scale.flatten(1), expected.scale)


# ---------------------------------------------------------------------- another entry than forward


@pytest.mark.remedy("it draws no noise")
def test_another_entry_of_a_module() -> None:
    vae = wild.ForwardWithoutNoise()
    (x,) = zoo.example(vae)
    error = raised(vae, x, r"^the forward of ForwardWithoutNoise cannot be traced: it draws no noise")
    assert line_of(error).keys() == {"forward"}
    aef = vae2aef.wrap(vae, example=x, forward=vae.trained, noise=0.0)
    assert aef.vae is vae and isinstance(aef.parts, TracedParts)
    same(aef, by_hand(vae, x), x)
    other = copy.deepcopy(aef)
    torch.testing.assert_close(other(x), aef(x))
    with torch.no_grad():
        other.vae.head.bias += 1
    assert not torch.allclose(other(x), aef(x))


def test_an_object_that_is_no_module() -> None:
    """Its networks are trained, moved and saved with the AEF; a function that holds them cannot be copied."""
    vae = wild.NoModule()
    (x,) = zoo.example(vae.net)
    aef = vae2aef.wrap(vae, example=x, forward=lambda x: vae.run(x))
    assert {id(p) for p in vae.net.parameters()} <= {id(p) for p in aef.parameters()}
    assert any(name.endswith("head.weight") for name in aef.state_dict())
    same(aef, by_hand(vae, x), x)
    aef.train()
    assert vae.net.training
    aef(x).backward()
    assert vae.net.head.weight.grad is not None
    with pytest.raises(TypeError, match="its forward is a function that holds a module"):
        copy.deepcopy(aef)


def test_an_object_that_holds_networks_is_told_of_forward() -> None:
    holder = types.SimpleNamespace(inner=wild.NoModule())
    (x,) = zoo.example(holder.inner.net)
    assert line_of(raised(holder, x, "no encoder and decoder found")).keys() == {"forward"}
    same(vae2aef.wrap(holder, example=x, forward=holder.inner.run), by_hand(holder.inner, x), x)


def test_a_module_without_forward_is_told_of_its_parts() -> None:
    holder = nn.ModuleList([zoo.Base()])
    (x,) = zoo.example(holder[0])
    assert "tracing: it has no forward" in str(raised(holder, x, "no encoder and decoder found in ModuleList"))


def test_the_same_data_twice() -> None:
    """pixyz keeps what it has computed of a tensor object, with a graph that is freed by the first backward pass."""

    class Keeps(zoo.Base):
        def __init__(self) -> None:
            super().__init__()
            self.kept: dict[int, Any] = {}
            self.alive: list[Tensor] = []

        def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
            self.alive.append(x)
            return self.kept.setdefault(id(x), super().split(x))

    vae = Keeps()
    (x,) = zoo.example(vae)
    aef = vae2aef.wrap(vae, example=x)
    for _ in range(2):
        aef(x).backward()


def test_a_module_of_parameters_alone() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 2))

        def step(self, x: Tensor) -> Tensor:
            return (x @ self.w + torch.randn(len(x), 2)) @ self.w.T

    vae = Alone()
    aef = vae2aef.wrap(vae, example=torch.rand(5, 6), forward=vae.step)
    torch.testing.assert_close(aef.decode(torch.ones(1, 2)), vae.w.sum(1)[None])


@pytest.mark.remedy("forward= is the whole VAE")
def test_what_does_not_go_with_forward() -> None:
    vae = wild.ForwardWithoutNoise()
    (x,) = zoo.example(vae)
    error = raised(
        vae, x, "encoder, encoder_scale a part of one", forward=vae.trained, encoder=vae.split, encoder_scale="std"
    )
    assert error.fix == "leave encoder and encoder_scale out"
    raised(vae, x, "expected forward= as a function", forward=3)
    raised(None, x, "no module is found .* vae=nn.ModuleList", forward=lambda x: x + torch.randn_like(x))
    raised(vae, x, r"^forward= cannot be traced: it draws no noise", forward=vae.__call__)


def test_output_goes_with_forward() -> None:
    vae = wild.ForwardWithoutNoise()
    (x,) = zoo.example(vae)
    aef = vae2aef.wrap(
        vae, example=x, forward=lambda x: {"logits": vae.trained(x)}, output=lambda out: out["logits"].sigmoid()
    )
    same(aef, by_hand(vae, x), x, torch.sigmoid)


def test_an_axis_of_samples() -> None:
    vae = wild.SampleAxis()
    (x,) = zoo.example(vae)
    aef = vae2aef.wrap(vae, example=x.flatten(1))
    assert aef.latent_shape == (1, zoo.LATENTS)
    same(aef, by_hand(vae, x.flatten(1), output=lambda mean: mean.flatten(1)), x.flatten(1))
    vae.samples = 2
    raised(vae, x.flatten(1), "no output is shaped like the data")


@pytest.mark.parametrize(
    "encoder", [wild.NoModule().encode, wild.ForwardWithoutNoise().encode_dists], ids=["dict", "pair"]
)
def test_encoders_that_return_parameters_or_a_pair(encoder: Any) -> None:
    vae = getattr(encoder.__self__, "net", encoder.__self__)
    (x,) = zoo.example(vae)
    same(vae2aef.wrap(vae, example=x, encoder=encoder, decoder=vae.data), by_hand(vae, x), x)


def test_a_prior_beside_the_posterior_that_is_not_standard_is_not_left_out() -> None:
    vae = zoo.Base()
    (x,) = zoo.example(vae)

    def encoder(x: Tensor) -> tuple[Normal, Normal]:
        loc, log_var = vae.split(x)
        return Normal(loc, (0.5 * log_var).exp()), Normal(torch.ones_like(loc), torch.ones_like(loc))

    raised(vae, x, "got a tuple of 2", encoder=encoder, decoder=vae.data)


# ---------------------------------------------------------------------- draws that do not count


@pytest.mark.parametrize("cls", wild.ONE_OF_SEVERAL_DRAWS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_draws_that_the_mean_does_not_depend_on(cls: type, training: bool) -> None:
    vae = cls()
    (x,) = zoo.example(vae)
    own_scale = {"likelihood": "learned"} if cls is wild.SamplesGaussian else {}  # not the one that its samples have
    aef = vae2aef.wrap(vae, example=x, noise=0.0, **own_scale).train(training)
    assert "it also draws by" in repr(aef)
    same(aef, by_hand(vae, x).train(training), x, torch.sigmoid if cls is wild.SamplesBits else lambda mean: mean)
    torch.testing.assert_close(aef(x), aef(x))
    aef(x).backward()
    assert aef.sample(2).shape == (2, *zoo.EVENT)


def test_a_second_latent_counts_though_a_coarse_output_needs_it_not() -> None:
    vae = wild.CoarseAndFine()
    raised(vae, zoo.example(vae), "expected one Gaussian draw, got 2: several latents")  # no noise on x


def test_noise_that_comes_elsewhere_later_is_noticed() -> None:
    vae = wild.PriorFirst()
    (x,) = zoo.example(vae)
    aef = vae2aef.wrap(vae, example=x)
    vae.forward = lambda x: zoo.Base.forward(vae, x)
    with pytest.raises(vae2aef.WrapError, match=r"did not draw|draws noise again"):
        aef(x)


# ---------------------------------------------------------------------- the true reason


@pytest.mark.parametrize("cls", [wild.BatchNormAutoencoder, wild.MovingCodebook])
def test_what_a_training_pass_moves_is_no_noise(cls: type) -> None:
    vae = cls()
    before = snapshot(vae)
    raised(vae, zoo.example(vae), "^the forward of .* cannot be traced: it draws no noise")
    assert_same(snapshot(vae), before)


SCRIPTED = """
import sys, torch
sys.path.insert(0, "{tests}")
import vae2aef, zoo, zoo_repos
vae = zoo_repos.ScriptedDraw()
print(vae2aef.wrap(vae, example=zoo.example(vae)))
"""


@pytest.mark.remedy("its output is random, but no draw is seen: `")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.slow
def test_a_scripted_draw_and_its_remedy() -> None:
    vae = wild.ScriptedDraw()
    error = raised(vae, zoo.example(vae), r"random, but no draw is seen: `noise` is scripted")
    name, value = re.search(r"variable (\w+)=(\d)", error.fix).groups()  # type: ignore[attr-defined, union-attr]
    code = SCRIPTED.format(tests=Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, name: value}, capture_output=True, text=True)
    assert done.stdout.startswith("AEF of ScriptedDraw"), done.stderr


def test_numpy_is_named() -> None:
    vae = zoo.NumpyNoise()
    assert "torch.randn_like(scale)" in raised(vae, zoo.example(vae), "no draw is seen: NumPy draws").fix  # type: ignore[attr-defined]


@pytest.mark.remedy("x is of {}, and {} has an nn.Embedding")
def test_tokens_are_led_to_their_likelihood() -> None:
    """Each message's line is run in turn, until it works."""
    vae, x = wild.Tokens(), torch.randint(wild.WORDS, (9, wild.LENGTH))
    options: dict[str, Any] = {}
    for match in ("classes, such as tokens", "no output is shaped like the data"):
        options |= {name: eval(value) for name, value in line_of(raised(vae, x, match, **options)).items()}
    aef = vae2aef.wrap(vae, example=x, noise=0.0, **options)
    z = aef.encode(x)
    expected = vae.logits(z, x).log_softmax(-1).gather(-1, x[..., None]).sum((1, 2))
    torch.testing.assert_close(aef(x, terms=True).residual, expected)
    assert aef.sample(4).max() < wild.WORDS
    vae = wild.TeacherForcing()
    assert "example" in line_of(raised(vae, x, "a decoder that sees the data beside z", **options))


@pytest.mark.remedy("it takes the {} rows")
def test_rows_that_are_nodes_of_one_graph() -> None:
    vae, x = wild.Nodes(), torch.rand(6, *zoo.EVENT)
    error = raised(vae, (x, torch.tensor([[0, 5], [5, 0]])), r"takes the 6 rows of the example together, but not a few")
    assert "one graph a row" in error.fix  # type: ignore[attr-defined]
    aef = vae2aef.wrap(wild.Graphs(), example=(torch.rand(6, 4, 2), torch.eye(4).expand(6, 4, 4)))
    assert aef.latent_shape == (4, 2)


def test_distributions_that_do_not_say_their_shape() -> None:
    vae, x = wild.ShapelessCounts(), torch.randint(4, (5, *zoo.EVENT)).float()
    aef = vae2aef.wrap(vae, example=x, noise=0.0)
    rate = vae.data(aef.encode(x)).exp()
    torch.testing.assert_close(
        aef(x, terms=True).residual, torch.distributions.Poisson(rate).log_prob(x).sum((1, 2, 3))
    )


def test_noise_of_a_narrower_type_than_the_data() -> None:
    vae = wild.SinglePrecisionNoise().double()
    x = zoo.example(vae)[0].double()
    posterior = vae2aef.wrap(vae, example=x).parts.encode(x)
    torch.testing.assert_close(posterior.loc, vae.split(x)[0])
    torch.testing.assert_close(posterior.scale, (0.5 * vae.split(x)[1]).exp(), rtol=1e-6, atol=1e-6)


def test_a_decoder_without_a_bound_has_none() -> None:
    vae = wild.SmallLinearDecoder()
    (x,) = zoo.example(vae)
    found = [f.message for f in vae2aef.check(vae, example=x).findings if f.place == "decoder"]
    assert any("with no bound seen" in message for message in found), found
