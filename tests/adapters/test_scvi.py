"""scvi-tools by its package: its counts, and the library size as a condition, against its own loss."""

import pytest
import torch
from torch import Tensor

import vae2aef

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error::vae2aef.WrapWarning"),
]

ROWS, GENES = 20, 12


@pytest.fixture
def counts() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.poisson(5 * torch.rand(ROWS, GENES))
    return x, x.sum(1, keepdim=True).log(), torch.zeros(ROWS, 1)


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_its_own_loss(likelihood: str, counts: tuple[Tensor, Tensor, Tensor]) -> None:
    scvi = pytest.importorskip("scvi.module", exc_type=ImportError)
    x, library, batch = counts
    vae = scvi.VAE(n_input=GENES, n_hidden=16, n_latent=4, gene_likelihood=likelihood).eval()

    def forward(x: Tensor, library: Tensor, batch: Tensor) -> torch.distributions.Distribution:
        return vae.generative(vae.inference(x, batch)["z"], library, batch)["px"]

    aef = vae2aef.wrap(vae, example=counts, forward=forward, core="noise", core_flow="none").eval()
    assert aef.discrete
    for seed in range(3):
        torch.manual_seed(seed)
        terms = aef(*counts, terms=True)
        torch.manual_seed(seed)
        inferred = vae.inference(x, batch)
        own = vae.loss({"X": x}, inferred, vae.generative(inferred["z"], inferred["library"], batch))
        torch.testing.assert_close(terms.z, inferred["z"])
        torch.testing.assert_close(-terms.residual, own.reconstruction_loss["reconstruction_loss"])
        torch.testing.assert_close(terms.loss, own.loss)
    aef = vae2aef.wrap(vae, example=counts, forward=forward)
    aef(*counts).backward()
    assert aef.decode(aef.encode(*counts), library, batch).shape == x.shape


def test_its_reasons_and_remedies(counts: tuple[Tensor, Tensor, Tensor]) -> None:
    """Its forward takes a dict; that of its parts sees the library size of x, which belongs among the conditions."""
    scvi = pytest.importorskip("scvi.module", exc_type=ImportError)
    x, _, batch = counts
    vae = scvi.VAE(n_input=GENES, n_hidden=16, n_latent=4)
    with pytest.raises(vae2aef.WrapError, match=r"^the forward of VAE cannot be traced: its pass") as error:
        vae2aef.wrap(vae, example=x)
    assert error.value.fix.startswith("Pass forward=")

    def forward(x: Tensor, batch: Tensor) -> torch.distributions.Distribution:
        inferred = vae.inference(x, batch)
        return vae.generative(inferred["z"], inferred["library"], batch)["px"]

    with pytest.raises(vae2aef.WrapError, match="a decoder that sees the data beside z") as error:
        vae2aef.wrap(vae, example=(x, batch), forward=forward)
    assert error.value.fix.startswith("Pass example=(x, c)")
