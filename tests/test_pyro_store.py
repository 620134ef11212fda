"""Pyro's parameter store beside `wrap` and `from_pyro`: what they put there, and what they take of it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn

import vae2aef
from vae2aef import testing

WAYS = {
    "wrap": lambda vae, x: vae2aef.wrap(vae, example=x),
    "from_pyro": lambda vae, x: vae2aef.from_pyro(vae.model, vae.guide, x),
}


@pytest.fixture(autouse=True)
def _fresh_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


class VAE(nn.Module):
    """As in Pyro's tutorial: `pyro.module` in model and guide."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, dim=1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


@pytest.fixture
def x():
    return torch.rand(8, 6)


@pytest.mark.parametrize("way", WAYS)
def test_the_store_gets_nothing_of_modules(way, x):
    """A cell of a notebook that was run again trained the networks of the first run."""
    vae, again = VAE(), VAE()
    aef = WAYS[way](vae, x)
    aef(x).backward()
    aef.log_prob(x, num_samples=8)
    aef.sample(3)
    assert list(pyro.get_param_store().keys()) == []
    second = WAYS[way](again, x)
    assert sum(p.numel() for p in second.parameters()) == sum(p.numel() for p in aef.parameters())
    testing.check_gradients(second, x)
    assert {id(p) for p in again.parameters()} <= {id(p) for p in second.parameters()}


@pytest.mark.parametrize("way", WAYS)
def test_what_svi_has_trained_is_taken_without_a_word(way, x, recwarn):
    vae = VAE()
    SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), loss=Trace_ELBO()).step(x)
    before = dict(pyro.get_param_store().named_parameters())
    aef = WAYS[way](vae, x)
    assert {id(p) for p in before.values()} <= {id(p) for p in aef.parameters()}
    assert dict(pyro.get_param_store().named_parameters()).keys() == before.keys()
    assert [warning for warning in recwarn if isinstance(warning.message, vae2aef.WrapWarning)] == []
    testing.check_gradients(aef, x)


@pytest.mark.parametrize("way", WAYS)
def test_what_the_store_holds_of_another_model_is_left_alone(way, x):
    """`pyro.module` lets a module keep its own; those of the other were registered, and trained to no effect."""
    old, vae = VAE(), VAE()
    SVI(old.model, old.guide, Adam({"lr": 1e-3}), loss=Trace_ELBO()).step(x)
    aef = WAYS[way](vae, x)
    testing.check_gradients(aef, x)
    assert not {id(p) for p in old.parameters()} & {id(p) for p in aef.parameters()}
    z = torch.randn(4, 2)
    torch.testing.assert_close(aef.decode(z), vae.decoder(z))


@pytest.mark.parametrize("said", [{}, {"data": "x"}], ids=["found", "said"])
@pytest.mark.parametrize("owned", [False, True], ids=["closures", "methods"])
def test_what_the_store_puts_into_modules_is_taken(owned, said, x, tmp_path):
    """A store that was loaded, with `update_module_params=True`."""

    class Updates(VAE):
        def model(self, x):
            pyro.module("decoder", self.decoder, update_module_params=True)
            super().model(x)

    old, vae = Updates(), Updates()
    SVI(old.model, old.guide, Adam({"lr": 1e-3}), loss=Trace_ELBO()).step(x)
    trained = old.decoder.weight.detach().clone()
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store.pt")
    pair = (vae.model, vae.guide) if owned else (lambda x: vae.model(x), lambda x: vae.guide(x))
    aef = vae2aef.from_pyro(*pair, x, **said)
    fresh = Updates()
    wrapped = vae2aef.wrap(fresh, example=x)
    for taken, made in ((vae, aef), (fresh, wrapped)):
        torch.testing.assert_close(taken.decoder.weight, trained, rtol=0, atol=0)
        assert {id(p) for p in taken.parameters()} <= {id(p) for p in made.parameters()}
        testing.check_gradients(made, x)
    assert not any("param_" in key for key in wrapped.state_dict())  # each has one name


@pytest.mark.parametrize("bounded", [False, True])
def test_a_parameter_object_that_pyro_param_is_given_is_no_modules(bounded, x):
    vae, constraint = VAE(), dist.constraints.positive if bounded else dist.constraints.real

    def model(x):
        scale = pyro.param("scale", nn.Parameter(torch.tensor(0.5)), constraint=constraint)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(vae.decoder(z), scale).to_event(1), obs=x)

    aef = vae2aef.from_pyro(model, vae.guide, x)
    aef(x).backward()
    (added,) = (p for name, p in aef.named_parameters() if name.endswith("scale"))
    assert added.grad is not None and added.grad != 0


def test_a_modules_parameter_under_a_constraint_is_what_the_constraint_makes_of_it(x):
    class Scaled(VAE):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def model(self, x):
            scale = pyro.param("scale", self.scale, constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
                pyro.sample("obs", dist.Normal(self.decoder(z), scale).to_event(1), obs=x)

    vae = Scaled()
    aef = vae2aef.from_pyro(vae.model, vae.guide, x)
    (added,) = (p for name, p in aef.named_parameters() if name.endswith("param_scale"))
    torch.testing.assert_close(added.exp(), torch.tensor(0.5))
    aef(x).backward()
    assert added.grad != 0


def test_a_plain_parameter_stays_in_the_store_and_is_trained_there(x):
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(z.repeat(1, 3), scale).to_event(1), obs=x)

    vae = VAE()
    aef = vae2aef.from_pyro(model, vae.guide, x)
    assert list(pyro.get_param_store().keys()) == ["scale"]
    optimizer = torch.optim.SGD(aef.parameters(), lr=1e-2)
    aef(x).backward()
    optimizer.step()
    assert pyro.param("scale").item() != 1


@pytest.mark.parametrize("cleared", [False, True])
def test_an_aef_of_from_pyro_is_loaded_by_the_line_that_the_refusal_says(x, cleared, tmp_path):
    path, vae = tmp_path / "aef.pt", VAE()
    aef = vae2aef.from_pyro(vae.model, vae.guide, x)
    aef.save(path)
    if cleared:
        pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"load\(path, vae2aef.from_pyro\(model, guide, x\).vae\)"):
        vae2aef.load(path, VAE())
    other = VAE()
    again = vae2aef.load(path, vae2aef.from_pyro(other.model, other.guide, x).vae)
    torch.testing.assert_close(again.encode(x), aef.encode(x), rtol=0, atol=0)
    torch.testing.assert_close(other.encoder.weight, vae.encoder.weight, rtol=0, atol=0)


def test_an_aef_of_wrap_is_loaded_beside_the_first(x, tmp_path):
    path = tmp_path / "aef.pt"
    aef = vae2aef.wrap(VAE(), example=x)
    aef.save(path)
    torch.testing.assert_close(vae2aef.load(path, VAE()).encode(x), aef.encode(x), rtol=0, atol=0)
