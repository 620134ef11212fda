"""The arms of a comparison: one VAE, trained on the line from its ELBO to the AEF's loss."""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.factory import BUILT_IN, make_vae
from vae2aef.comparison.likelihoods import is_discrete, option
from vae2aef.errors import WrapWarning
from vae2aef.flows import Bijection
from vae2aef.holding import holds_module
from vae2aef.modes import parameters
from vae2aef.wrapping import wrap
from vae2aef.wrapping.likelihoods import are_bits
from vae2aef.wrapping.sigma import SAID
from vae2aef.wrapping.trained_with import cross_entropy


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        core: where the core variables come from, as `wrap` takes it: None for linear features, of the patch of a
            position where the latent is a grid.
        noise: sigma of Eq. 11.
        text: one line for people.
        flow: whether it has the core flow of the comparison. The VAE has none: it is trained as its users train it.
    """

    core: str | None
    noise: float
    text: str
    flow: bool = True


ARMS = {
    "vae": Arm("noise", 1.0, "the VAE, trained by its ELBO (h = 0, σ = 1)", flow=False),
    "vae+features": Arm(None, 1.0, "linear features added, still with the VAE's noise (σ = 1)"),
    "aef": Arm(None, 0.0, "the AEF of the paper, deterministic (σ = 0)"),
    "aef-noise": Arm(None, 0.3, "the AEF with a little noise (σ = 0.3), a bound in nats"),
}


@dataclass(frozen=True)
class Recipe:
    """What all arms share.

    Attributes:
        vae: as `--vae`.
        latents: latent variables asked for.
        prior: `"vae"`, `"coupling"` or `"maf"`.
        core_flow: `"none"`, `"coupling"` or `"maf"`; of all arms but the VAE.
        preprocess: fitted on the training data.
        example: a few samples of data, (batch, *event).
        likelihood: as `--likelihood`.
        bins: number of levels of the data.
        cond: conditions, each with a row for a row of the example.
        classes: how many classes the labels of the data have.
        made: what the factory made, by seed: it is called once for each, since it may take long, or talk.
        first: initial weights that arms share, by seed.
    """

    vae: str
    latents: int
    prior: str
    core_flow: str
    preprocess: Bijection
    example: Tensor
    likelihood: str = "vae"
    bins: int = 1
    cond: tuple[Tensor, ...] = ()
    classes: int = 0
    made: dict[int, dict[str, Any]] = field(default_factory=dict)
    first: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def build(self, arm: str, seed: int) -> AEF:
        """Make one arm. Every parameter that two arms share starts at the same value in both.

        Args:
            arm: a name in `ARMS`.
            seed: fixes the initial weights.

        Raises:
            InputError: the VAE cannot be made or wrapped.
        """
        aef = self._wrap(ARMS[arm], seed)
        # The arms draw different numbers of initial weights, so the seed alone would not make them equal.
        if seed not in self.first:
            reference = (aef if arm == "aef" else self._wrap(ARMS["aef"], seed)).state_dict()
            self.first[seed] = {name: value.clone() for name, value in reference.items()}
        reference = self.first[seed]
        shared = {k: v for k, v in reference.items() if k in aef.state_dict() and not k.endswith(".core.sigma")}
        aef.load_state_dict(shared, strict=False)
        return aef

    def of_data(self) -> dict[str, Any]:
        """Return likelihood and preprocessing: arguments for `wrap` that nothing else holds."""
        if is_discrete(self.likelihood):
            return {"likelihood": option(self.likelihood, self.example, self.bins)}
        likelihood = option(self.likelihood, self.example, self.bins)
        if likelihood is None and not are_bits(self.example) and cross_entropy(self.make(0)["vae"], self.example):
            likelihood = "learned"  # of what is no bits its cross-entropy is no density to compare by
        return {"likelihood": likelihood, "preprocess": copy.deepcopy(self.preprocess)}

    def wrap_arguments(self, seed: int) -> dict[str, Any]:
        """Make the VAE: arguments for `wrap`, of a VAE that nothing else holds.

        Args:
            seed: fixes the initial weights.

        Raises:
            InputError: the VAE cannot be made.
        """
        made = self.make(seed)  # as the factory made it: it is copied, and never handed out
        if not any(isinstance(part, FunctionType) and holds_module(part) for part in made.values()):
            with contextlib.suppress(Exception):  # some modules cannot be copied
                return copy.deepcopy(made)
        # Functions among the parts are not copied with the VAE and would go on using the first one: make another one.
        other = self._make(seed)
        shared = {id(p) for p in parameters(made["vae"])} & {id(p) for p in parameters(other["vae"])}
        return copy.deepcopy(other) if shared else other  # a factory may hand out the same networks each time

    def make(self, seed: int) -> dict[str, Any]:
        """Return what the factory made, which is called at the first time alone; see `wrap_arguments`."""
        if seed not in self.made:
            self.made[seed] = self._make(seed)
        return self.made[seed]

    def _make(self, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        made = make_vae(self.vae, tuple(self.example.shape[1:]), self.latents, self.classes)
        if is_discrete(self.likelihood) and self.vae in BUILT_IN:
            made["vae"].standardise(self.example)  # of densities the preprocessing has done it
        return made

    def _wrap(self, arm: Arm, seed: int) -> AEF:
        arguments = self.wrap_arguments(seed)
        options: dict[str, Any] = {"core": arm.core, "core_flow": self.core_flow if arm.flow else "none"}
        options["prior"] = None if self.prior == "vae" else self.prior
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", SAID, WrapWarning)  # to see what comes of it is what the arm is for
                return wrap(
                    **arguments,
                    example=(self.example, *self.cond) if self.cond else self.example,
                    noise=arm.noise,
                    **self.of_data(),
                    **options,
                )
        except (ValueError, TypeError) as problem:
            raise InputError(f"--vae {self.vae} cannot be wrapped: {problem}") from problem
