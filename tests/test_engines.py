"""Many processes: loss and gradients are those of one; checkpoints go from two to one and back; engines people use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from two_processes import CASES, ROWS, build, ddp, difference, fsdp, noise_by_row, run_in_two

import vae2aef

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.slow]
SHARDED = list(CASES)


def compare_all(rank: int) -> dict[str, float]:
    return {case: difference(case, ddp, rank) for case in CASES}


def compare_sharded(rank: int) -> dict[str, float]:
    return {case: difference(case, fsdp, rank) for case in SHARDED}


@pytest.fixture(scope="module")
def of_ddp(tmp_path_factory, float64):
    return run_in_two(compare_all, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(of_ddp, case):
    assert max(found[case] for found in of_ddp) < 1e-10


def test_sharded_processes_are_one(tmp_path):
    pytest.importorskip("torch.distributed.fsdp", reason="no fully_shard").fully_shard  # noqa: B018 - of torch 2.6 on
    for found in run_in_two(compare_sharded, tmp_path):
        assert found.keys() == set(SHARDED) and max(found.values()) < 1e-10, found


def log_prob_of_a_shard(rank: int) -> Tensor:
    aef, x = build("grid, patch")
    return aef.log_prob(x[rank::2], num_samples=16, seed=3).value


def test_log_prob_over_a_sharded_data_set(tmp_path):
    """With a seed a datum's number is its own, in whichever process and batch it is."""
    found = run_in_two(log_prob_of_a_shard, tmp_path)
    aef, x = build("grid, patch")
    torch.testing.assert_close(torch.stack(found, 1).flatten(), aef.log_prob(x, num_samples=16, seed=3).value)


# ------------------------------------------------------------------ checkpoints


def trained(model: torch.nn.Module, x: Tensor, rank: int | None, steps: int, state: dict | None = None) -> dict:
    """Train some steps with a momentum, from a state of the optimizer; return its state."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if state:
        optimizer.load_state_dict(state)
    for _ in range(steps):
        optimizer.zero_grad()
        with noise_by_row(rank):
            model(x if rank is None else x[rank * ROWS : (rank + 1) * ROWS]).backward()
        optimizer.step()
    return optimizer.state_dict()


def train_two(rank: int, folder: Path, name: str, out: str) -> float:
    aef, x = build("grid, flow coupling")
    found = torch.load(folder / name, weights_only=True) if name else {"model": aef.state_dict(), "optimizer": None}
    aef.load_state_dict(found["model"])
    model = ddp(aef)
    state = trained(model, x, rank, 2, found["optimizer"])
    if rank == 0:
        torch.save({"model": aef.state_dict(), "optimizer": state}, folder / out)
    return 0.0


def test_checkpoints_go_from_two_processes_to_one_and_back(tmp_path):
    run_in_two(train_two, tmp_path / ".", tmp_path, "", "first.pt")
    aef, x = build("grid, flow coupling")
    first = torch.load(tmp_path / "first.pt", weights_only=True)
    aef.load_state_dict(first["model"])
    state = trained(aef, x, None, 2, first["optimizer"])
    torch.save({"model": aef.state_dict(), "optimizer": state}, tmp_path / "second.pt")
    (tmp_path / "again").mkdir()
    run_in_two(train_two, tmp_path / "again", tmp_path, "second.pt", "third.pt")
    last = torch.load(tmp_path / "third.pt", weights_only=True)["model"]
    whole, x = build("grid, flow coupling")
    trained(whole, x, None, 6)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(last[name], value, rtol=1e-8, atol=1e-8)


def save_sharded(rank: int, folder: Path) -> float:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    aef, x = build("grid, patch")
    model = fsdp(aef)
    trained(model, x, rank, 2)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / "sharded")
    return 0.0


def load_sharded(rank: int, folder: Path) -> float:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    aef, x = build("grid, patch")
    model = fsdp(aef)
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=folder / "single")
    set_model_state_dict(model, state["model"])
    with torch.no_grad():
        loss = model(x[rank * ROWS : (rank + 1) * ROWS])
    dist.all_reduce(loss)
    return float(loss / 2)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # so it is: one process
def test_distributed_checkpoints_from_two_to_one_and_back(tmp_path):
    """torch.distributed.checkpoint: written by two, each its shard, read by one; written by one, read by two."""
    pytest.importorskip("torch.distributed.fsdp", reason="no fully_shard").fully_shard  # noqa: B018
    import torch.distributed.checkpoint as dcp

    run_in_two(save_sharded, tmp_path, tmp_path)
    one, x = build("grid, patch")
    state = {"model": one.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path / "sharded")
    one.load_state_dict(state["model"])
    whole, x = build("grid, patch")
    trained(whole, x, None, 2)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value, rtol=1e-8, atol=1e-8)
    dcp.save({"model": one.state_dict()}, checkpoint_id=tmp_path / "single")
    with torch.no_grad():
        expected = float(one(x))
    assert run_in_two(load_sharded, tmp_path, tmp_path) == pytest.approx([expected] * 2)


# ------------------------------------------------------------------ Lightning, Accelerate

LIGHTNING = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, DistributedSampler
from two_processes import build
from vae2aef.training import AEFTask
aef, x = build("grid, patch")
trainer = Trainer(accelerator="cpu", devices=int(sys.argv[1]), strategy="ddp" if sys.argv[1] == "2" else "auto",
                  max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                  enable_model_summary=False, default_root_dir=sys.argv[2], use_distributed_sampler=False)
task = AEFTask(aef, lr=1e-2, validation_samples=4)


class InOrder(LightningDataModule):  # Lightning's own sampler would shuffle
    def train_dataloader(self):
        sampler = DistributedSampler(x, trainer.world_size, trainer.global_rank, shuffle=False)
        return DataLoader(x, batch_size=4 // trainer.world_size, sampler=sampler)

    val_dataloader = train_dataloader


trainer.fit(task, datamodule=InOrder())
if trainer.is_global_zero:
    torch.save(task.aef.state_dict(), sys.argv[2] + f"/{sys.argv[1]}.pt")
"""

ACCELERATE = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
from accelerate import Accelerator
from two_processes import build
aef, x = build("grid, patch")
accelerator = Accelerator(cpu=True)
optimizer = torch.optim.Adam(aef.parameters(), lr=1e-2)
loader = torch.utils.data.DataLoader(x, batch_size=4 // accelerator.num_processes)
aef, optimizer, loader = accelerator.prepare(aef, optimizer, loader)
assert accelerator.num_processes == int(sys.argv[1])
for _ in range(2):
    for batch in loader:
        optimizer.zero_grad()
        accelerator.backward(aef(batch))
        optimizer.step()
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    torch.save(accelerator.unwrap_model(aef).state_dict(), sys.argv[2] + f"/{sys.argv[1]}.pt")
accelerator.end_training()
"""


@pytest.mark.parametrize(("library", "script", "launcher"), [
    ("lightning", LIGHTNING, []),
    ("accelerate", ACCELERATE, ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517"]),
])  # fmt: skip
def test_engines_train_on_two_processes_as_on_one(tmp_path, library, script, launcher):
    pytest.importorskip(library)
    (tmp_path / "train.py").write_text(script)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for number in ("1", "2"):
        command = [sys.executable, *(launcher if number == "2" else []), "train.py", number, str(tmp_path)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in "12")
    start = build("grid, patch")[0].state_dict()
    assert any(not torch.equal(one[name], start[name]) for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from inside torch.compile
def test_what_is_wrapped_may_be_parallel_already():
    """A compiled VAE is taken out of its wrapper; one in DDP: tests/adapters/test_registry.py."""
    aef, x = build("grid, patch")
    again = vae2aef.wrap(torch.compile(aef.vae), example=x, encoder_scale="log_std")
    assert again.vae is aef.vae
