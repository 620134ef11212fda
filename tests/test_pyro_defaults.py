"""What Pyro's losses, guides and conversions take if nobody says: most other tests give them a core flow."""

import pytest
import torch
from torch import nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402

import vae2aef  # noqa: E402
from vae2aef.flows import Identity  # noqa: E402

B, N, D = 6, 4, 2


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(N, 2 * D), nn.Linear(D, N)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.dec(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, raw = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def test_no_core_flow_and_the_one_sigma():
    """Fault: a default of one of them changes, and what is trained is not what is converted."""
    pyro.clear_param_store()
    pair, x = Pair(), torch.randn(B, N)
    elbo, guide = vae2aef.AEF_ELBO(), vae2aef.aef_guide(pair.model, pair.guide)
    elbo.loss(pair.model, pair.guide, x)
    guide(x)
    aef = vae2aef.from_pyro(pair.model, pair.guide, x)
    for made, flow in (
        (elbo, elbo.maps["z"].flow),
        (guide, guide.maps.maps["z"].flow),
        (aef, aef.core_flow),
    ):
        assert isinstance(flow, Identity) and made.noise == 0.3
