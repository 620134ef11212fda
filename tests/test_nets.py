"""The built-in VAEs, and finding the user's own."""

import pytest
import torch
from torch import nn

from vae2aef.comparison.errors import InputError
from vae2aef.comparison.factory import find_factory, make_vae, takes_latents
from vae2aef.comparison.nets import MLPVAE, ConvVAE

MODULE = """
import torch
from vae2aef.comparison.nets import MLPVAE

class Holder:
    @staticmethod
    def make():
        return MLPVAE((4,), 2, hidden=3)

def plain():
    return torch.nn.Linear(2, 2)

def sized(event_shape, latents=3):
    return MLPVAE(event_shape, latents, hidden=5)

def parts(event_shape):
    vae = MLPVAE(event_shape, 2, hidden=5)
    return {"vae": vae, "encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}

def needy(depth):
    return None

def failing():
    raise RuntimeError("out of luck")

def nothing():
    return 3

def greedy():
    return {"vae": plain(), "noise": 1.0}

number = 7
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_vaes.py").write_text(MODULE)
    (tmp_path / "broken_vaes.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "event"),
    [(MLPVAE, (7,)), (MLPVAE, (1, 3, 2)), (ConvVAE, (1, 28, 28)), (ConvVAE, (3, 9, 6)), (ConvVAE, (1, 1, 2))],
)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shapes(make, event, batch):
    vae = make(event, 4)
    mean, log_var = vae.encode(torch.rand(batch, *event))
    assert mean.shape == log_var.shape == (batch, 4)
    assert vae.decode(mean).shape == (batch, *event)
    assert vae(torch.rand(batch, *event))[0].shape == (batch, *event)


@pytest.mark.parametrize("make", [MLPVAE, ConvVAE])
def test_every_parameter_gets_a_gradient(make):
    vae = make((1, 9, 8), 3)
    sum(part.square().sum() for part in vae(torch.rand(5, 1, 9, 8))).backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_reparameterize_draws_with_the_scale_given():
    mean, log_var = torch.full((20000, 1), 3.0), torch.full((20000, 1), 2.0).log() * 2
    z = MLPVAE((1,), 1, hidden=1).reparameterize(mean, log_var)
    assert z.mean().item() == pytest.approx(3.0, abs=0.1)
    assert z.std().item() == pytest.approx(2.0, abs=0.1)


def test_convolutions_need_images():
    with pytest.raises(InputError, match="use MLPVAE"):
        ConvVAE((64,), 2)


def test_built_in_ones_come_with_their_parts():
    made = make_vae("mlp", (1, 8, 8), 3)
    assert made["encoder_scale"] == "log_var"
    assert made["encoder"](torch.rand(2, 1, 8, 8))[0].shape == (2, 3)


def test_event_shape_and_latents_are_handed_over_where_taken(module):
    assert make_vae("my_vaes:sized", (6,), 2)["vae"].to_mean.out_features == 2
    assert isinstance(make_vae("my_vaes:plain", (6,), 2)["vae"], nn.Linear)
    assert make_vae("my_vaes:Holder.make", (4,), 9)["vae"].to_mean.out_features == 2
    assert takes_latents("my_vaes:sized")
    assert not takes_latents("my_vaes:plain")


def test_a_dict_holds_arguments_for_wrap(module):
    assert set(make_vae("my_vaes:parts", (6,), 2)) == {"vae", "encoder", "decoder", "encoder_scale"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet", "expected mlp, conv, package.module:factory, or file.py:factory"),
        (":f", "expected mlp, conv, package.module:factory, or file.py:factory"),
        ("no_such_module_here:f", "No module named 'no_such_module_here'"),
        ("broken_vaes:f", "No module named 'no_such_package'"),
        ("my_vaes:missing", "my_vaes has no missing"),
        ("my_vaes:number", "number is a int"),
        ("my_vaes:needy", "needs depth"),
        ("my_vaes:failing", "RuntimeError: out of luck"),
        ("my_vaes:nothing", "returned int"),
        ("my_vaes:greedy", "noise cannot be set"),
    ],
)
def test_wrong_factories(module, spec, message):
    with pytest.raises(InputError, match=message):
        make_vae(spec, (6,), 2)


def test_the_working_folder_is_searched(tmp_path, monkeypatch):
    (tmp_path / "only_in_this_folder.py").write_text("make = list")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path])
    assert find_factory("only_in_this_folder:make") is list


@pytest.mark.parametrize("kind", [MLPVAE, ConvVAE])
def test_standardised_inputs(kind):
    vae, x = kind((1, 8, 8), 3), 40 + 5 * torch.rand(50, 1, 8, 8)
    unit = (x - x.mean()) / x.std(correction=0)
    expected = vae.encode(unit)
    vae.standardise(x)
    torch.testing.assert_close(vae.encode(x), expected, rtol=1e-4, atol=1e-4)
    old = {name: value for name, value in vae.state_dict().items() if name not in ("center", "spread")}
    assert not any(vae.load_state_dict(old))  # weights of release 0.1
    torch.testing.assert_close(vae.encode(unit), expected)
