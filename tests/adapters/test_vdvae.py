"""Very deep VAEs: a stand-in of ours everywhere, the real openai/vdvae where VAE2AEF_CHECKOUTS has it."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hierarchy_contract import bridge, trains, untouched, whole_map
from lookalikes import very_deep

import vae2aef
from vae2aef.adapters.vdvae import ENCODER_SCALING, MixtureOfLogistics

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # in their helpers
]
CHECKOUT = Path(os.environ.get("VAE2AEF_CHECKOUTS", "/nowhere")) / "vdvae"
CIFAR = Path(__file__).parents[3] / "shared/data/cifar10_small.npz"


def build(which, dataset="cifar10", size=2):
    torch.manual_seed(0)
    if which == "stand-in":
        return very_deep.VAE(size=size, dataset=dataset)
    if not CHECKOUT.is_dir():
        pytest.skip("VAE2AEF_CHECKOUTS names no folder with a checkout of openai/vdvae")
    sys.path.insert(0, str(CHECKOUT))
    try:
        module, hps = importlib.import_module("vae"), importlib.import_module("hps")
    finally:
        sys.path.remove(str(CHECKOUT))
    fine = {2: ("2x2,2d2,1x1", "1x1,2m1,2x1"), 8: ("8x2,8d2,4x1,4d4,1x1", "1x2,4m1,4x2,8m4,8x4")}[size]
    h = hps.Hyperparams(
        width=8, zdim=2, enc_blocks=fine[0], dec_blocks=fine[1], bottleneck_multiple=0.5, no_bias_above=64,
        image_size=size, image_channels=3, num_mixtures=3, dataset=dataset, custom_width_str="",
    )  # fmt: skip
    vae = module.VAE(h)
    with torch.no_grad():  # the priors' last weights begin at zero: move them, so that an error shows
        for p in vae.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return vae


def images(n, size=2):
    return torch.randint(0, 256, (n, size, size, 3)).double() / 127.5 - 1


both = pytest.mark.parametrize("which", ["stand-in", "real"])


def own(vae, x):
    mean, deviation = ENCODER_SCALING[vae.H.dataset]
    levels = (x + 1) * 127.5
    acts = vae.encoder((levels - mean) / deviation)
    if isinstance(vae, very_deep.VAE):
        features, stats = vae.decoder(acts)
        zs, kls = zip(*stats, strict=True)
    else:
        features, stats = vae.decoder(acts, get_latents=True)
        zs, kls = [s["z"] for s in stats], [s["kl"].sum((1, 2, 3)) for s in stats]
    log_p = -vae.decoder.out_net.nll(features, x) * x[0].numel()
    return list(zs), list(kls), log_p


@both
@pytest.mark.parametrize("size", [2, 8])
def test_bridge(which, size):
    if which == "stand-in" and size == 8:
        pytest.skip("the stand-in has two blocks")
    bridge(build(which, size=size), images(3, size), own)


@both
def test_its_own_elbo_in_expectation(which):
    """Their forward's number, nats a dimension, is the AEF's bound with the KL in closed form."""
    vae, x = build(which), images(3)
    mean, deviation = ENCODER_SCALING["cifar10"]
    torch.manual_seed(1)
    theirs = vae(((x + 1) * 127.5 - mean) / deviation, x)["elbo"]
    torch.manual_seed(1)
    _, kls, log_p = own(vae, x)
    torch.testing.assert_close(theirs, (sum(kls) - log_p).mean() / x[0].numel())
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none", kl="sampled")
    sampled = torch.stack([aef(x).detach() for _ in range(400)]).mean() / x[0].numel()
    averaged = torch.stack([(sum(k) - p).mean().detach() for _, k, p in (own(vae, x) for _ in range(400))]).mean()
    torch.testing.assert_close(sampled, averaged / x[0].numel(), rtol=0.02, atol=0.02)


@both
def test_whole_map(which):
    whole_map(build(which), images(4))


@both
def test_untouched(which):
    untouched(build(which).float(), images(4).float())


@both
def test_the_density_sums_to_one_over_the_levels(which):
    """Of one pixel, over all levels of green and blue: what is left is the probability of red, written out here."""
    vae = build(which)
    decoded = vae2aef.wrap(vae, example=images(4)).parts.run(vae2aef.chain.Generate(1), None)
    net, k = decoded.density.net, decoded.density.mixtures
    features = decoded.density.features[:, :, :1, :1].detach()
    levels = torch.arange(256.0) / 127.5 - 1
    density = MixtureOfLogistics(net, features.expand(256, -1, -1, -1), k)
    with torch.no_grad():
        raw = net(features)[0, 0, 0]
        loc, scale = raw[k : 2 * k], (-raw[2 * k : 3 * k].clamp(min=-7)).exp()
        for red in levels[[0, 100, 180, 255]]:
            greens = [
                density.log_prob(torch.stack([red.expand(256), green.expand(256), levels], 1).reshape(256, 1, 1, 3))
                for green in levels
            ]
            upper = 1.0 if red > 0.999 else ((red + 1 / 255 - loc) * scale).sigmoid()
            lower = 0.0 if red < -0.999 else ((red - 1 / 255 - loc) * scale).sigmoid()
            expected = (raw[:k].softmax(0) * (upper - lower)).sum()
            assert torch.stack(greens).exp().sum().item() == pytest.approx(expected.item(), rel=1e-4)


def test_unknown_data_is_said():
    aef = vae2aef.wrap(build("stand-in", dataset="mine"), example=images(4))
    assert 'the encoder takes x in [-1, 1] as it is: H.dataset is "mine"' in repr(aef)


@both
@pytest.mark.slow
def test_it_trains_on_real_images(which):
    if not CIFAR.exists():
        pytest.skip(f"the CIFAR-10 subset {CIFAR} is not there")
    x = torch.as_tensor(np.load(CIFAR)["x_train"][:256])
    x = x.permute(0, 2, 3, 1) if x.shape[1] == 3 else x
    x = x[:, 12:20, 12:20].float() / 127.5 - 1
    trains(build(which, size=8).float(), x, steps=40)


def test_samples_at_their_own_temperature():
    """Against the real code's own generation, with the same draws: every block's latent at its temperature."""
    vae = build("real", size=8).eval()
    aef = vae2aef.wrap(vae, example=images(4, 8))
    blocks = len(vae.decoder.dec_blocks)
    temperatures = [0.3 + 0.1 * i for i in range(blocks)]
    torch.manual_seed(3)
    theirs = vae.decoder.forward_uncond(5, t=temperatures)
    torch.manual_seed(3)
    place = vae2aef.chain.Generate(5, temperature={f"z{i}": t for i, t in enumerate(temperatures)})
    torch.testing.assert_close(aef.parts.run(place, None).density.features, theirs)
