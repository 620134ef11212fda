"""Property tests for a model of your own: is it invertible, is its log-determinant right, does everything train?

    import vae2aef.testing

    def test_my_aef():
        vae2aef.testing.check_invertible(aef, x)
        vae2aef.testing.check_jacobian(aef, x)
        vae2aef.testing.check_gradients(aef, x)

Each raises `AssertionError` with the worst case, or returns what it measured. All run in `eval()` mode, and leave
the model, its gradients and torch's random state as they were.
"""

import copy
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.flows import Bijection
from vae2aef.modes import evaluation_mode, own_random_state
from vae2aef.preprocess import Dequantize, dequantize
from vae2aef.program import VAEProgram
from vae2aef.tensors import numel
from vae2aef.wrapping.example import read_example

MAX_SIZE = 4096
"""Largest Jacobian, in rows, that `check_jacobian` computes: it needs as many backward passes."""

Map = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From `(rows, size)` to `(rows, size)` and the claimed log-determinant, `(rows,)`."""


def check_invertible(model: "AEF | Bijection", example: Any, *, tolerance: float = 1e-6) -> float:
    """Check in float64 that going forth and back returns the input, for a bijection or for a whole AEF.

    For a bijection, `inverse(forward(x))` is compared with x, `forward(inverse(y))` with y, and the two
    log-determinants are compared with each other. For an AEF, x is mapped to the latent z and the residual delta
    (Algorithm 1), and back through `AEF.decode` with that residual (Algorithms 2 and 3); the core flow and the
    preprocessing are checked on the values they meet.

    Args:
        model: a `Bijection`, or an `AEF`; a copy of it is used.
        example: data `(batch, *event)`, or, for an AEF with conditions, `(x, *conditions)` as for `wrap`.
        tolerance: largest error allowed, relative to `1 + |value|`.

    Returns:
        The largest error found.

    Raises:
        AssertionError: if an error is larger, or a log-determinant has the wrong shape.
        ValueError: if the model does not run in float64.
        TypeError: if the model cannot be copied; see `AEF.__deepcopy__`.
    """
    with _Double(model, example) as (double, x, cond, kwargs), torch.no_grad():
        if not isinstance(double, AEF):
            return _check_bijection(double, x, tolerance, type(model).__name__)
        return max(
            _check_bijection(double.preprocess, x, tolerance, "preprocess"),
            *_check_sites(double, Batch(x, cond, kwargs), tolerance),
        )


def _check_sites(aef: AEF, batch: Batch, tolerance: float) -> list[float]:
    """Check what is added for each latent, and x -> (z, delta) -> x."""
    x, cond, kwargs = batch
    core, shell = aef.split(aef.preprocess(x)[0])
    errors = [_check_bijection(aef.site(n).flow, core[n], tolerance, f"core_flow of {n}") for n in core]
    joint = aef.chain(batch._replace(x=shell), core)
    encoded = aef.encode(x, *cond, **kwargs)
    for name, value in joint.z.items():
        again = encoded[name] if isinstance(encoded, dict) else encoded
        errors.append(_compare(again, value, tolerance, f"the latent {name} of `encode`"))
    if isinstance(aef.parts, VAEProgram):
        mean = aef.shaped(joint.decoded, batch.size)[0]
        errors.append(_compare(aef.decode(joint.z, *cond, **kwargs), aef.to_data(mean), tolerance, "x -> z -> f(z)"))
        return errors
    z, posterior = joint.z["z"], aef.parts.encode(shell, *cond, **kwargs)
    if posterior.transform is None or aef.partition is None:
        mean = aef.shaped(joint.decoded, batch.size)[0]
        aef.residual = _Given(aef.core.shell(shell - mean))  # type: ignore[assignment]
        back = aef.decode(z, *cond, residual=True, **kwargs)
        errors.append(_compare(back, x, tolerance, "x -> (z, delta) -> x"))
    if posterior.transform is None:
        back = aef.core_flow.inverse((z - posterior.loc) / posterior.scale)[0]
        errors.append(_compare(back, core["z"], tolerance, "w -> z -> w"))
    return errors


def check_jacobian(model: "AEF | Bijection", example: Any, *, rows: int = 2, tolerance: float = 1e-6) -> float:
    """Check in float64 the log-determinant against autograd's full Jacobian.

    For an AEF the whole map is taken, preprocessing, encoder, core flow, posterior flow and decoder together:
    (x, w) -> (z, delta) in the expanded family, where w is drawn around h(x), and x -> (z, delta) in the partition
    family. It is checked too that a row does not depend on the other rows of the batch, nor on a random draw.

    Args:
        model: an `AEF`, or a `Bijection`; a copy of it is used.
        example: data `(batch, *event)`, or, for an AEF with conditions, `(x, *conditions)` as for `wrap`.
        rows: how many rows of the example to take.
        tolerance: largest error allowed, in nats, relative to `1 + |log-determinant|`.

    Returns:
        The largest error found.

    Raises:
        AssertionError: if an error is larger, or the rows are not independent.
        ValueError: if the Jacobian has more than 4096 rows, or the model does not run in float64 as a copy.
    """
    with _Double(model, example, rows) as (double, x, cond, kwargs):
        at, function = _flat_map(double, x, cond, kwargs)
        if at.shape[1] > MAX_SIZE:
            raise ValueError(
                f"the Jacobian of this map has {at.shape[1]} rows, and at most {MAX_SIZE} are computed (a backward "
                "pass each): use the same networks on smaller data, or check single bijections, such as "
                "aef.core_flow on latents"
            )
        at = at.requires_grad_()
        out, claimed = function(at)
        if claimed.shape != at.shape[:1]:
            raise AssertionError(f"expected a log-determinant of shape {tuple(at.shape[:1])}, got {claimed.shape}")
        with torch.no_grad():
            for i in range(at.shape[0]):
                one = _flat_map(double, *Batch(x, cond, kwargs).rows(slice(i, i + 1)))[1]
                what = f"row {i} alone (do rows mix, or is noise drawn in eval mode?)"
                _compare(one(at[i : i + 1])[0], out[i : i + 1], tolerance, what)
        # Rows are independent, so one backward pass gives a row of every sample's Jacobian.
        grads = [torch.autograd.grad(out[:, j].sum(), at, retain_graph=True)[0] for j in range(out.shape[1])]
        jacobian = torch.stack(grads, dim=1) if grads else at.new_zeros(at.shape[0], 0, 0)
        return _compare(claimed.detach(), torch.linalg.slogdet(jacobian)[1], tolerance, "the log-determinant")


def check_gradients(aef: AEF, example: Any, *, ignore: tuple[str, ...] = ()) -> dict[str, float]:
    """Check that the loss sends a finite gradient that is not zero to every parameter that is to be trained.

    Args:
        aef: the model itself; its `.grad` are not touched.
        example: data `(batch, *event)`, or `(x, *conditions)` as for `wrap`.
        ignore: patterns (as of a shell) of the names of parameters that need none.

    Returns:
        The norm of each gradient, by the parameter's name.

    Raises:
        AssertionError: names every parameter without a gradient, and every one whose gradient is not finite.
    """
    x, cond, kwargs = read_example(example)
    named = {
        name: parameter
        for name, parameter in aef.named_parameters()
        if parameter.requires_grad and parameter.numel() and not any(fnmatch(name, pattern) for pattern in ignore)
    }
    with evaluation_mode(aef), own_random_state(x.device), torch.enable_grad():
        grads = torch.autograd.grad(aef(x, *cond, **kwargs), list(named.values()), allow_unused=True)
    norms = {n: 0.0 if g is None else float(g.norm()) for n, g in zip(named, grads, strict=True)}
    dead = [name for name, norm in norms.items() if norm == 0]
    broken = [name for name, norm in norms.items() if norm - norm != 0]
    if dead or broken:
        raise AssertionError(
            (f"no gradient reaches: {', '.join(dead)}. " if dead else "")
            + (f"the gradient is not finite of: {', '.join(broken)}. " if broken else "")
            + "Freeze a parameter that is not to be trained (requires_grad_(False)), or name it in ignore="
        )
    return norms


class _Run(NamedTuple):
    """A model in float64 with the data to run it on."""

    model: Any
    x: Tensor
    cond: tuple
    kwargs: dict[str, Any]


class _Double:
    """Context: a float64 copy of the model in eval mode, with its data; errors of dtype are explained."""

    def __init__(self, model: nn.Module, example: Any, rows: int | None = None) -> None:
        x, cond, kwargs = read_example(example)
        batch = Batch(x, cond, kwargs).rows(slice(0, rows))
        self._random = own_random_state(x.device)
        self._run = _Run(
            copy.deepcopy(model).double().eval(),
            _continuous(model, batch.x).double(),
            tuple(_double(c) for c in batch.cond),
            {name: _double(c) for name, c in batch.kwargs.items()},
        )

    def __enter__(self) -> _Run:
        self._random.__enter__()
        torch.manual_seed(0)
        return self._run

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._random.__exit__(kind, error, trace)
        if isinstance(error, RuntimeError) and "dtype" in str(error):
            raise ValueError(
                "the model does not run in float64 (is a dtype fixed in its code?), and the check needs its digits. "
                f"Torch said: {error}"
            ) from error


class _Given(nn.Module):
    """A residual that is known rather than drawn."""

    def __init__(self, delta: Tensor) -> None:
        super().__init__()
        self.delta = delta

    def sample(self, mean: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
        return self.delta


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _continuous(model: nn.Module, x: Tensor) -> Tensor:
    """Grey levels dequantised once, so that every call sees the same data."""
    if x.is_floating_point():
        return x
    bins = next((m.bins for m in model.modules() if isinstance(m, Dequantize)), 256)
    return dequantize(x.double(), bins)


def _flat_map(model: Any, x: Tensor, cond: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Map]:
    """The whole map as a function of vectors, and the point to take the Jacobian at."""
    batch, size = x.shape[0], numel(x.shape[1:])
    flat = x.reshape(batch, size)
    if not isinstance(model, AEF):

        def single(v: Tensor) -> tuple[Tensor, Tensor]:
            y, log_det = model(v.reshape(v.shape[0], *x.shape[1:]))
            return y.reshape(v.shape[0], size), log_det

        return flat.clone(), single
    batch_of = Batch(x, cond, kwargs)
    shapes = {name: core.shape for name, core in model.split(model.preprocess(x)[0])[0].items()}
    sizes = [numel(shape[1:]) for shape in shapes.values()]

    def whole(v: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = model.preprocess(v[:, :size].reshape(v.shape[0], *model.event_shape))
        core, shell = model.split(y)
        if model.partition is None:
            pieces = v[:, size:].split(sizes, dim=1)
            core = {name: w.reshape(core[name].shape) for name, w in zip(shapes, pieces, strict=True)}
        joint = model.chain(batch_of._replace(x=shell), core)
        delta = (shell - model.shaped(joint.decoded, v.shape[0])[0]).reshape(v.shape[0], size)
        if model.partition is not None:
            delta = delta[:, ~model.partition.mask.flatten()]
        z = [model.parts.rows_first(name, value).reshape(v.shape[0], -1) for name, value in joint.z.items()]
        return torch.cat([*z, delta], dim=1), joint.log_det + log_det

    if model.partition is not None:
        return flat.clone(), whole
    with torch.no_grad():
        features = model.split(model.preprocess(x)[0])[0].values()
        h = torch.cat([core.reshape(batch, -1) for core in features], dim=1)
    return torch.cat([flat, h + torch.randn_like(h)], dim=1), whole


def _check_bijection(bijection: Any, x: Tensor, tolerance: float, name: str) -> float:
    y, log_det = bijection(x)
    back, log_det_back = bijection.inverse(y)
    forth = bijection(back)[0]
    for value in (log_det, log_det_back):
        if value.shape != x.shape[:1]:
            raise AssertionError(f"{name}: expected a log-determinant of shape ({x.shape[0]},), got {value.shape}")
    return max(
        _compare(back, x, tolerance, f"{name}.inverse(forward(x))"),
        _compare(forth, y, tolerance, f"{name}.forward(inverse(y))"),
        _compare(-log_det_back, log_det, tolerance, f"{name}: minus the log-determinant of `inverse`"),
    )


def _compare(got: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """Return the largest error relative to 1 + |expected|; raise if it is too large or not a number."""
    if got.shape != expected.shape:
        raise AssertionError(f"{what}: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}")
    if not got.numel():
        return 0.0
    errors = ((got - expected).abs() / (1 + expected.abs())).nan_to_num(nan=float("inf"))
    worst = int(errors.argmax())
    error = float(errors.flatten()[worst])
    if not error <= tolerance:
        raise AssertionError(
            f"{what} is wrong: {got.flatten()[worst].item():.6g} where {expected.flatten()[worst].item():.6g} is "
            f"right (relative error {error:.3g}, tolerance {tolerance:g})"
        )
    return error
