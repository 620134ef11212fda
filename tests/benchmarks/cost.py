"""What an AEF costs beside its VAE: time and memory of a step of training, by latents, size, batch, eager and compiled.

    python tests/benchmarks/cost.py [--out docs/results/other/cost.json] [--seconds 8] [--compiled]

Each cell is measured once and kept in the file: the same command again goes on, and prints the table and draws the
curves of all that is there. A cell is a step of Adam of three modules in turn, for some seconds or 41 turns, in one
process: the VAE's own ELBO, an AEF without flows, one with coupling core flow and prior. Ratios are taken within each
turn; median and quartiles. Memory is the most that torch has allocated at once in a step, by its profiler.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import spatial
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae2aef
from vae2aef.comparison.nets import ConvVAE

FLOWS = {"no flows": {}, "flows": {"core_flow": "coupling", "prior": "coupling"}}
DENSE = [(latents, batch) for batch in (128, 1, 1024) for latents in (2, 8, 32, 128, 512)]
GRIDS = [(32, 1), (64, 1), (128, 1), (256, 1), (32, 8), (64, 8)]


class Elbo(nn.Module):
    """The VAE's own loss: a Gaussian likelihood with a learned scale of each value, the analytic KL."""

    def __init__(self, vae: ConvVAE) -> None:
        super().__init__()
        self.vae, self.log_scale = vae, nn.Parameter(torch.zeros(1, 28, 28))

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss, averaged over the batch."""
        mu, log_var = self.vae.encode(x)
        mean = self.vae.decode(self.vae.reparameterize(mu, log_var))
        likelihood = F.gaussian_nll_loss(mean, x, (2 * self.log_scale).exp().expand_as(x), reduction="sum")
        return (likelihood - 0.5 * (1 + log_var - mu.square() - log_var.exp()).sum()) / len(x)


def dense(latents: int, batch: int) -> tuple[list[nn.Module], Tensor]:
    """Return the three modules on the paper's small convolutional net, 28x28."""
    torch.manual_seed(0)
    x = torch.rand(batch, 1, 28, 28)
    example = torch.rand(64, 1, 28, 28)
    vaes = [ConvVAE((1, 28, 28), latents) for _ in range(3)]
    wrapped = [
        vae2aef.wrap(v, example=example, encoder=v.encode, decoder=v.decode, encoder_scale="log_var", **options)
        for v, options in zip(vaes[1:], FLOWS.values(), strict=True)
    ]
    return [Elbo(vaes[0]), *wrapped], x


def grids(size: int, batch: int) -> tuple[list[nn.Module], Tensor]:
    """Return the three modules on diffusers' AutoencoderKL of `spatial.py`."""
    x = 2 * torch.rand(batch, 3, size, size) - 1
    wrapped = [vae2aef.wrap(spatial.network(), example=x, **options) for options in FLOWS.values()]
    return [spatial.OwnLoss(spatial.network()), *wrapped], x


def in_turn(steps: list[Callable[[], None]], seconds: float) -> list[dict[str, float]]:
    """Return the ratios of the others to the first, with quartiles."""
    for step in steps * 2:
        step()
    rows, until = [], time.perf_counter() + seconds
    while len(rows) < 5 or (len(rows) < 41 and time.perf_counter() < until):
        took = []
        for step in steps:
            start = time.perf_counter()
            step()
            took.append(time.perf_counter() - start)
        rows.append([t / took[0] for t in took[1:]])
    quartiles = [statistics.quantiles(column, n=4) for column in zip(*rows, strict=True)]
    return [{"low": q[0], "median": q[1], "high": q[2], "turns": len(rows)} for q in quartiles]


def cell(make: Callable[..., Any], size: int, batch: int, compiled: bool, seconds: float) -> dict[str, Any]:
    """Measure one cell."""
    modules, x = make(size, batch)
    run = [torch.compile(m) for m in modules] if compiled else modules
    steps = [spatial.stepper(m, x) for m in run]
    times = in_turn(steps, seconds)
    memory = [spatial.allocated(step, "cpu") for step in steps]
    return {kind: {**times[i], "memory": memory[i + 1] / memory[0]} for i, kind in enumerate(FLOWS)}


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    print("| latent | size | batch | | no flows | memory | flows | memory |\n|---|---:|---:|---|---|---:|---|---:|")
    for key, one in sorted(found.items(), key=lambda item: [int(w) if w.isdigit() else w for w in item[0].split()]):
        cells = key.split()
        for kind in FLOWS:
            r = one[kind]
            cells += [f"{r['median']:.2f} ({r['low']:.2f} – {r['high']:.2f})", f"{r['memory']:.2f}"]
        print(f"| {' | '.join(cells)} |")


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the ratios of the eager steps over the size."""
    import altair as alt

    rows = []
    for key, one in found.items():
        latent, size, batch, how = key.split()
        axis = "dense: D" if latent == "dense" else "grid: pixels a side"
        if how == "eager":
            rows += [
                {"axis": axis, "size": int(size), "batch": batch, "AEF": kind, "step of AEF / VAE": r["median"]}
                for kind, r in one.items()
            ]
    x = alt.X("size:Q", scale=alt.Scale(type="log", base=2), title=None)
    y = alt.Y("step of AEF / VAE:Q", scale=alt.Scale(zero=False))
    lines = alt.Chart(alt.Data(values=rows)).mark_line(point=True).encode(x, y, color="batch:N", strokeDash="AEF:N")
    sized = lines.properties(width=300, height=220)
    chart = sized.facet(column=alt.Column("axis:N", title=None)).resolve_scale(x="independent")
    chart.save(str(path), ppi=120)


def main() -> None:
    """Measure what is not there yet, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/other/cost.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/cost.png"))
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument(
        "--compiled", action="store_true", help="also D = 2, 32 and 512 and 64x64, by inductor: minutes each"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    todo = [("dense", dense, *one, "eager") for one in DENSE] + [("grid", grids, *one, "eager") for one in GRIDS]
    if args.compiled:
        todo += [("dense", dense, d, 128, "compiled") for d in (32, 2, 512)] + [("grid", grids, 64, 8, "compiled")]
    for latent, make, size, batch, how in todo:
        key = f"{latent} {size} {batch} {how}"
        if key not in found:
            found[key] = cell(make, size, batch, how == "compiled", args.seconds)
            args.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    show(found)
    draw(found, args.picture)


if __name__ == "__main__":
    main()
