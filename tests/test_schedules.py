"""Schedules of sigma where training runs in two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from two_processes import ROWS, build, ddp, noise_by_row, run_in_two

from vae2aef.schedules import noise_at

pytestmark = pytest.mark.skipif(not dist.is_available() or sys.platform != "linux", reason="two processes of gloo")
STEPS = 4


@pytest.fixture(autouse=True)
def double(float64):
    """In float64: sums over two halves of a batch differ in the last digits from those over the whole."""


def trained(rank):
    """Train by a schedule; rank None is one process with the rows of both."""
    aef, x = build("flow coupling")
    model = aef if rank is None else ddp(aef)
    optimizer = torch.optim.SGD(aef.parameters(), lr=1e-2)
    rows = x if rank is None else x[rank * ROWS : (rank + 1) * ROWS]
    sigmas = []
    with noise_by_row(rank):
        for step in range(STEPS):
            aef.noise = noise_at(step, STEPS, 1.0, 0.1)
            sigmas.append(float(aef.noise))
            optimizer.zero_grad()
            model(rows).backward()
            optimizer.step()
    return {"sigmas": torch.tensor(sigmas), **{name: value.detach() for name, value in aef.state_dict().items()}}


def test_a_schedule_in_two_processes_trains_as_in_one(tmp_path):
    expected = trained(None)
    assert expected["sigmas"].diff().max() < 0
    start = build("flow coupling")[0].state_dict()
    assert any(not torch.allclose(expected[name], start[name]) for name in start)
    for found in run_in_two(trained, tmp_path):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10, msg=name)


LIGHTNING = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader
from two_processes import build
from vae2aef.training import AEFTask, NoiseSchedule
aef, x = build("flow coupling")
seen = []


class Noises(Callback):
    def on_train_batch_end(self, trainer, module, *rest):
        seen.append(float(module.aef.noise))


kind = sys.argv[2]
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=6, logger=False, enable_checkpointing=False,
                  enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[1],
                  callbacks=[NoiseSchedule(1.0, 0.1, kind=kind, patience=1), Noises()])
# A rate at which the bound gets worse, so that the plateau schedule halves sigma.
trainer.fit(AEFTask(aef, lr=0.3, validation_samples=4), DataLoader(x, batch_size=2), DataLoader(x, batch_size=2))
torch.save(torch.tensor(seen), sys.argv[1] + f"/{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "plateau"])
def test_lightning_gives_all_processes_one_sigma(tmp_path, kind):
    pytest.importorskip("lightning", reason="the schedule is a Lightning callback")
    (tmp_path / "train.py").write_text(LIGHTNING)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
                   "PYTHONPATH": str(Path(__file__).parent)}  # fmt: skip
    command = [sys.executable, "train.py", str(tmp_path), kind]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second) and len(first) == 12
    assert first[0] == 1.0 and first[-1] < 1.0
