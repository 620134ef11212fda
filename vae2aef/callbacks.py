"""Callbacks for Lightning's trainer, beside the task of `vae2aef.training`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.preprocess import bins_of
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


class Pictures(Callback):
    """Log pictures after each validation: the first validation data over their reconstructions, and samples.

    They go to loggers that take images (Lightning's `TensorBoardLogger` and `WandbLogger`), as `reconstructions` and
    `samples`; both are means of p(x | z), the samples of the same latents of the base distribution each time. Black
    and white are the least and the greatest value of the data shown. Training draws the same numbers as without it.

    Args:
        n: images a row.
        shape: of one image, `(channels, height, width)` with 1 or 3 channels, where the data are flattened.

    Raises:
        ValueError: at the first validation, if the data are no images; says what to pass.

    Warns:
        UserWarning: when training begins, if no logger of the trainer takes images.

    Example:
        >>> trainer = Trainer(logger=TensorBoardLogger("logs"), callbacks=[Pictures()])  # doctest: +SKIP
    """

    def __init__(self, n: int = 8, shape: tuple[int, int, int] | None = None) -> None:
        self.n, self.shape = n, shape

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if nobody will see them."""
        if not any(_takes_images(logger) for logger in trainer.loggers):
            warnings.warn(
                "no logger of this trainer takes images: pass Trainer(logger=TensorBoardLogger(...)) or a WandbLogger",
                stacklevel=2,
            )

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Draw and log them."""
        if batch_idx or dataloader_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        task: Any = pl_module
        shown = Batch(*task.arguments(batch)).rows(slice(0, self.n))
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            made = task.aef.reconstruct(shown.x, *shown.cond, **shown.kwargs)
            samples = task.aef.sample(len(shown.x), *shown.cond, **shown.kwargs)
        bins = None if shown.x.is_floating_point() else bins_of(task.aef.preprocess)
        # What dequantises levels makes values within 0 and 1, and so is what is drawn.
        x = shown.x.to(made) / (1 if bins is None else bins - 1)
        low, high = x.min(), x.max()
        for name, rows in (("reconstructions", (x, made)), ("samples", (samples,))):
            sheet = torch.cat([self._row(((row - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)) for row in rows], 1)
            for logger in trainer.loggers:
                _log_image(logger, name, sheet.cpu(), trainer.global_step)

    def _row(self, images: Tensor) -> Tensor:
        """Return images, (n, *event), side by side: (channels, height, n * width)."""
        images = images.reshape(-1, *self.shape) if self.shape else images
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"expected images (channels, height, width) with 1 or 3 channels, got data {tuple(images.shape[1:])}. "
                "Pass Pictures(shape=(1, 28, 28)), say, if they are flattened"
            )
        return torch.cat(list(images), 2)


def _takes_images(logger: Any) -> bool:
    return hasattr(logger, "log_image") or hasattr(logger.experiment, "add_image")


def _log_image(logger: Any, name: str, image: Tensor, step: int) -> None:
    """Log an image (channels, height, width) of values within 0 and 1."""
    if hasattr(logger, "log_image"):  # W&B
        logger.log_image(key=name, images=[(255 * image).byte().movedim(0, -1).squeeze(-1).numpy()], step=step)
    elif hasattr(logger.experiment, "add_image"):  # TensorBoard
        logger.experiment.add_image(name, image, step)
