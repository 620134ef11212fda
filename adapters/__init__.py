"""Adapters, one module for each codebase. Importing them imports no codebase."""

from vae2aef.adapters import (
    compvis,
    diffusers,
    ladder_vae,
    monai,
    nvae,
    pyro_pair,
    pythae,
    pytorch_examples,
    pytorch_vae,
    pytorch_vae_hierarchies,
    torch_distributions,
    vdvae,
)

__all__ = [
    "compvis",
    "diffusers",
    "ladder_vae",
    "monai",
    "nvae",
    "pyro_pair",
    "pythae",
    "pytorch_examples",
    "pytorch_vae",
    "pytorch_vae_hierarchies",
    "torch_distributions",
    "vdvae",
]
