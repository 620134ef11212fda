"""The AEF as a Lightning task, for your own `Trainer`; `vae2aef compare` trains with it too."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Adam, Optimizer

from vae2aef.aef import AEF

try:
    from lightning import LightningModule
except ImportError as problem:
    raise ImportError('vae2aef.training needs Lightning: pip install "vae2aef[demo]"') from problem


class AEFTask(LightningModule):
    """Train an AEF with Adam; the loss is the AEF's own.

    `val_log_prob` (nats, the marginal by importance sampling) is logged for validation batches: monitor it with
    `mode="max"`. The training loss of a deterministic AEF is unbounded below and chooses no checkpoint.
    The paper clips gradients: `Trainer(gradient_clip_val=200)`.

    Args:
        aef: what `vae2aef.wrap` returned.
        lr: Adam's learning rate (paper D.5: 1e-3 for small images, 1e-4 for large ones).
        validation_samples: importance samples for a validation datum.
    """

    def __init__(self, aef: AEF, lr: float = 1e-3, validation_samples: int = 64) -> None:
        super().__init__()
        self.aef = aef
        self.lr = lr
        self.validation_samples = validation_samples

    def training_step(self, batch: Tensor | tuple[Any, ...] | list[Any], batch_idx: int) -> Tensor:
        """Return the loss in nats of data `(batch, *event)`, alone or first in the batch."""
        loss = self.aef(_data(batch))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Tensor | tuple[Any, ...] | list[Any], batch_idx: int) -> None:
        """Log the mean marginal log-likelihood in nats."""
        x = _data(batch)
        value = self.aef.log_prob(x, num_samples=self.validation_samples).value.mean()
        self.log("val_log_prob", value, batch_size=len(x))

    def configure_optimizers(self) -> Optimizer:
        """Adam over the VAE's parameters and the added ones."""
        return Adam((p for p in self.parameters() if p.requires_grad), lr=self.lr)


def _data(batch: Tensor | tuple[Any, ...] | list[Any]) -> Tensor:
    """Data loaders often yield (x, label)."""
    return batch if isinstance(batch, Tensor) else batch[0]
