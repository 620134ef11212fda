"""VAEs of repositories that no adapter knows, wrapped by one line, against their own code: the rows of docs/wild.md.

Runs where VAE2AEF_CHECKOUTS names a folder that holds checkouts of them, each under the repository's own name.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import wild_repos as wild
from adapter_cases import Case
from test_adapter_bridge import LOG_2PI, as_vae, contract
from torch import Tensor, nn

import vae2aef
from vae2aef.tracing.parts import TracedParts

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("error::vae2aef.WrapWarning"),
    pytest.mark.skipif(not wild.CHECKOUTS.is_dir(), reason="VAE2AEF_CHECKOUTS names no folder with checkouts"),
]

by_reparameterize = wild.by_log_var(lambda vae: vae.reparameterize)
ONE_LINE = [
    Case("world-models", wild.world_models, wild.world_models_own, (3, 64, 64)),
    Case("Beta-VAE H", wild.beta_vae("BetaVAE_H"), wild.beta_vae_own, (1, 64, 64)),
    Case("Beta-VAE B", wild.beta_vae("BetaVAE_B"), wild.beta_vae_own, (1, 64, 64)),
    Case("disentangling-vae", wild.disentangling, wild.disentangling_own, (1, 32, 32)),
    Case("pytorch-vae", wild.sksq96, by_reparameterize, (3, 64, 64)),
    Case("sigma-vae-pytorch", wild.sigma_vae, by_reparameterize, (1, 28, 28)),
    Case("sylvester-flows", wild.sylvester("VAE"), wild.sylvester_own, (1, 28, 28)),
    Case("vae_vampprior", wild.vampprior("standard"), wild.vampprior_own, (64,)),
    Case("lightning-bolts", wild.bolts, wild.bolts_own, (3, 16, 16)),
]


FLOAT = torch.FloatTensor


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "FloatTensor", torch.DoubleTensor)  # from which some draw


@pytest.mark.parametrize("case", ONE_LINE, ids=lambda case: case.name)
def test_one_line(case: Case) -> None:
    """Location, scale, z, output and every term of the loss are those of its own code."""
    contract(case, *as_vae(case))


def sampled_loss(terms: vae2aef.LossTerms, noise: Tensor) -> Tensor:
    """The negative ELBO with the entropy of the noise as drawn, where a codebase has it so; ours has its mean."""
    log_noise = torch.distributions.Normal(0.0, 1.0).log_prob(noise).flatten(1).sum(1)
    return (log_noise - terms.prior - terms.residual - terms.log_det).mean()


ENTERED: dict[str, tuple[Callable[[], wild.Entered], tuple[int, ...]]] = {
    "disent": (wild.disent, (1, 8, 8)),
    "pixyz": (wild.pixyz, (12,)),
    "variational-autoencoder": (wild.altosaar, (12,)),
}


@pytest.mark.parametrize("name", ENTERED)
def test_another_entry(name: str) -> None:
    build, shape = ENTERED[name]
    entered = build()
    x = torch.rand(4, *shape)
    aef = vae2aef.wrap(
        entered.vae, example=x, forward=entered.forward, core="noise", core_flow="none", residual=1.0, kl="sampled"
    )
    assert isinstance(aef.parts, TracedParts)
    assert list(aef.vae.parameters() if isinstance(aef.vae, nn.Module) else aef.outside.parameters())
    for seed in range(3):
        torch.manual_seed(seed)
        terms = aef(x, terms=True)
        torch.manual_seed(seed)
        own = entered.own(x)
        torch.testing.assert_close(terms.z, own.z, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(terms.reconstruction, own.reconstruction.reshape(x.shape), rtol=1e-9, atol=1e-9)
        kl = own.kl
        if not own.sampled:
            aef.kl = "analytic"
            torch.manual_seed(seed)
            loss = aef(x)
            aef.kl = "sampled"
        else:
            torch.manual_seed(seed)
            loss = sampled_loss(terms, torch.randn(len(x), *aef.latent_shape))
        squares = (x - own.reconstruction.reshape(x.shape)).square().flatten(1)
        torch.testing.assert_close(loss, 0.5 * (squares + LOG_2PI).sum(1).mean() + kl, rtol=1e-6, atol=1e-6)
    aef(x).backward()
    aef.sample(2)


def refused(vae: Any, example: Any, match: str, **options: Any) -> dict[str, str]:
    """Have it refused; return the options that the last line of the message names, with what it says of each."""
    with pytest.raises((vae2aef.WrapError, TypeError), match=match) as error:
        vae2aef.wrap(vae, example=example, **options)
    return dict(re.findall(r"(\w+)=((?:(?!, \w+=).)*)", error.value.fix))


def test_disent_and_pixyz_are_told_of_another_entry() -> None:
    disent = wild.disent()
    assert "forward" in refused(disent.vae, torch.rand(4, 1, 8, 8), "^the forward of Vae .*draws no noise")
    assert "forward" in refused(wild.pixyz().vae, torch.rand(4, 12), "no encoder and decoder found in Model")


@pytest.mark.parametrize("name", ["PlanarVAE", "IAFVAE"])
def test_posterior_flows_are_named(name: str) -> None:
    vae, x = wild.sylvester(name)(), torch.rand(4, 1, 28, 28)
    assert {"encoder", "decoder"} == set(refused(vae, x, "^the forward of .* a posterior flow"))


def planar(vae: Any) -> Callable[[Tensor], vae2aef.Posterior]:
    """What the message asks for: location, scale and the flow, of the repository's own functions."""

    def encoder(x: Tensor) -> vae2aef.Posterior:
        mean, var, u, w, b = vae.encode(x)

        def transform(z: Tensor) -> tuple[Tensor, Tensor]:
            repeats, log_det = len(z) // max(len(u), 1), 0.0
            for k in range(vae.num_flows):
                each = (t[:, k].repeat(repeats, 1, 1) for t in (u, w, b))
                z, change = getattr(vae, f"flow_{k}")(z, *each)
                log_det = log_det + change
            return z, log_det

        return vae2aef.Posterior(mean, var.sqrt(), transform)

    return encoder


def test_the_remedy_of_a_posterior_flow_works() -> None:
    """The whole loss is the repository's own: `binary_loss_function`, by its pieces, for the same noise."""
    vae, x = wild.sylvester("PlanarVAE")().double(), torch.rand(4, 1, 28, 28).round()
    options = {"encoder": planar(vae), "decoder": vae.decode}
    assert set(options) == set(refused(vae, x, "a posterior flow"))
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none", kl="sampled", **options).eval()
    vae.eval()
    torch.manual_seed(0)
    terms = aef(x, terms=True)
    torch.manual_seed(0)
    recon, mu, var, log_det, z_0, z_k = vae(x)
    torch.testing.assert_close(terms.z, z_k)
    bce = nn.functional.binary_cross_entropy(recon, x, reduction="sum")
    log_q = torch.distributions.Normal(mu, var.sqrt()).log_prob(z_0).sum()
    own = (bce + log_q - torch.distributions.Normal(0.0, 1.0).log_prob(z_k).sum() - log_det.sum()) / len(x)
    torch.manual_seed(0)
    torch.testing.assert_close(sampled_loss(terms, torch.randn(4, 4)), own)


def test_a_vamp_prior_is_named_and_the_line_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "FloatTensor", FLOAT)  # its pseudo-inputs are of float32, whatever the module is
    vae, x = wild.vampprior("vampprior")(), torch.rand(4, 64)
    with pytest.warns(vae2aef.WrapWarning, match="has a prior of its own") as warned:
        vae2aef.wrap(vae, example=x)
    said = dict(re.findall(r"(\w+)=(.*)", warned[0].message.fix))  # type: ignore[union-attr]
    assert said == {"prior": "vae.log_p_z"}
    terms = vae2aef.wrap(vae, example=x, prior=eval(said["prior"]))(x, terms=True)
    torch.testing.assert_close(terms.prior, vae.log_p_z(terms.z))


def test_two_outputs_like_the_data() -> None:
    """Of mean and log variance, the message takes the first; its own likelihood takes both."""
    vae, x = wild.vampprior("standard", "gray")().double(), torch.rand(4, 64)
    said = refused(vae, x, "several outputs are shaped like the data")
    assert said == {"output": "lambda out: out[0]"}
    aef = vae2aef.wrap(vae, example=x, output=eval(said["output"]))
    z = torch.randn(4, 4)
    torch.testing.assert_close(aef.decode(z), vae.p_x_mean(vae.p_x_layers(z)))


def test_a_vq_vae_draws_nothing() -> None:
    """Though its codebooks move with every training pass: they are left as they were."""
    vae = wild.vq_vae_2()
    before = {name: t.clone() for name, t in vae.state_dict().items()}
    refused(vae, torch.rand(2, 3, 32, 32), "^the forward of VQVAE cannot be traced: it draws no noise")
    assert all(torch.equal(t, before[name]) for name, t in vae.state_dict().items())


def test_a_sentence_vae_is_led_to_the_true_reason() -> None:
    vae = wild.sentence_vae()
    example = (torch.randint(1, 7, (4, 6)), torch.tensor([6, 5, 4, 3]))
    options: dict[str, Any] = {}
    for match in ("classes, such as tokens", "no output is shaped like the data"):
        options |= {name: eval(value) for name, value in refused(vae, example, match, **options).items()}
    assert options.keys() == {"likelihood", "output"}
    assert "example" in refused(vae, example, "^the forward .* a decoder that sees the data beside z", **options)
    refused(wild.sentence_vae(0.5), example, "also draws by rand", **options)


def test_logits_are_recognised() -> None:
    """Trained as its solver does, by cross-entropy with logits; the warning's line then works."""
    vae = wild.beta_vae("BetaVAE_B")()
    x = (torch.arange(16) % 2).to(torch.get_default_dtype()).reshape(16, 1, 1, 1).expand(16, 1, 64, 64)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(vae(x)[0], x).backward()
        optimizer.step()
    with pytest.warns(vae2aef.WrapWarning, match="these seem to be logits") as warned:
        vae2aef.wrap(vae, example=x)
    said = dict(re.findall(r"(\w+)=(.*)", warned[0].message.fix))  # type: ignore[union-attr]
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none", **{k: eval(v) for k, v in said.items()})
    torch.manual_seed(0)
    terms = aef.eval()(x, terms=True)
    torch.manual_seed(0)
    logits = vae.eval()(x)[0]
    own = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(-terms.residual, own)
