"""What an AEF adds to a fully convolutional VAE: parameters, time and memory of a training step, by size of picture.

    python tests/benchmarks/spatial.py [--sizes 64 128 256] [--repeats 9] [--device cpu]

diffusers' AutoencoderKL with 0.26 M parameters, f = 8, 4 latent channels. Steps of Adam, interleaved in one process,
the median of the ratios taken within each turn, with quartiles. Memory twice: the most that torch has allocated at once
in a step (on the CPU by its profiler), and on the CPU the resident set of a process of its own, `wrap` included, at its
most less before anything was made, looked at every millisecond; the median of three processes.
"""

import argparse
import gc
import itertools
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import vae2aef

KINDS = {
    "vae": None,
    "no flows": {"core_flow": "none"},
    "core flow": {"core_flow": "coupling"},
    "core flow and prior": {"core_flow": "coupling", "prior": "coupling"},
}
BATCH = {64: 8, 128: 4, 256: 2, 512: 1}


class OwnLoss(nn.Module):
    """What the VAE is trained by: a draw of its posterior, a Gaussian likelihood with one learned scale, its KL."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        posterior = self.vae.encode(x).latent_dist
        mean = self.vae.decode(posterior.sample()).sample
        nll = nn.functional.gaussian_nll_loss(mean, x, (2 * self.log_scale).exp().expand_as(x), reduction="sum")
        return (nll + posterior.kl().sum()) / len(x)


def network() -> nn.Module:
    """The VAE."""
    import diffusers

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return diffusers.AutoencoderKL(
            block_out_channels=(16, 16, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=8, latent_channels=4,
        )  # fmt: skip


def make(kind: str, x: Tensor) -> nn.Module:
    """The VAE with its own loss, or an AEF of it."""
    vae = network().to(x.device)
    options = KINDS[kind]
    return OwnLoss(vae).to(x.device) if options is None else vae2aef.wrap(vae, example=x, **options)


def stepper(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """One step of training."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        module(x).backward()
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def timed(steps: list[Callable[[], None]], repeats: int) -> list[str]:
    """Ratios to the first, interleaved."""
    for step in steps * 2:
        step()
    rows = []
    for _ in range(repeats):
        seconds = []
        for step in steps:
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        rows.append([s / seconds[0] for s in seconds[1:]])
    shown = []
    for column in zip(*rows, strict=True):
        low, _, high = statistics.quantiles(column, n=4)
        shown.append(f"{statistics.median(column):.2f} ({low:.2f} - {high:.2f})")
    return shown


def allocated(step: Callable[[], None], device: str) -> int:
    """Bytes that torch has allocated at most during a step, beside what it held before."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    found = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(found, key=lambda e: e.start_ns())))


def peak(kind: str, size: int) -> float:
    """Bytes of the resident set that wrapping and training take at most, in processes of their own."""
    command = [sys.executable, __file__, "--sizes", str(size), "--memory-of", kind]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    return statistics.median(json.loads(done.stdout.splitlines()[-1]) for done in runs)


def memory_of(kind: str, size: int) -> float:
    """The same, in this process."""
    network()  # imports
    x = pictures(size, "cpu")
    gc.collect()
    before = peak_seen = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak_seen
        while not done.wait(0.001):
            peak_seen = max(peak_seen, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    step = stepper(make(kind, x), x)
    for _ in range(3):
        step()
    done.set()
    watcher.join()
    return peak_seen - before


def resident() -> float:
    """Bytes of the resident set now."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def pictures(size: int, device: str) -> Tensor:
    """A batch in [-1, 1]."""
    torch.manual_seed(0)
    return (2 * torch.rand(BATCH.get(size, 1), 3, size, size) - 1).to(device)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", choices=list(KINDS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, args.sizes[0])))
        return
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} thread(s)"
    own = sum(p.numel() for p in network().parameters())
    print(f"torch {torch.__version__}, {where}, {args.repeats} repeats; the VAE has {own:,} parameters\n")
    print("| picture, batch | AEF | parameters added | step / the VAE's | memory of a step | of the process |")
    print("|---|---|---|---|---|---|")
    for size in args.sizes:
        table(size, args.repeats, args.device, own)


def table(size: int, repeats: int, device: str, own: int) -> None:
    """Print the rows of one size."""
    x = pictures(size, device)
    modules = {kind: make(kind, x) for kind in KINDS}
    steps = [stepper(module, x) for module in modules.values()]
    ratios = timed(steps, repeats)
    most = [allocated(step, device) for step in steps]
    added = [sum(p.numel() for p in m.added_parameters()) for m in list(modules.values())[1:]]
    del modules, steps
    peaks = [peak(kind, size) for kind in KINDS] if device == "cpu" else []
    for i, kind in enumerate(list(KINDS)[1:]):
        of_process = f"{peaks[i + 1] / peaks[0]:.2f}" if peaks else ""
        share = f"{added[i]:,} ({added[i] / own:.1%})"
        cells = [f"{size}, {len(x)}", kind, share, ratios[i], f"{most[i + 1] / most[0]:.2f}", of_process]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
