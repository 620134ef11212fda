"""Callbacks for Lightning's trainer, beside the task of `vae2aef.training`."""

from __future__ import annotations

from typing import Any

from vae2aef.schedules import noise_at

try:
    from lightning import LightningModule
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback
except ImportError as problem:
    raise ImportError('vae2aef.training needs Lightning: pip install "vae2aef[demo]"') from problem


class NoiseSchedule(Callback):
    """Change sigma while training, by `vae2aef.schedules.noise_at`; a function of the step, so that a run resumes.

    Args:
        start: the first sigma.
        end: the last one.
        steps: optimizer steps it takes; None for all of `Trainer(max_steps=...)`, or of its epochs.
        kind: `"linear"` or `"cosine"`; or `"plateau"`: sigma falls by half, down to `end`, whenever the last `patience`
            validations brought no better `val_log_prob`.
        patience: for `"plateau"`.

    Raises:
        ValueError: for an unknown kind, or sigmas that are no sigmas.

    Example:
        >>> trainer = Trainer(callbacks=[NoiseSchedule(1.0, 0.1)])  # doctest: +SKIP
    """

    def __init__(
        self, start: float, end: float, steps: int | None = None, kind: str = "cosine", patience: int = 3
    ) -> None:
        if kind == "plateau":
            noise_at(0, 1, start, end, "constant")
            if not 0 < end <= start:
                raise ValueError(f"a plateau schedule halves sigma down to end > 0; got start={start}, end={end}")
        else:
            noise_at(0, steps or 1, start, end, kind)
        self.start, self.end, self.steps, self.kind, self.patience = start, end, steps, kind, patience
        self.sigma, self.best, self.worse = start, -float("inf"), 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the sigma of this step."""
        if self.kind != "plateau":
            steps = self.steps or int(trainer.estimated_stepping_batches)
            self.sigma = noise_at(trainer.global_step, steps, self.start, self.end, self.kind)
        aef: Any = pl_module.aef
        if aef.noise != self.sigma:
            aef.noise = self.sigma

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Halve sigma where validations have brought nothing better for long enough."""
        found = trainer.callback_metrics.get("val_log_prob")
        if self.kind != "plateau" or found is None or trainer.sanity_checking:
            return
        self.worse = 0 if float(found) > self.best else self.worse + 1
        self.best = max(self.best, float(found))
        if self.worse >= self.patience:
            self.sigma, self.worse = max(self.sigma / 2, self.end), 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"sigma": self.sigma, "best": self.best, "worse": self.worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.sigma, self.best, self.worse = (state_dict[name] for name in ("sigma", "best", "worse"))
