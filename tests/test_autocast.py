"""bf16 and fp16 autocast: what is added to a VAE loses no digits, and on real batches the loss stays within 1e-3."""

from typing import Any

import pytest
import torch
from two_processes import CASES, build

import vae2aef
from vae2aef.comparison.nets import ConvVAE

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


class Replay:
    """Parts whose outputs are kept when they run, and given back afterwards."""

    def __init__(self, parts: Any) -> None:
        self.parts, self.kept, self.again = parts, [], False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parts, name)

    def infer(self, *args: Any, **kwargs: Any) -> Any:
        return self.one(self.parts.infer, *args, **kwargs)

    def run(self, place: Any, state: Any, *cond: Any, **kwargs: Any) -> Any:
        return self.one(self.parts.decode, place("z", self.parts.prior, state), *cond, **kwargs)

    def one(self, part: Any, *args: Any, **kwargs: Any) -> Any:
        if self.again:
            return self.kept.pop(0)
        self.kept.append(part(*args, **kwargs))
        return self.kept[-1]


@torch.no_grad()
def terms(aef: vae2aef.AEF, x: torch.Tensor, dtype: torch.dtype | None) -> vae2aef.terms.LossTerms:
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        return aef(x, terms=True)


@HALVES
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("own features", "grids, two latents")])
def test_what_is_added_loses_nothing(case, dtype):
    """Densities, features, flows and preprocessing: the loss is that in float32 of the same networks' outputs.

    Features of the user's own are a network like others, and the two latents run their networks by themselves.
    """
    aef, x = build(case)
    exact = terms(aef, x, None)
    replay = Replay(aef.parts)
    object.__setattr__(aef, "parts", replay)
    half = terms(aef, x, dtype)
    assert len(replay.kept) == 2
    replay.again = True
    again = terms(aef, x, None)
    assert not replay.kept
    for name in ("loss", "prior", "residual", "log_det", "entropy"):
        found, expected = getattr(half, name), getattr(again, name)
        assert found.dtype is torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda t, name=name: f"{name}: {t}")
    assert exact.loss != half.loss  # the networks did run in half precision


@pytest.mark.slow
@HALVES
@pytest.mark.parametrize("options", [
    {"likelihood": 0.1}, {"likelihood": 0.1, "core_flow": "coupling", "prior": "coupling"},
    {"likelihood": "discretized_logistic"}, {"likelihood": "discretized_logistic", "core_flow": "coupling"},
])  # fmt: skip
@pytest.mark.parametrize("data", ["digits", "photographs"])
def test_real_batches(data, options, dtype):
    """Before training and after some steps, on rows not trained on; relatively to its terms, as it may be 0."""
    datasets = pytest.importorskip("sklearn.datasets")
    if data == "digits":
        x = torch.from_numpy(datasets.load_digits().images).float().unsqueeze(1) / 16
    else:
        photograph = torch.from_numpy(datasets.load_sample_image("china.jpg").copy()).float() / 255
        tiles = photograph[:416, :640].unfold(0, 16, 16).unfold(1, 16, 16)
        x = tiles.flatten(0, 1)[torch.randperm(26 * 40)].contiguous()
    levels = (x * 255).round()
    x = levels / 255 if options["likelihood"] == "discretized_logistic" else (levels + torch.rand_like(levels)) / 256
    held, x = x[:128], x[128:]
    aef = vae2aef.wrap(ConvVAE(tuple(x.shape[1:]), 8), example=x[:128], encoder_scale="log_var", **options)
    optimizer = torch.optim.Adam(aef.parameters(), lr=1e-3)
    for step in range(61):
        if step in (0, 60):
            exact, half = terms(aef, held, None), terms(aef, held, dtype)
            size = sum(float(part.abs().mean()) for part in (exact.prior, exact.residual, exact.log_det, exact.entropy))
            assert 0 < abs(float(half.loss - exact.loss)) < 1e-3 * size
        optimizer.zero_grad()
        aef(x[torch.randint(0, len(x), (64,))]).backward()
        optimizer.step()
