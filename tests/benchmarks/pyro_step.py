"""One training step of Pyro's VAE tutorial: `Trace_ELBO` with the guide, with the AEF guide, and `AEF_ELBO`.

The sizes of examples/vae/vae.py: 784 values, 400 hidden units, 50 latents, batches of 256. Steps of all three take
turns, so that what else the machine does falls on all alike, and CPU time counts; the ratio of each turn is taken, and
the median shown.

    OMP_NUM_THREADS=1 python tests/benchmarks/pyro_step.py
"""

import functools
import statistics
import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import vae2aef
from vae2aef.wrapping.options import build_flow

TURNS, BATCH, PIXELS, HIDDEN, LATENTS = 60, 256, 784, 400, 50


class VAE(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, 2 * LATENTS))
        self.decoder = nn.Sequential(nn.Linear(LATENTS, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS))

    def model(self, x):
        pyro.module(f"{self.name} decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(len(x), LATENTS), x.new_ones(1)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(self, x):
        pyro.module(f"{self.name} encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def steps(validate):
    """One SVI for each way, on networks of their own."""
    pyro.enable_validation(validate)
    found = {}
    for name, options in WAYS.items():
        vae = VAE(name)
        model, guide, loss = vae.model, vae.guide, Trace_ELBO()
        if name.startswith("AEF_ELBO"):
            loss = vae2aef.AEF_ELBO(**options, name=f"n{len(found)}")
        elif options is not None:
            guide = vae2aef.aef_guide(model, guide, **options, name=f"n{len(found)}")
        found[name] = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=loss)
    return found


WAYS = {
    "Trace_ELBO": None,
    "aef_guide, linear h, no flow": {"core_flow": "none"},
    "aef_guide, linear h, coupling": {"core_flow": "coupling"},
    "aef_guide, the guide itself": {"core": "noise", "core_flow": "none"},
    "AEF_ELBO, linear h, no flow": {"core_flow": "none"},
    "AEF_ELBO, linear h, coupling": {"core_flow": "coupling"},
}


def flow_alone():
    """What the coupling flow costs by itself: its passes forward and back, and Pyro's Adam, one a parameter."""
    flow = build_flow("coupling", LATENTS)
    optimizers = [torch.optim.Adam([parameter], lr=1e-3) for parameter in flow.parameters()]
    w = torch.randn(BATCH, LATENTS, requires_grad=True)

    def passes():
        u, log_det = flow(w)
        (u.sum() + log_det.sum()).backward()

    def update():
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return {"the coupling flow alone": passes, "its 24 optimizers alone": update}


def main(turns=TURNS):
    for validate in (True, False):
        pyro.clear_param_store()
        x = (torch.rand(BATCH, PIXELS) > 0.5).float()
        every = {name: functools.partial(svi.step, x) for name, svi in steps(validate).items()} | flow_alone()
        times = {name: [] for name in every}
        for turn in range(turns + 5):
            for name, step in every.items():
                start = time.process_time()
                step()
                if turn >= 5:
                    times[name].append(time.process_time() - start)
        plain = times["Trace_ELBO"]
        print(f"validation {'on' if validate else 'off'}")
        for name, own in times.items():
            ratio = statistics.median(a / b for a, b in zip(own, plain, strict=True))
            print(f"  {name:30} {1000 * statistics.median(own):7.2f} ms  ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
