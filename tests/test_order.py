"""The order of a VAE and its AEFs under the default log_prob is that of annealed importance sampling."""

import pytest
import torch
from torch import Tensor, nn

import vae2aef

ARMS = {"vae": {"core": "noise"}, "sigma 0": {"noise": 0.0}, "sigma 0.5": {"noise": 0.5}}
ROWS = 16


class DigitsVAE(nn.Module):
    """MLP 64-128-128, D = 8."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 16)
        )  # fmt: skip
        self.outer = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_var = self.inner(x).chunk(2, 1)
        return loc, log_var

    def decode(self, z: Tensor) -> Tensor:
        return self.outer(z)


def digits() -> Tensor:
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits of scikit-learn, of the demo extra")
    return vae2aef.dequantize(torch.tensor(datasets.load_digits().data, dtype=torch.float32), bins=17)


def trained(data: Tensor, options: dict) -> vae2aef.AEF:
    torch.manual_seed(0)
    aef = vae2aef.wrap(
        DigitsVAE(), example=data[:64], encoder_scale="log_var", preprocess=["logit", "standardize"], **options
    )
    optimizer = torch.optim.Adam(aef.parameters(), 1e-3)
    for _ in range(600):
        optimizer.zero_grad()
        aef(data[torch.randint(len(data), (128,))]).backward()
        nn.utils.clip_grad_norm_(aef.parameters(), 200)
        optimizer.step()
    return aef


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::vae2aef.marginal.EstimateWarning")
def test_the_order_of_models_is_that_of_annealing():
    data = digits()
    torch.manual_seed(1)
    data = data[torch.randperm(len(data))]
    held_out, found = data[:ROWS], {}
    for arm, options in ARMS.items():
        aef = trained(data[200:], options)
        found[arm] = {
            "default": aef.log_prob(held_out, seed=0),
            "tuned": aef.log_prob(held_out, proposal="tuned"),
            "ais": aef.log_prob(held_out, method="ais", num_samples=20, seed=0),
        }
        known = ~found[arm]["default"].uncertain
        print(arm, {name: f"{float(each.value.mean()):.2f}" for name, each in found[arm].items()}, int(known.sum()))
        assert known.double().mean() > 0.8
        difference = (found[arm]["default"].value - found[arm]["ais"].value)[known]
        assert abs(difference.mean()) < 0.3
        assert found[arm]["tuned"].bound and not found[arm]["default"].bound
        assert found[arm]["tuned"].value.mean() < found[arm]["default"].value.mean()
    order = {name: sorted(ARMS, key=lambda arm: float(found[arm][name].value.mean())) for name in ("default", "ais")}
    assert order["default"] == order["ais"]
