"""What is known of a guide's sites, and added to them: h and n of each, and their place in Pyro's parameter store."""

import math
import weakref
from collections.abc import Mapping
from itertools import count
from typing import Any

import pyro
import torch
from pyro.util import ignore_jit_warnings
from torch import nn

from vae2aef.core import DEFAULT_NOISE
from vae2aef.errors import WrapError
from vae2aef.residual import Residual
from vae2aef.svi.data import Chosen, Source
from vae2aef.svi.reading import structure
from vae2aef.svi.site_map import SiteMap
from vae2aef.wrapping.sigma import read_noise

_owners: "weakref.WeakValueDictionary[str, GuideMaps]" = weakref.WeakValueDictionary()

_made: "weakref.WeakValueDictionary[int, torch.Tensor]" = weakref.WeakValueDictionary()
"""Parameters that were put into the store in this process, and not loaded into it."""


class AddedModules(nn.ModuleDict):
    """The modules that are added, by site. They are made when a site is met; a checkpoint may come before."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, Any] = {}
        self.loaded: set[str] = set()

    def add(self, key: str, module: nn.Module) -> None:
        """Add a module, with the values that a checkpoint has for it.

        Raises:
            WrapError: if the checkpoint has only some of its values; names those it lacks.
        """
        self[key] = module
        own = {name: self.waiting.pop(name) for name in list(self.waiting) if name.startswith(f"{key}.")}
        if not own:
            return
        lacking = [name for name in module.state_dict(prefix=f"{key}.") if name not in own]
        if lacking:
            raise WrapError(
                f"the checkpoint has values for {key} and lacks some: {', '.join(lacking)}. ",
                "It is of a guide with other sites, or of other options core= and core_flow=",
            )
        module.load_state_dict({name.removeprefix(f"{key}."): value for name, value in own.items()})
        self.loaded |= set(own)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        """Keep what is not there yet until the site is met."""
        mine = [key for key in state if key.startswith(prefix)]
        later = {k: state[k] for k in mine if k.removeprefix(prefix).partition(".")[0] not in self._modules}
        self.waiting.update({k.removeprefix(prefix): v.detach().clone() for k, v in later.items()})
        super()._load_from_state_dict({k: v for k, v in state.items() if k not in later}, prefix, *rest)


class GuideMaps:
    """The options of an AEF guide, what is known of its sites, and what is added to them.

    Args:
        core: see `vae2aef.aef_guide`, as for all of these.
        core_flow: likewise.
        noise: likewise.
        data: likewise.
        plate: likewise.
        observed: likewise.
        name: likewise.

    Attributes:
        added: the modules that are added.
        maps: h and n of each latent site that is mapped; None for those left to Pyro.
        scales: the residual of each observed site made Gaussian.
        observed_names: the sites that have been met as observed ones.
        notes: what became of each site, in words; nothing is decided by it.
        source: where h's data come from; None before the first call that has data.
        discrete: whether an observed site scores the data as whole numbers.
        structures: which calls have been looked at.
    """

    def __init__(
        self,
        core: Any = "linear",
        core_flow: Any = None,
        noise: float | None = None,
        data: Chosen = None,
        plate: str | None = None,
        observed: Any = None,
        name: str | None = None,
    ) -> None:
        if observed is not None and not isinstance(observed, Mapping) and observed != "gaussian":
            raise ValueError(f'expected observed None, "gaussian" or a dict by site; got {observed!r}')
        self.core, self.core_flow, self.data, self.plate = core, core_flow, data, plate
        self.observed = dict(observed) if isinstance(observed, Mapping) else observed
        self.name = name
        self.noise = None if self._is_guide and noise == 0 else noise
        self.added = AddedModules()
        self.maps: dict[str, SiteMap | None] = {}
        self.scales: dict[str, Residual] = {}
        self.observed_names: set[str] = set()
        self.notes: dict[str, str] = {}
        self.source: Source | None = None
        self.discrete = False
        self.structures: set[Any] = set()
        self._prefix = ""

    @property
    def noise(self) -> float:
        """The noise sigma on the core variables (Eq. 11). May be changed at any time while training.

        A site with `core="noise"` in a dict keeps its own, which is 1; so this is 1 where the dict has nothing else.
        None is the default.
        """
        return self._noise

    @noise.setter
    def noise(self, value: float | None) -> None:
        sigma = read_noise(value)
        if sigma is None:
            sigma = 1.0 if self._is_guide else DEFAULT_NOISE
        if not (math.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"expected noise >= 0, got {value}")
        if self._is_guide and isinstance(self.core, Mapping):
            sigma = 1.0
        if self._is_guide and sigma != 1:
            raise ValueError(f'core="noise" is the guide itself, whose noise is 1 by definition; got noise={value}')
        self._noise = sigma

    @property
    def _is_guide(self) -> bool:
        """Whether every site is the guide's own."""
        words = list(self.core.values()) if isinstance(self.core, Mapping) else [self.core]
        return bool(words) and all(isinstance(word, str) and word == "noise" for word in words)

    def structure(self, named: dict[str, Any]) -> Any:
        """Return what tells calls of different structure apart."""
        return structure(named, ragged=None if self.source is None else self.source.list_at)

    def trained(self) -> dict[str, dict[str, Any]]:
        """Return h and n of each mapped site; `"noise"` for an h that is none."""
        maps = {name: site_map for name, site_map in self.maps.items() if site_map is not None}
        return {
            "core": {name: "noise" if site_map.sigma else site_map.features for name, site_map in maps.items()},
            "core_flow": {name: site_map.flow for name, site_map in maps.items()},
        }

    def __repr__(self) -> str:
        usual = self.noise == DEFAULT_NOISE
        lines = [f"noise sigma = {self.noise:g}" + (" (the default; noise=0 is the paper's loss)" if usual else "")]
        if self.source is not None:
            lines.append(f"  h reads {self.source}")
        if not self.notes:
            lines.append("  sites: read from model and guide at the first call")
        lines += [f'  site "{site}": {note}' for site, note in self.notes.items()]
        waiting = sorted({name.partition(".")[0] for name in self.added.waiting})
        lines += [f"  in the checkpoint, and not met yet: {', '.join(waiting)}"] if waiting else []
        return "\n".join(lines)

    # ------------------------------------------------------------------ Pyro's parameter store

    def register(self) -> None:
        """Put the parameters into Pyro's store, or take them from it where it has others (loaded ones).

        Raises:
            WrapError: if the store has values of another shape, or only some of those of a site; names them.
        """
        if not len(self.added):
            return
        if not self._prefix or _owners.get(self._prefix) is not self:
            self._prefix = self._claim()
        with ignore_jit_warnings():
            new = self._reconcile()
            pyro.module(self._prefix, self.added, update_module_params=True)
        if new:
            _made.update((id(parameter), parameter) for parameter in self.added.parameters())

    def _reconcile(self) -> bool:
        """Find out what in the store was loaded, and whether that is all that is needed; return if anything is new."""
        store = pyro.get_param_store()
        loaded: set[str] = set()
        absent: dict[str, list[str]] = {}
        for key, parameter in self.added.named_parameters():
            full, site = f"{self._prefix}$$${key}", key.partition(".")[0]
            stored = store[full] if full in store else None
            if stored is None:
                absent.setdefault(site, []).append(full)
            elif stored is not parameter and key in self.added.loaded:
                del store[full]  # a state_dict that was loaded by hand comes before an older store
            elif stored is not parameter:
                _require_shape(full, stored, parameter)
                loaded |= {site} if _made.get(id(stored)) is not stored else set()
        self.added.loaded.clear()
        if loaded and absent:
            part = [name for site in loaded & absent.keys() for name in absent[site]]
            raise WrapError(
                f"the parameter store has loaded values for {', '.join(sorted(loaded))}, and lacks "
                + (f"some of them: {', '.join(part)}. " if part else f"those of {', '.join(absent)}. "),
                "The checkpoint is of a guide with other sites, or of other options core= and core_flow=: load one "
                "that fits, or call pyro.clear_param_store()",
            )
        return bool(absent)

    def _claim(self) -> str:
        """Choose a prefix under which the store has no parameters of another living loss."""
        base = self.name or "aef"
        for number in count(1):
            prefix = base if number == 1 else f"{base}_{number}"
            owner = _owners.get(prefix)
            if owner is None or owner is self or not owner.holds(prefix):
                _owners[prefix] = self
                return prefix
            if self.name is not None:
                raise WrapError(
                    f'the name "{self.name}" is used by another loss: ', "choose another name=, or leave it out"
                )
        raise AssertionError  # count does not end

    def holds(self, prefix: str) -> bool:
        """Whether the store has parameters of these maps under a prefix, and not others that were loaded since."""
        store = pyro.get_param_store()
        names = ((f"{prefix}$$${key}", parameter) for key, parameter in self.added.named_parameters())
        return any(full in store and store[full] is parameter for full, parameter in names)


def _require_shape(name: str, stored: torch.Tensor, parameter: nn.Parameter) -> None:
    if stored.shape != parameter.shape:
        raise WrapError(
            f'the parameter store holds "{name}" of shape {tuple(stored.shape)}, expected '
            f"{tuple(parameter.shape)}: it is from another model. ",
            "Call pyro.clear_param_store(), or give this one a name=",
        )
