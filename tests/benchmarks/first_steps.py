"""The first steps of the AEF beside those of the bare VAE, from 8x8 to 3x256x256: the table of docs/benchmarks.md.

    python tests/benchmarks/first_steps.py --out steps.jsonl [--sizes 8 64] [--steps 200] [--lr 1e-3] [--optimizer adam]
    [--warmup 50]

For each setting: how far the loss (nats a value of x) rises above its start at worst, and the mean of its last ten
looks, for the VAE itself (core="noise") and AEFs: sigma = 0.3 as it starts today, from the smaller h that was the
default before, and with the scale of h held; sigma = 0. The loss is that of some fixed data with fixed noise, before
each step and after the last: that of the batches (`--seen batch`) rises and falls by 0.1 whatever is done. All see the
same batches, without clipping. Data are photographs of scikit-learn (needs Pillow), cut and scaled. A line a run, kept:
the same command goes on, and prints the table of all that is there.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae2aef

sys.path.insert(0, str(Path(__file__).parent / "results"))
from arms import start_small

ARMS: dict[str, dict[str, Any]] = {
    "vae": {"core": "noise"},
    "σ = 0.3": {"noise": 0.3},
    "σ = 0.3, small start": {"noise": 0.3},
    "σ = 0.3, held": {"core": "normalized", "noise": 0.3},
    "σ = 0": {"noise": 0.0},
}
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class ConvVAE(nn.Module):
    """Strided convolutions down to at most 8 x 8, and back."""

    def __init__(self, size: int, latents: int, width: int = 16) -> None:
        super().__init__()
        levels = min(int(math.log2(size)) - 2, 5)
        channels = [3] + [width * 2 ** min(i, 2) for i in range(levels)]
        self.inner = (channels[-1], size // 2**levels, size // 2**levels)
        down = [m for i in range(levels) for m in (nn.Conv2d(channels[i], channels[i + 1], 4, 2, 1), nn.SiLU())]
        up = [
            m
            for i in reversed(range(levels))
            for m in (nn.SiLU(), nn.ConvTranspose2d(channels[i + 1], channels[i], 4, 2, 1))
        ]
        self.down = nn.Sequential(*down, nn.Flatten(), nn.Linear(math.prod(self.inner), 2 * latents))
        self.up = nn.Sequential(nn.Linear(latents, math.prod(self.inner)), nn.Unflatten(1, self.inner), *up)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, `(batch, latents)`."""
        loc, log_var = self.down(x).chunk(2, dim=1)
        return loc, log_var

    def decode(self, z: Tensor) -> Tensor:
        """Mean of x, `(batch, 3, size, size)`."""
        return torch.sigmoid(self.up(z))


def photographs(size: int, count: int = 256) -> Tensor:
    """Random cuts of scikit-learn's two photographs, `(count, 3, size, size)`, values from 0 to 1."""
    from sklearn.datasets import load_sample_images

    generator = torch.Generator().manual_seed(0)
    images = [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in load_sample_images().images]
    cuts = []
    for i in range(count):
        top, left = (int(torch.randint(0, n - 256, (), generator=generator)) for n in images[i % 2].shape[1:])
        cut = images[i % 2][:, top : top + 256, left : left + 256]
        cuts.append(F.interpolate(cut[None], size=size, mode="area")[0])
    return torch.stack(cuts)


def rise(arm: str, x: Tensor, args: argparse.Namespace, lr: float, optimizer: str, seed: int) -> tuple[float, float]:
    """Largest loss less the first, and the mean of the last ten, in nats a value of x; inf if it is not finite."""
    torch.manual_seed(seed)
    vae = ConvVAE(x.shape[-1], args.latents).to(x.device)
    aef = vae2aef.wrap(vae, example=x[:128], encoder_scale="log_var", kl="sampled", **ARMS[arm])
    if arm.endswith("small start"):
        start_small(aef.core.features)
    steps = OPTIMIZERS[optimizer](aef.parameters(), lr=lr)
    rates = torch.optim.lr_scheduler.LinearLR(steps, 0.01 if args.warmup else 1.0, total_iters=args.warmup or 1)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    try:
        for _ in range(args.steps):
            batch = x[torch.randint(0, len(x), (args.batch,), generator=generator).to(x.device)]
            steps.zero_grad()
            loss = aef(batch)
            losses.append((loss.item() if args.seen == "batch" else look(aef, x[: args.fixed])) / x[0].numel())
            loss.backward()
            steps.step()
            rates.step()
        if args.seen == "fixed":
            losses.append(look(aef, x[: args.fixed]) / x[0].numel())
    except vae2aef.NonFiniteError:
        return math.inf, math.inf
    return max(losses) - losses[0], sum(losses[-10:]) / len(losses[-10:])


@torch.no_grad()
def look(aef: vae2aef.AEF, x: Tensor) -> float:
    """The loss of x with the same noise every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return aef(x).item()


def table(rows: list[list[Any]]) -> str:
    """The worst rise over the seeds that all arms of a setting have, and the middle one's last loss."""
    known: dict[tuple[Any, ...], dict[str, dict[int, tuple[float, float]]]] = {}
    for size, optimizer, lr, seed, arm, rise, last in rows:
        known.setdefault((size, list(OPTIMIZERS).index(optimizer), lr), {}).setdefault(arm, {})[seed] = (rise, last)
    arms = [arm for arm in ARMS if all(arm in setting for setting in known.values())]
    lines = ["| data | optimizer | rate | seeds |" + "".join(f" {arm} |" for arm in arms)]
    lines.append("|---|---|---|---:|" + "---:|" * len(arms))
    for (size, optimizer, lr), found in sorted(known.items()):
        seeds = sorted(set.intersection(*(set(found[arm]) for arm in arms)))
        cells = [_said([found[arm][seed] for seed in seeds]) for arm in arms]
        name = list(OPTIMIZERS)[optimizer]
        lines.append(f"| 3×{size}×{size} | {name} | {lr:g} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _said(runs: list[tuple[float, float]]) -> str:
    worst, last = max(rise for rise, _ in runs), sorted(last for _, last in runs)[len(runs) // 2]
    if worst > 100:
        return "diverges"
    return f"{worst:.3f} ({last:.3f})".replace("-", "−")


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2])
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--warmup", type=int, default=0, help="steps in which the rate grows from a hundredth")
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seen", choices=("fixed", "batch"), default="fixed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fixed", type=int, default=32, help="how many data the loss is looked at")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {tuple(row[:5]) for row in rows}
    for size in args.sizes:
        x = photographs(size).to(args.device)
        for setting in itertools.product(args.optimizer, args.lr, args.seeds, args.arms):
            if (size, *setting) in done:
                continue
            optimizer, lr, seed, arm = setting
            rows.append([size, *setting, *rise(arm, x, args, lr, optimizer, seed)])
            with args.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
