"""`vae2aef evaluate`: what can be said of a VAE as it is, trained by us or not."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.certificate import Certificate
from vae2aef.comparison.batches import stream
from vae2aef.comparison.data import Dataset
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.evaluate import CERTIFIED, reconstruction_mse
from vae2aef.comparison.latent_use import LatentUse, latent_use
from vae2aef.comparison.sample_quality import Accuracy, fid, load_extractor, two_sample
from vae2aef.comparison.subject import EvaluateOptions, Subject, load_subject
from vae2aef.errors import NonFiniteError
from vae2aef.evidence import EstimateWarning
from vae2aef.likelihood import Categorical
from vae2aef.marginal import LogProb
from vae2aef.modes import evaluation_mode, own_random_state

PIECE = 128
"""Data drawn from the model for the certificate."""


class Evaluation(NamedTuple):
    """All that was measured.

    Attributes:
        subject: of what.
        log_prob: of the test data, nats.
        certificate: two bounds on data drawn from the model, or why there is none.
        mse: of reconstructions, in the space of the data; None for classes.
        latents: how they are used.
        against_model: how well test data are told from draws of the model.
        against_real: the control: from training data.
        fid: None if no extractor was given.
    """

    subject: Subject
    log_prob: LogProb
    certificate: Certificate | str
    mse: float | None
    latents: LatentUse
    against_model: Accuracy
    against_real: Accuracy
    fid: float | None


def evaluate(options: EvaluateOptions, dataset: Dataset) -> Evaluation:
    """Load a VAE and measure it on the test data.

    Raises:
        InputError: the VAE, its weights, its likelihood or the extractor cannot be used.
    """
    extractor = None if options.fid_extractor is None else load_extractor(options.fid_extractor)
    subject = load_subject(options, dataset)
    aef, test, seed = subject.aef, subject.test, options.seed
    with evaluation_mode(aef), own_random_state(test.device), warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimateWarning)  # said in the result
        try:
            scored = score(aef, test, options.importance_samples, seed)
        except (NonFiniteError, ValueError, TypeError) as problem:
            raise InputError(f"--vae {options.vae}: the data have no likelihood: {problem}") from problem
        torch.manual_seed(stream("samples", seed))
        drawn = torch.cat([aef.sample(len(piece), residual=True) for piece in test.split(PIECE)])
        if extractor is None:
            distance = None
        else:
            means = torch.cat([aef.sample(len(piece)) for piece in test.split(PIECE)])
            distance = fid(extractor.to(test.device), test, means)
        return Evaluation(
            subject,
            scored,
            _certificate(aef, options, len(test)),
            None if isinstance(aef.likelihood, Categorical) else reconstruction_mse(aef, test),
            latent_use(aef, test, stream("latents", seed)),
            two_sample(test, drawn, seed),
            two_sample(test, subject.train, seed),
            distance,
        )


def score(aef: AEF, x: Tensor, num_samples: int, seed: int) -> LogProb:
    """Estimate log p(x), piece by piece; each entry `(n,)`, on the CPU."""
    found = [aef.log_prob(piece, num_samples=num_samples, seed=seed) for piece in x.split(PIECE)]
    return LogProb(
        torch.cat([one.value for one in found]).cpu(),
        torch.cat([one.std_error for one in found]).cpu(),
        torch.cat([one.effective_sample_size for one in found]).cpu(),
        found[0].exact,
        torch.cat([one.pareto_k for one in found]).cpu(),
        found[0].bound,
    )


def _certificate(aef: AEF, options: EvaluateOptions, rows: int) -> Certificate | str:
    try:
        return aef.check_log_prob(min(CERTIFIED, rows), num_samples=options.importance_samples, seed=options.seed)
    except ValueError as problem:  # it cannot be had for this posterior
        return str(problem)
