"""NVAE: how to build a small one, our stand-in or the real code, and what its own code says of a batch.

What is made for CUDA alone in the real code is replaced here, and nothing else: `Tensor.cuda` returns the tensor, and
`SyncBatchNormSwish`, which asks for a tensor on a GPU, is batch normalisation followed by x sigmoid(x).
"""

import contextlib
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hierarchy_cases import Hierarchy, Own
from lookalikes import nouveau
from test_checkouts import CHECKOUTS
from torch import Tensor, nn

import vae2aef

CHECKOUT = CHECKOUTS / "NVAE"
MODULES = ("model", "utils", "distributions", "neural_operations", "neural_ar_operations", "thirdparty", "tensorboardX")


@contextlib.contextmanager
def on_the_cpu() -> Iterator[None]:
    """Let the checkout's modules be imported, and run without a GPU; afterwards all is as before."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in MODULES]:
            del sys.modules[name]

    def swish_of_normalised(self: Any, x: Tensor) -> Tensor:
        return F.silu(
            F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
            )
        )

    with pytest.MonkeyPatch.context() as patch:
        if CHECKOUT.is_dir():
            forget()
            patch.syspath_prepend(str(CHECKOUT))
            board: Any = types.ModuleType("tensorboardX")
            board.SummaryWriter = None  # utils imports it, to write what nobody here writes
            patch.setitem(sys.modules, "tensorboardX", board)
            patch.setattr(Tensor, "cuda", lambda self, *args: self)
            norm = importlib.import_module("thirdparty.inplaced_sync_batchnorm")
            patch.setattr(norm.SyncBatchNormSwish, "forward", swish_of_normalised)
        yield
        if CHECKOUT.is_dir():
            forget()


def module_of(vae: nn.Module) -> Any:
    return sys.modules[type(vae).__module__]


def real(size: int, arch: str, dataset: str, **options: Any) -> nn.Module:
    if not CHECKOUT.is_dir():
        pytest.skip("VAE2AEF_CHECKOUTS names no folder with a checkout of NVlabs/NVAE")
    small = {
        "use_se": True, "res_dist": True, "num_x_bits": 8, "num_latent_scales": 2, "num_groups_per_scale": 2,
        "num_latent_per_group": 2, "ada_groups": True, "min_groups_per_scale": 1, "num_channels_enc": 4,
        "num_channels_dec": 4, "num_preprocess_blocks": 1, "num_preprocess_cells": 2, "num_cell_per_cond_enc": 1,
        "num_postprocess_blocks": 1, "num_postprocess_cells": 2, "num_cell_per_cond_dec": 1, "num_mixture_dec": 2,
        "num_nf": 0,
    }  # fmt: skip
    model, utils = importlib.import_module("model"), importlib.import_module("utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "get_input_size", lambda dataset: size)  # their smallest is 32
        args = SimpleNamespace(dataset=dataset, **{**small, **options})
        return model.AutoEncoder(args, None, utils.get_arch_cells(arch))


# ------------------------------------------------------------------ what its own code says


def own(vae: Any, x: Tensor) -> Own:
    zs: list[Tensor] = []
    combiners = [cell for cell in vae.dec_tower if cell.cell_type == "combiner_dec"] or [vae.stem_decoder]
    hooks = [cell.register_forward_pre_hook(lambda cell, given: zs.append(given[-1])) for cell in combiners]
    logits, _, _, kls, _ = vae(x)
    for hook in hooks:
        hook.remove()
    output = vae.decoder_output(logits)
    log_p = -losses_of(vae).reconstruction_loss(output, x, vae.crop_output)
    if hasattr(output, "dist"):  # theirs is a density of 2 x - 1, ours of x
        log_p = log_p + x[0].numel() * torch.tensor(2.0).log()
    names = [f"z{i}" for i in range(len(zs))]
    z, kl = (dict(zip(names, values, strict=True)) for values in (zs, kls))
    return Own(z, shown(vae, output), kl, None, log_p, not vae.num_flows)


def losses_of(vae: nn.Module) -> Any:
    """The module that has `reconstruction_loss`."""
    return sys.modules["utils"] if type(vae).__module__ == "model" else module_of(vae)


def shown(vae: Any, output: Any) -> Tensor:
    """The mean of the data, as train.py shows it; a border that is padding is zero."""
    if hasattr(output, "dist"):
        return (output.dist.mu + 1) / 2
    mean = output.mean if isinstance(output.mean, Tensor) else output.mean()
    return padded(mean) if vae.crop_output else mean


def padded(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[..., 2:30, 2:30] = x[..., 2:30, 2:30]
    return out


def sample(vae: Any, n: int, mode: bool) -> Tensor:
    """Their own samples; with `mode`, z1 is its prior's location."""
    return sample_at(vae, n, [0.0 if mode and i == 1 else 1.0 for i in range(len(vae.enc_sampler))])


def sample_at(vae: Any, n: int, temperatures: list[float], draw: bool = False) -> Tensor:
    """Their own samples, where `sample` takes one temperature, each level at its own; with `draw`, images drawn too."""
    model, rest = module_of(vae), iter(temperatures)
    normal = model.Normal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "Normal", lambda mu, log_sigma, temp: normal(mu, log_sigma, next(rest)))
        logits = vae.sample(n, None)
    assert next(rest, None) is None
    output = vae.decoder_output(logits)
    if not draw:
        return shown(vae, output)
    return padded(output.sample()) if vae.crop_output else output.sample()


# ------------------------------------------------------------------ the cases


class Images(Hierarchy):
    """An NVAE on images of a kind: grey levels of "255" or "31", a "padded" binary image, or real numbers, "unit"."""

    def cast(self, x: Tensor) -> Tensor:
        if self.data_kind == "padded":
            return padded((x > 0.5).to(x.dtype))
        return x if self.data_kind == "unit" else (x * int(self.data_kind)).round() / int(self.data_kind)


def case(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], kind: str, groups: int = 3) -> Images:
    levels = tuple(f"z{i}" for i in range(groups))
    return Images(name, build, own, sample, None, shape, kind, levels)


def stand_in(name: str, kind: str, groups: int = 3, **options: Any) -> Images:
    size = options.get("size", 4)
    channels = 1 if options.get("dataset") == "mnist" else 3
    return case(f"stand-in-{name}", lambda: nouveau.AutoEncoder(**options), (channels, size, size), kind, groups)


def checkout(
    name: str, kind: str, groups: int = 3, size: int = 8, arch: str = "res_mbconv", dataset: str = "cifar10",
    **options: Any,
) -> Images:  # fmt: skip
    channels = 1 if dataset == "mnist" else 3
    return case(f"real-{name}", lambda: real(size, arch, dataset, **options), (channels, size, size), kind, groups)


CASES = [
    stand_in("mixture", "255"),
    stand_in("mixture-5-bits", "31", num_x_bits=5),
    stand_in("normal", "unit", num_mixture_dec=1, res_dist=False),
    stand_in("binary", "padded", dataset="mnist"),
    stand_in("flows", "255", num_nf=2),
    stand_in("one-group", "padded", groups=1, dataset="mnist", vanilla=True, num_nf=1),
    checkout("mixture", "255"),
    checkout("mixture-5-bits", "31", num_x_bits=5, arch="res_bnswish", use_se=False),
    checkout("normal", "unit", num_mixture_dec=1, res_dist=False, arch="res_bnelu"),
    checkout("binary", "padded", groups=4, size=32, dataset="mnist", ada_groups=False),
    checkout("flows", "255", num_nf=2, arch="mbconv_sep"),
    checkout("one-group", "255", groups=1, num_latent_scales=1, num_groups_per_scale=1, num_nf=1),
]
TINY = [case for case in CASES if case.shape[-1] == 4] + [
    checkout("tiny", "255", size=4),
    checkout("tiny-binary", "padded", size=4, dataset="mnist"),
    checkout("tiny-flows", "255", size=8, num_nf=1, arch="res_bnswish"),
    checkout("tiny-normal", "unit", size=4, num_mixture_dec=1, res_dist=False),
]


def pair(case: Images) -> tuple[nn.Module, vae2aef.AEF]:
    """The VAE with, at h = 0 and sigma = 1, the AEF that is it."""
    vae = case.make().to(torch.float64)
    return vae.eval(), vae2aef.wrap(vae, example=case.data(), core="noise", core_flow="none", kl="sampled").eval()
