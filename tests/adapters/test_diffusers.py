"""diffusers: AutoencoderKL, its siblings, what is refused, and the accelerate loop it is trained in."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import CASES
from adapter_images import images

import vae2aef
from vae2aef.adapters.diffusers import accepted

diffusers = pytest.importorskip("diffusers")
CASE = next(case for case in CASES if case.name == "diffusers-AutoencoderKL")
DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
SIBLINGS = {
    "AsymmetricAutoencoderKL": (
        {"down_block_out_channels": (8, 8), "down_block_types": DOWN, "up_block_out_channels": (8, 8),
         "up_block_types": UP, "norm_num_groups": 4}, (3, 16, 16), {}),
    "AutoencoderKLTemporalDecoder": (
        {"block_out_channels": (32, 32), "down_block_types": DOWN}, (3, 16, 16), {"num_frames": 1}),
    "AutoencoderKLHunyuanVideo": (
        {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4},
        (3, 5, 16, 16), {}),
    "AutoencoderKLMagvit": (
        {"block_out_channels": (8, 8), "norm_num_groups": 2, "layers_per_block": 1, "latent_channels": 4,
         "down_block_types": ["SpatialDownBlock3D", "SpatialTemporalDownBlock3D"],
         "up_block_types": ["SpatialUpBlock3D", "SpatialTemporalUpBlock3D"]}, (3, 5, 8, 8), {}),
}  # fmt: skip


def build(name: str, **options: Any) -> torch.nn.Module:
    if not hasattr(diffusers, name):
        pytest.skip(f"this version of diffusers has no {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**options)


def test_conditions_reach_a_method_that_a_decorator_hides() -> None:
    """As diffusers did up to 0.41, where accelerate is installed."""

    def hook(method: Any) -> Any:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            return method(self, *args, **kwargs)

        return wrapper

    class Hidden:
        @hook
        def decode(self, z: torch.Tensor, num_frames: int) -> None: ...

    assert accepted(Hidden().decode, {"num_frames": 1, "labels": 2}) == {"num_frames": 1}


@pytest.mark.parametrize("name", SIBLINGS)
def test_siblings(name: str) -> None:
    options, shape, cond = SIBLINGS[name]
    vae = build(name, **options)
    x = images(shape, 2, symmetric=True)
    aef = vae2aef.wrap(vae, example=(x, cond) if cond else x, core_flow="none").eval()
    posterior = vae.eval().encode(x).latent_dist
    described = aef.parts.encode(x, **cond)
    assert torch.equal(described.loc, posterior.mean) and torch.equal(described.scale, posterior.std)
    assert torch.equal(aef.parts.decode(posterior.mean, **cond).mean, vae.decode(posterior.mean, **cond).sample)
    vae.decode(vae.encode(x).latent_dist.sample(), **cond).sample.sum().backward()
    own = {name for name, parameter in vae.named_parameters() if parameter.grad is not None}
    vae.zero_grad()
    aef(x, **cond).backward()
    assert own == {name for name, parameter in vae.named_parameters() if parameter.grad is not None}
    assert aef.sample(2, **cond).shape == (2, *shape)


REFUSED = {
    "AutoencoderTiny": ({}, "AutoencoderTinyOutput without latent_dist: its encoder is deterministic"),
    "VQModel": ({"block_out_channels": (8,), "norm_num_groups": 4}, "latents are discrete"),
    "UNet2DModel": ({"block_out_channels": (8, 8), "norm_num_groups": 4, "down_block_types": ("DownBlock2D",) * 2,
                     "up_block_types": ("UpBlock2D",) * 2}, r"no `encode` and `decode`.*pipeline\.vae"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name: str) -> None:
    options, reason = REFUSED[name]
    with pytest.raises(vae2aef.WrapError, match=reason):
        vae2aef.wrap(build(name, **options), example=images((3, 32, 32), 2, symmetric=True))


def test_a_decoder_that_draws_noise_is_refused() -> None:
    module = importlib.import_module("diffusers.models.autoencoders.consistency_decoder_vae")
    vae = module.ConsistencyDecoderVAE.__new__(module.ConsistencyDecoderVAE)  # its networks are large
    torch.nn.Module.__init__(vae)
    with pytest.raises(vae2aef.WrapError, match="decoder is a diffusion model that draws noise"):
        vae2aef.wrap(vae, example=images((3, 32, 32), 2))


def test_half_precision_weights_are_refused() -> None:
    vae = CASE.make()
    with pytest.raises(vae2aef.WrapError, match=r"weights are in torch\.float16.*torch\.autocast"):
        vae2aef.wrap(vae.half(), example=images(CASE.shape, 2, symmetric=True))


def test_bits_of_data_in_minus_one_to_one() -> None:
    """The page on diffusers says to count 128 bins a unit for 8-bit data in [-1, 1]."""
    x = images(CASE.shape, 4, symmetric=True)
    uniform = -torch.full((4,), float(x[0].numel())) * torch.log(torch.tensor(2.0))  # density 1/2 on [-1, 1]
    assert vae2aef.bits_per_dim(uniform, CASE.shape, width=2).tolist() == pytest.approx([8.0] * 4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_loop(precision: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.utils.set_seed(0)
    vae = CASE.make()
    x = images(CASE.shape, 128, symmetric=True)
    loader = torch.utils.data.DataLoader(x, batch_size=16, shuffle=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)

    aef = vae2aef.wrap(vae, example=x, noise=0.3)
    optimizer = torch.optim.AdamW(aef.parameters(), lr=2e-3)
    aef, optimizer, loader = accelerator.prepare(aef, optimizer, loader)
    losses = []
    for _ in range(3):
        for batch in loader:
            loss = aef(batch)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(aef.parameters(), 100.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert sum(losses[-4:]) < sum(losses[:4])

    accelerator.save_state(str(tmp_path / "state"))
    inner = accelerator.unwrap_model(aef)
    inner.vae.save_pretrained(tmp_path / "vae")
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    state = {key: value.clone() for key, value in inner.state_dict().items()}
    assert all(torch.equal(value, vae.state_dict()[key]) for key, value in again.state_dict().items())
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.zero_()
    accelerator.load_state(str(tmp_path / "state"))
    assert all(torch.equal(value, state[key]) for key, value in inner.state_dict().items())
    accelerator.free_memory()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
