"""A Pyro model and guide as one module: who owns the parameters, and which argument is the data."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to

from vae2aef.errors import DataTypeError, WrapError
from vae2aef.modes import parameters
from vae2aef.svi.data import as_data
from vae2aef.svi.find_data import find_source
from vae2aef.svi.reading import bind
from vae2aef.svi.runs import at_latents
from vae2aef.svi.sequences import Sequences, lengths_of


class PyroPair(nn.Module):
    """A model and a guide with all their parameters, whether these live in modules or in Pyro's store.

    Parameters of `pyro.module` are the modules' own. A plain `pyro.param` becomes a parameter over the memory of the
    store's tensor: it is trained here, and the store sees it.

    Args:
        model: a function, bound method or PyroModule.
        guide: likewise, of the same arguments.
        args: of both, with the data among them.
        kwargs: of both.
        data: as in `vae2aef.AEF_ELBO`, but the data must be an argument itself.
        inside: modules whose parameters are looked after already.
        observed: as in `vae2aef.AEF_ELBO`.
        plate: likewise.

    Attributes:
        sequences: what the data are made to where they are sequences of different length; else None.
        whole: the type of data that are whole numbers, which model and guide then get; else None.

    Raises:
        WrapError: if the data is no argument of its own.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    like: Tensor

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple,
        kwargs: dict[str, Any],
        data: "str | Callable[..., Tensor] | None" = None,
        inside: nn.Module | None = None,
        observed: Any = None,
        plate: str | None = None,
    ) -> None:
        super().__init__()
        known = self._register_owners(model, guide, inside)
        # Functions are kept as plain attributes; a module is registered already, whichever way it is called.
        self.__dict__["model"], self.__dict__["guide"] = model, guide
        try:
            source = find_source(model, guide, args, kwargs, data)
        except Exception:
            _require_sequences((*args, *kwargs.values()))
            raise
        unit = None if source is None else source.read(args, kwargs, bind(guide, args, kwargs))
        padded = as_data(unit, data is not None, discrete=True)
        x = None if unit is None else unit.value
        self.position = next((i for i, value in enumerate(args) if value is x), None)
        self.keyword = next((key for key, value in kwargs.items() if value is x), None)
        if self.position is None and self.keyword is None:
            raise WrapError(
                "from_pyro needs the data as an argument of model and guide by itself, not inside another or computed "
                "from them; ",
                "write a model and guide that take it, or train with AEF_ELBO(data=...)",
            )
        self.sequences = Sequences.like(x, steps=padded.shape[1]) if unit is not None and unit.ragged else None
        held = unit.tensors[0] if unit is not None else padded
        self.whole = None if held.is_floating_point() else held.dtype
        self.register_buffer("like", padded.new_zeros(()), persistent=False)
        self.moves = inside is None  # the AEF holds this module, so that `like` goes with it, by `.double()` too
        self.observed, self.plate, self.said = observed, plate, data is not None
        self._constraints: dict[str, Any] = {}
        self._adopt(known, inside, args, kwargs)

    def _register_owners(
        self, model: Callable[..., Any], guide: Callable[..., Any], inside: nn.Module | None
    ) -> set[int]:
        """Register the modules that model and guide belong to; return the ids of all parameters looked after."""
        known = {id(p) for p in parameters(inside)} if inside is not None else set()
        for name, part in (("model", model), ("guide", guide)):
            owner = part if isinstance(part, nn.Module) else getattr(part, "__self__", None)
            if isinstance(owner, nn.Module) and not (inside and all(id(p) in known for p in parameters(owner))):
                self.add_module(f"{name}_module", owner)
                known |= {id(p) for p in parameters(owner)}
        return known

    def _adopt(self, known: set[int], inside: nn.Module | None, args: tuple, kwargs: dict[str, Any]) -> None:
        """Register what the store holds of this pair beside the modules' parameters, which are not put into it."""
        self.held = frozenset(known)
        found = self._params(args, kwargs)
        # Of a loaded store `update_module_params=True` puts other ones into the modules.
        known |= {id(p) for owner in (self, inside) if owner is not None for p in parameters(owner)}
        self.bare = False
        for name, (given, value, constraint) in found.items():
            key = _key(name)
            raw = given if self.is_of_module(name, given, constraint) else value
            if id(raw) in known or key in self._parameters:
                continue
            if isinstance(raw, nn.Parameter):  # of a module that a function has registered by pyro.module
                self.bare = True
                self.register_parameter(key, raw)
            else:
                self.register_parameter(key, nn.Parameter(raw.detach()))
                self._constraints[name] = constraint

    def _params(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, tuple[Any, Any, Any]]:
        """Run both: of each `pyro.param` what it was given, what it is, unconstrained, and its constraint."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _OwnParameters(self):
            guide_trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(at_latents(self.model, guide_trace)).get_trace(*args, **kwargs)
        found = {}
        for trace in (guide_trace, model_trace):
            for name, site in trace.nodes.items():
                if site["type"] == "param":
                    value: Any = site["value"]  # of the store, which gives its tensors a method; or of a module
                    raw = value.unconstrained() if hasattr(value, "unconstrained") else value
                    constraint = site["kwargs"].get("constraint", torch.distributions.constraints.real)
                    found[name] = (site["args"][-1], raw, constraint)
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to copy functions: their networks would stay behind."""
        if self.bare:
            raise TypeError(
                "model and guide are functions whose networks cannot be copied or pickled with them: the copy would go "
                "on using the originals. Make them a PyroModule (or methods of one module), or save state_dict()"
            )
        return super().__reduce_ex__(protocol)

    def arguments(self, x: Tensor, cond: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Put data and conditions, lengths of sequences first, together to the arguments of model and guide."""
        data: Any = x if self.whole is None else x.to(self.whole)
        if self.sequences is not None:
            data, cond = self.sequences.together(data, cond[0]), cond[1:]
        if self.position is None:
            return cond, {**kwargs, str(self.keyword): data}
        return (*cond[: self.position], data, *cond[self.position :]), kwargs

    def example(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Take arguments apart: `(x, *conditions, conditions by name)`, as `vae2aef.wrap(example=)` wants them.

        Of sequences x is padded, and their lengths are the first condition; whole numbers come as floating point ones.
        """
        if self.position is None:
            data, rest, named = kwargs[str(self.keyword)], args, {k: v for k, v in kwargs.items() if k != self.keyword}
        else:
            data, rest, named = args[self.position], (*args[: self.position], *args[self.position + 1 :]), dict(kwargs)
        if self.sequences is not None:
            data, lengths = self.sequences.apart(data)
            rest = (lengths, *rest)
        return (data if self.whole is None else data.to(self.like), *rest, named)

    def read(self, x: Tensor, discrete: bool) -> Tensor:
        """Return data as h reads them: whole numbers that a discrete site scores as floating point ones.

        Raises:
            DataTypeError: for floating point numbers of more or fewer digits than the pair was converted with, or
                fractions where it was converted with whole numbers.
        """
        if not x.is_floating_point():
            return x.to(self.like) if discrete else x
        if self.moves and {x.dtype, self.like.dtype} == {torch.float32, torch.float64}:
            name = str(self.like.dtype)
            raise DataTypeError(
                f"x is of {x.dtype}, and model, guide and what was added are of {name}: ", f"pass x.to({name})"
            )
        if self.whole is not None and not torch.equal(x, x.round()):
            raise DataTypeError(
                f"x holds fractions, and the model was converted with {self.whole}, which it scores: ",
                f"pass x.round().to({self.whole}), or convert it anew with an example of floating point numbers",
            )
        return x

    def is_of_module(self, name: str, given: Any, constraint: Any) -> bool:
        """Whether a `pyro.param` is of a parameter that a module holds, as `pyro.module` and PyroModule make them."""
        free = constraint is torch.distributions.constraints.real
        return isinstance(given, nn.Parameter) and free and ("$$$" in name or id(given) in self.held)

    def own(self, part: Callable[..., Any]) -> Callable[..., Any]:
        """Return model or guide with `pyro.param` giving the parameters of this module; the store gets no module's."""
        return _OwnParameters(self)(part)


class _OwnParameters(Messenger):
    def __init__(self, pair: PyroPair) -> None:
        super().__init__()
        self.pair = pair

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.pair._constraints:
            raw = getattr(self.pair, _key(name))
            value = transform_to(self.pair._constraints[name])(raw)
            value.unconstrained = lambda: raw  # as the store's values have it
            msg["value"], msg["done"] = value, True
            return
        constraint = msg["kwargs"].get("constraint", torch.distributions.constraints.real)
        if self.pair.is_of_module(name, msg["args"][-1], constraint) and name not in pyro.get_param_store():
            msg["value"], msg["done"] = msg["args"][-1], True  # the module is where it is kept


def _require_sequences(values: tuple) -> None:
    """Raise if a list has no sequence or one of no time steps, of which layers and plates say less."""
    for value in values:
        if isinstance(value, list) and all(isinstance(row, Tensor) and row.dim() for row in value):
            lengths_of(value)


def _key(name: str) -> str:
    return "param_" + name.replace("$$$", "__").replace(".", "__")
