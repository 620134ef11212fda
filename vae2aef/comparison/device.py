"""`--device`: whether the machine has it, before anything is written."""

from __future__ import annotations

import torch

from vae2aef.comparison.errors import InputError


def require_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Args:
        device: `"auto"`, `"cpu"`, `"mps"`, `"cuda"` or `"cuda:N"`.

    Raises:
        InputError: says what is there.
    """
    kind, _, number = device.partition(":")
    if kind in ("auto", "cpu"):
        return
    if kind == "mps":
        there = torch.backends.mps.is_available()
        found = "torch finds no Apple GPU"
    else:
        count = torch.cuda.device_count()
        there = int(number or 0) < count
        found = f"torch finds {count} CUDA devices" + (f", cuda:0 to cuda:{count - 1}" if count else "")
    if not there:
        raise InputError(f"--device {device}: {found}; use --device auto, or cpu")
