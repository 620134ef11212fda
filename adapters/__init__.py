"""Adapters, one module for each codebase. Importing them imports no codebase."""

from vae2aef.adapters import pytorch_examples

__all__ = ["pytorch_examples"]
