"""One graph for loss, encode and decode; sigma changes and nothing is compiled again; export; half precision."""

import copy
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from test_precision import needs_dynamo
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from zoo_core import SmallVAE
from zoo_grid import GridVAE

import vae2aef

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning")

FIRST = {"encoder_scale": "log_std", "noise": 0.0, "core_flow": "coupling"}


def dense(**options) -> tuple[vae2aef.AEF, Tensor]:
    x = torch.rand(16, 2, 3)
    return vae2aef.wrap(SmallVAE((2, 3), (3,)), example=x, **{**FIRST, **options}), x


def spatial(**options) -> tuple[vae2aef.AEF, Tensor]:
    x = torch.rand(16, 1, 4, 4)
    return vae2aef.wrap(GridVAE((2, 2)), example=x, **{**FIRST, **options}), x


both = pytest.mark.parametrize("make", [dense, spatial])


@needs_dynamo
@pytest.mark.slow
@both
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_one_graph_for_all(make, backend):
    """Loss with its gradients, encodings, reconstructions and samples are those of the eager code."""
    aef, x = make(prior="coupling", noise=0.0)
    twin = copy.deepcopy(aef)
    torch._dynamo.reset()
    loss = torch.compile(twin, fullgraph=True, backend=backend)(x)
    loss.backward()
    aef(x).backward()
    torch.testing.assert_close(loss, aef(x), rtol=1e-5, atol=1e-4)
    for (name, got), expected in zip(twin.named_parameters(), aef.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-3, msg=name)
    for name in ("encode", "reconstruct", "expanded_log_prob"):
        got = torch.compile(getattr(aef, name), fullgraph=True, backend=backend)(x)
        torch.testing.assert_close(got, getattr(aef, name)(x), rtol=1e-4, atol=1e-4)
    z = aef.encode(x).detach()
    decode = torch.compile(aef.decode, fullgraph=True, backend=backend)
    torch.testing.assert_close(decode(z), aef.decode(z), rtol=1e-4, atol=1e-4)


def of_samples(aef: vae2aef.AEF, x: Tensor) -> dict[str, Callable[..., Any]]:
    """What draws, and what weighs draws: `log_prob` by a proposal that is there already."""
    proposal = aef.tune_proposal(x)
    return {
        "sample": lambda: aef.sample(5),
        "sample with its noise": lambda: aef.sample(5, residual=True),
        "log_prob": lambda: aef.log_prob(x, num_samples=32, proposal=proposal),
        "log p0": lambda: aef.prior.log_prob(aef.encode(x)),
    }


def require_one_graph(aef: vae2aef.AEF, x: Tensor, backend: str, names: Collection[str]) -> None:
    for name, run in of_samples(aef, x).items():
        if name not in names:
            continue
        torch._dynamo.reset()
        compiled = torch.compile(run, fullgraph=True, backend=backend)
        torch.manual_seed(1)
        expected = run()
        torch.manual_seed(1)
        found = compiled()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
        if name == "log_prob":
            assert found.effective_sample_size.min() > 1 and not found.pareto_k.isnan().any()
        again = compiled()  # other draws
        different = again != found if isinstance(again, Tensor) else again.value != found.value
        assert bool(different.any()) is (name != "log p0")


@needs_dynamo
@pytest.mark.slow
def test_samples_and_their_weights_in_one_graph():
    aef, x = dense(core_flow="none", noise=0.3)
    require_one_graph(aef, x, "aot_eager", ("sample", "log_prob"))


@needs_dynamo
@pytest.mark.slow
@both
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_all_that_draws_in_one_graph(make, backend):
    import torch._inductor.config

    aef, x = make(prior="coupling", noise=0.3)
    with torch._inductor.config.patch(fallback_random=True):  # draws as those of eager code
        require_one_graph(aef, x, backend, of_samples(aef, x))


@needs_dynamo
@both
def test_sigma_changes_and_nothing_is_compiled_again(make):
    aef, x = make(noise=1.0, kl="sampled")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(aef, fullgraph=True, backend=counter)
    for sigma in (1.0, 0.7, 0.5, 0.3, 0.1, 0.03):
        aef.noise = sigma
        entropy = compiled(x, terms=True).entropy
        torch.testing.assert_close(entropy, aef.core.entropy())
    assert counter.frame_count == 1
    aef.noise = 0.0  # the paper's loss, which draws nothing, is another program
    assert torch.equal(compiled(x), compiled(x)) and counter.frame_count == 2


@pytest.mark.slow
@needs_dynamo
def test_other_grids_in_one_graph():
    aef, _ = spatial()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(aef, fullgraph=True, backend=counter, dynamic=True)
    for size in ((4, 4), (6, 8), (8, 6), (10, 12)):
        x = torch.rand(3, 1, *size)
        torch.testing.assert_close(compiled(x), aef(x))
    assert counter.frame_count <= 2  # the example's own grid, and all others


@both
def test_gradients_add_up_and_channels_last(make):
    """Accumulated over four parts they are those of the whole; the memory's order changes nothing."""
    aef, x = make()
    aef(x).backward()
    whole = [p.grad.clone() for p in aef.parameters()]
    aef.zero_grad()
    for part in x.chunk(4):
        (aef(part) / 4).backward()
    for got, expected in zip(aef.parameters(), whole, strict=True):
        torch.testing.assert_close(got.grad, expected, rtol=1e-4, atol=1e-4)
    if make is spatial:
        before = aef(x)
        last = aef.to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), before)


def test_gradient_checkpointing():
    from torch.utils.checkpoint import checkpoint

    aef, x = spatial(noise=0.3)
    torch.manual_seed(1)
    aef(x).backward()
    expected = [p.grad.clone() for p in aef.parameters()]
    aef.zero_grad()
    torch.manual_seed(1)
    checkpoint(aef, x, use_reentrant=False).backward()
    for got, wanted in zip(aef.parameters(), expected, strict=True):
        torch.testing.assert_close(got.grad, wanted)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_loss_is_near_float32(make, dtype):
    """Within a hundredth on a few random numbers; densities are in float32. Of real batches: test_autocast.py."""
    aef, x = make(prior="coupling", likelihood=0.1)
    expected = aef(x, terms=True)
    with torch.autocast("cpu", dtype=dtype):
        got = aef(x, terms=True)
    assert {got.loss.dtype, got.prior.dtype, got.residual.dtype, got.log_det.dtype} == {torch.float32}
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-2, atol=0)
    assert (got.log_det - expected.log_det).abs().max() < 0.02 * (1 + expected.log_det.abs().max())


# ------------------------------------------------------------------ export


class Encode(torch.nn.Module):
    """What a service runs: the latents of an AEF are a function of the data, without a draw."""

    def __init__(self, aef: vae2aef.AEF) -> None:
        super().__init__()
        self.aef = aef

    def forward(self, x: Tensor) -> Tensor:
        return self.aef.encode(x)


class Decode(Encode):
    def forward(self, z: Tensor) -> Tensor:
        return self.aef.decode(z)


@needs_dynamo
@both
@pytest.mark.parametrize("part", [Encode, Decode])
def test_exported(make, part):
    """torch.export, with a batch of any size."""
    aef, x = make()
    aef.eval()
    given = x if part is Encode else aef.encode(x).detach()
    program = torch.export.export(part(aef), (given,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    for rows in (given, given[:5]):
        torch.testing.assert_close(program.module()(rows), part(aef)(rows))


@needs_dynamo
@pytest.mark.slow
@both
@pytest.mark.parametrize("part", [Encode, Decode])
def test_onnx_runtime_gives_the_same_numbers(make, part, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    aef, x = make()
    module = part(aef).eval()
    given = x if part is Encode else aef.encode(x).detach()
    torch.onnx.export(
        module, (given,), tmp_path / "part.onnx", dynamo=True, input_names=["given"], output_names=["found"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},), verbose=False,
    )  # fmt: skip
    session = runtime.InferenceSession(tmp_path / "part.onnx", providers=["CPUExecutionProvider"])
    for rows in (given, given[:5]):
        (found,) = session.run(None, {"given": rows.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), module(rows).detach(), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_in_words(dtype):
    """Before anything is changed, and inside a task of Lightning too; the other ways to move it work."""
    aef, x = dense()
    for module in (aef, torch.nn.ModuleList([aef])):
        with pytest.raises(TypeError, match=r"need the digits of float32.*torch\.autocast"):
            module.to(dtype)
    assert {p.dtype for p in aef.parameters()} == {torch.float32}
    assert aef.double()(x.double()).dtype == torch.float64 and aef.to("cpu").float()(x).isfinite()
