"""pythae: what is special of it, and its own trainers, pipelines and samplers with an AEF inside."""

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import CASES
from adapter_images import images
from torch import nn

import vae2aef

pytest.importorskip("pythae")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pythae import models
    from pythae.data.datasets import BaseDataset
    from pythae.models import AutoModel
    from pythae.pipelines import TrainingPipeline
    from pythae.samplers import (
        GaussianMixtureSampler,
        GaussianMixtureSamplerConfig,
        MAFSampler,
        MAFSamplerConfig,
        NormalSampler,
        VAMPSampler,
    )
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

from vae2aef.adapters.pythae import PythaeModel

SHAPE = (1, 8, 8)
logging.getLogger("pythae").setLevel(logging.ERROR)


def build(model: str, **options: Any) -> nn.Module:
    config = getattr(models, f"{model}Config", None) or getattr(models, f"{model}_Config")
    made = config(input_dim=SHAPE, latent_dim=3, **options)
    return getattr(models, model)(made)


def wrapped(model: str = "VAE", **options: Any) -> vae2aef.AEF:
    return vae2aef.wrap(build(model), example=images(SHAPE), noise=0.3, **options)


# ------------------------------------------------------------------ what is taken

REFUSED = {
    "AE": "encoder is deterministic",
    "RAE_L2": "encoder is deterministic",
    "WAE_MMD": "encoder is deterministic",
    "VQVAE": "latents are discrete",
    "SVAE": "von Mises-Fisher",
    "PoincareVAE": "Poincare disk",
    "HVAE": "Hamiltonian",
    "RHVAE": "Hamiltonian",
}


@pytest.mark.parametrize("model", REFUSED)
def test_refused_with_the_reason(model: str) -> None:
    vae = build(model, **({"num_embeddings": 4} if model == "VQVAE" else {}))
    with pytest.raises(vae2aef.WrapError, match=REFUSED[model]):
        vae2aef.wrap(vae, example=images(SHAPE))


def test_a_deterministic_posterior_is_refused() -> None:
    with pytest.raises(vae2aef.WrapError, match="deterministic_posterior=True"):
        vae2aef.wrap(build("Adversarial_AE", deterministic_posterior=True), example=images(SHAPE))


@pytest.mark.parametrize(
    "model",
    [
        "DisentangledBetaVAE",
        "BetaTCVAE",
        "INFOVAE_MMD",
        "MIWAE",
        "CIWAE",
        "PIWAE",
        "FactorVAE",
        "VAEGAN",
        "Adversarial_AE",
    ],
)
def test_models_derived_from_the_vae_are_taken_and_say_what_is_dropped(model: str) -> None:
    aef = vae2aef.wrap(build(model), example=images(SHAPE))
    assert f"that of {model}, with its weights and extra terms, is not used" in repr(aef)
    assert aef(images(SHAPE)[:4]).isfinite()


@pytest.mark.slow
def test_a_bernoulli_model_is_taken_with_its_cross_entropy_and_says_so() -> None:
    vae, x = build("VAE", reconstruction_loss="bce"), images(SHAPE)
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none", kl="sampled")
    assert "of grey values it is their cross-entropy and no density" in repr(aef)
    terms = aef(x, terms=True)
    theirs = torch.nn.functional.binary_cross_entropy(terms.reconstruction, x, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(-terms.residual, theirs)
    with pytest.raises(ValueError, match=r"no probability under it.*x\.bernoulli\(\).*continuous_bernoulli"):
        aef.log_prob(x)
    assert aef.log_prob(x.bernoulli(), num_samples=4).value.isfinite().all()
    assert "Bernoulli" not in repr(vae2aef.wrap(build("VAE"), example=x))


def test_vamp_prior_is_the_models_own() -> None:
    aef = wrapped("VAMP")
    z = torch.randn(7, 3)
    with torch.no_grad():
        own = aef.vae._log_p_z(z) - 1.5 * math.log(2 * math.pi)  # it leaves the constant out
        torch.testing.assert_close(aef.prior.log_prob(z), own)
        mean, log_var = aef.prior.components()
        draws = aef.prior.sample(20_000)
        torch.testing.assert_close(draws.mean(0), mean.mean(0), atol=0.04, rtol=0)
        variance = log_var.exp().mean(0) + mean.var(0, correction=0)
        torch.testing.assert_close(draws.var(0), variance, atol=0.04, rtol=0.04)
    assert not list(aef.prior.parameters())  # the pseudo-inputs stay the VAE's
    assert set(map(id, aef.added_parameters())).isdisjoint(map(id, aef.vae.parameters()))


@pytest.mark.parametrize("name", ["pythae-IAF", "pythae-LinNF"])
def test_posterior_flow_has_the_jacobian_it_says(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    aef = vae2aef.wrap(case.make().double(), example=case.data().double(), core_flow="none")
    for parameter in aef.vae.parameters():
        nn.init.normal_(parameter, std=0.05)
    posterior = aef.parts.encode(case.data().double())
    assert posterior.transform is not None
    for z in torch.randn(5, 1, 3, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(lambda u: posterior.transform(u)[0].squeeze(0), z).squeeze(1)
        stated = posterior.transform(z)[1].item()
        assert abs(stated) > 1e-3
        # pythae's planar flow takes log(1e-4 + |det|), and its IAF sums in float32.
        assert stated == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=5e-4)


# ------------------------------------------------------------------ pythae's own loop


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqdm.std.tqdm.__init__", silence(__import__("tqdm").std.tqdm.__init__))


def silence(init: Any) -> Any:
    return lambda self, *args, **kwargs: init(self, *args, **{**kwargs, "disable": True})


def config(folder: Path, epochs: int) -> BaseTrainerConfig:
    return BaseTrainerConfig(
        output_dir=str(folder), num_epochs=epochs, learning_rate=2e-3, per_device_train_batch_size=32,
        per_device_eval_batch_size=32, steps_saving=2, steps_predict=2, no_cuda=True,
    )  # fmt: skip


def dataset(x: torch.Tensor) -> BaseDataset:
    return BaseDataset(x, torch.zeros(len(x)))


def final(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run / "final_model"


def test_base_trainer(tmp_path: Path, quiet: None) -> None:
    data = images(SHAPE)
    model = PythaeModel(wrapped())
    first = model({"data": data[:64]}).loss.item()
    trainer = BaseTrainer(model, dataset(data[:192]), dataset(data[192:]), config(tmp_path, 4))
    trainer.train()
    assert trainer.model({"data": data[:64]}).loss.item() < first
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.aef.parameters()}
    assert (next(tmp_path.iterdir()) / "checkpoint_epoch_2" / "aef.pt").is_file()


@pytest.mark.parametrize("name", ["VAE", "VAMP", "VAE_IAF"])
@pytest.mark.slow
def test_training_pipeline_saving_loading_and_samplers(name: str, tmp_path: Path, quiet: None) -> None:
    data = images(SHAPE)
    aef = wrapped(name)
    pipeline = TrainingPipeline(model=PythaeModel(aef), training_config=config(tmp_path, 2))
    pipeline(train_data=data[:192], eval_data=data[192:])
    saved = pipeline.trainer._best_model.eval()

    # The VAE is read back by pythae alone, the AEF with what was added.
    alone = AutoModel.load_from_folder(str(final(tmp_path)))
    assert type(alone) is type(aef.vae)
    for key, value in saved.aef.vae.state_dict().items():
        assert torch.equal(alone.state_dict()[key], value)
    model = PythaeModel.load(final(tmp_path), example=data, noise=0.3).eval()
    with torch.no_grad():
        torch.manual_seed(1)
        loss = saved({"data": data}).loss
        torch.manual_seed(1)
        assert torch.equal(model({"data": data}).loss, loss)

    assert NormalSampler(model).sample(5).shape == (5, *SHAPE)
    mixture = GaussianMixtureSampler(model, GaussianMixtureSamplerConfig(n_components=2))
    mixture.fit(data / data.max())  # it insists on a pixel of exactly 1
    assert mixture.sample(5).shape == (5, *SHAPE)
    if name == "VAMP":
        assert VAMPSampler(model.aef.vae).sample(5).shape == (5, *SHAPE)


def test_a_sampler_that_fits_a_flow(tmp_path: Path, quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = images(SHAPE)[:64]
    sampler = MAFSampler(PythaeModel(wrapped()), MAFSamplerConfig(n_made_blocks=1))
    sampler.fit(data / data.max(), training_config=config(tmp_path, 1))
    assert sampler.sample(3).shape == (3, *SHAPE)


def test_the_output_is_what_pythae_expects() -> None:
    x = images(SHAPE)[:8]
    model = PythaeModel(wrapped(preprocess="logit")).eval()
    model.aef.noise = 0.0
    out = model({"data": x}, epoch=1, dataset_size=8)
    assert type(out).__name__ == "ModelOutput"
    torch.testing.assert_close(out.loss, model.aef(x))
    torch.testing.assert_close(out.loss, out.recon_loss + out.reg_loss)
    torch.testing.assert_close(out.recon_x, model.reconstruct(x))
    torch.testing.assert_close(out.z, model.embed(x))
    torch.testing.assert_close(model.encoder(x).embedding, out.z)
    torch.testing.assert_close(model.decoder(out.z)["reconstruction"], out.recon_x)
    nll = model.get_nll(x, n_samples=16, batch_size=3)
    assert math.isfinite(nll) and nll == pytest.approx(model.aef.log_prob(x).value.mean().item(), abs=5)


def test_loading_a_folder_without_an_aef(tmp_path: Path) -> None:
    build("VAE").save(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"aef\.pt, written by PythaeModel\.save"):
        PythaeModel.load(tmp_path, example=images(SHAPE))


def test_wrapping_it_again_is_refused() -> None:
    with pytest.raises(TypeError, match="AEF already"):
        vae2aef.wrap(PythaeModel(wrapped()), example=images(SHAPE))
