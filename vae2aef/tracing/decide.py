"""Decide from a recorded pass which call makes z and which output is the mean of the data, or refuse."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.errors import describe
from vae2aef.tracing import refusal
from vae2aef.tracing.noise import LatentCall
from vae2aef.tracing.outputs import candidates, say_path, which_output
from vae2aef.tracing.recording import Draw, Record
from vae2aef.tracing.refusal import CONDITION, DRAW, EACH_ROW, FLOW, NONE, OTHER_LATENT, OUTSIDE, SEVERAL, Refusal

LIKELIHOODS = {
    "binary_cross_entropy": "bernoulli",
    "binary_cross_entropy_with_logits": "bernoulli_logits",
    "poisson_nll_loss": "poisson_log",
}
"""The likelihood that a loss belongs to."""


class Observation(NamedTuple):
    """One recorded pass: where z is made, where the mean of the data is, its value, and what it is trained with."""

    record: Record
    latent_call: LatentCall
    path: tuple
    mean: Tensor
    likelihood: str | None = None


class Elsewhere(Exception):
    """The output depends on another draw than the one that was followed.

    Args:
        place: which one.
    """

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


def decide(record: Record, found: list[tuple[tuple, Any, Tensor]], x: Tensor, said: bool = False) -> Observation:
    """Find z and the mean of the data.

    Args:
        record: a finished pass over `x`.
        found: what forward returned, from `vae2aef.tracing.outputs.leaves`.
        x: the data, `(batch, *event)`.
        said: whether the user has said by `output=` what is of the data: the first of `found`, whatever its shape.

    Raises:
        Refusal: if either is not there, or not alone.
        Elsewhere: if it is another draw that is to be followed.
    """
    fit = found[:1] if said else _of_the_data(record, found, x)
    counting = _counting(record, fit)
    _require_one_draw([record.draws[i] for i in counting], x.shape)
    if record.place != counting[0]:
        raise Elsewhere(counting[0])
    path, mean, node = _said(record, found) if said else _output(record, found, fit, x)
    _require_no_flow(record, found, node)
    return Observation(record, _latent_call(record, node), path, mean.detach(), _likelihood(record, path, node, said))


def _of_the_data(record: Record, found: list[tuple[tuple, Any, Tensor]], x: Tensor) -> list[tuple[tuple, Any, Tensor]]:
    """List what could be the mean of the data: where there is a choice, no sample of x, and nothing made without x."""
    # Latents may be shaped like the data too.
    shaped = [i for i in candidates(found, x.shape) if record.nodes.get(id(i[2]), -1) not in record.affine]
    for drop in (_made_without_data, _is_sample):
        shaped = [item for item in shaped if not drop(record, item[2])] or shaped
    return shaped


def _made_without_data(record: Record, value: Tensor) -> bool:
    return 0 not in record.reaches(record.nodes.get(id(value), 0))


def _is_sample(record: Record, value: Tensor) -> bool:
    """Whether a value is drawn around the mean: by a draw of its own size that goes through no weights after that."""
    drawn, mixed = _draws_of(record, value), record.reaches(*record.mixing)
    own = [i for i in drawn if record.draw_nodes[i] not in mixed]
    return len(drawn) > 1 and any(torch.Size(record.draws[i].shape).numel() == value.numel() for i in own)


def _draws_of(record: Record, value: Tensor) -> list[int]:
    """List the draws that a value depends on."""
    reached = record.reaches(record.nodes.get(id(value), 0))
    return [i for i, node in enumerate(record.draw_nodes) if node in reached]


def _counting(record: Record, fit: list[tuple[tuple, Any, Tensor]]) -> list[int]:
    """List the draws that the mean depends on; all of them, if it is not known to depend on any."""
    drawn = {i for _, _, value in fit for i in _draws_of(record, value)}
    return sorted(drawn) or list(range(len(record.draws)))


def _makes_data_noisy(draws: list[Draw], size: int) -> bool:
    like_data = [torch.Size(draw.shape).numel() == size for draw in draws]
    return len(draws) > 1 and all(like_data[:-1]) and not like_data[-1]


def _require_one_draw(draws: list[Draw], shape: torch.Size) -> None:
    batch = shape[0]
    gaussian = [d for d in draws if d.gaussian]
    others = [d.name for d in draws if not d.gaussian]
    if others and not gaussian:
        raise Refusal(
            f"its noise is drawn by {others[0]}, which is not Gaussian: a categorical, gamma, von Mises or other "
            "posterior that is no location plus scale times Gaussian noise has no AEF",
            NONE,
        )
    if others:
        raise Refusal(
            f"it also draws by {others[0]}, so that its output is random beyond the Gaussian noise: a latent that is "
            "not Gaussian, or noise that is no latent",
            OTHER_LATENT,
        )
    if _makes_data_noisy(gaussian, shape.numel()):
        raise Refusal(
            f"expected one Gaussian draw, got {len(gaussian)}: noise on x, which forward=lambda x: ... can leave out, "
            "or several latents",
            SEVERAL,
        )
    if len(gaussian) != 1:
        raise Refusal(
            f"expected one Gaussian draw, got {len(gaussian)}: several latents, noise after z, or several samples",
            SEVERAL,
        )
    (draw,) = gaussian
    if not draw.shape or draw.shape[0] != batch:
        raise Refusal(f"expected a draw of the batch's size, {batch} rows, got {draw}", EACH_ROW)
    if not draw.grad:
        raise Refusal(
            "the noise is drawn without gradients to the encoder: Normal(loc, scale).sample() and torch.normal(loc, "
            "scale) pass none",
            DRAW,
        )


def _said(record: Record, found: list[tuple[tuple, Any, Tensor]]) -> tuple[tuple, Tensor, int]:
    """Take what the user's `output` returns as it is; its path is that of the whole."""
    mean = found[0][2] if found else None
    node = record.nodes.get(id(mean), 0)
    if mean is None or record.source not in record.reaches(node):
        raise Refusal(
            f"what output= returns does not depend on the noise: {describe(mean)}",
            "Pass output=lambda out: ... that returns the mean of the data, made from what forward returns",
        )
    return (), mean, node


def _output(
    record: Record, found: list[tuple[tuple, Any, Tensor]], shaped: list[tuple[tuple, Any, Tensor]], x: Tensor
) -> tuple[tuple, Tensor, int]:
    """Find the one output that is shaped like the data and depends on the noise: its path, value and node."""
    fit = [item for item in shaped if record.source in record.reaches(record.nodes.get(id(item[2]), 0))]
    fit = list({id(item[2]): item for item in reversed(fit)}.values())
    if len(fit) != 1:
        if fit:
            why = "several outputs are shaped like the data and depend on the noise"
        elif shaped:
            why = "no output shaped like the data depends on the noise, as far as it can be followed"
        else:
            why = f"no output is shaped like the data, {tuple(x.shape)}, or flattened"
        have = ", ".join(f"{say_path(path)}: {describe(out)}" for path, out, _ in fit or found) or "nothing"
        if not fit and all(out.dim() < 2 and out.numel() < x.numel() for _, _, out in found):
            raise Refusal(f"{why}, such as where it returns its loss; it returns {have}", refusal.PARTS)
        raise Refusal(f"{why}; it returns {have}", which_output(fit or _noisy(record, found, x.numel()), found))
    path, _, mean = fit[0]
    node = record.nodes[id(mean)]
    return path, mean, node


def _noisy(
    record: Record, found: list[tuple[tuple, Any, Tensor]], size: int
) -> list[tuple[tuple, Any, Tensor]]:  # fmt: skip
    """List the outputs that are made of the noise, and hold several values, such as logits, for each of the data's."""
    noisy = [item for item in found if record.source in record.reaches(record.nodes.get(id(item[2]), 0))]
    return [item for item in noisy if item[2].numel() and item[2].numel() % size == 0]


def _likelihood(record: Record, path: tuple, node: int, said: bool) -> str | None:
    """Return the likelihood that an output is trained with inside forward; None if it goes into no loss there."""
    for loss, output in record.losses.items():
        if output == node and loss not in LIKELIHOODS and not said:
            raise Refusal(
                f"{say_path(path)} goes into {loss}: it is not the mean of the data",
                f"Pass output=lambda out: {say_path(path, 'out')}, "
                "likelihood=lambda logits: torch.distributions.OneHotCategorical(logits=logits)",
            )
        if output == node:
            return LIKELIHOODS.get(loss)
    return None


def _require_no_flow(record: Record, found: list[tuple[tuple, Any, Tensor]], output: int) -> None:
    """Refuse if forward returns another latent made from z: after a posterior flow, the prior is on that one."""
    for path, _, t in found:
        node = record.nodes.get(id(t), 0)
        made_from_noise = t.shape == record.noise.shape and record.source in record.reaches(node)
        if made_from_noise and node not in record.affine and node != output and node in record.reaches(output):
            raise Refusal(
                f"{say_path(path)} is shaped like the latent and made from it, by a map that is not elementwise "
                "affine: a posterior flow, whose log-determinant and prior cannot be seen here",
                FLOW,
            )


def _latent_call(record: Record, output: int) -> LatentCall:
    """Find z: the first elementwise affine image of the noise after which neither data nor noise enters again."""
    on_the_way = record.reaches(output)
    for node, index in sorted(record.affine.items()):
        left = record.reaches(output, avoiding=node)
        if node not in on_the_way or 0 in left or record.source in left:
            continue
        if not index:
            raise Refusal("the output depends on the noise alone, and not on the data", NONE)
        calls = tuple(record.calls[:index])
        if any(i <= index for i in record.grad_off):
            raise Refusal(f"z is made with gradients off, by {' and '.join(calls)}", DRAW)
        if any(i <= index for i in record.repeated):
            raise Refusal(
                "z is made inside torch.utils.checkpoint, which draws its noise again in the backward pass",
                OUTSIDE,
            )
        return LatentCall(calls, tuple(draw.name for draw in record.draws), record.place or 0)
    raise _no_latent(record, output, on_the_way)


def _no_latent(record: Record, output: int, on_the_way: set[int]) -> Refusal:
    """Say what stands in the place of z = loc + scale * u."""
    name = min(((n, name) for n, name in record.breaks.items() if n in on_the_way), default=(0, "detach"))[1]
    said = (
        f"`{name}` is no elementwise affine map of the noise, and after it the data or the noise still enters on the "
        "way to the output, so that no z = loc + scale * u is found: "
    )
    if any(_is_latent(record, node, output) for node in on_the_way):
        return Refusal(said + "a full covariance or a posterior flow", FLOW)
    return Refusal(said + "noise after z, or a decoder that sees the data beside z", CONDITION)


def _is_latent(record: Record, node: int, output: int) -> bool:
    """Whether a node could be a latent, made from the noise in another way: after it neither data nor noise enters."""
    if node == output or record.shapes[node] != record.noise.shape or record.source not in record.reaches(node):
        return False
    return not {0, record.source} & record.reaches(output, avoiding=node)
