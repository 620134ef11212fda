"""What tracing costs: the traced VAE against the same networks described, as ratios, interleaved, medians.

python tests/benchmarks/bench_traced.py [--repeats 15] [--threads 1]
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from speed import ratios, show
from torch import Tensor, nn

import vae2aef
from vae2aef.comparison.nets import MLPVAE, ConvVAE
from vae2aef.tracing.parts import TracedParts


class Opaque(nn.Module):
    """A VAE of which only the forward is known."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def pair(make: Callable[[], nn.Module], x: Tensor) -> tuple[vae2aef.AEF, vae2aef.AEF]:
    """The same VAE described and traced."""
    described = vae2aef.wrap(make(), example=x, encoder_scale="log_var")
    traced = vae2aef.wrap(Opaque(make()), example=x)
    if not isinstance(traced.parts, TracedParts) or isinstance(described.parts, TracedParts):
        raise RuntimeError("this compares a described VAE with a traced one")
    return described, traced


def step(aef: vae2aef.AEF, x: Tensor) -> Callable[[], None]:
    """One training step."""
    optimizer = torch.optim.Adam(aef.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        aef(x).backward()
        optimizer.step()

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| traced / described | median | quartiles | bound |\n|---|---|---|---|")
    event = (1, 28, 28)
    cases = {
        "step, convolutional net, batch 128": (lambda: ConvVAE(event, 32), 128),
        "step, MLP 784-400-400, batch 128": (lambda: MLPVAE(event, 32), 128),
        "step, MLP 784-16-16, batch 8": (lambda: MLPVAE(event, 4, hidden=16), 8),
    }
    for name, (make, batch) in cases.items():
        x = torch.rand(batch, *event)
        described, traced = pair(make, x)
        repeats = args.repeats if batch > 8 else 20 * args.repeats
        show(name, ratios(step(described, x), step(traced, x), repeats=repeats)[0], "1.3")
    x = torch.rand(128, *event)
    described, traced = (aef.eval() for aef in pair(lambda: ConvVAE(event, 32), x))
    z = torch.randn(128, 32)
    with torch.no_grad():
        bare = ratios(lambda: described.decode(z), lambda: traced.decode(z), repeats=args.repeats)[0]
        show("decode, convolutional net, batch 128", bare, "")


if __name__ == "__main__":
    main()
