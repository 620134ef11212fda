"""What a training run remembers: curves, the best weights, and itself in a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.comparison.batches import stream
from vae2aef.comparison.files import write_atomic
from vae2aef.comparison.interrupt import Flag, Interrupted
from vae2aef.training import AEFTask

SAVE_EVERY_SECONDS = 60.0
LEAST_BETWEEN = 50  # steps between two measurements: each costs as much as some hundred


class Recorder(Callback):
    """Measure, choose and save while Lightning trains.

    All of it goes into the checkpoint, so that a resumed run equals one that was never stopped.

    Args:
        steps: optimizer steps in all.
        seed: of the run; each step has its own random stream.
        measure: gives the held-out marginal in bits per dimension, on which the best weights are chosen.
        checkpoint: where to save.
        flag: tells of Ctrl-C and SIGTERM.
        on_loss: called after each step with its loss in nats.
    """

    def __init__(
        self,
        steps: int,
        seed: int,
        measure: Callable[[], float],
        checkpoint: Path,
        flag: Flag,
        on_loss: Callable[[float], None],
    ) -> None:
        self.steps, self.seed, self.measure, self.checkpoint = steps, seed, measure, checkpoint
        self.flag, self.on_loss = flag, on_loss
        self.every = max(LEAST_BETWEEN, steps // 10)
        self.window = max(1, steps // 100)
        self.losses: list[tuple[int, float]] = []
        self.curve: list[tuple[int, float]] = []
        self.curve_seconds: list[float | None] = []  # spent in training steps until each measurement
        self.best_step = 0
        self.best_weights: dict[str, Tensor] = {}
        self.seconds = 0.0
        self._pending: list[float] = []
        self._saved = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back SIGTERM, at which Lightning would exit as if all were done."""
        self.flag.take()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Give the step its own random stream: dropout and noise do not depend on what ran before."""
        torch.manual_seed(stream("step", self.seed, trainer.global_step))
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss; now and then measure and save."""
        loss = float(outputs["loss"])
        self.seconds += time.perf_counter() - self._started
        step = trainer.global_step
        self._pending.append(loss)
        if step % self.window == 0:
            self.losses.append((step, sum(self._pending) / len(self._pending)))
            self._pending = []
        self.on_loss(loss)
        measured = step % self.every == 0 or step == self.steps
        if measured:
            self._measure(step, cast(AEFTask, pl_module).aef)
        if measured or self.flag.pressed or time.monotonic() - self._saved > SAVE_EVERY_SECONDS:
            write_atomic(self.checkpoint, trainer.save_checkpoint)
            self._saved = time.monotonic()
        if self.flag.pressed:
            raise Interrupted

    def _measure(self, step: int, aef: AEF) -> None:
        value = self.measure()
        if value < min((v for _, v in self.curve), default=float("inf")):
            self.best_step = step
            self.best_weights = {name: v.detach().cpu().clone() for name, v in aef.state_dict().items()}
        self.curve.append((step, value))
        self.curve_seconds.append(self.seconds)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "losses": self.losses,
            "pending": self._pending,
            "curve": self.curve,
            "curve_seconds": self.curve_seconds,
            "best_step": self.best_step,
            "best_weights": self.best_weights,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.losses, self._pending, self.curve = (list(state_dict[k]) for k in ("losses", "pending", "curve"))
        self.best_step, self.best_weights = state_dict["best_step"], state_dict["best_weights"]
        self.seconds = state_dict["seconds"]
        # Checkpoints of earlier versions have no times: none are made up.
        self.curve_seconds = list(state_dict.get("curve_seconds", [None] * len(self.curve)))
