"""The AEF as a Lightning task, for your own `Trainer`; `vae2aef compare` trains with it too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Adam, Optimizer

from vae2aef.aef import AEF, require_aef
from vae2aef.batch import Batch, batch_of_loader
from vae2aef.callbacks import NoiseSchedule as NoiseSchedule
from vae2aef.callbacks import Pictures as Pictures
from vae2aef.errors import NonFiniteError
from vae2aef.evidence import EstimateWarning
from vae2aef.gauge import drift
from vae2aef.marginal import LogProb
from vae2aef.preprocess import bins_of, bits_per_dim
from vae2aef.terms import LossTerms
from vae2aef.wrapping.load import make_again

try:
    from lightning import LightningModule
except ImportError as problem:
    raise ImportError('vae2aef.training needs Lightning: pip install "vae2aef[demo]"') from problem


REMEDY = (
    "At sigma = 0 the loss falls for nothing where h shrinks (docs/numbers.md): keep the weights of the best "
    "val_log_prob, or train with noise=0.3"
)


class DriftWarning(UserWarning):
    """The loss of a deterministic AEF falls on, and the model is no better."""


class AEFTask(LightningModule):
    """Train an AEF with Adam; the loss is the AEF's own.

    `val_log_prob` (nats, the marginal by importance sampling, with the same draws at every validation) is logged for
    validation batches: monitor it with `mode="max"`. `val_uncertain` is the share of data whose estimate cannot be
    trusted (`LogProb.uncertain`): it takes the place of the warnings. The training loss of a deterministic AEF is
    unbounded below and chooses no checkpoint.
    The paper clips gradients: `Trainer(gradient_clip_val=200)`.
    `sigma` is logged with `train_loss`; where a logger writes (`Trainer(log_every_n_steps=...)`), so are the means of
    the terms of the loss: `train_prior`, `train_residual`, `train_log_det`, `train_entropy`, whose sum is minus
    `train_loss` (see `vae2aef.LossTerms`). `Pictures` logs images.
    The gauge meter of the first validation batch is logged too (`gauge_core_std`, `gauge_log_scale`,
    `gauge_core_share`, see `vae2aef.gauge`; with the latent's name where there are several), and at sigma = 0 a
    `DriftWarning` says when the loss falls on while `val_log_prob` does not rise.

    Args:
        aef: what `vae2aef.wrap` returned.
        lr: Adam's learning rate (paper D.5: 1e-3 for small images, 1e-4 for large ones).
        validation_samples: importance samples for a validation datum.
        split: makes of a batch of your loader what the AEF takes: the data, or `(x, *conditions)`, whose last item
            may be a dict of conditions by name, as `wrap(example=...)` takes it. By default the batch itself if it is
            a tensor or a `PackedSequence`, or its first item: labels are left out. Where the AEF is one of sequences,
            x may be a `PackedSequence` or a list, which the task pads: `(x, lengths, *conditions)`.
        skip_non_finite: leave out batches whose loss is not finite (a NaN in the data, say) in the place of raising
            `NonFiniteError`; they are counted in the log as `train_skipped`. On one process alone: the others of a
            distributed run would wait for this one's gradients.

    Raises:
        NonFiniteError: while training, names rows and term; neither weights nor statistics have changed then.

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
        skip_non_finite: bool = False,
    ) -> None:
        super().__init__()
        self.aef = require_aef(aef)
        self.lr = lr
        self.validation_samples = validation_samples
        self.split = split or _data
        self._warned = False
        self._losses: list[Tensor] = []
        self._history: tuple[list[tuple[int, float]], list[tuple[int, float]]] = ([], [])
        self.skip_non_finite = skip_non_finite
        self.skipped = 0

    def on_fit_start(self) -> None:
        """Refuse to skip batches where other processes would wait for their gradients."""
        if self.skip_non_finite and self.trainer.world_size > 1:
            raise ValueError("skip_non_finite=True works on one process alone; leave such data out before training")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Return the loss in nats of a batch, data `(batch, *event)` and conditions being what `split` makes of it."""
        x, cond, kwargs = self.arguments(batch)
        terms = None
        try:
            if self._writes():
                loss, *terms = self.aef(x, *cond, terms=True, **kwargs)[:5]
            else:
                loss = self.aef(x, *cond, **kwargs)
        except NonFiniteError:
            if not self.skip_non_finite:
                raise
            self.skipped += 1
            self.log("train_skipped", float(self.skipped), batch_size=len(x))
            return None
        self.log("train_loss", loss, batch_size=len(x))
        for name, term in zip(LossTerms._fields[1:5], terms or (), strict=False):
            self.log(f"train_{name}", term.detach().mean(), batch_size=len(x))
        for where, sigma in self._sigmas().items():
            self.log(f"sigma{where}", sigma, batch_size=len(x))
        self._losses.append(loss.detach())
        return loss

    def _writes(self) -> bool:
        """Whether loggers write what this step logs; the terms are made for no other."""
        trainer: Any = self._trainer
        every = trainer.log_every_n_steps if trainer and trainer.loggers else 0  # 0 is never
        return bool(every) and (self.global_step + 1) % every == 0

    def _sigmas(self) -> dict[str, float]:
        """The noise, under what stands behind the name: the latent's name where there are several."""
        noise = self.aef.noise
        return (
            {f"/{name}": float(one) for name, one in noise.items()} if isinstance(noise, dict) else {"": float(noise)}
        )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the mean marginal log-likelihood in nats."""
        rows = Batch(*self.arguments(batch))
        self._log_marginal("val", rows)
        if batch_idx == 0 and rows.size > 1:
            read = self.aef.gauge(rows.x, *rows.cond, **rows.kwargs)
            for name, meter in read.items() if isinstance(read, dict) else (("", read),):
                for what, value in meter._asdict().items():
                    self.log(
                        f"gauge_{what}" + (f"/{name}" if name else ""), value, batch_size=rows.size, sync_dist=True
                    )

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log `test_log_prob` and `test_uncertain`, as in validation, and `test_bits_per_dim` of the data given.

        Of integers that the AEF dequantises these are bits of their levels; each batch counts its own values.
        """
        rows = Batch(*self.arguments(batch))
        mean = self._log_marginal("test", rows)
        bins = 1 if rows.x.is_floating_point() else bins_of(self.aef.preprocess) or 1
        bits = bits_per_dim(mean * rows.size, self._values(rows), bins)
        self.log("test_bits_per_dim", bits, batch_size=rows.size, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return of each datum its latents `z`, `reconstruction`, and `log_prob` with its `std_error` in nats."""
        rows = Batch(*self.arguments(batch))
        with torch.no_grad():
            z = self.aef.encode(rows.x, *rows.cond, **rows.kwargs)
            found = self._marginal(rows)
            reconstruction = self.aef.decode(z, *rows.cond, **rows.kwargs)
        return {
            "z": z, "reconstruction": reconstruction, "log_prob": found.value, "std_error": found.std_error,
        }  # fmt: skip

    def _marginal(self, rows: Batch) -> LogProb:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EstimateWarning)
            return self.aef.log_prob(rows.x, *rows.cond, num_samples=self.validation_samples, seed=0, **rows.kwargs)

    def _log_marginal(self, stage: str, rows: Batch) -> Tensor:
        found = self._marginal(rows)
        mean = found.value.mean()
        self.log(f"{stage}_log_prob", mean, batch_size=rows.size, sync_dist=True)
        uncertain = found.uncertain.to(found.value.dtype).mean()
        self.log(f"{stage}_uncertain", uncertain, batch_size=rows.size, sync_dist=True)
        return mean

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what makes the AEF again, so that `AEFTask.from_checkpoint(path, vae)` needs nothing else."""
        checkpoint["vae2aef"] = {
            "aef": self.aef.content(state=False), "lr": self.lr, "validation_samples": self.validation_samples,
        }  # fmt: skip

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, vae: Any, *, split: Callable[[Any], Any] | None = None, **options: Any
    ) -> AEFTask:
        """Make the task of one of its checkpoints, without wrapping by hand.

        Args:
            path: a checkpoint of Lightning's.
            vae: a VAE of the class that was wrapped; it gets the weights of the checkpoint.
            split: as for the task; functions are in no file.
            **options: options of `wrap` that are objects, as for `vae2aef.load`.

        Raises:
            ValueError: if it is no checkpoint of such a task.
        """
        found = torch.load(path, map_location="cpu", weights_only=True)
        kept = found.get("vae2aef") if isinstance(found, dict) else None
        if kept is None:
            raise ValueError(f"{path}: no checkpoint of an AEFTask")
        state = {k.removeprefix("aef."): v for k, v in found["state_dict"].items() if k.startswith("aef.")}
        aef = make_again({**kept["aef"], "state": state}, str(path), vae, **options)
        return cls(aef, kept["lr"], kept["validation_samples"], split)

    def on_validation_epoch_end(self) -> None:
        """Warn if the loss of a deterministic AEF falls on while log p(x) of validation data does not rise.

        Warns:
            DriftWarning: once; says since which step.
        """
        found = self.trainer.callback_metrics.get("val_log_prob")
        if found is None or not self._losses or self.trainer.sanity_checking:
            return
        losses, log_probs = self._history
        losses.append((self.global_step, float(torch.stack(self._losses).mean())))
        log_probs.append((self.global_step, float(found)))
        self._losses.clear()
        still = 0 in self._sigmas().values()
        said = drift(losses, log_probs) if still and not self._warned else None
        if said is not None:
            self._warned = True
            warnings.warn(f"{said}. {REMEDY}", DriftWarning, stacklevel=2)

    def configure_optimizers(self) -> Optimizer:
        """Adam over the VAE's parameters and the added ones."""
        return Adam((p for p in self.parameters() if p.requires_grad), lr=self.lr)

    def arguments(self, batch: Any) -> Batch:
        """Return data, conditions and conditions by name of a batch of the loader, as `split` takes it apart."""
        return batch_of_loader(self.split(batch), getattr(self.aef, "apart", None))

    def _values(self, rows: Batch) -> tuple[int, ...]:
        """Sizes whose product is the number of values in the data of a batch, without what pads sequences."""
        return (int(rows.cond[0].sum()), *rows.x.shape[2:]) if hasattr(self.aef, "apart") else tuple(rows.x.shape)


def _data(batch: Any) -> Any:
    """Data loaders often yield (x, label), and few VAEs take the label. A packed sequence, a tuple too, is x itself."""
    return batch[:1] if isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence) else batch
