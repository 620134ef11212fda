"""A step of training on a GPU: the VAE's ELBO, an AEF without flows and one with both; ratios within each turn.

    python tests/benchmarks/gpu_step.py docs/results/other/gpu_step.json

Milliseconds of the VAE's step, and the ratios of the two AEFs to it: quartiles. The paper's small convolutional net,
28x28, 32 latents, eager, Adam. The figures of docs/deployment.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from cost import FLOWS, dense

TURNS = 201


def quartiles(batch: int) -> dict[str, list[float]]:
    """Low, median and high of the milliseconds of the VAE, and of both ratios."""
    modules, x = dense(32, batch)
    x = x.cuda()
    optimizers = [torch.optim.Adam(module.cuda().parameters(), lr=1e-3, foreach=True) for module in modules]

    def step(i: int) -> float:
        start = time.perf_counter()
        optimizers[i].zero_grad()
        modules[i](x).backward()
        optimizers[i].step()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(3):
        for i in range(len(modules)):
            step(i)
    rows = []
    for _ in range(TURNS):
        took = [step(i) for i in range(len(modules))]
        rows.append([1e3 * took[0], *(seconds / took[0] for seconds in took[1:])])
    names = ("VAE, ms", *FLOWS)
    return {
        n: [round(q, 3) for q in statistics.quantiles(c, n=4)]
        for n, c in zip(names, zip(*rows, strict=True), strict=True)
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    found = {str(batch): quartiles(batch) for batch in (128, 1024)}
    found["machine"] = torch.cuda.get_device_name()
    options.out.write_text(json.dumps(found) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
