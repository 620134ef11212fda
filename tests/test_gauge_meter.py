"""The gauge meter, its warning in words, and schedules of sigma."""

import math

import pytest
import torch
from torch import nn
from zoo_core import SmallVAE

import vae2aef
from vae2aef.gauge import drift
from vae2aef.schedules import noise_at


def small(**options):
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    options = {"core_flow": "none", "noise": 0.0, **options}
    return vae2aef.wrap(SmallVAE((6,), (2,)), example=x, encoder_scale="log_std", **options), x


@pytest.mark.parametrize("core_flow", ["none", "coupling"])
def test_the_meter_reads_what_it_says(core_flow):
    aef, x = small(core_flow=core_flow)
    with torch.no_grad():
        loc, log_std = aef.vae.encoder(x)
        h = aef.core.features(x)
        u = aef.core_flow(h)[0]
    read = aef.gauge(x)
    assert read.core_std == pytest.approx(float(h.var(0, correction=0).mean().sqrt()), rel=1e-5)
    assert read.log_scale == pytest.approx(float(log_std.mean()), rel=1e-4)
    part, z = log_std.exp() * u, loc + log_std.exp() * u
    assert read.core_share == pytest.approx(float(part.var(0).mean() / z.var(0).mean()), rel=1e-4)
    with pytest.raises(ValueError, match="two rows"):
        aef.gauge(x[:1])


def test_the_meter_reads_the_model_as_it_is_evaluated():
    x = torch.randn(40, 6)
    norm = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    parts = {"encoder": lambda x: norm(x).chunk(2, 1), "decoder": nn.Linear(2, 6), "encoder_scale": "log_std"}
    aef = vae2aef.wrap(norm, example=x, **parts).train()
    before = {name: value.clone() for name, value in aef.state_dict().items()}
    read = aef.gauge(x)
    assert aef.training and norm[2].training and read == aef.eval().gauge(x)
    assert all(torch.equal(value, before[name]) for name, value in aef.state_dict().items())


def test_the_meter_sees_h_shrink():
    aef, x = small()
    before = aef.gauge(x)
    with torch.no_grad():
        aef.core.features.set_map(*(part / 10 for part in aef.core.features.map()))
    after = aef.gauge(x)
    assert after.core_std == pytest.approx(before.core_std / 10, rel=1e-4)
    assert after.log_scale == before.log_scale
    assert after.core_share < before.core_share


def curve(values, every=100):
    return [(every * (i + 1), value) for i, value in enumerate(values)]


FALLING = curve([-97, -100, -110, -115, -121])


def test_drift_speaks_where_the_loss_falls_and_the_marginal_does_not():
    said = drift(FALLING, curve([-70, -65.6, -66, -66, -65.7]))
    assert said == (
        "since step 200 the loss fell from -100 to -121 nats, while log p(x) of held-out data did not rise above -65.6"
    )


@pytest.mark.parametrize(
    "losses, log_probs",
    [
        (FALLING, curve([-70, -69, -68, -67, -66])),  # the model is better
        (FALLING, curve([-70, -69, -65, -66, -66])),  # worse at two looks only
        (curve([-97, -100, -110, -109, -121]), curve([-70, -65.6, -66, -66, -65.7])),  # the loss rose in between
        (FALLING[:3], curve([-65, -66, -66])),
        ([], curve([-70, -65.6, -66, -66, -65.7])),
    ],
)
def test_drift_is_silent_elsewhere(losses, log_probs):
    assert drift(losses, log_probs) is None


def test_schedules_begin_and_end_where_they_say():
    for kind in ("linear", "cosine"):
        values = [noise_at(step, 10, 1.0, 0.2, kind) for step in range(12)]
        assert values[0] == 1.0 and values[10] == values[11] == pytest.approx(0.2)
        assert values == sorted(values, reverse=True) and values[5] == pytest.approx(0.6)
    assert noise_at(2, 10, 1.0, 0.0, "linear") == pytest.approx(0.8)
    assert noise_at(2, 10, 1.0, 0.0, "cosine") == pytest.approx(0.5 * (1 + math.cos(0.2 * math.pi)))
    assert noise_at(7, 10, 0.3, 0.1, "constant") == 0.3
    for bad in ({"kind": "cosinus"}, {"steps": 0}, {"end": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            noise_at(**{"step": 0, "steps": 10, "start": 1.0, "end": 0.1, "kind": "linear", **bad})
