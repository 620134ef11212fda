"""Parity with the authors' released code (DESIGN section 7): weights, z, residuals, log-dets, samples to 1e-9."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae2aef

FIXTURE = Path(__file__).parent / "data" / "reference_parity.npz"


class Net(nn.Module):
    """The network of the fixture; returns scales as they are used, floor included."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.w = weights

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = self.w
        h = F.relu(F.conv2d(x, w["encoder.conv1.weight"], w["encoder.conv1.bias"], stride=2, padding=1))
        h = F.relu(F.conv2d(h, w["encoder.conv2.weight"], w["encoder.conv2.bias"], stride=2, padding=1)).flatten(1)
        loc = F.linear(h, w["encoder.fc_mu.weight"], w["encoder.fc_mu.bias"])
        raw = F.linear(h, w["encoder.fc_sigma.weight"], w["encoder.fc_sigma.bias"])
        return loc, F.softplus(raw) + 1e-5

    def decoder(self, z: Tensor) -> tuple[Tensor, Tensor]:
        w = self.w
        h = F.linear(z, w["decoder.fc.weight"], w["decoder.fc.bias"]).reshape(-1, 16, 2, 2)
        h = F.relu(F.conv_transpose2d(h, w["decoder.conv2.weight"], w["decoder.conv2.bias"], stride=2, padding=1))
        mean = F.conv_transpose2d(h, w["decoder.conv1.weight"], w["decoder.conv1.bias"], stride=2, padding=1)
        return mean, (F.softplus(w["decoder.pre_sigma"]) + 1e-5).expand_as(mean)


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(FIXTURE) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(params=["linear", "center", "corner"])
def case(request: pytest.FixtureRequest, reference: dict[str, Tensor]) -> tuple[str, dict[str, Tensor], vae2aef.AEF]:
    kind = request.param
    ref = {name[len(kind) + 1 :]: value for name, value in reference.items() if name.startswith(kind + ".")}
    ref["x"] = reference["x"]
    weights = {name[len("param.") :]: value for name, value in ref.items() if name.startswith("param.")}
    scale = weights["preprocessing_layers.2.log_scale"].exp() + 1e-5
    standardize = vae2aef.Standardize(weights["preprocessing_layers.2.shift"], scale)
    aef = vae2aef.wrap(
        Net(weights),
        example=ref["x"],
        encoder_scale="std",
        core=kind,
        noise=0.0,
        core_flow="none",
        residual="decoder",
        decoder_scale="std",
        preprocess=[vae2aef.Logit(0.05), standardize],
    ).double()
    if kind == "linear":
        aef.core.features.set_map(weights["dense.1.weight"], weights["dense.1.bias"])
    return kind, ref, aef


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_latents(case):
    _, ref, aef = case
    close(aef.encode(ref["x"]), ref["z"])


def test_negative_log_likelihood(case):
    _, ref, aef = case
    close(-aef.expanded_log_prob(ref["x"]), ref["nll"])
    close(aef(ref["x"]), ref["nll"].mean())


def test_log_determinant_and_residual(case):
    """Their log-det counts the residual's scale, and their deviation is divided by it."""
    kind, ref, aef = case
    terms = aef(ref["x"], terms=True)
    y = aef.preprocess(ref["x"])[0]
    _, shell = aef.core(y)
    decoded = aef.parts.decode(terms.z)
    mask = torch.ones_like(y) if kind == "linear" else 1 - ref["mask"].to(y)
    delta = (shell - aef.core.shell(decoded.mean)) / decoded.scale * mask
    close(delta, ref["deviation"] * mask)  # at the core, theirs holds no residual
    close(terms.log_det - (decoded.scale.log() * mask).flatten(1).sum(1), ref["log_abs_det"])


def test_partition_masks_are_theirs(case):
    kind, ref, aef = case
    if kind == "linear":
        assert isinstance(aef.core, vae2aef.core.Expansion)
    else:
        assert torch.equal(aef.core.mask, ref["mask"].bool())


def test_samples(case):
    """Algorithm 2 (partition) and Algorithm 3 (expanded) from their latents."""
    _, ref, aef = case
    close(aef.decode(ref["sample_z"]), ref["sample_x"])
