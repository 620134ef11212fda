"""More repositories that no adapter knows, from checkouts: each model, small, with the loss of its own code.

Many are scripts that train when they are imported: of these the imports, classes and functions alone are run.
"""

import ast
import importlib
import math
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import wild_repos as wild
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

ROOT_HALF = math.sqrt(0.5)
"""The scale of a Gaussian whose negative log density is the sum of squares, and a constant."""


class Model(NamedTuple):
    """One model of a repository.

    Attributes:
        repository: owner/name, as docs/wild.md has it.
        build: makes it.
        x: makes data, `(batch, *event)`.
        own: of the model, data and conditions, for one draw: z, and the negative ELBO of its own loss, mean over the
            batch, in nats.
        options: of `wrap`, made for a model; {} where the one line is `wrap(vae, example=x)`.
        cond: makes conditions.
        sampled: whether the KL term of its own loss is of the draw, rather than exact.
        only_training: whether it draws in training mode only.
        what: its style, for the page.
    """

    repository: str
    build: Callable[[], Any]
    x: Callable[[], Tensor]
    own: Callable[..., tuple[Tensor, Tensor]]
    options: Callable[[Any], dict[str, Any]] = lambda vae: {}
    cond: Callable[[], tuple[Tensor, ...]] = tuple
    sampled: bool = False
    only_training: bool = False
    what: str = ""


def definitions(
    folder: str, path: str, under: str = "", changes: dict[str, str] | None = None, **given: Any
) -> types.SimpleNamespace:
    """Run the imports, classes and functions of a script; what cannot be imported is a stub.

    Args:
        folder: of the checkout.
        path: of the script in it.
        under: the folder in it that imports start from; that of the script, if none is given.
        changes: of its text, where it is no Python any more.
        **given: global names, in the place of what the script makes.
    """
    with wild.repository(folder, under=under or path.rpartition("/")[0]):
        text = (wild.CHECKOUTS / folder / path).read_text()
        for old, new in (changes or {}).items():
            text = text.replace(old, new)
        tree = ast.parse(text)
        kept = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef))]
        for node in kept:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in [node.module] if isinstance(node, ast.ImportFrom) else names:
                for end in range(1, len(str(name).split(".")) + 1):
                    module = ".".join(str(name).split(".")[:end])
                    try:
                        importlib.import_module(module)
                    except Exception:  # a dataset, a plot, a loop of its own
                        sys.modules[module] = wild.Stub(module)
        made: dict[str, Any] = {"__name__": "script", **given}
        exec(compile(ast.Module(kept, []), path, "exec"), made)
        made.update(given)
    return types.SimpleNamespace(**made)


def bits(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(4, *shape).round()


def grey(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(4, *shape)


def normals(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(4, *shape) - 0.5


def one_hot(classes: int = 10) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.eye(classes)[torch.arange(4) % classes],)


def squares(recon: Tensor, x: Tensor) -> Tensor:
    """Return the sum of squares of each datum, as the Gaussian of scale `ROOT_HALF` has it, with its constant."""
    return (recon.reshape(x.shape) - x).square().flatten(1).sum(1) + 0.5 * math.log(math.pi) * x[0].numel()


def cross_entropy(recon: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy(recon.reshape(x.shape), x, reduction="none").flatten(1).sum(1)


def with_logits(recon: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(recon.reshape(x.shape), x, reduction="none").flatten(1).sum(1)


def kl(mu: Tensor, std: Tensor) -> Tensor:
    return kl_divergence(Normal(mu, std), Normal(0.0, 1.0)).flatten(1).sum(1)


def returns(recon: int, mu: int, log_var: int, loss: Callable, redraw: Callable) -> Callable:
    """Return the `own` of a forward that returns a tuple; z is what its own function for that draws again."""

    def own(vae: Any, x: Tensor, *cond: Tensor) -> tuple[Tensor, Tensor]:
        out, rewind = wild.again(vae, x, *cond)
        rewind()
        z = redraw(vae)(out[mu].clone(), out[log_var].clone())
        return z, (loss(out[recon], x) + kl(out[mu], (0.5 * out[log_var]).exp())).mean()

    return own


def passed(recon: int, mu: int, log_var: int, z: int, loss: Callable) -> Callable:
    """The same for one that returns z itself."""

    def own(vae: Any, x: Tensor, *cond: Tensor) -> tuple[Tensor, Tensor]:
        out = vae(x, *cond)
        mean, std = (out[i].reshape(len(x), -1) for i in (mu, log_var))
        return out[z], (loss(out[recon], x) + kl(mean, (0.5 * std).exp())).mean()

    return own


def like(**options: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda vae: options


# ------------------------------------------------------------------ MLPs and images, with the usual forward


def vae_cvae(conditional: bool) -> nn.Module:
    with wild.repository("VAE-CVAE-MNIST"):
        make = importlib.import_module("models").VAE
    return make([12, 8], 4, [8, 12], conditional, 10 if conditional else 0)


def factor_vae() -> nn.Module:
    with wild.repository("1Konny-FactorVAE"):
        return importlib.import_module("model").FactorVAE1(4)


def redrawn(mu: Tensor, log_var: Tensor) -> Tensor:
    """Draw z where a script does so in its forward."""
    return torch.randn_like(mu) * (0.5 * log_var).exp() + mu


def beta_tcvae() -> nn.Module:
    """Its script has `async=True`, which is a keyword since Python 3.7, in the loop that is left out here."""
    return definitions("beta-tcvae", "vae_quant.py", changes={"async=True": "non_blocking=True"}).VAE(4)


def beta_tcvae_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    state = torch.random.get_rng_state()
    elbo = vae.elbo(x, 1000)[1].mean()
    torch.random.set_rng_state(state)
    return vae.reconstruct_img(x)[2], -elbo


def semi_supervised() -> nn.Module:
    with wild.repository("semi-supervised-pytorch", under="semi-supervised"):
        for name in ("models", "layers", "inference"):
            for module in [m for m in sys.modules if m.split(".")[0] == name]:
                del sys.modules[module]
        return importlib.import_module("models.vae").VariationalAutoencoder([12, 4, [8]])


def semi_supervised_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    state = torch.random.get_rng_state()
    recon = vae(x)
    torch.random.set_rng_state(state)
    return vae.encoder(x)[0], (cross_entropy(recon, x) + vae.kl_divergence).mean()


def bhpfelix() -> nn.Module:
    made = definitions("Variational-Autoencoder-PyTorch", "src/vanila_vae.py", args=types.SimpleNamespace(cuda=False))
    return made.VAE(3, 4, 4, 4)


def bhpfelix_line(vae: Any) -> dict[str, Any]:
    """Its forward takes the numbers of channels for height and width, and so needs 128 of them."""
    return {"forward": lambda x: vae.decode(vae.reparametrize(*vae.encode(x)))}


def bhpfelix_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    state = torch.random.get_rng_state()
    mu, log_var = vae.encode(x)
    z = vae.reparametrize(mu, log_var.clone())
    torch.random.set_rng_state(state)
    return z, (cross_entropy(vae.decode(z), x) + kl(mu, (0.5 * log_var).exp())).mean()


def podgorskiy() -> nn.Module:
    with wild.repository("VAE"):
        return importlib.import_module("net").VAE(4, 3, 3)


def ethanluoyc() -> nn.Module:
    made = definitions("ethanluoyc-pytorch-vae", "vae.py")
    return made.VAE(made.Encoder(12, 8, 4), made.Decoder(4, 8, 12))


def ethanluoyc_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    (p_x, q_z), rewind = wild.again(vae, x)
    rewind()
    return q_z.rsample(), -(p_x.log_prob(x).sum(-1) - kl(q_z.loc, q_z.scale)).mean()


def hyperspherical(distribution: str) -> nn.Module:
    made = definitions("s-vae-pytorch", "examples/mnist.py", under=".")
    return made.ModelVAE(8, 4, distribution=distribution)


def hyperspherical_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    _, (q_z, p_z), z, logits = vae(x)
    return z, (with_logits(logits, x) + kl_divergence(q_z, p_z).sum(-1)).mean()


def soft_intro() -> nn.Module:
    return definitions("soft-intro-vae-pytorch", "soft_intro_vae/train_soft_intro_vae.py").SoftIntroVAE(
        3, 4, (4, 8), image_size=16
    )


def joint_vae(**spec: Any) -> nn.Module:
    with wild.repository("joint-vae"):
        sys.modules["jointvae"] = wild.package("jointvae", wild.CHECKOUTS / "joint-vae" / "jointvae")
        return importlib.import_module("jointvae.models").VAE((1, 32, 32), spec)


def joint_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    (recon, latents), rewind = wild.again(vae, x)
    rewind()
    mu, log_var = latents["cont"]
    return vae.reparameterize(latents), (cross_entropy(recon, x) + kl(mu, (0.5 * log_var).exp())).mean()


def multimodal() -> nn.Module:
    with wild.repository("multimodal-vae-public", under="mnist"):
        return importlib.import_module("model").MVAE(4)


def basic_vae() -> nn.Module:
    made = definitions("generative_models", "basic_vae.py")
    return made.VAE(types.SimpleNamespace(x_dim=12, hidden_dim=8, z_dim=4))


def basic_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    (p_x, q_z), rewind = wild.again(vae, x)
    rewind()
    return q_z.rsample(), -(p_x.log_prob(x).sum(1) - kl(q_z.loc, q_z.scale)).mean()


def multi_vae() -> nn.Module:
    with wild.repository("vae-cf-pytorch"):
        made = importlib.import_module("models")
    vae = made.MultiVAE([4, 8, 12], dropout=0.0)
    vae.loss_function = made.loss_function
    return vae


def multinomial(logits: Tensor) -> torch.distributions.Distribution:
    """Counts, as many in a row as there are: its loss has the log softmax times the counts."""
    return torch.distributions.Multinomial(1, logits=logits, validate_args=False)


def multi_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Its own loss function, and the multinomial coefficient, which does not depend on the model."""
    (logits, mu, log_var), rewind = wild.again(vae, x)
    rewind()
    coefficient = torch.lgamma(x.sum(1) + 1) - torch.lgamma(x + 1).sum(1)
    return vae.reparameterize(mu, log_var), vae.loss_function(logits, x, mu, log_var) - coefficient.mean()


def geyang() -> nn.Module:
    return definitions("variational_autoencoder_pytorch", "model.py").VariationalAutoEncoder(4)


def andompesta(name: str, *args: Any) -> nn.Module:
    with wild.repository("andompesta-variational-autoencoder"):
        return getattr(importlib.import_module("models"), name)(*args)


def simple_vae() -> nn.Module:
    made = definitions("pytorch-sample-codes", "simple_vae.py")
    return made.VAE(made.Encoder(12, 8, 4), made.Decoder(4, 8, 12))


def conditional_vae() -> nn.Module:
    return definitions("pytorch-sample-codes", "conditional_vae.py", N_CLASSES=10).CVAE(12, 8, 4, 10)


def o_tawab() -> nn.Module:
    with wild.repository("o-tawab-Variational-Autoencoder-pytorch", under="graph"):
        return importlib.import_module("mse_model").VAE()


def thomashirtz() -> nn.Module:
    with wild.repository("thomashirtz-variational-autoencoder", under="variational_autoencoder"):
        return importlib.import_module("model").VAE((3, 4), [10, 8], [8, 10], 4)


def msalhab() -> nn.Module:
    made = definitions("msalhab96-Variational-Autoencoder", "model.py")
    vae = made.FFModel(in_size=12, hidden_size=8, latent_size=4, n_layers=2, p_dropout=0.0)
    vae.draw = made.parameterize
    return vae


def pytorch_generative(scripted: bool = False) -> nn.Module:
    """Make its VAE, whose draw is scripted; else as PYTORCH_JIT=0 has it."""
    with wild.repository("pytorch-generative"), pytest.MonkeyPatch.context() as patch:
        if not scripted:
            patch.setattr(torch.jit, "script", lambda function: function)
        for name in ("pytorch_generative", "pytorch_generative.models", "pytorch_generative.models.vae"):
            sys.modules[name] = wild.package(name, wild.CHECKOUTS / "pytorch-generative" / name.replace(".", "/"))
        made = importlib.import_module("pytorch_generative.models.vae.vae")
        vae = made.VAE(latent_channels=2, hidden_channels=4, residual_channels=4)
    vae.vaes = made.vaes
    return vae


def tonyduan() -> nn.Module:
    with wild.repository("tonyduan-variational-autoencoders"):
        sys.modules["src"] = wild.package("src", wild.CHECKOUTS / "tonyduan-variational-autoencoders" / "src")
        return importlib.import_module("src.blocks").VAE(12, 4, 8)


def tonyduan_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    state = torch.random.get_rng_state()
    z = vae.z_given_x(x).rsample()
    torch.random.set_rng_state(state)
    p, q = vae.x_given_z(z), vae.z_given_x(x)
    return z, (kl_divergence(q, vae.prior).sum(1) - p.log_prob(x).sum(1)).mean()


def sasha() -> nn.Module:
    with wild.repository("SashaMalysheva-Pytorch-VAE"):
        vae = importlib.import_module("model").VAE("label", 16, 1, 8, 4)
    vae._is_on_cuda = False  # its forward asks for the method, not for what it returns, and so for CUDA
    return vae


def sasha_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    ((mu, log_var), recon), rewind = wild.again(vae, x)
    rewind()
    return vae.z(mu, log_var), (cross_entropy(recon, x) + kl(mu, (0.5 * log_var).exp())).mean()


def pytorch_generative_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    (logits, divergence), rewind = wild.again(vae, x)
    rewind()
    mean, log_std = vae._encoder(x).chunk(2, 1)
    return vae.vaes.sample_from_gaussian(mean, log_std), (with_logits(logits, x) + divergence).mean()


def msalhab_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    (recon, mu, log_std), rewind = wild.again(vae, x)
    rewind()
    return vae.draw(mu, log_std), (cross_entropy(recon, x) + kl(mu, log_std.exp())).mean()


def mvae_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    (recon, _, mu, log_var), rewind = wild.again(vae, x)
    rewind()
    return vae.reparametrize(mu, log_var.clone()), (with_logits(recon, x) + kl(mu, (0.5 * log_var).exp())).mean()


def andompesta_own(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    _, logits, z, mu, log_var = vae(x)
    return z, (with_logits(logits, x) + kl(mu, (0.5 * log_var).exp())).mean()


def reparam(vae: Any) -> Callable:
    return getattr(vae, "reparameterize", None) or vae.reparametrize


def script(folder: str, path: str, *args: Any) -> Callable[[], nn.Module]:
    return lambda: definitions(folder, path).VAE(*args)


usual = {name: returns(0, 1, 2, loss, reparam) for name, loss in (
    ("bce", cross_entropy), ("logits", with_logits), ("squares", squares),
)}  # fmt: skip
LOGITS = like(likelihood="bernoulli_logits")
SQUARES = like(likelihood=ROOT_HALF)

MODELS = [
    Model("timbmg/VAE-CVAE-MNIST", lambda: vae_cvae(False), bits(12), passed(0, 1, 2, 3, cross_entropy)),
    Model("timbmg/VAE-CVAE-MNIST, conditional", lambda: vae_cvae(True), bits(12), passed(0, 1, 2, 3, cross_entropy),
          cond=lambda: (torch.arange(4)[:, None],)),
    Model("1Konny/FactorVAE", factor_vae, bits(1, 64, 64), passed(0, 1, 2, 3, with_logits), LOGITS),
    Model("rtqichen/beta-tcvae", beta_tcvae, bits(1, 64, 64), beta_tcvae_own,
          lambda vae: {"forward": lambda x: vae.reconstruct_img(x)[1], "likelihood": "bernoulli_logits"}, sampled=True),
    Model("wohlert/semi-supervised-pytorch", semi_supervised, bits(12), semi_supervised_own, sampled=True),
    Model("bhpfelix/Variational-Autoencoder-PyTorch", bhpfelix, bits(3, 128, 128), bhpfelix_own, bhpfelix_line),
    Model("L1aoXingyu/pytorch-beginner", script("pytorch-beginner", "08-AutoEncoder/Variational_autoencoder.py"),
          grey(784), usual["squares"], SQUARES),
    Model("yunjey/pytorch-tutorial",
          script("pytorch-tutorial", "tutorials/03-advanced/variational_autoencoder/main.py", 12, 8, 4),
          bits(12), usual["bce"]),
    Model("podgorskiy/VAE", podgorskiy, normals(3, 32, 32), usual["squares"], SQUARES, only_training=True),
    Model("ethanluoyc/pytorch-vae", ethanluoyc, normals(12), ethanluoyc_own),
    Model("SashaMalysheva/Pytorch-VAE", sasha, bits(1, 16, 16), sasha_own),
    Model("unnir/cVAE", lambda: definitions("cVAE", "cvae.py").CVAE(784, 4, 10), bits(784), usual["bce"],
          cond=one_hot()),
    Model("nicola-decao/s-vae-pytorch, Gaussian", lambda: hyperspherical("normal"), bits(784), hyperspherical_own,
          LOGITS),
    Model("taldatech/soft-intro-vae-pytorch", soft_intro, grey(3, 16, 16), passed(3, 0, 1, 2, squares), SQUARES),
    Model("Schlumberger/joint-vae, continuous", lambda: joint_vae(cont=4), bits(1, 32, 32), joint_own,
          only_training=True),
    Model("mhw32/multimodal-vae-public", multimodal, bits(784), mvae_own, LOGITS, only_training=True),
    Model("kamenbliznashki/generative_models", basic_vae, bits(12), basic_own),
    Model("younggyoseo/vae-cf-pytorch", multi_vae, bits(12), multi_own, like(likelihood=multinomial),
          only_training=True),
    Model("geyang/variational_autoencoder_pytorch", geyang, bits(784), usual["bce"]),
    Model("andompesta/variational-autoencoder", lambda: andompesta("CNNVariationalAutoencoder"), bits(1, 28, 28),
          andompesta_own, LOGITS),
    Model("graviraja/pytorch-sample-codes", simple_vae, bits(12), returns(0, 1, 2, cross_entropy, lambda vae: redrawn)),
    Model("graviraja/pytorch-sample-codes, conditional", conditional_vae, bits(12),
          returns(0, 1, 2, cross_entropy, lambda vae: redrawn), cond=one_hot()),
    Model("o-tawab/Variational-Autoencoder-pytorch", o_tawab, grey(3, 32, 32), usual["squares"], SQUARES,
          only_training=True),
    Model("thomashirtz/variational-autoencoder", thomashirtz, bits(3, 4), usual["bce"], only_training=True),
    Model("msalhab96/Variational-Autoencoder", msalhab, bits(12), msalhab_own),
    Model("EugenHotaj/pytorch-generative", pytorch_generative, bits(1, 8, 8), pytorch_generative_own, LOGITS),
    Model("tonyduan/variational-autoencoders", tonyduan, normals(12), tonyduan_own,
          lambda vae: {"forward": lambda x: vae.x_given_z(vae.z_given_x(x).rsample())}),
]  # fmt: skip
"""Wrapped in one line, `vae2aef.wrap(vae, example=x, **options)`, and their own loss is the AEF's."""
