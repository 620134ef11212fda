"""The queue of runs: processes take one after the other; what is done is not done again."""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
import traceback
from collections.abc import Iterator

import torch
from arms import DENSITIES, MAIN, TRIED
from cells import CELLS, load
from train import run

Job = tuple[str, str, int]


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Yield what is to run: what a file says, or all main arms of the first seed, what was tried, further seeds."""
    if options.jobs:
        for line in options.jobs.read_text().splitlines():
            cell, arm, seed = line.split()
            yield cell, arm, int(seed)
        return
    cells = options.cells or list(CELLS)
    bits = {name for name in cells if CELLS[name].bins == 2}  # no density fits them, and they have no scale
    for seed in range(options.first_seed, options.seeds):
        for arms in (options.arms,) if options.arms else (MAIN, TRIED):
            for cell in cells:
                yield from (
                    (cell, arm, seed)
                    for arm in arms
                    if not (arm in ("center", "jacobian-0", *DENSITIES) and cell in bits)
                )


def work(options: argparse.Namespace, deadline: float) -> None:
    """Take one job after the other until none is left or the time is up."""
    torch.set_num_threads(1)
    data = functools.cache(lambda name: load(CELLS[name], options.data))
    for name, arm, seed in jobs(options):
        if time.time() > deadline:
            return
        path = options.out / name / f"{arm}-{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:  # claimed by one process
            os.close(os.open(path.with_suffix(".claim"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        try:
            start = time.perf_counter()
            result = run(CELLS[name], arm, seed, data(name), options.device, options.steps, not options.eager)
            result["wall"] = round(time.perf_counter() - start, 1)
            path.with_suffix(".part").write_text(json.dumps(result))
            path.with_suffix(".part").rename(path)
            mean = sum(result["log_prob"]) / len(result["log_prob"])
            print(f"{name} {arm} {seed}: {mean:.3f} nats, gap {result['certificate']}, train "
                  f"{result['validation_nats'][-1][2]:.1f} s, all {result['wall']} s", flush=True)  # fmt: skip
        except Exception:
            print(f"{name} {arm} {seed} failed: {traceback.format_exc().splitlines()[-1]}", flush=True)
            path.with_suffix(".failed").write_text(traceback.format_exc())
