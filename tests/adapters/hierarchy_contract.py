"""What every hierarchical VAE has to satisfy, against its own code."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import vae2aef
from vae2aef import testing
from vae2aef.batch import Batch


def levels(aef: vae2aef.AEF, x: Tensor) -> dict[str, Any]:
    """Posterior, prior and z of every level in one pass, as the program hands them to `place`."""
    found: dict[str, Any] = {}
    inner = aef.parts.run

    def run(place: Any, state: Any, *cond: Any, **kwargs: Any) -> Any:
        def watched(name: str, prior: Any, posterior: Any) -> Tensor:
            z = place(name, prior, posterior)
            found[name] = (posterior, prior, z)
            return z

        watched.size = place.size  # type: ignore[attr-defined]
        return inner(watched, state, *cond, **kwargs)  # type: ignore[arg-type]

    aef.parts.run = run  # type: ignore[method-assign]
    try:
        aef.log_joint(Batch(x), aef.noisy)
    finally:
        del aef.parts.run
    return found


def kl(posterior: Any, prior: Any) -> Tensor:
    """The divergence of two Gaussians, summed over a level, `(batch,)`."""
    normal = torch.distributions.Normal
    p = normal(prior.loc, prior.scale) if hasattr(prior, "loc") else normal(0.0, 1.0)
    return torch.distributions.kl_divergence(normal(posterior.loc, posterior.scale), p).flatten(1).sum(1)


def bridge(
    vae: nn.Module, x: Tensor, own: Callable[[nn.Module, Tensor], tuple[list[Tensor], list[Tensor], Tensor]]
) -> None:
    """h = 0, sigma = 1 is the VAE: with the same draws the same z at each level, KL and log p(x | z).

    Args:
        vae: theirs.
        x: data as the AEF takes it.
        own: runs their code; gives z and KL by level, and log p(x | z), `(batch,)`.
    """
    vae.eval()
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none", kl="sampled")
    torch.manual_seed(7)
    found = levels(aef, x)
    torch.manual_seed(7)
    terms = aef(x, terms=True)
    torch.manual_seed(7)
    zs, kls, log_p = own(vae, x)
    assert len(zs) == len(found) >= 2
    for (posterior, prior, z), their_z, their_kl in zip(found.values(), zs, kls, strict=True):
        torch.testing.assert_close(z, their_z)
        torch.testing.assert_close(kl(posterior, prior), their_kl)
    torch.testing.assert_close(terms.residual, log_p)
    # Of the KL the loss has a one-sample estimate: log p(z) at the z drawn, and the posterior's entropy in closed form.
    normal = torch.distributions.Normal
    expected = sum(
        (prior.log_prob(z) if prior is not None else 0.0)
        + normal(posterior.loc, posterior.scale).entropy().flatten(1).sum(1)
        for posterior, prior, z in found.values()
    )
    torch.testing.assert_close(terms.prior + terms.log_det + terms.entropy, expected)


def whole_map(vae: nn.Module, x: Tensor) -> None:
    """The log-determinant of the whole map against autograd, and a gradient for everything."""
    aef = vae2aef.wrap(vae, example=x, core_flow="coupling", noise=0.0)
    with torch.no_grad():
        for p in aef.parameters():
            p.add_(0.05 * torch.randn_like(p))
    testing.check_jacobian(aef, x[:2])
    testing.check_invertible(aef, x[:2])
    testing.check_gradients(aef, x)


def trains(vae: nn.Module, x: Tensor, steps: int, lr: float = 2e-3) -> None:
    """Some steps on real images lower the loss; then the marginal is finite, and samples have the data's shape."""
    aef = vae2aef.wrap(vae, example=x, core_flow="coupling", noise=0.3)
    optimizer = torch.optim.Adam(aef.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        batch = x[torch.arange(16 * step, 16 * step + 16) % len(x)]
        optimizer.zero_grad()
        loss = aef(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(aef.parameters(), 200.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5]) if losses[0] > 0 else sum(losses[-5:]) < sum(losses[:5])
    assert aef.log_prob(x[:4], num_samples=4, proposal="tuned").value.isfinite().all()
    cold = aef.sample(3, temperature=dict.fromkeys(aef.sites, 0.5))
    assert cold.shape == x[:3].shape and cold.isfinite().all()


def untouched(vae: nn.Module, x: Tensor) -> None:
    """Wrapping changes nothing in the user's module, nor torch's random state."""
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    modes, state = [m.training for m in vae.modules()], torch.get_rng_state()
    vae2aef.check(vae, example=x)
    assert torch.equal(state, torch.get_rng_state())
    vae2aef.wrap(vae, example=x)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert [m.training for m in vae.modules()] == modes
