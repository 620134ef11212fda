"""Run the results page: `python tests/benchmarks/results --data FOLDER --out FOLDER`; resumable.

Each run (cell, arm, seed) is a file of its own; a run that is there is not done again. `--workers` processes take what
is left, in an order that finishes one seed of the main arms first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import torch
from arms import ARMS
from cells import CELLS
from work import work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", nargs="*", choices=CELLS)
    parser.add_argument("--arms", nargs="*", choices=ARMS)
    parser.add_argument("--jobs", type=Path, help="a file of lines `cell arm seed`, in the place of all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--eager", action="store_true", help="no captured graphs on a GPU")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no run after so long")
    options = parser.parse_args()
    for claim in options.out.rglob("*.claim"):
        if not claim.with_suffix(".json").exists():  # of a run that was stopped
            claim.unlink()
    deadline = time.time() + options.seconds
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(options, deadline)) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
