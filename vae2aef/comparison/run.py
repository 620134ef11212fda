"""One run of a comparison: one arm, one seed; trained, or taken up where it stopped, then tested."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.comparison.batches import Batches
from vae2aef.comparison.conditions import NONE, Conditions
from vae2aef.comparison.evaluate import (
    certificate,
    choose_proposal,
    gauge,
    marginal,
    pictures,
    reconstruction_mse,
)
from vae2aef.comparison.files import make_folder, read_json, write_atomic, write_json
from vae2aef.comparison.interrupt import Interrupted, deferred_interrupt
from vae2aef.comparison.options import Options
from vae2aef.comparison.portrait import portrait
from vae2aef.comparison.recorder import Recorder
from vae2aef.comparison.rows import Rows
from vae2aef.preprocess import bits_per_dim
from vae2aef.training import AEFTask

GRADIENT_CLIP = 200.0  # paper D.5
VALIDATION_SAMPLES = 64
SAMPLES_SHOWN = 16


@dataclass(frozen=True)
class RunData:
    """The data of a comparison.

    Attributes:
        train: training data, (n, *event), integers or floats; or the rows of a file that is read batch by batch.
        validation: held-out data to choose by, dequantised, (m, *event).
        test: test data, dequantised, (k, *event).
        shown: test samples for the pictures, (few, *event).
        bins: number of levels; 1 where data are not dequantised.
        conditions: what is known of each datum.
    """

    train: Tensor | Rows
    validation: Tensor
    test: Tensor
    shown: Tensor
    bins: int
    conditions: Conditions = NONE


@dataclass(frozen=True)
class RunProgress:
    """Where a run tells how far it is; each does nothing unless given."""

    resumed: Callable[[int], None] = lambda step: None
    loss: Callable[[float], None] = lambda loss: None
    testing: Callable[[int], None] = lambda images: None


def run_arm(
    build: Callable[[], AEF], arm: str, seed: int, data: RunData, options: Options, folder: Path, progress: RunProgress
) -> dict[str, Any]:
    """Train and test one arm, or return the result that `folder` already holds.

    Args:
        build: makes the AEF with its initial weights.
        arm: its name.
        seed: fixes batches and noise.
        data: what to train and test on.
        options: steps, batch size, learning rate, importance samples.
        folder: of this run; gets `last.ckpt`, `best.pt`, `pictures.npz` and, last of all, `result.json`.
        progress: is told how far it is.

    Returns:
        The content of `result.json`.

    Raises:
        KeyboardInterrupt: Ctrl-C; the run goes on from there next time.
        NonFiniteError: the loss or an estimate is NaN or infinite.
    """
    result = folder / "result.json"
    if result.exists():
        return read_json(result)
    make_folder(folder)
    aef = build()
    record = _train(aef, seed, data, options, folder / "last.ckpt", progress)
    aef.load_state_dict(record.best_weights)
    aef.eval()
    write_atomic(folder / "best.pt", lambda path: torch.save(record.best_weights, path))
    device = next(aef.parameters()).device
    test, known = data.test.to(device), _on(device, data.conditions.test)
    found = marginal(aef, test, options.importance_samples, None, "test", progress.testing, known)
    few = tuple(one[: len(data.shown)] for one in known)
    seen = pictures(aef, data.shown.to(device), SAMPLES_SHOWN, few)._asdict()
    more = {} if known else portrait(aef, test, found.value)  # of a VAE with conditions there are no traversals
    shown = {name: images.numpy() for name, images in seen.items()}
    shown = {"draws_of_samples": shown["draws"]} | shown | more  # those of the portrait are of other latents, and more
    write_atomic(folder / "pictures.npz", lambda path: np.savez_compressed(path, **shown))
    content = {
        "arm": arm,
        "seed": seed,
        "parameters": _count(aef),
        "best_step": record.best_step,
        "certificate": certificate(aef, options.importance_samples, len(test), known),
        "seconds": record.seconds,
        "reconstruction_mse": reconstruction_mse(aef, test, known),
        "gauge": gauge(aef, data.validation.to(device), _on(device, data.conditions.validation)),
        "validation_bits_per_dim": record.curve,
        "validation_seconds": record.curve_seconds,
        "training_loss": record.losses,
        "test": {
            "log_prob": found.value.tolist(),
            # None where it is not known: JSON has no infinity.
            "std_error": [error if error < math.inf else None for error in found.std_error.tolist()],
            "effective_sample_size": found.effective_sample_size.tolist(),
            "uncertain": int(found.uncertain.sum()),
        },
    }
    write_json(result, content)
    return content


def _train(aef: AEF, seed: int, data: RunData, options: Options, checkpoint: Path, progress: RunProgress) -> Recorder:
    """Train to the end, from the checkpoint if there is one."""
    task = AEFTask(aef, options.lr, split=_as_it_is)

    def measure() -> float:
        device = next(aef.parameters()).device
        x, known = data.validation.to(device), _on(device, data.conditions.validation)
        found = marginal(aef, x, VALIDATION_SAMPLES, choose_proposal(aef, x, known), "validation", cond=known)
        return float(bits_per_dim(found.value, aef.event_shape, data.bins).mean())

    start = 0
    if checkpoint.exists():
        start = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
        progress.resumed(start)
    with deferred_interrupt() as flag, _quiet():
        recorder = Recorder(options.steps, seed, measure, checkpoint, flag, progress.loss)
        trainer = Trainer(
            accelerator=options.device.split(":")[0],
            devices=[int(options.device.split(":")[1])] if ":" in options.device else 1,
            max_steps=options.steps,
            max_epochs=-1,
            gradient_clip_val=GRADIENT_CLIP,
            callbacks=[recorder],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=checkpoint.parent,
        )
        batches = Batches(data.train, data.bins, options.batch_size, options.steps, seed, start, data.conditions.train)
        try:
            trainer.fit(task, batches, ckpt_path=checkpoint if start else None)
        except (Interrupted, SIGTERMException):
            raise flag.error() from None
        if flag.pressed:  # after the last step
            raise flag.error()
        aef.to(trainer.strategy.root_device)
    return recorder


def _as_it_is(batch: Any) -> Any:
    return batch


def _on(device: torch.device, cond: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.to(device) for one in cond)


def _count(aef: AEF) -> dict[str, Any]:
    total = sum(p.numel() for p in aef.parameters())
    added = aef.added
    return {"total": total, "vae": total - sum(added.values()), "added": added}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's greetings, and its advice that does not apply here, from the terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
            # torch 2.4 and 2.5, of how Lightning loads our own checkpoint
            warnings.filterwarnings(
                "ignore", message=".*`torch.load` with `weights_only=False`", category=FutureWarning
            )
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
