"""The AEF as a Lightning task, for your own `Trainer`; `vae2aef compare` trains with it too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Adam, Optimizer

from vae2aef.aef import AEF
from vae2aef.evidence import EstimateWarning

try:
    from lightning import LightningModule
except ImportError as problem:
    raise ImportError('vae2aef.training needs Lightning: pip install "vae2aef[demo]"') from problem


class AEFTask(LightningModule):
    """Train an AEF with Adam; the loss is the AEF's own.

    `val_log_prob` (nats, the marginal by importance sampling, with the same draws at every validation) is logged for
    validation batches: monitor it with `mode="max"`. `val_uncertain` is the share of data whose estimate cannot be
    trusted (`LogProb.uncertain`): it takes the place of the warnings. The training loss of a deterministic AEF is
    unbounded below and chooses no checkpoint.
    The paper clips gradients: `Trainer(gradient_clip_val=200)`.

    Args:
        aef: what `vae2aef.wrap` returned.
        lr: Adam's learning rate (paper D.5: 1e-3 for small images, 1e-4 for large ones).
        validation_samples: importance samples for a validation datum.
        split: makes of a batch of your loader what the AEF takes: the data, or `(x, *conditions)`, whose last item
            may be a dict of conditions by name, as `wrap(example=...)` takes it. By default the batch itself if it is
            a tensor, or its first item: labels are left out.

    Example:
        A conditional VAE, and a loader of `(image, label)`:

        >>> task = AEFTask(aef, split=lambda batch: (batch[0], batch[1]))  # doctest: +SKIP
    """

    def __init__(
        self,
        aef: AEF,
        lr: float = 1e-3,
        validation_samples: int = 64,
        split: Callable[[Any], Tensor | Sequence[Any]] | None = None,
    ) -> None:
        super().__init__()
        self.aef = aef
        self.lr = lr
        self.validation_samples = validation_samples
        self.split = split or _data

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss in nats of a batch, data `(batch, *event)` and conditions being what `split` makes of it."""
        x, cond, kwargs = self._arguments(batch)
        loss = self.aef(x, *cond, **kwargs)
        self.log("train_loss", loss, batch_size=len(x))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the mean marginal log-likelihood in nats."""
        x, cond, kwargs = self._arguments(batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EstimateWarning)
            found = self.aef.log_prob(x, *cond, num_samples=self.validation_samples, seed=0, **kwargs)
        self.log("val_log_prob", found.value.mean(), batch_size=len(x))
        self.log("val_uncertain", found.uncertain.to(found.value.dtype).mean(), batch_size=len(x))

    def configure_optimizers(self) -> Optimizer:
        """Adam over the VAE's parameters and the added ones."""
        return Adam((p for p in self.parameters() if p.requires_grad), lr=self.lr)

    def _arguments(self, batch: Any) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
        made = self.split(batch)
        if isinstance(made, Tensor):
            return made, (), {}
        if not isinstance(made, (tuple, list)) or not made or not isinstance(made[0], Tensor):
            raise TypeError(
                "expected a batch, or what split makes of it, to be a tensor x or (x, *conditions); got "
                f"{type(made).__name__}. Pass AEFTask(aef, split=lambda batch: (x, *conditions))"
            )
        x, *cond = made
        kwargs = cond.pop() if cond and isinstance(cond[-1], dict) else {}
        return x, tuple(cond), kwargs


def _data(batch: Any) -> Any:
    """Data loaders often yield (x, label), and few VAEs take the label."""
    return batch[:1] if isinstance(batch, (tuple, list)) else batch
