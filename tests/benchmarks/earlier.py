"""What a step takes beside an earlier commit, in one process: ratios of interleaved turns, medians and quartiles.

    git worktree add --detach ../old 09b4d7b && ln -s ../adapters ../old/vae2aef/  # release 0.1
    python tests/benchmarks/earlier.py ../old [--turns 201]

Both packages are loaded side by side, each with its own modules. A turn is a block of steps of either, in changing
order; its ratio is that of the CPU seconds, which other work on the machine disturbs less than the time on the wall.
A step is `zero_grad`, loss, `backward` and Adam. Models are made anew every few turns, since where their tensors lie
in memory is worth some percent. No test depends on a time.
"""

import argparse
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.comparison.nets import MLPVAE, ConvVAE


class Tiny(nn.Module):
    """64 values, 8 latents, 32 hidden units: a step is calls of torch and little else."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 64))

    def encode(self, x: Tensor) -> Any:
        """Location and log variance, `(batch, 8)` each."""
        return self.encoder(x).chunk(2, dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Mean of x, `(batch, 64)`."""
        return self.decoder(z)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 784, 32 latents, batch 128": (lambda: MLPVAE((1, 28, 28), 32), (128, 1, 28, 28), 5),
    "convolutional 28x28, 32 latents, batch 128": (lambda: ConvVAE((1, 28, 28), 32), (128, 1, 28, 28), 1),
    "tiny 64, 8 latents, batch 32": (Tiny, (32, 64), 20),
}


class Release:
    """One of two packages of the same name.

    Args:
        path: of its checkout; None for what is installed.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.modules: dict[str, ModuleType] = {}
        with self:
            print(importlib.import_module("vae2aef").__file__)

    def __enter__(self) -> "Release":
        """Let every import find this one."""
        _taken()
        sys.modules.update(self.modules)
        sys.path[:0] = [] if self.path is None else [self.path]
        return self

    def __exit__(self, *_: object) -> None:
        self.modules = _taken()
        sys.path[:] = [entry for entry in sys.path if entry != self.path]

    def wrap(
        self, make: Callable[[], nn.Module], x: Tensor, found: bool, kl: str | None = None, **options: Any
    ) -> nn.Module:
        """Wrap a VAE of seed 0, and take a first step, which may import more."""
        torch.manual_seed(0)
        vae: Any = make()
        options |= {} if found else {"encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}
        with self, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            aef = importlib.import_module("vae2aef").wrap(vae, example=x, **options)
            if kl is not None and hasattr(aef, "kl"):
                aef.kl = kl
            aef(x).backward()
        return aef


def _taken() -> dict[str, ModuleType]:
    """Take what is imported of vae2aef out of the modules that imports find."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "vae2aef"}


def stepper(aef: nn.Module, x: Tensor, optimize: bool) -> Callable[[int], float]:
    """Return a function that takes some steps and says their CPU seconds."""
    optimizer = torch.optim.Adam(aef.parameters(), lr=1e-4)

    def run(steps: int) -> float:
        start = time.process_time()
        for _ in range(steps):
            optimizer.zero_grad()
            aef(x).backward()
            if optimize:
                optimizer.step()
        return time.process_time() - start

    return run


def ratios(releases: list[Release], make: Callable[[], nn.Module], x: Tensor, args: Any, **options: Any) -> list[float]:
    """Return the ratio of each turn: of models made anew `rounds` times, since where tensors lie in memory counts."""
    *_, steps = NETS[args.net]
    found = []
    for turn in range(args.rounds):
        order = [0, 1] if turn % 2 else [1, 0]
        run = {
            i: stepper(releases[i].wrap(make, x, args.found, args.kl, **options), x, not args.loss_only) for i in order
        }
        for i in order:
            run[i](3 * steps)
        for _ in range(args.turns):
            order.reverse()
            seconds = {i: run[i](steps) for i in order}
            found.append(seconds[1] / seconds[0])
    return found


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", help="checkout of the earlier commit")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--only", default="", help="nets whose name begins so")
    parser.add_argument("--kl", help="of what has a choice: release 0.1 had sampled alone")
    parser.add_argument("--found", action="store_true", help="leave it to wrap to find encoder and decoder")
    parser.add_argument("--loss-only", action="store_true", help="without Adam")
    args = parser.parse_args()
    torch.set_num_threads(1)
    releases = [Release(args.earlier), Release(None)]
    print(f"\ntorch {torch.__version__}, {args.rounds} rounds of {args.turns} turns\n")
    print("| VAE | σ | core flow | median | quartiles |\n|---|---:|---|---:|---|")
    for args.net in (name for name in NETS if name.startswith(args.only)):
        make, shape, _ = NETS[args.net]
        x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        for noise in (0.0, 0.3):
            for flow in ("none", "coupling"):
                found = ratios(releases, make, x, args, core_flow=flow, noise=noise)
                low, high = statistics.quantiles(found, n=4)[::2]
                said = f"{statistics.median(found):.3f} | {low:.3f} – {high:.3f}"
                print(f"| {args.net} | {noise:g} | {flow} | {said} |", flush=True)


if __name__ == "__main__":
    main()
