"""How far the loss of an AEF, and of the bare VAE, is under autocast from that in float32, on real batches.

    python tests/benchmarks/precision.py --data mnist.npz cifar10.npz [--steps 100]

A small convolutional VAE, 32 latents, 128 rows that are not trained on; the same draws in both. The VAE's own loss has
the likelihood of the AEF and the analytic KL. "What is added": the loss in float32 of the outputs that encoder and
decoder gave under autocast, against the loss under autocast. In nats, since a loss may be near zero.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vae2aef
from vae2aef.comparison.nets import ConvVAE

KINDS = {
    "Gaussian, scale 0.1": {"likelihood": 0.1},
    "the same, flows": {"likelihood": 0.1, "core_flow": "coupling", "prior": "coupling"},
    "learned scales": {"likelihood": "learned"},
    "grey levels": {"likelihood": "discretized_logistic"},
    "grey levels, flows": {"likelihood": "discretized_logistic", "core_flow": "coupling", "prior": "coupling"},
}


class Replay:
    """The parts of an AEF, whose outputs are kept while they run, and given back afterwards."""

    def __init__(self, aef: vae2aef.AEF) -> None:
        self.parts, self.kept, self.again = aef.parts, [], False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parts, name)

    def infer(self, *args: Any, **kwargs: Any) -> Any:
        """Encode, or give back what was encoded."""
        return self._one(self.parts.infer, *args, **kwargs)

    def run(self, place: Any, state: Any, *cond: Any, **kwargs: Any) -> Any:
        """Place the latent, and decode, or give back what was decoded."""
        z = place("z", getattr(self.parts, "prior", None), state)
        return self._one(self.parts.decode, z, *cond, **kwargs)

    def _one(self, part: Any, *args: Any, **kwargs: Any) -> Any:
        if self.again:
            return self.kept.pop(0)
        self.kept.append(part(*args, **kwargs))
        return self.kept[-1]


def loss(aef: vae2aef.AEF, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the loss with the draws of one seed."""
    torch.manual_seed(3)
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        return aef(x)


def of_bare(aef: vae2aef.AEF, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the VAE's own loss: of its posterior and decoder, with the likelihood of the AEF."""
    torch.manual_seed(3)
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        posterior = aef.parts.encode(x)
        z = posterior.loc + posterior.scale * torch.randn_like(posterior.loc)
        decoded = aef.parts.decode(z)
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(posterior.loc, posterior.scale), normal(0.0, 1.0))
    return (divergence.flatten(1).sum(1) - aef.log_residual(x, decoded)).mean()


@torch.no_grad()
def errors(aef: vae2aef.AEF, x: Tensor, dtype: torch.dtype) -> tuple[float, float, float]:
    """Return the error of the AEF's loss, of the bare VAE's, and of what is added, nats."""
    exact, bare = loss(aef, x), of_bare(aef, x)
    replay = Replay(aef)
    whole, aef.parts = aef.parts, replay
    try:
        half = loss(aef, x, dtype)
        replay.again = True
        again = loss(aef, x)
    finally:
        aef.parts = whole
    pairs = ((loss(aef, x, dtype), exact), (of_bare(aef, x, dtype), bare), (half, again))
    return tuple(float((a - b).abs()) for a, b in pairs)


def read(path: Path) -> Tensor:
    """Read grey levels as numbers from 0 to 1, `(n, channels, height, width)`."""
    with np.load(path) as found:
        x = torch.from_numpy(found["x_train" if "x_train" in found else found.files[0]][:2128].copy())
    x = x.unsqueeze(1) if x.dim() == 3 else x.movedim(-1, 1) if x.shape[-1] <= 3 else x
    return x.float().contiguous() / 255


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    what = "AEF, bare VAE, what is added"
    print(f"| data | AEF | after | loss | error in bfloat16: {what} | in float16: {what} |")
    print("|---|---|---:|---:|---|---|")
    for path in args.data:
        for kind, options in KINDS.items():
            x = read(path)
            torch.manual_seed(0)
            vae = ConvVAE(tuple(x.shape[1:]), 32)
            aef = vae2aef.wrap(
                vae, example=x[:256], encoder=vae.encode, decoder=vae.decode, encoder_scale="log_var", **options
            )
            optimizer = torch.optim.Adam(aef.parameters(), lr=1e-3)
            for step in range(args.steps + 1):
                if step in (0, args.steps):
                    found = [errors(aef, x[2000:], dtype) for dtype in (torch.bfloat16, torch.float16)]
                    shown = [", ".join(f"{error:.2g}" for error in one) for one in found]
                    with torch.no_grad():
                        value = float(loss(aef, x[2000:]))
                    print(f"| {path.stem} | {kind} | {step} | {value:.1f} | {shown[0]} | {shown[1]} |", flush=True)
                optimizer.zero_grad()
                aef(x[torch.randint(0, 2000, (64,))]).backward()
                optimizer.step()


if __name__ == "__main__":
    main()
