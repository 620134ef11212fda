"""Adapters, one module for each codebase. Importing them imports no codebase."""

from vae2aef.adapters import (
    compvis,
    diffusers,
    monai,
    pyro_pair,
    pythae,
    pytorch_examples,
    pytorch_vae,
    torch_distributions,
    vdvae,
)

__all__ = [
    "compvis",
    "diffusers",
    "monai",
    "pyro_pair",
    "pythae",
    "pytorch_examples",
    "pytorch_vae",
    "torch_distributions",
    "vdvae",
]
