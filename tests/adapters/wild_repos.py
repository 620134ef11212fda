"""Repositories that no adapter knows, from checkouts: their own model, small, and what their own code says of a batch.

Runs where VAE2AEF_CHECKOUTS names a folder that holds checkouts of them, each under the repository's own name.
"""

import contextlib
import importlib
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from adapter_cases import Own, exact_kl
from torch import Tensor, nn

CHECKOUTS = Path(os.environ.get("VAE2AEF_CHECKOUTS", "/nowhere"))
SHARED_NAMES = ("models", "model", "utils", "flow", "flows", "vae", "vqvae", "distributed", "optimization", "envs")
"""Modules that more than one repository has at its top."""


class Stub(types.ModuleType):
    """A package that is not installed and whose functions nothing here calls: any name is there."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: None


@contextlib.contextmanager
def repository(name: str, *missing: str, under: str = "", **made: Any) -> Iterator[Path]:
    """Import from a checkout, and leave no module of it behind.

    Args:
        name: of the folder.
        *missing: modules to put stubs in the place of, if they are not installed.
        under: the folder in it that imports start from.
        **made: names to set on stubs, `module_name=...` with two underscores for a dot.
    """
    root = CHECKOUTS / name / under
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    before, path = dict(sys.modules), list(sys.path)
    try:
        for shared in [m for m in sys.modules if m.split(".")[0] in SHARED_NAMES]:
            del sys.modules[shared]
        for module in missing:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
            sys.modules.setdefault(module, Stub(module))
        for where, value in made.items():
            module, _, attribute = where.rpartition("__")
            setattr(sys.modules[module.replace("__", ".")], attribute, value)
        sys.path.insert(0, str(root))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield root
    finally:
        sys.path[:] = path
        for module in set(sys.modules) - set(before):
            if getattr(sys.modules[module], "__file__", None) is None or str(root) in str(sys.modules[module].__file__):
                del sys.modules[module]
        sys.modules.update(before)


def again(vae: Any, x: Tensor, *cond: Any, **kwargs: Any) -> tuple[Any, Callable[[], None]]:
    """Run forward; return what it returned, and a function that puts torch's random state back to before."""
    state = torch.random.get_rng_state()
    out = vae(x, *cond, **kwargs)
    return out, lambda: torch.random.set_rng_state(state)


def by_log_var(reparameterize: Callable[[Any], Callable], **doing: Any) -> Callable:
    """For a forward that returns (reconstruction, mu, log_var)."""

    def own(vae: Any, x: Tensor) -> Own:
        (recon, mu, log_var, *_), rewind = again(vae, x)
        rewind()
        return Own(reparameterize(vae)(mu, log_var), recon, exact_kl(mu, (0.5 * log_var).exp()))

    return own


# ------------------------------------------------------------------ repositories with one forward


def world_models() -> nn.Module:
    with repository("world-models"):
        return importlib.import_module("models.vae").VAE(3, 4)


def world_models_own(vae: Any, x: Tensor) -> Own:
    (recon, mu, log_sigma), rewind = again(vae, x)
    rewind()
    sigma = log_sigma.exp()
    return Own(torch.randn_like(sigma).mul(sigma).add_(mu), recon, exact_kl(mu, sigma))


def beta_vae(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with repository("Beta-VAE"):
            return getattr(importlib.import_module("model"), name)(4, 1)

    return build


def beta_vae_own(vae: Any, x: Tensor) -> Own:
    module = type(vae).forward.__globals__
    return by_log_var(lambda vae: module["reparametrize"])(vae, x)


def disentangling() -> nn.Module:
    with repository("disentangling-vae", "sklearn", "tqdm", "imageio"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "product", np.prod, raising=False)  # gone from numpy 2
        for name in ("disvae", "disvae.models", "disvae.utils"):  # not their __init__, which imports the trainer
            sys.modules[name] = package(name, CHECKOUTS / "disentangling-vae" / name.replace(".", "/"))
        return importlib.import_module("disvae.models.vae").init_specific_model("Burgess", (1, 32, 32), 4)


def package(name: str, folder: Path) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__path__ = [str(folder)]
    return made


def disentangling_own(vae: Any, x: Tensor) -> Own:
    vae.train()  # in eval mode it draws nothing
    recon, (mu, log_var), z = vae(x)
    vae.eval()
    return Own(z, recon, exact_kl(mu, (0.5 * log_var).exp()))


def sksq96() -> nn.Module:
    with repository("pytorch-vae"):
        return importlib.import_module("vae").VAE(image_channels=3, h_dim=1024, z_dim=4)


def sigma_vae() -> nn.Module:
    with repository("sigma-vae-pytorch"):
        args = types.SimpleNamespace(batch_size=4, model="mse_vae")
        return importlib.import_module("model").ConvVAE("cpu", 1, args)


def sylvester(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with repository("sylvester-flows"):
            args = types.SimpleNamespace(
                z_size=4, input_size=[1, 28, 28], input_type="binary", cuda=False, num_flows=2, num_ortho_vecs=2,
                num_householder=2, made_h_size=8,
            )  # fmt: skip
            vae = getattr(importlib.import_module("models.VAE"), name)(args)
        vae.FloatTensor = torch.DoubleTensor if torch.get_default_dtype() == torch.float64 else torch.FloatTensor
        return vae

    return build


def sylvester_own(vae: Any, x: Tensor) -> Own:
    recon, mu, var, _, _, z = vae(x)
    return Own(z, recon, exact_kl(mu, var.sqrt()))


def vampprior(prior: str, input_type: str = "binary", module: str = "VAE") -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with repository(
            "vae_vampprior", "scipy", "scipy.misc", "matplotlib", "matplotlib.pyplot", "matplotlib.gridspec",
            scipy__misc__logsumexp=None,
        ):  # fmt: skip
            args = types.SimpleNamespace(
                input_size=[1, 8, 8], z1_size=4, z2_size=4, input_type=input_type, prior=prior, cuda=False,
                number_components=5, use_training_data_init=False, pseudoinputs_mean=0.5, pseudoinputs_std=0.2,
            )  # fmt: skip
            return importlib.import_module(f"models.{module}").VAE(args)

    return build


def vampprior_own(vae: Any, x: Tensor) -> Own:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "FloatTensor", torch.DoubleTensor)
        recon, _, z, mu, log_var = vae(x)
    return Own(z, recon, exact_kl(mu, (0.5 * log_var).exp()))


def lightning_stubs() -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return what stands for pytorch_lightning: its module, a plain one with two methods more."""

    class LightningModule(nn.Module):
        def save_hyperparameters(self) -> None: ...

        def log_dict(self, *args: Any, **options: Any) -> None: ...

    names = ("pytorch_lightning", "torchvision", "torchvision.utils", "torchmetrics")
    return names, {"pytorch_lightning__LightningModule": LightningModule}


def bolts(latents: int = 4) -> nn.Module:
    names, made = lightning_stubs()
    with repository("lightning-bolts", *names, "pl_bolts.utils.stability", under="src", **made) as root:
        same = {"under_review": lambda: lambda thing: thing}
        sys.modules["pl_bolts.utils.stability"].__dict__.update(same)
        for name in ("pl_bolts", "pl_bolts.models", "pl_bolts.models.autoencoders", "pl_bolts.utils"):
            sys.modules[name] = package(name, root / name.replace(".", "/"))
        sys.modules["pl_bolts"]._HTTPS_AWS_HUB = "https://"  # type: ignore[attr-defined]
        made = importlib.import_module("pl_bolts.models.autoencoders.basic_vae.basic_vae_module").VAE
        return made(input_height=16, latent_dim=latents)


def bolts_own(vae: Any, x: Tensor) -> Own:
    z, recon, p, q = vae._run_step(x)
    return Own(z, recon, torch.distributions.kl_divergence(q, p).flatten(1).sum(1).mean())


# ------------------------------------------------------------------ repositories whose entry is another


class Entered(NamedTuple):
    """A model with the function that is its forward.

    Attributes:
        vae: what is handed to `wrap`.
        forward: what is handed to it as `forward=`; encodes, draws and decodes.
        own: what the repository's own code says of data, for one draw.
    """

    vae: Any
    forward: Callable[[Tensor], Any]
    own: Callable[[Tensor], Own]


def disent(name: str = "Vae") -> Entered:
    """Its forward has no noise, for looking at; it is trained with `encode_dists` and `decode_partial`."""
    names, made = lightning_stubs()
    made["lightning__LightningModule"] = made["pytorch_lightning__LightningModule"]
    with repository("disent", *names, "lightning", "research", **made) as root:
        sys.modules["disent.frameworks.vae"] = package("disent.frameworks.vae", root / "disent/frameworks/vae")
        sys.modules.update({name: Stub(name) for name in ("disent.dataset", "disent.dataset.transform")})
        nets = importlib.import_module("disent.model.ae")
        base = importlib.import_module("disent.model")
        vae = importlib.import_module("disent.frameworks.vae._unsupervised__vae").Vae(
            base.AutoEncoder(nets.EncoderFC((1, 8, 8), 4, 2), nets.DecoderFC((1, 8, 8), 4))
        )

    def own(x: Tensor) -> Own:
        posterior, prior = vae.encode_dists(x)
        z = posterior.rsample()
        return Own(z, vae.decode_partial(z), torch.distributions.kl_divergence(posterior, prior).sum(1).mean())

    return Entered(vae, lambda x: vae.decode_partial(vae.encode_dists(x)[0].rsample()), own)


def pixyz() -> Entered:
    """Its model is no nn.Module, but holds two that are distributions."""
    with repository("pixyz", "tqdm", "tensorboardX", "IPython", "IPython.display") as root:
        sys.modules["pixyz"] = package("pixyz", root / "pixyz")
        kinds = importlib.import_module("pixyz.distributions")
        losses, models = importlib.import_module("pixyz.losses"), importlib.import_module("pixyz.models")

    class Inference(kinds.Normal):
        def __init__(self) -> None:
            super().__init__(var=["z"], cond_var=["x"], name="q")
            self.loc, self.scale = nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loc": self.loc(x), "scale": nn.functional.softplus(self.scale(x))}

    class Generator(kinds.Bernoulli):
        def __init__(self) -> None:
            super().__init__(var=["x"], cond_var=["z"], name="p")
            self.net = nn.Linear(4, 12)

        def forward(self, z: Tensor) -> dict[str, Tensor]:
            return {"probs": self.net(z).sigmoid()}

    p, q = Generator(), Inference()
    prior = kinds.Normal(
        loc=torch.tensor(0.0), scale=torch.tensor(1.0), var=["z"], features_shape=[4], name="p_{prior}"
    )
    loss = (losses.KullbackLeibler(q, prior) - losses.Expectation(q, losses.LogProb(p))).mean()
    model = models.Model(loss=loss, distributions=[p, q])

    def forward(x: Tensor) -> Tensor:
        return p.sample_mean(q.sample({"x": x}, return_all=False, reparam=True))

    def own(x: Tensor) -> Own:
        z = q.sample({"x": x}, return_all=False, reparam=True)["z"]
        return Own(z, p.sample_mean({"z": z}), losses.KullbackLeibler(q, prior).mean().eval({"x": x}))

    return Entered(model, forward, own)


def altosaar(variational: str = "VariationalMeanField") -> Entered:
    """The model and its posterior are two modules, with an axis of samples between."""
    with repository("variational-autoencoder", "nomen", "yaml", "h5py", "data"):
        script = importlib.import_module("train_variational_autoencoder_pytorch")
        depth = {} if variational == "VariationalMeanField" else {"flow_depth": 2}
        model = script.Model(latent_size=4, data_size=12)
        posterior = getattr(script, variational)(latent_size=4, data_size=12, **depth)

    def own(x: Tensor) -> Own:
        z, log_q = posterior(x, n_samples=1)
        log_p_z = model.log_p_z(model.p_z_loc, model.p_z_scale, z).sum(-1, keepdim=True)
        return Own(z, model.generative_network(z), (log_q - log_p_z).mean(), sampled=True)

    return Entered(nn.ModuleList([model, posterior]), lambda x: model.generative_network(posterior(x)[0]), own)


# ------------------------------------------------------------------ what is refused


def vq_vae_2() -> nn.Module:
    with repository("vq-vae-2-pytorch"):
        return importlib.import_module("vqvae").VQVAE(3, 8, 1, 4, 4, 16)


def sentence_vae(dropout: float = 0.0) -> nn.Module:
    with repository("Sentence-VAE"):
        return importlib.import_module("model").SentenceVAE(
            vocab_size=7, embedding_size=5, rnn_type="gru", hidden_size=6, word_dropout=dropout, embedding_dropout=0.0,
            latent_size=4, sos_idx=2, eos_idx=3, pad_idx=0, unk_idx=1, max_sequence_length=6,
        )  # fmt: skip
