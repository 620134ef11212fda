"""What an AEF is besides its mathematics: a module that holds a user's VAE and what was added to it."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.chain import Site
from vae2aef.core import DEFAULT_NOISE, Expansion, NoFeatures, Partition
from vae2aef.errors import describe
from vae2aef.flows import Bijection
from vae2aef.holding import convert, holds_module
from vae2aef.modes import named_modules, parameters, set_mode
from vae2aef.parts import VAEParts
from vae2aef.program import VAEProgram
from vae2aef.saved import Saved


class Wrapper(Saved):
    """Hold a VAE without touching it; know what was added for which latent, copy, print, load.

    Args:
        vae: the user's module or object.
        parts: its encoder, decoder and prior.
        sites: what is added for each latent.
        outside: modules among the parts that are not inside `vae`, so that they are trained, moved and saved.
        summary: what was taken, added and assumed; for `print`.
    """

    def __init__(
        self, vae: Any, parts: VAEParts, sites: Mapping[str, Site], outside: dict[str, nn.Module], summary: str
    ) -> None:
        super().__init__()
        self.vae = vae
        self.outside = nn.ModuleDict(outside)
        self.parts = parts
        self.sites: Any = nn.ModuleDict(sites)
        self._summary = summary

    # ------------------------------------------------------------------ by latent

    def by_latent(self) -> dict[str, Site]:
        """Return what was added, by latent."""
        return dict(self.sites.items())

    def site(self, name: str) -> Site:
        """Return what was added for a latent."""
        return self.sites[name]

    @property
    def flows(self) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """n^-1 by latent."""
        return {name: site.flow for name, site in self.by_latent().items()}

    def noisy(self, name: str, core: Tensor, posterior: Any) -> tuple[Tensor, Tensor]:
        """Return w = h(x) + sigma epsilon of a latent, and its entropy; see `Site.perturb`."""
        return self.site(name).perturb(core, posterior)

    def still(self, name: str, core: Tensor, posterior: Any) -> tuple[Tensor, Tensor]:
        """Return w = h(x) of a latent, and no entropy."""
        return core, core.new_zeros(())

    def _by_latent(self, read: Callable[[Any], Any]) -> Any:
        return self._one_or_all({name: read(site) for name, site in self.by_latent().items()})

    def _one_or_all(self, values: Mapping[str, Any]) -> Any:
        return values if isinstance(self.parts, VAEProgram) else values["z"]

    @property
    def core(self) -> Any:
        """H with its noise (Eq. 9, 11), or the partition of the data (Eq. 4); a dict for several latents."""
        return self._by_latent(lambda site: site.core)

    @property
    def core_flow(self) -> Any:
        """n^-1; a dict for several latents."""
        return self._by_latent(lambda site: site.flow)

    def __setattr__(self, name: str, value: Any) -> None:
        """Put another core or core flow into the site of a plain VAE; `nn.Module` would register it beside the site."""
        if name == "residual":
            super().__setattr__("likelihood", value)
        elif name in ("core", "core_flow"):
            expected = Bijection if name == "core_flow" else (Expansion, Partition)
            if not isinstance(value, expected):
                one = "a vae2aef.Bijection" if name == "core_flow" else "an Expansion or a Partition of vae2aef.core"
                raise TypeError(f"expected {name} as {one}, got {describe(value)}: pass other things to vae2aef.wrap")
            if isinstance(self.parts, VAEProgram):
                raise TypeError(f"of several latents each has its own: set aef.site(name).{name.removeprefix('core_')}")
            setattr(self.site("z"), name.removeprefix("core_"), value)
        else:
            super().__setattr__(name, value)

    @property
    def residual(self) -> Any:
        """The likelihood, by its older name; None where the decoder returns densities."""
        return self.likelihood

    @property
    def latent_shape(self) -> Any:
        """Shape of the core variables, and of z, of one datum; a dict for several latents."""
        return self._by_latent(lambda site: site.core.latent_shape)

    @property
    def noise(self) -> Any:
        """The noise sigma on the core variables (Eq. 11); a dict where latents differ.

        May be changed at any time while training: to a number, or a dict for some of several latents.
        """
        values = {name: site.core.noise for name, site in self.by_latent().items()}
        return values if len(set(values.values())) > 1 else next(iter(values.values()))

    @noise.setter
    def noise(self, value: float | Mapping[str, float]) -> None:
        values = dict(value) if isinstance(value, Mapping) else dict.fromkeys(self.sites, value)
        unknown = values.keys() - set(self.sites)
        if unknown:
            known, got = ", ".join(self.sites), ", ".join(sorted(unknown))
            raise ValueError(f"expected noise for the latents {known}; got {got}")
        cores = {name: self.site(name).core for name in values}
        if any(core.exact for core in cores.values()):
            raise ValueError("the partition family has an exact likelihood and takes no noise")
        own = {n for n, core in cores.items() if isinstance(core.features, NoFeatures)}  # the VAE's noise, which is 1
        if any(values[name] != 1 for name in own) and (isinstance(value, Mapping) or own == set(values)):
            raise ValueError(f'core="noise" is the VAE itself, whose noise is 1 by definition; got {value}')
        for name in values.keys() - own:
            cores[name].noise = values[name]

    # ------------------------------------------------------------------ parameters

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As of `nn.Module`, and without a call of what the VAE's class may have by this name."""
        if not remove_duplicate:
            return super().named_modules(memo, prefix, remove_duplicate)
        found = [(name, m) for name, m in named_modules(self, prefix) if m not in (memo or ())]
        (set() if memo is None else memo).update(m for _, m in found)
        return iter(found)

    def train(self, mode: bool = True) -> "Wrapper":
        """As of `nn.Module`, through the VAE's own `train` where that takes a mode; `eval` goes by it."""
        self.training = mode
        for child in self._modules.values():
            if child is not None:
                set_mode(child, mode)
        return self

    def added_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that are not the VAE's, for `optimizer.add_param_group`."""
        own = {id(p) for p in parameters(self.vae)} if isinstance(self.vae, nn.Module) else set()
        own |= {id(p) for p in parameters(self.outside)}
        return (p for p in parameters(self) if id(p) not in own)

    def added_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Return the added parameters by the part they belong to: core, core_flow, prior, likelihood, preprocess."""
        ids = {id(p) for p in self.added_parameters()}
        parts: dict[str, nn.Module] = {}
        for name, site in self.by_latent().items():
            of = f" of {name}" if isinstance(self.parts, VAEProgram) else ""
            parts |= {f"core{of}": site.core, f"core_flow{of}": site.flow}
        parts |= {name: part for name, part in self.named_children() if name not in ("vae", "outside", "sites")}
        found = {name: [p for p in part.parameters() if id(p) in ids] for name, part in parts.items()}
        return {name: parameters for name, parameters in found.items() if parameters}

    @property
    def added(self) -> dict[str, int]:
        """How many parameters each added part has, by name."""
        return {name: sum(p.numel() for p in parameters) for name, parameters in self.added_by_part().items()}

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """Take checkpoints of 0.1, which knew one latent and one likelihood: `core`, `core_flow` and `residual`."""
        for old, new in (("core.", "sites.z.core."), ("core_flow.", "sites.z.flow."), ("residual.", "likelihood.")):
            for key in [key for key in state_dict if key.startswith(prefix + old)]:
                state_dict[prefix + new + key[len(prefix + old) :]] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load as any module does; where core flows differ the error says so.

        Raises:
            RuntimeError: if the weights do not fit.
        """
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            given = {re.sub(r"^core_flow\.", "sites.z.flow.", key) for key in state_dict}
            if not any(re.match(r"sites\.[^.]+\.flow\.", key) for key in given ^ self.state_dict().keys()):
                raise
            hint = 'the core flows differ: pass core_flow= to wrap as it was then; "coupling" was the default of 0.1'
            raise RuntimeError(f"{error}\n\t{hint}") from None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Wrapper":
        """Move or convert everything; refuse half precision before anything is changed.

        Raises:
            TypeError: for float16 and bfloat16; says what to do.
        """
        dtype = fn(torch.zeros(1)).dtype
        if dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"an AEF cannot be converted to {dtype}: log-determinants and densities sum thousands of terms, and "
                "need the digits of float32. Leave it in float32 and run it under torch.autocast (Lightning: "
                'precision="bf16-mixed"; Accelerate: mixed_precision="bf16"), which runs the VAE\'s networks in half '
                "precision"
            )
        return convert(self, fn) if recurse else super()._apply(fn, recurse=False)

    # ------------------------------------------------------------------ copying, printing

    def __deepcopy__(self, memo: dict[int, Any]) -> "Wrapper":
        """Copy all; refuse where the copy would go on using the networks of the original.

        Raises:
            TypeError: if the encoder or decoder was given as a function that holds a module, such as
                `lambda x: vae.encode(x)`.
        """
        prior = getattr(getattr(self, "prior", None), "function", None)
        for name, part in {**vars(self.parts), "prior": prior}.items():
            if isinstance(part, FunctionType) and holds_module(part):
                raise TypeError(
                    f"cannot copy this AEF: its {name} is a function that holds a module, and the copy's {name} would "
                    "go on using the original's. Pass a module, or a method of one (encoder=vae.encode)"
                )
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied

    def say(self, line: str) -> None:
        """Add a line to what `print` says."""
        self._summary = f"{self._summary}\n  {line}"

    def __repr__(self) -> str:
        added = ", ".join(f"{name} {count:,}" for name, count in self.added.items()) or "nothing"
        sigma = {name: _sigma(site.core) for name, site in self.by_latent().items()}
        differ = len(set(sigma.values())) > 1
        said = ", ".join(f"{k} {v}" for k, v in sigma.items()) if differ else next(iter(sigma.values()))
        return f"{self._summary}\n  parameters added: {added}\n  noise: sigma = {said}"


def _sigma(core: Any) -> str:
    """Say sigma, and whether it is what `wrap` takes if nobody says."""
    usual = isinstance(core, Expansion) and not isinstance(core.features, NoFeatures) and core.noise == DEFAULT_NOISE
    return f"{core.noise:g}" + (" (the default; noise=0 is the paper's loss)" if usual else "")
