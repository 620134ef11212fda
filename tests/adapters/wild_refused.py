"""Models of public repositories, from checkouts, that one line does not wrap."""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import wild_repos as wild
import wild_scripts as scripts
from torch import Tensor, nn
from torch.distributions import Laplace, Normal

import vae2aef


def recurrent() -> nn.Module:
    with wild.repository("VariationalRecurrentNeuralNetwork", "matplotlib", "matplotlib.pyplot", "torchvision"):
        return importlib.import_module("model").VRNN(5, 8, 4, 1)


def ladder() -> nn.Module:
    with wild.repository("semi-supervised-pytorch", under="semi-supervised"):
        for module in [m for m in sys.modules if m.split(".")[0] in ("models", "layers", "inference")]:
            del sys.modules[module]
        return importlib.import_module("models.vae").LadderVariationalAutoencoder([12, [4, 3], [8, 6]])


def sample_axis() -> nn.Module:
    """The base class of disentangling-disentanglement with its networks of 32 by 32, and normal densities."""
    with wild.repository("disentangling-disentanglement", under="src"):
        sys.modules["models"] = wild.package("models", wild.CHECKOUTS / "disentangling-disentanglement/src/models")
        for name in ("torchvision", "torchvision.utils", "torchvision.datasets"):
            sys.modules[name] = wild.Stub(name)
        made = importlib.import_module("models.vae_fashion_mnist")
    params = types.SimpleNamespace(
        latent_dim=4, fBase=4, prior_variance_scale=1.0, gamma=0.8, df=2.0, prior_variance="iso",
        learn_prior_variance=False,
    )  # fmt: skip
    return made.VAE(Normal, Normal, Laplace, made.Enc(params), made.Dec(params), params)


# ------------------------------------------------------------------ flows


def sylvester_flow(vae: Any) -> Callable[[Tensor], vae2aef.Posterior]:
    """What the message asks for: location, scale and the flow, of the repository's own functions."""

    def encoder(x: Tensor) -> vae2aef.Posterior:
        mean, var, r1, r2, *more = vae.encode(x)
        q, b = (vae.batch_construct_orthogonal(more[0]), more[1]) if len(more) == 2 else (None, more[0])

        def transform(z: Tensor) -> tuple[Tensor, Tensor]:
            repeats, log_det = len(z) // max(len(x), 1), 0.0
            for k in range(vae.num_flows):
                one, two, shift = (t[..., k].repeat(repeats, *[1] * (t.dim() - 2)) for t in (r1, r2, b))
                flow = getattr(vae, f"flow_{k}")
                if q is not None:
                    z, change = flow(z, one, two, q[k].repeat(repeats, 1, 1), shift, sum_ldj=True)
                else:
                    z, change = flow(z, one, two, shift, vae.flip_idx if k % 2 else None, sum_ldj=True)
                log_det = log_det + change
            return z, log_det

        return vae2aef.Posterior(mean, var.sqrt(), transform)

    return encoder


def altosaar_flow(vae: nn.ModuleList) -> Callable[[Tensor], vae2aef.Posterior]:
    """The same for the posterior of altosaar/variational-autoencoder, without its axis of samples."""
    posterior: Any = vae[1]

    def encoder(x: Tensor) -> vae2aef.Posterior:
        loc, scale, h = posterior.inference_network(x).chunk(3, 1)

        def transform(z: Tensor) -> tuple[Tensor, Tensor]:
            context = h.repeat(len(z) // max(len(h), 1), 1)
            z, minus_log_det = posterior.q_z_flow(z[:, None], context=context[:, None])
            return z[:, 0], -minus_log_det.sum((1, 2))

        return vae2aef.Posterior(loc, posterior.softplus(scale), transform)

    return encoder


def full_covariance() -> nn.Module:
    return scripts.andompesta("VariationalAutoencoder", 12, 8, 4, torch.device("cpu"))


# ------------------------------------------------------------------ graphs

NODES, FEATURES = 6, 5


def graphs(rows: int = 3) -> tuple[Tensor, Tensor]:
    """Return adjacency with loops, `(batch, nodes, nodes)`, and features, `(batch, nodes, features)`."""
    adjacency = torch.rand(rows, NODES, NODES).round()
    adjacency = ((adjacency + adjacency.mT) > 0).to(torch.get_default_dtype())
    return adjacency, torch.rand(rows, NODES, FEATURES)


def gae() -> nn.Module:
    with wild.repository("gae-pytorch"):
        sys.modules["gae"] = wild.package("gae", wild.CHECKOUTS / "gae-pytorch" / "gae")
        return importlib.import_module("gae.model").GCNModelVAE(FEATURES, 8, 4, 0.0)


def vgae(adjacency: Tensor) -> nn.Module:
    """One model has one graph."""
    with wild.repository("vgae_pytorch"):
        made = importlib.import_module("model")
    made.args = types.SimpleNamespace(input_dim=FEATURES, hidden1_dim=8, hidden2_dim=4)
    return made.VGAE(adjacency)
