"""Hierarchical VAEs: how to build a small one, what its own code says of a batch, and the contract of its adapter.

`own` and `sample` use the codebase's own functions alone, and fit the real code and the stand-ins alike.
"""

import contextlib
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributions as dist

import vae2aef
from vae2aef.parts import Decoded
from vae2aef.program import VAEProgram

sys.path.insert(0, str(Path(__file__).parent / "lookalikes"))
LOG_2PI = math.log(2 * math.pi)


class Own(NamedTuple):
    """What the codebase computes for one batch and one draw of noise.

    Attributes:
        z: latents by name.
        reconstruction: the mean of the data; None if the codebase has none.
        kl: by name, its log q(z) - log p(z) of the draw or, if `exact`, its KL given the latents above; `(batch,)`.
        loss: what its loss function makes of what it is given, to be made again of the adapter's posteriors.
        log_likelihood: its own, `(batch,)`; None where it trains with a squared error.
    """

    z: dict[str, Tensor]
    reconstruction: Tensor | None
    kl: dict[str, Tensor]
    loss: Tensor | None = None
    log_likelihood: Tensor | None = None
    exact: bool = False


class Level(NamedTuple):
    """One latent as the adapter places it."""

    z: Tensor
    noise: Tensor
    prior: Any
    posterior: Any
    log_det: Tensor


class Hierarchy(NamedTuple):
    name: str
    build: Callable[[], nn.Module]
    own: Callable[[nn.Module, Tensor], Own]
    sample: Callable[[nn.Module, int, bool], Tensor | None]
    again: Callable[[nn.Module, Tensor, dict[str, Level], Tensor], Tensor] | None
    shape: tuple[int, ...]
    data_kind: str = "symmetric"
    levels: tuple[str, ...] = ("z2", "z1")

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        vae = self.build()
        for module in vae.modules():  # statistics of a trained one: the identity would hide a mistake
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        if isinstance(vae_top := getattr(vae, "top_down_layers", None), nn.ModuleList) and vae.learn_top_prior:
            nn.init.normal_(vae_top[-1].top_prior_params, std=0.3)
        return vae

    def cast(self, x: Tensor) -> Tensor:
        """Make images in [0, 1] data of the kind that this model takes."""
        kinds = {"symmetric": lambda: 2 * x - 1, "unit": lambda: x, "binary": lambda: (x > 0.5).to(x.dtype)}
        return kinds.get(self.data_kind, lambda: (x * 255).round() / 255)()

    def data(self, batch: int = 4) -> Tensor:
        return self.cast(torch.rand(batch, *self.shape))


# ------------------------------------------------------------------ PyTorch-VAE


@contextlib.contextmanager
def recorded(vae: Any, mode_at: int | None = None) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Note what `reparameterize` is given and returns; its call `mode_at` returns the location."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    own = vae.reparameterize

    def noted(mu: Tensor, logvar: Tensor) -> Tensor:
        z = mu if len(calls) == mode_at else own(mu, logvar)
        calls.append((mu, logvar, z))
        return z

    vae.reparameterize = noted
    try:
        yield calls
    finally:
        del vae.reparameterize


def log_normal(z: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    return dist.Normal(mu, (log_var / 2).exp()).log_prob(z).flatten(1).sum(1)


def lvae_own(vae: Any, x: Tensor) -> Own:
    """Its latents and image; its priors are those of its `sample`, since its loss has none."""
    with recorded(vae) as calls:
        reconstruction, _, kl_div = vae(x)
    z, kl, above = {}, {}, None
    ladders = iter(vae.ladders)
    for level, (mu, log_var, drawn) in zip(range(len(calls), 0, -1), calls, strict=True):
        prior = (torch.zeros_like(mu), torch.zeros_like(mu)) if above is None else next(ladders)(above)
        z[f"z{level}"], above = drawn, drawn
        kl[f"z{level}"] = log_normal(drawn, mu, log_var) - log_normal(drawn, *prior)
    return Own(z, reconstruction, kl, kl_div)


def lvae_again(vae: Any, x: Tensor, levels: dict[str, Level], reconstruction: Tensor) -> Tensor:
    """Its KL term, merged posterior against encoder, of the adapter's posteriors."""
    up, total = vae.encode(x), torch.zeros(())
    for i in range(len(up) - 1):
        level = levels[f"z{i + 1}"]
        ours = (level.posterior.loc, 2 * level.posterior.scale.log())
        total = total + vae.compute_kl_divergence(level.z, ours, up[i])
    return total


def lvae_sample(vae: Any, n: int, mode: bool) -> Tensor:
    with recorded(vae, len(vae.ladders) - 1 if mode else None):
        return vae.sample(n, "cpu")


def hvae_own(vae: Any, x: Tensor) -> Own:
    results = vae(x)
    reconstruction, _, mu1, log_var1, mu2, log_var2, z1, z2 = results
    prior1 = vae.recons_z1_mu(z2), vae.recons_z1_log_var(z2)
    kl = {
        "z2": log_normal(z2, mu2, log_var2) - log_normal(z2, 0 * z2, 0 * z2),
        "z1": log_normal(z1, mu1, log_var1) - log_normal(z1, *prior1),
    }
    return Own({"z2": z2, "z1": z1}, reconstruction, kl, vae.loss_function(*results, M_N=1.0)["loss"])


def hvae_again(vae: Any, x: Tensor, levels: dict[str, Level], reconstruction: Tensor) -> Tensor:
    """Its loss of the adapter's posteriors."""
    results = [reconstruction, x]
    for name in ("z1", "z2"):
        results += [levels[name].posterior.loc, 2 * levels[name].posterior.scale.log()]
    return vae.loss_function(*results, levels["z1"].z, levels["z2"].z, M_N=1.0)["loss"]


def hvae_sample(vae: Any, n: int, mode: bool) -> Tensor:
    with recorded(vae, 0 if mode else None):
        return vae.sample(n, "cpu")


# ------------------------------------------------------------------ ladder-vae-pytorch


def ladder_own(vae: Any, x: Tensor) -> Own:
    state = torch.random.get_rng_state()
    out = vae(x)
    torch.random.set_rng_state(state)
    each = vae.topdown_pass(vae.bottomup_pass(vae.pad_input(x)))[1]
    kl = {f"z{i + 1}": value for i, value in enumerate(each["kl"])}
    torch.testing.assert_close(sum(kl.values()), out["kl_sep"])
    z = {f"z{i + 1}": value for i, value in enumerate(out["z"])}
    exact = vae.top_down_layers[0].analytical_kl
    return Own(z, out["out_mean"], kl, None, out["ll"], exact)


def ladder_sample(vae: Any, n: int, mode: bool) -> Tensor | None:
    vae.likelihood.sample = lambda params: params
    try:
        params = vae.sample_prior(n, mode_layers=[0] if mode else [])
    finally:
        del vae.likelihood.sample
    return vae.likelihood.mean(params)


def lookalike(module: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module(f"models.{module}"), name)(**options)


def ladder(options: dict[str, Any]) -> Callable[[], nn.Module]:
    return lookalike("lvae", "LadderVAE", **options)


ODD = {"color_ch": 1, "img_shape": (6, 7), "z_dims": [2, 1], "downsample": [0, 1]}  # padded to 8 by 8
LADDERS = {
    "bernoulli": (
        {**ODD, "stochastic_skip": True, "learn_top_prior": True, "likelihood_form": "bernoulli"}, "binary",
    ),
    "gaussian": ({**ODD, "merge_type": "linear", "likelihood_form": "gaussian"}, "unit"),
    "analytical": ({**ODD, "analytical_kl": True, "likelihood_form": "gaussian"}, "unit"),
    "discr_log": ({**ODD, "likelihood_form": "discr_log"}, "grey"),
    "discr_log_mix": (
        {**ODD, "color_ch": 3, "z_dims": [2, 1, 2], "downsample": [0, 1, 0], "stochastic_skip": True,
         "likelihood_form": "discr_log_mix"}, "grey",
    ),
}  # fmt: skip


def ladder_case(name: str, build: Callable[[], nn.Module], options: dict[str, Any], kind: str) -> Hierarchy:
    names = tuple(f"z{i}" for i in range(len(options["z_dims"]), 0, -1))
    shape = (options["color_ch"], *options["img_shape"])
    return Hierarchy(f"LadderVAE-{name}", build, ladder_own, ladder_sample, None, shape, kind, names)


CASES = [
    Hierarchy(
        "LVAE", lookalike("lvae", "LVAE"), lvae_own, lvae_sample, lvae_again, (1, 16, 16), levels=("z3", "z2", "z1")
    ),
    Hierarchy("HVAE", lookalike("hvae", "HVAE"), hvae_own, hvae_sample, hvae_again, (1, 8, 8)),
    *(ladder_case(name, ladder(options), options, kind) for name, (options, kind) in LADDERS.items()),
]


# ------------------------------------------------------------------ the contract


class Watch:
    """A place that draws as a VAE does, and notes each latent."""

    def __init__(self, size: int, temperature: dict[str, float] | None = None) -> None:
        self.size, self.temperature = size, temperature or {}
        self.levels: dict[str, Level] = {}

    def __call__(self, name: str, prior: Any, posterior: Any) -> Tensor:
        if posterior is None:
            return prior.loc + self.temperature[name] * prior.scale * torch.randn_like(prior.loc)
        noise = torch.randn_like(posterior.loc)
        z, log_det = posterior.push(noise)
        self.levels[name] = Level(z, noise, prior, posterior, log_det)
        return z


def as_vae(case: Hierarchy) -> tuple[nn.Module, vae2aef.AEF]:
    vae = case.make().to(torch.float64)
    own = None if case.name.startswith("LadderVAE") else 1.0  # the squared error is a Gaussian of variance 1
    aef = vae2aef.wrap(vae, example=case.data(), core="noise", core_flow="none", residual=own, kl="sampled")
    return vae.eval(), aef.eval()


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def kl_of(level: Level, exact: bool) -> Tensor:
    """log q - log p of the draw, or the KL given the latents above."""
    if exact:
        q, p = (dist.Normal(d.loc, d.scale) for d in (level.posterior, level.prior))
        return dist.kl_divergence(q, p).flatten(1).sum(1)
    log_noise = -0.5 * (level.noise.square() + LOG_2PI).flatten(1).sum(1)
    return log_noise - level.log_det - level.prior.log_prob(level.z)


@torch.no_grad()
def contract(case: Hierarchy, vae: nn.Module, aef: vae2aef.AEF, draws: int = 40) -> None:
    """Raise AssertionError if, with h = 0 and sigma = 1, the AEF is not the VAE of that codebase, level by level."""
    x = case.data()
    torch.manual_seed(1)
    own = case.own(vae, x)
    torch.manual_seed(1)
    terms = aef(x, terms=True)
    torch.manual_seed(1)
    watch = Watch(len(x))
    decoded = aef.parts.run(watch, aef.parts.infer(x))

    assert tuple(watch.levels) == tuple(aef.sites) == case.levels and set(own.z) == set(case.levels)
    for name, level in watch.levels.items():
        close(terms.z[name], own.z[name])
        close(level.z, own.z[name])
        close(kl_of(level, own.exact), own.kl[name])
    close(terms.prior, sum(level.prior.log_prob(level.z) for level in watch.levels.values()))
    close(terms.log_det, sum(level.log_det for level in watch.levels.values()))
    if own.reconstruction is not None:
        close(terms.reconstruction, own.reconstruction)
    if own.log_likelihood is None:
        close(terms.residual, -0.5 * ((x - own.reconstruction).square() + LOG_2PI).flatten(1).sum(1))
    else:
        close(terms.residual, own.log_likelihood)
    if case.again is not None:
        close(case.again(vae, x, watch.levels, decoded.mean), own.loss)

    # On average over draws, the loss is the codebase's negative ELBO.
    differences = []
    for seed in range(draws):
        torch.manual_seed(seed)
        own = case.own(vae, x)
        torch.manual_seed(seed)
        terms = aef(x, terms=True)
        differences.append(terms.loss - (sum(own.kl.values()) - terms.residual).mean())
    difference = torch.stack(differences)
    error = difference.std() / math.sqrt(draws)
    assert difference.mean().abs() <= 3.5 * error + 1e-9, (difference.mean(), error)


@torch.no_grad()
def sampling_contract(case: Hierarchy, vae: nn.Module, aef: vae2aef.AEF) -> None:
    """Raise AssertionError if samples are not those of the codebase, or a level does not take its temperature."""
    for mode in (False, True):
        torch.manual_seed(2)
        own = case.sample(vae, 3, mode)
        torch.manual_seed(2)
        ours = aef.sample(3, temperature={"z1": 0.0} if mode else 1.0)
        assert ours.shape == (3, *case.shape)
        if own is not None:
            close(ours, own)
    temperature = {name: 0.3 + 0.2 * i for i, name in enumerate(case.levels)}
    torch.manual_seed(2)
    ours = aef.sample(3, temperature=temperature)
    torch.manual_seed(2)
    close(ours, aef.parts.run(Watch(3, temperature), None).mean)


class Misread(VAEProgram):
    """An adapter with one mistake at one level.

    Args:
        right: the adapter.
        what: `"posterior"` or `"prior"`: whose variance is taken for its standard deviation.
        level: where.
    """

    def __init__(self, right: Any, what: str, level: str) -> None:
        self.right, self.what, self.level = right, what, level

    def infer(self, x: Tensor) -> Any:
        return self.right.infer(x)

    def run(self, place: Any, state: Any) -> Decoded:
        def wrong(name: str, prior: Any, posterior: Any) -> Tensor:
            if name == self.level and self.what == "prior":
                prior = prior._replace(scale=prior.scale.square())
            if name == self.level and self.what == "posterior" and posterior is not None:
                posterior = posterior._replace(scale=posterior.scale.square())
            return place(name, prior, posterior)

        wrong.size = place.size  # type: ignore[attr-defined]
        return self.right.run(wrong, state)
