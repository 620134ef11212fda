"""The speed figures of docs/benchmarks.md: ratios, measured interleaved in one process, medians.

    python tests/benchmarks/speed.py [--repeats 15] [--threads 1]

Every contender runs once, in turn, `repeats` times over; a ratio is taken within each turn, and its median, with
the quartiles, is printed. No test depends on a time.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae2aef
from vae2aef.comparison.nets import ConvVAE
from vae2aef.masked import MaskedAutoregressive


def ratios(base: Callable[[], object], *others: Callable[[], object], repeats: int) -> list[tuple[float, float, float]]:
    """Median, first and third quartile of the time of each of `others` over that of `base`."""
    for run in (base, *others):
        run()
    rows = []
    for _ in range(repeats):
        seconds = []
        for run in (base, *others):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        rows.append([s / seconds[0] for s in seconds[1:]])
    return [(statistics.median(column), *statistics.quantiles(column, n=4)[::2]) for column in zip(*rows, strict=True)]


def show(what: str, ratio: tuple[float, float, float], bound: str) -> None:
    """Print one line of the table."""
    print(f"| {what} | {ratio[0]:.2f} | {ratio[1]:.2f} - {ratio[2]:.2f} | {bound} |", flush=True)


def training_step(repeats: int) -> None:
    """One step of Adam on the paper's small convolutional net, 28x28, batch 128."""
    x = torch.rand(128, 1, 28, 28)

    def step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

        def run() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return run

    torch.manual_seed(0)
    vae = ConvVAE((1, 28, 28), 32)
    log_scale = nn.Parameter(torch.zeros(1, 28, 28))
    plain = nn.ModuleList([vae, nn.ParameterList([log_scale])])

    def elbo() -> Tensor:
        """The VAE's own loss: Gaussian likelihood with a learned scale, analytic KL."""
        mu, log_var = vae.encode(x)
        mean = vae.decode(vae.reparameterize(mu, log_var))
        likelihood = F.gaussian_nll_loss(mean, x, (2 * log_scale).exp().expand_as(x), reduction="sum")
        divergence = -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum()
        return (likelihood + divergence) / len(x)

    wrapped = []
    for flow in ("none", "coupling"):
        aef = vae2aef.wrap(ConvVAE((1, 28, 28), 32), example=x, encoder_scale="log_var", core_flow=flow,
                           prior=None if flow == "none" else flow, noise=0.0)  # fmt: skip
        wrapped.append(step(aef, lambda aef=aef: aef(x)))
    none, coupling = ratios(step(plain, elbo), *wrapped, repeats=repeats)
    show("AEF step, no flows / the VAE's ELBO step", none, "1.10")
    show("AEF step, coupling core and prior / the VAE's ELBO step", coupling, "1.35")


def maf_inverse(repeats: int) -> None:
    """Sampling a MAF prior, D = 256, 1024 samples, against the textbook inverse of the same weights."""
    torch.manual_seed(0)
    flow = MaskedAutoregressive(256)
    y = torch.randn(1024, 256)

    @torch.no_grad()
    def sequential() -> Tensor:
        ordered = torch.zeros_like(y)
        for i in range(256):
            log_scale, shift = flow._affine(ordered)
            ordered[:, i] = y[:, i] * log_scale[:, i].exp() + shift[:, i]
        return ordered[:, flow.permutation.argsort()]

    @torch.no_grad()
    def incremental() -> Tensor:
        return flow.inverse(y)[0]

    torch.testing.assert_close(sequential(), incremental(), rtol=1e-3, atol=1e-3)
    (ratio,) = ratios(incremental, sequential, repeats=max(repeats // 3, 3))
    show("sequential / incremental inverse of a MAF layer, D = 256, 1024 samples", ratio, "at least 30")


def marginal(repeats: int) -> None:
    """log_prob with K = 128, against 128 bare passes of the decoder over the same batch."""
    torch.manual_seed(0)
    x = torch.rand(64, 1, 28, 28)
    vae = ConvVAE((1, 28, 28), 32)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_var", prior="coupling")
    start = time.perf_counter()
    proposal = aef.tune_proposal(x)
    tuning = time.perf_counter() - start
    z = torch.randn(64, 32)

    @torch.no_grad()
    def decoder() -> None:
        for _ in range(128):
            vae.decode(z)

    (ratio,) = ratios(
        decoder, lambda: aef.log_prob(x, num_samples=128, proposal=proposal), repeats=max(repeats // 3, 3)
    )
    show("log_prob, K = 128 / 128 bare decoder passes", ratio, "1.15")
    start = time.perf_counter()
    decoder()
    once = tuning / (time.perf_counter() - start)
    print(f"| tuning the proposal, once / 128 bare decoder passes | {once:.2f} | | none set |")


def memory() -> None:
    """Peak memory of log_prob for three K and 16 images, each in a process of its own (resident set, MiB)."""
    code = (
        "import resource, sys, torch, vae2aef\n"
        "from vae2aef.comparison.nets import ConvVAE\n"
        "torch.set_num_threads(1); torch.manual_seed(0); x = torch.rand(16, 1, 28, 28)\n"
        "aef = vae2aef.wrap(ConvVAE((1, 28, 28), 32), example=x, encoder_scale='log_var', core_flow='none')\n"
        "proposal = vae2aef.Proposal(torch.full((32,), -3.0)) if sys.argv[2] == 'given' else None\n"
        "aef.log_prob(x, num_samples=int(sys.argv[1]), proposal=proposal)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    for how in ("given", "found by log_prob itself"):
        peaks = {}
        for k in (10, 100, 1000):
            command = [sys.executable, "-W", "ignore", "-c", code, str(k), how]
            peaks[k] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        shown = ", ".join(f"{k}: {mib}" for k, mib in peaks.items())
        print(f"| peak memory of log_prob, MiB, by K; proposal {how} | {shown} | | flat |", flush=True)


def imports(repeats: int) -> None:
    """`from vae2aef import wrap` against `import torch`, in fresh processes; `import vae2aef` alone loads no torch."""

    def load(statement: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", statement], check=True)

    (ratio,) = ratios(load("import torch"), load("from vae2aef import wrap"), repeats=repeats)
    show("from vae2aef import wrap / import torch", ratio, "1.15")


def main() -> None:
    """Run all and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["step", "maf", "marginal", "memory", "import"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), {args.repeats} repeats\n")
    print("| what | median | quartiles | bound |\n|---|---|---|---|")
    runs: dict[str, Callable[[], None]] = {
        "step": lambda: training_step(args.repeats),
        "maf": lambda: maf_inverse(args.repeats),
        "marginal": lambda: marginal(args.repeats),
        "memory": memory,
        "import": lambda: imports(args.repeats),
    }
    for name, run in runs.items():
        if args.only in (None, name):
            run()


if __name__ == "__main__":
    main()
