"""What two processes of gloo do with an AEF, and what one does on the concatenated batch; for the tests of engines."""

import contextlib
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from zoo_core import FlowPosteriorVAE, SmallVAE, shake
from zoo_grid import GridVAE, TwoGrids, TwoGridsParts

import vae2aef

ROWS = 4
"""Of each process."""

FLAT, GRID = (2, 3), (2, 4, 4)
FIRST = {"encoder_scale": "log_std", "noise": 0.0, "core_flow": "coupling"}


def flat(**options: Any) -> tuple[vae2aef.AEF, Tensor]:
    own = options.get("likelihood") == "decoder"
    x = torch.rand(2 * ROWS, *FLAT)
    vae = SmallVAE(FLAT, (2,), own_scale=own)
    options = {**FIRST, "decoder_scale": "std" if own else None, **options}
    return vae2aef.wrap(vae, example=x, **options), x


def grid(**options: Any) -> tuple[vae2aef.AEF, Tensor]:
    x = torch.rand(2 * ROWS, *GRID)
    return vae2aef.wrap(GridVAE((2, 2), 2), example=x, **{**FIRST, **options}), x


def counts(likelihood: Any, make: Callable[..., Any] = flat, output: Any = None) -> tuple[vae2aef.AEF, Tensor]:
    """Data of whole numbers, and decoders that are positive where they must be, by `output`."""
    shape = FLAT if make is flat else GRID
    x = torch.randint(0, 2, (2 * ROWS, *shape)).to(torch.get_default_dtype())
    vae = SmallVAE(FLAT, (2,)) if make is flat else GridVAE((2, 2), 2)
    return vae2aef.wrap(vae, example=x, encoder_scale="log_std", likelihood=likelihood, noise=0.0, output=output), x


def classes() -> tuple[vae2aef.AEF, Tensor]:
    x, vae = torch.randint(0, 2, (2 * ROWS, *FLAT)), SmallVAE(FLAT, (2,))
    parts = {
        "encoder": lambda x: vae.encoder(x.to(torch.get_default_dtype())),
        "decoder": lambda z: torch.stack([vae.decoder(z), -vae.decoder(z)], 1),
    }
    return vae2aef.wrap(vae, example=x, encoder_scale="log_std", noise=0.0, likelihood="categorical", **parts), x


def mixture() -> tuple[vae2aef.AEF, Tensor]:
    x = torch.randint(0, 256, (2 * ROWS, 1, 4, 4)) / 255
    vae, output = GridVAE((2, 2)), lambda out: torch.cat([out, out.sin(), out.cos()], 1)
    options = {"encoder_scale": "log_std", "noise": 0.0, "likelihood": "logistic_mixture", "output": output}
    return vae2aef.wrap(vae, example=x, **options), x


def two_latents() -> tuple[vae2aef.AEF, Tensor]:
    vae2aef.register_adapter(f"{TwoGrids.__module__}.{TwoGrids.__qualname__}")(lambda vae, x: TwoGridsParts(vae, x))
    x = torch.rand(2 * ROWS, 1, 8, 4)
    return vae2aef.wrap(TwoGrids(), example=x, noise=0.0), x


def posterior_flow() -> tuple[vae2aef.AEF, Tensor]:
    x = torch.rand(2 * ROWS, *FLAT)
    return vae2aef.wrap(FlowPosteriorVAE(FLAT, (2,)), example=x, noise=0.0), x


CASES: dict[str, Callable[[], tuple[vae2aef.AEF, Tensor]]] = {
    **{f"core {core}": lambda core=core: flat(core=core)
       for core in ("linear", "normalized", "noise", "center", "corner", "random")},
    "core by a mask": lambda: flat(core=torch.tensor([[True, False, False], [False, True, False]])),
    "own features": lambda: flat(core=nn.Sequential(nn.Flatten(), nn.Linear(6, 2))),
    **{f"flow {flow}": lambda flow=flow: flat(core_flow=flow, noise=0.3) for flow in ("none", "coupling", "maf")},
    **{f"prior {flow}": lambda flow=flow: flat(prior=flow) for flow in ("coupling", "maf")},
    **{f"likelihood {kind}": lambda kind=kind: flat(likelihood=kind)
       for kind in ("channel", "shared", "decoder", "laplace", "student_t", 0.7)},
    **{f"likelihood {kind}": lambda kind=kind: counts(kind)
       for kind in ("bernoulli_logits", "continuous_bernoulli_logits", "poisson_log", "negative_binomial_log",
                    "discretized_logistic", "discretized_gaussian")},
    **{f"likelihood {kind}": lambda kind=kind: counts(kind, output=torch.sigmoid)
       for kind in ("bernoulli", "continuous_bernoulli", "poisson", "zero_inflated_poisson", "negative_binomial",
                    "zero_inflated_negative_binomial")},
    "likelihood categorical": classes,
    "likelihood logistic_mixture": mixture,
    "likelihood of the user's": lambda: counts(lambda out: torch.distributions.Geometric(logits=out)),
    "preprocessed": lambda: flat(preprocess=["logit", "standardize"]),
    "posterior flow": posterior_flow,
    **{f"grid, {core}": lambda core=core: grid(core=core, noise=float(core == "noise"))
       for core in ("patch", "noise", "linear")},
    **{f"grid, flow {flow}": lambda flow=flow: grid(core_flow=flow, prior="coupling")
       for flow in ("none", "coupling", "maf")},
    "grid, bernoulli_logits": lambda: counts("bernoulli_logits", grid),
    "grid, discretized_logistic": lambda: counts("discretized_logistic", grid),
    "grids, two latents": two_latents,
}  # fmt: skip


def build(case: str) -> tuple[vae2aef.AEF, Tensor]:
    """Make the same AEF, away from its start, and the same data, in every process."""
    torch.manual_seed(0)
    aef, x = CASES[case]()
    shake(aef, 0.1)
    return aef, x


@contextlib.contextmanager
def noise_by_row(rank: int | None) -> Iterator[None]:
    """Let the noise of a row be the same in whichever process it is; None is the one process with all rows."""
    plain, generator = torch.randn_like, torch.Generator().manual_seed(5)

    def randn_like(like: Tensor, **options: Any) -> Tensor:
        every = torch.randn(2 * ROWS, *like.shape[1:], generator=generator, dtype=like.dtype)
        return every if rank is None else every[rank * ROWS : (rank + 1) * ROWS]

    torch.randn_like = randn_like
    try:
        yield
    finally:
        torch.randn_like = plain


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in module.named_parameters():
        grad = parameter.grad
        if grad is not None:
            found[name.removeprefix("module.")] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return found


def mean_loss(loss: Tensor) -> Tensor:
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total / 2


def difference(case: str, wrap: Callable[[vae2aef.AEF], nn.Module], rank: int) -> float:
    """Return the largest difference of loss and gradients between two processes and one."""
    reference, x = build(case)
    with noise_by_row(None):
        expected = reference(x)
    expected.backward()
    aef, x = build(case)
    model = wrap(aef)
    with noise_by_row(rank):
        loss = model(x[rank * ROWS : (rank + 1) * ROWS])
    loss.backward()
    found, wanted = gradients(model), gradients(reference)
    if found.keys() != wanted.keys():
        return float("inf")
    worst = [(found[k] - wanted[k]).abs().max() / (1 + wanted[k].abs().max()) for k in wanted if wanted[k].numel()]
    worst.append((mean_loss(loss) - expected).abs() / (1 + expected.abs()))
    return float(torch.stack([w.detach() for w in worst]).max())


def ddp(aef: vae2aef.AEF) -> nn.Module:
    return DistributedDataParallel(aef)


def fsdp(aef: vae2aef.AEF) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(aef, mesh=dist.init_device_mesh("cpu", (2,)))


def run_in_two(work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Run `work(rank, *args)` in two processes of one group, and return what each returned."""
    context = mp.get_context("fork")
    processes = [context.Process(target=_member, args=(rank, work, folder, args)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
    results = []
    for rank in (0, 1):
        path = folder / f"result{rank}.pt"
        assert path.exists(), (
            (folder / f"error{rank}.txt").read_text() if (folder / f"error{rank}.txt").exists() else "hung"
        )
        results.append(torch.load(path, weights_only=True))
        path.unlink()
    return results


def _member(rank: int, work: Callable[..., Any], folder: Path, args: tuple) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder / work.__name__}", rank=rank, world_size=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(work(rank, *args), folder / f"result{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        raise
