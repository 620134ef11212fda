"""Five thousand steps of the plain loop with the defaults of `wrap`, unclipped: is it finite, does memory grow?

    python tests/benchmarks/soak.py [digits mnist pyro] [--steps 5000] [--mnist mnist.npz]

Adam 1e-3 as in the README. Every loss and, at the end, every parameter must be finite, and the resident set at the end
at most 5 % above that at a fifth of the steps; the exit code is 1 if not.
"""

import argparse
import gc
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from spatial import resident
from torch import Tensor

import vae2aef
from vae2aef.comparison.nets import ConvVAE

Step = Callable[[], float]


def batches(x: Tensor, size: int) -> Iterator[Tensor]:
    """Yield batches for ever, shuffled anew each epoch."""
    while True:
        yield from (x[rows] for rows in torch.randperm(len(x)).split(size) if len(rows) == size)


def plain(x: Tensor, latents: int) -> tuple[Step, list[Tensor]]:
    """Return the step of the README on a small convolutional VAE."""
    vae = ConvVAE(tuple(x.shape[1:]), latents)
    aef = vae2aef.wrap(vae, example=x[:256], encoder=vae.encode, decoder=vae.decode, encoder_scale="log_var")
    optimizer, loader = torch.optim.Adam(aef.parameters(), lr=1e-3), batches(x, 64)

    def step() -> float:
        optimizer.zero_grad()
        loss = aef(next(loader))
        loss.backward()
        optimizer.step()
        return float(loss)

    return step, list(aef.parameters())


def digits(_: Path) -> tuple[Step, list[Tensor]]:
    """scikit-learn's, dequantised."""
    from sklearn.datasets import load_digits

    x = torch.from_numpy(load_digits().images).to(torch.uint8).unsqueeze(1)
    return plain(vae2aef.dequantize(x, 17), 8)


def mnist(path: Path) -> tuple[Step, list[Tensor]]:
    """Its training images, dequantised once."""
    with np.load(path) as found:
        x = torch.from_numpy(found["x_train"][:20000]).reshape(-1, 1, 28, 28)
    return plain(vae2aef.dequantize(x), 32)


def pyro_model(_: Path) -> tuple[Step, list[Tensor]]:
    """SVI with AEF_ELBO on the digits as bits."""
    import pyro
    import pyro.distributions as dist
    from sklearn.datasets import load_digits
    from torch import nn

    pyro.clear_param_store()
    x = (torch.from_numpy(load_digits().data) > 7).float()
    encoder = nn.Sequential(nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 16))
    decoder = nn.Sequential(nn.Linear(8, 64), nn.Softplus(), nn.Linear(64, 64))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 8), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    loss = vae2aef.AEF_ELBO()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=loss)
    loader = batches(x, 64)
    svi.step(next(loader))  # makes what is added
    return lambda: svi.step(next(loader)), [*encoder.parameters(), *decoder.parameters(), *loss.added.parameters()]


KINDS = {"digits": digits, "mnist": mnist, "pyro": pyro_model}


def soak(kind: str, steps: int, path: Path) -> bool:
    """Run one, print its line, and say whether all is well."""
    torch.manual_seed(0)
    step, parameters = KINDS[kind](path)
    losses, held = [], []
    for i in range(1, steps + 1):
        losses.append(step())
        if i in (1, steps // 5, steps):
            gc.collect()
            held.append(resident() / 2**20)
    finite = all(map(math.isfinite, losses)) and all(bool(p.isfinite().all()) for p in parameters)
    ends = sum(losses[-100:]) / 100
    cells = [kind, f"{losses[0]:.1f}", f"{max(losses):.1f}", f"{ends:.1f}", "yes" if finite else "no"]
    print(f"| {' | '.join(cells + [f'{mib:.0f}' for mib in held])} |", flush=True)
    return finite and held[-1] <= 1.05 * held[-2]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all if none is named")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--mnist", type=Path, default=Path("mnist.npz"))
    args = parser.parse_args()
    unknown = [kind for kind in args.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"expected {', '.join(KINDS)}, got {', '.join(unknown)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| data | first loss | largest | last 100 | all finite | MiB after 1 step | after a fifth | at the end |")
    print("|---|---:|---:|---:|---|---:|---:|---:|")
    well = [soak(kind, args.steps, args.mnist) for kind in args.kinds or KINDS]
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
