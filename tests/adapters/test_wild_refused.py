"""What one line does not wrap in public repositories: refused for the true reason, and its remedy followed."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import wild_refused as made
import wild_repos as wild
import wild_scripts as scripts
from test_wild_checkouts import in_float64, pytestmark, refused, sampled_loss  # noqa: F401
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import vae2aef

AS_VAE: dict[str, Any] = {"core": "noise", "core_flow": "none", "kl": "sampled"}


def same_loss(aef: vae2aef.AEF, vae: nn.Module, x: Any, own: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """z and the negative ELBO, for the noise as drawn, are what `own` says of the same draw."""
    aef.eval(), vae.eval()
    torch.manual_seed(0)
    terms = aef(x, terms=True)
    torch.manual_seed(0)
    z, loss = own()
    torch.testing.assert_close(terms.z, z.reshape(terms.z.shape))
    torch.manual_seed(0)
    torch.testing.assert_close(sampled_loss(terms, torch.randn(len(x), *aef.latent_shape)), loss)


@pytest.mark.parametrize("name", ["HouseholderSylvesterVAE", "TriangularSylvesterVAE"])
def test_sylvester_flows(name: str) -> None:
    """The whole loss, log-determinant included, is the repository's own, by the pieces of `binary_loss_function`."""
    vae, x = wild.sylvester(name)().double(), torch.rand(4, 1, 28, 28).round()
    options = {"encoder": made.sylvester_flow(vae), "decoder": vae.decode}
    assert set(options) == set(refused(vae, x, "^the forward of .* a posterior flow"))
    aef = vae2aef.wrap(vae, example=x, **options, **AS_VAE)

    def own() -> tuple[Tensor, Tensor]:
        recon, mu, var, log_det, z_0, z_k = vae(x)
        log_q = Normal(mu, var.sqrt()).log_prob(z_0).sum()
        log_p = Normal(0.0, 1.0).log_prob(z_k).sum() - F.binary_cross_entropy(recon, x, reduction="sum")
        return z_k, (log_q - log_det.sum() - log_p) / len(x)

    same_loss(aef, vae, x, own)
    mean, _, transform = options["encoder"](x)
    once, thrice = transform(mean), transform(mean.repeat(3, 1))  # as importance samples come
    torch.testing.assert_close(thrice, tuple(t.repeat(3, *[1] * (t.dim() - 1)) for t in once))


def test_an_orthogonal_sylvester_flow_fails_by_itself() -> None:
    vae = wild.sylvester("OrthogonalSylvesterVAE")().double()
    refused(vae, torch.rand(4, 1, 28, 28), "fails with IndexError: invalid index of a 0-dim tensor")
    with pytest.raises(IndexError, match="invalid index of a 0-dim tensor"):
        vae(torch.rand(4, 1, 28, 28))


def test_the_flow_of_variational_autoencoder() -> None:
    entered = wild.altosaar("VariationalFlow")
    vae, x = entered.vae.double(), torch.rand(4, 12).round()
    match = "^forward= cannot be traced: .* a full covariance or a posterior flow"
    assert {"encoder", "decoder"} == set(refused(vae, x, match, forward=entered.forward))
    options = {"encoder": made.altosaar_flow(vae), "decoder": vae[0].generative_network}
    aef = vae2aef.wrap(vae, example=x, **options, **AS_VAE, likelihood="bernoulli_logits")

    def own() -> tuple[Tensor, Tensor]:
        z, log_q = vae[1](x, n_samples=1)
        return z, (log_q - vae[0](z, x)).mean()

    same_loss(aef, vae, x, own)


def test_noise_through_a_matrix() -> None:
    """Its noise is drawn by a multivariate normal with the covariance 1."""
    vae, x = made.full_covariance().double(), torch.rand(4, 12).round()
    normal = vae.std_normal_dist = torch.distributions.MultivariateNormal(torch.zeros(4), torch.eye(4))
    assert {"encoder", "decoder"} == set(refused(vae, x, "a posterior flow"))

    def encoder(x: Tensor) -> vae2aef.Posterior:
        mu, log_sigma = vae.encoder_net(x).chunk(2, -1)
        return vae2aef.Posterior(mu, log_sigma.exp(), None)

    aef = vae2aef.wrap(
        vae, example=x, encoder=encoder, decoder=vae.decoder_net, likelihood="bernoulli_logits", **AS_VAE
    )

    def own() -> tuple[Tensor, Tensor]:
        """Not its own KL term, which reads as a log variance what is drawn with as a log standard deviation."""
        _, logits, z, mu, log_sigma = vae(x)
        log_q = Normal(mu, log_sigma.exp()).log_prob(z).sum(1)
        return z, (scripts.with_logits(logits, x) + log_q - normal.log_prob(z)).mean()

    same_loss(aef, vae, x, own)


def test_an_axis_of_samples() -> None:
    vae, x = made.sample_axis().double(), torch.rand(4, 1, 32, 32)
    fix = refused(vae, x, r"expected a draw of the batch's size, 3 rows, got normal_ of shape \(1, 3, 4\)")
    assert set(fix) == {"forward"}
    aef = vae2aef.wrap(vae, example=x, forward=lambda x: vae.px_z(*vae.dec(vae.qz_x(*vae.enc(x)).rsample())), **AS_VAE)

    def own() -> tuple[Tensor, Tensor]:
        q, p, z = vae(x, K=1)
        rate = q.log_prob(z).sum((0, 2)) - vae.pz(*vae.pz_params).log_prob(z).sum((0, 2))
        return z, (rate - p.log_prob(x).sum((0, 2, 3, 4))).mean()

    same_loss(aef, vae, x, own)


# ------------------------------------------------------------------ what has no AEF, or needs a program


@pytest.mark.parametrize("build", [lambda: scripts.joint_vae(cont=4, disc=[3]), lambda: scripts.hyperspherical("vmf")],
                         ids=["joint-vae", "s-vae"])  # fmt: skip
def test_other_latents(build: Callable[[], nn.Module]) -> None:
    """A Gumbel-softmax beside z, and von Mises-Fisher; saying what `encode` returns does not get around it."""
    vae = build().double()
    x = torch.rand(4, 1, 32, 32) if hasattr(vae, "fc_alphas") else torch.rand(4, 784)
    for options in ({}, {"encoder_scale": "std"}):
        with pytest.raises(vae2aef.WrapError, match=r"^the forward of .* it also draws by .* a latent that") as error:
            vae2aef.wrap(vae, example=x, **options)
        assert "there is no remedy" in error.value.fix


def test_several_latents() -> None:
    for vae, x, draws in ((made.ladder(), torch.rand(4, 12), 2), (made.recurrent(), torch.rand(6, 4, 5), 3)):
        with pytest.raises(vae2aef.WrapError, match=f"expected one Gaussian draw, got {draws}: several") as error:
            vae2aef.wrap(vae.double(), example=x)
        assert "vae2aef.VAEProgram" in error.value.fix


# ------------------------------------------------------------------ scripted draws


def test_a_scripted_draw_is_named() -> None:
    vae = scripts.pytorch_generative(scripted=True).double()
    with pytest.raises(vae2aef.WrapError, match="no draw is seen: `sample_from_gaussian` is scripted") as error:
        vae2aef.wrap(vae, example=torch.rand(4, 1, 8, 8))
    assert "PYTORCH_JIT=0" in error.value.fix


SCRIPT = """
import sys
sys.path.insert(0, {checkout!r})
import torch, vae2aef
from torch import nn
from vae_helpers import draw_gaussian_diag_samples

class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, x):
        mu, log_sigma = self.encoder(x).chunk(2, 1)
        return self.decoder(draw_gaussian_diag_samples(mu, log_sigma))

torch.manual_seed(0)
vae, x = VAE(), torch.rand(4, 6)
try:
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none")
except vae2aef.WrapError as error:
    print("REFUSED", error)
else:
    posterior, (mu, log_sigma) = aef.parts.encode(x), vae.encoder(x).chunk(2, 1)
    torch.testing.assert_close(posterior.loc, mu)
    torch.testing.assert_close(posterior.scale, log_sigma.exp())
    print("WRAPPED")
"""


def test_the_scripted_draw_of_vdvae_and_its_remedy() -> None:
    """Its own `draw_gaussian_diag_samples`, which is scripted at import."""
    checkout = wild.CHECKOUTS / "vdvae"
    if not checkout.is_dir():
        pytest.skip(f"{checkout} is not there")
    code = SCRIPT.format(checkout=str(checkout))

    def run(**more: str) -> str:
        import os

        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **more}, capture_output=True, text=True)
        return done.stdout + done.stderr[-2000:]

    said = run()
    assert "`draw_gaussian_diag_samples` is scripted" in said, said
    name, value = re.search(r"variable (\w+)=(\d)", said).groups()  # type: ignore[union-attr]
    assert run(**{name: value}).startswith("WRAPPED")


# ------------------------------------------------------------------ graphs


def as_graphs(encode: Callable[..., Any], decode: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """What the message asks for: encoder and decoder that take one graph a row, of the repository's own functions."""

    def encoder(adjacency: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_std = encode(features.flatten(0, 1), torch.block_diag(*adjacency))
        return mu.unflatten(0, features.shape[:2]), log_std.unflatten(0, features.shape[:2])

    return {
        "encoder": encoder, "encoder_scale": "log_std", "likelihood": "bernoulli_logits",
        "decoder": lambda z, features: torch.stack([decode(one) for one in z]),
    }  # fmt: skip


def graph_loss(posterior: Normal, logits: Tensor, adjacency: Tensor) -> Tensor:
    """Return the negative ELBO of one graph: every edge, and every node's KL."""
    divergence = kl_divergence(posterior, Normal(0.0, 1.0)).sum()
    return F.binary_cross_entropy_with_logits(logits, adjacency, reduction="sum") + divergence


def is_graph_vae(
    aef: vae2aef.AEF,
    adjacency: Tensor,
    features: Tensor,
    encode: Callable[..., Any],
    decode: Callable[[Tensor], Tensor],
) -> None:
    """Graph by graph, the AEF's posterior and loss are those of the repository's own functions."""
    torch.manual_seed(0)
    terms = aef(adjacency, features, terms=True)
    torch.manual_seed(0)
    u = torch.randn_like(terms.z)
    each = []
    for row, noise in enumerate(u):
        mu, log_std = encode(features[row], adjacency[row])
        z = mu + log_std.exp() * noise
        torch.testing.assert_close(terms.z[row], z)
        each.append(graph_loss(Normal(mu, log_std.exp()), decode(z), adjacency[row]))
    aef.kl = "analytic"
    torch.manual_seed(0)
    torch.testing.assert_close(aef(adjacency, features), torch.stack(each).mean())


def test_nodes_of_one_graph_and_the_remedy_for_gae_pytorch() -> None:
    vae, (adjacency, features) = made.gae().double().eval(), made.graphs()
    with pytest.raises(vae2aef.WrapError, match="nodes of one graph") as error:
        vae2aef.wrap(vae, example=(features[0], adjacency[0]))
    assert "one graph a row" in error.value.fix
    aef = vae2aef.wrap(vae, example=(adjacency, features), **as_graphs(vae.encode, vae.dc), **AS_VAE)
    is_graph_vae(aef, adjacency, features, vae.encode, vae.dc)


def test_nodes_of_one_graph_and_the_reason_for_vgae_pytorch() -> None:
    """Its graph is held by the model, so that it has one datum, and there is nothing to average over."""
    adjacency, features = made.graphs()
    with pytest.raises(vae2aef.WrapError, match="nodes of one graph") as error:
        vae2aef.wrap(made.vgae(adjacency[0]).double(), example=features[0])
    assert "one graph a row" in error.value.fix


def test_the_vgae_of_pytorch_geometric() -> None:
    """By its package, wherever that is installed; its forward is that of its encoder."""
    geometric = pytest.importorskip("torch_geometric.nn")

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.mu, self.log_std = (
                geometric.GCNConv(made.FEATURES, 8), geometric.GCNConv(8, 4), geometric.GCNConv(8, 4),
            )  # fmt: skip

        def forward(self, x: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x, edges).relu()
            return self.mu(h, edges), self.log_std(h, edges)

    vae, (adjacency, features) = geometric.VGAE(Encoder()).double(), made.graphs()
    edges = adjacency[0].nonzero().T
    forward = lambda x, edges: vae.decoder.forward_all(vae.encode(x, edges))  # noqa: E731
    for options in ({}, {"forward": forward}):
        with pytest.raises(vae2aef.WrapError, match="nodes of one graph"):
            vae2aef.wrap(vae, example=(features[0], edges), **options)

    def encode(x: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        return vae.encoder(x, adjacency.nonzero().T)

    def decode(z: Tensor) -> Tensor:
        return vae.decoder.forward_all(z, sigmoid=False)

    aef = vae2aef.wrap(vae, example=(adjacency, features), **as_graphs(encode, decode), **AS_VAE)
    is_graph_vae(aef, adjacency, features, encode, decode)
    vae.eval().encode(features[0], edges)
    torch.testing.assert_close(vae.kl_loss() * made.NODES, kl_divergence(
        Normal(vae.__mu__, vae.__logstd__.exp()), Normal(0.0, 1.0)).sum())  # fmt: skip
