"""A VAE that takes flattened data is wrapped with pictures as they are, as its loop would flatten them."""

import copy

import pytest
import torch
from torch import nn

import vae2aef
from vae2aef import testing


class Flat(nn.Module):
    def __init__(self, data=12):
        super().__init__()
        self.first, self.second, self.data = nn.Linear(data, 6), nn.Linear(3, data), data

    def forward(self, x, y=None):
        mu, log_var = self.first(x).chunk(2, dim=1)
        if y is not None:
            mu = mu + y
        return self.second(mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)), mu, log_var


@pytest.fixture
def x():
    return torch.rand(8, 1, 3, 4)


def test_pictures_are_flattened_for_it(x):
    vae = Flat()
    aef, by_hand = vae2aef.wrap(vae, example=x), vae2aef.wrap(vae, example=x.flatten(1))
    by_hand.load_state_dict({k: v.reshape(by_hand.state_dict()[k].shape) for k, v in aef.state_dict().items()})
    assert "data: flattened, (batch, values), for its forward" in str(aef)
    torch.testing.assert_close(aef.encode(x), by_hand.encode(x.flatten(1)))
    assert aef.sample(5).shape == (5, 1, 3, 4)
    assert aef.reconstruct(x).shape == x.shape
    testing.check_gradients(aef, x)
    torch.manual_seed(0)
    loss = aef(x)
    torch.manual_seed(0)
    torch.testing.assert_close(loss, by_hand(x.flatten(1)))


def test_conditions_stay_as_they_are(x):
    aef = vae2aef.wrap(Flat(), example=(x, torch.ones(8, 1)))
    assert not torch.allclose(aef.encode(x, torch.ones(8, 1)), aef.encode(x, torch.zeros(8, 1)))


def test_a_copy_and_a_file_have_their_own_networks(x, tmp_path):
    aef = vae2aef.wrap(Flat(), example=x)
    other = copy.deepcopy(aef)
    with torch.no_grad():
        other.vae.first.weight.zero_()
    assert other.encode(x).std() != aef.encode(x).std()
    aef.save(tmp_path / "aef.pt")
    torch.testing.assert_close(vae2aef.load(tmp_path / "aef.pt", Flat()).encode(x), aef.encode(x))


def test_what_fails_flattened_too_is_refused_for_its_own_reason(x):
    with pytest.raises(vae2aef.WrapError, match=r"pass on data of shape \(3, 1, 3, 4\) fails with RuntimeError"):
        vae2aef.wrap(Flat(data=10), example=x)


def test_a_refusal_that_is_no_error_of_forward_stays(x):
    class Silent(Flat):
        def forward(self, x):
            assert x.dim() == 4, "this is run on pictures"
            return self.second(self.first(x.flatten(1))[:, :3]).reshape(x.shape)

    with pytest.raises(vae2aef.WrapError, match="draws no noise"):
        vae2aef.wrap(Silent(), example=x)
