"""Models of more repositories that no adapter knows: one line, and the loss is that of their own code."""

import pytest
import torch
from test_wild_checkouts import in_float64, pytestmark, sampled_loss  # noqa: F401
from wild_scripts import MODELS, Model

import vae2aef


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.repository)
def test_one_line(model: Model) -> None:
    """z and the negative ELBO are those of its own code, draw by draw."""
    torch.manual_seed(0)
    vae = model.build().to(torch.float64)
    x, cond = model.x(), model.cond()
    aef = vae2aef.wrap(
        vae, example=(x, *cond), core="noise", core_flow="none", kl="sampled", **model.options(vae)
    ).eval()
    for seed in range(3):
        vae.eval()
        aef.kl = "sampled"
        torch.manual_seed(seed)
        terms = aef(x, *cond, terms=True)
        torch.manual_seed(seed)
        vae.training = model.only_training  # itself alone, which draws then
        z, own = model.own(vae, x, *cond)
        vae.eval()
        torch.testing.assert_close(terms.z, z.reshape(terms.z.shape), rtol=1e-6, atol=1e-6)
        torch.manual_seed(seed)
        if model.sampled:
            loss = sampled_loss(terms, torch.randn(len(x), *aef.latent_shape))
        else:
            aef.kl = "analytic"
            loss = aef(x, *cond)
        torch.testing.assert_close(loss, own, rtol=1e-6, atol=1e-6)
    aef.train()(x, *cond).backward()
