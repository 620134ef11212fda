"""What is damaged in the folder of a run: named, and taken out of the way, so that it is made again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae2aef.comparison.files import Damaged, read_json

OF_A_RESULT = ("arm", "seed", "parameters", "best_step", "certificate", "seconds", "reconstruction_mse")
CURVES = ("validation_bits_per_dim", "training_loss")
PICTURES = ("reconstructions", "samples", "draws")


def damage(folder: Path, tested: int) -> list[str]:
    """Look through the files of a run; remove those that cannot be used.

    A result without its pictures goes too: both are made of the checkpoint again, which costs the test alone. A damaged
    checkpoint costs the training.

    Args:
        folder: of the run.
        tested: how many test samples there are.

    Returns:
        What is damaged or missing, in words.
    """
    result, pictures, checkpoint = (folder / name for name in ("result.json", "pictures.npz", "last.ckpt"))
    found = []
    if result.exists():
        found = [text for text in (_of(_read_result, result, tested), _of(_read_pictures, pictures)) if text]
        if found:
            result.unlink()
    if not result.exists() and checkpoint.exists():
        text = _of(_read_checkpoint, checkpoint)
        if text:
            found.append(text)
            checkpoint.unlink()
    return found


def _of(read: Any, *args: Any) -> str:
    try:
        read(*args)
    except Damaged as problem:
        return str(problem)
    return ""


def _read_result(path: Path, tested: int) -> None:
    """Read all that table and report are made of."""
    found = read_json(path, *OF_A_RESULT, *CURVES, "test")
    try:
        test, certificate = found["test"], found["certificate"]
        curves = [*found["validation_bits_per_dim"], *found["training_loss"]]
        numbers = [float(value) for _, value in curves] + [float(step) for step, _ in curves]
        numbers += [float(found[key]) for key in ("best_step", "seconds", "reconstruction_mse")]
        numbers += [float(certificate["gap"]), float(certificate["std_error"]), float(test["uncertain"])]
        numbers += [float(found["parameters"]["total"]), *map(float, dict(found["parameters"]["added"]).values())]
        numbers += [float(value) for key in ("log_prob", "effective_sample_size") for value in test[key]]
        numbers += [float(value) for value in test["std_error"] if value is not None]  # None: not known
        sizes = {len(test[key]) for key in ("log_prob", "std_error", "effective_sample_size")}
    except (TypeError, KeyError, ValueError) as problem:
        raise Damaged(f"{path} is damaged ({type(problem).__name__}: {problem})") from problem
    if empty := [key for key in CURVES if not found[key]]:
        raise Damaged(f"{path} is damaged ({empty[0]} is empty)")
    if not all(map(math.isfinite, numbers)):
        raise Damaged(f"{path} is damaged (it holds NaN or infinities)")
    if sizes != {tested}:
        raise Damaged(f"{path} is damaged (it is not of {tested} test samples)")


def _read_pictures(path: Path) -> None:
    if not path.exists():
        raise Damaged(f"{path} is missing")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            for name in PICTURES:
                file[name]
    except Exception as problem:  # zipfile and NumPy have many ways to fail
        raise Damaged(f"{path} is damaged ({type(problem).__name__})") from problem


def _read_checkpoint(path: Path) -> None:
    try:
        int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    except Exception as problem:  # torch advises to load it with weights_only=False, which runs what is in it
        raise Damaged(f"{path} is damaged ({type(problem).__name__})") from problem
