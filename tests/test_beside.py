"""The table of docs/symptoms.md beside pythae, laplace-torch and peft: each line of code in it runs, or is there.

The latter two belong to no extra of ours; where they are not installed, their columns are skipped.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vae2aef

PAGE = (Path(__file__).parents[1] / "docs" / "symptoms.md").read_text(encoding="utf-8")
TABLE = PAGE.split("## Beside pythae, laplace-torch, peft\n")[1]
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.splitlines() if line.startswith("|")]
HUB = ("push_to_hub", "push_to_hf_hub", "load_from_hf_hub", "AEFHub.from_pretrained")


def column(name):
    """What each row says in a column: its code, or "" where it has none."""
    at = ROWS[0].index(name)
    return {row[0]: "".join(re.findall(r"`([^`]+)`", row[at])[:1]) for row in ROWS[2:]}


def run(code, names):
    """Run a line, but for those of a hub, of which the name alone is looked up; return what it gives."""
    if any(word in code for word in HUB):
        return eval(code[: code.rindex("(")], names)
    return eval(code, names)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 4), nn.Linear(2, 8)

    def forward(self, x):
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + (0.5 * log_var).exp() * torch.randn_like(mean)), mean, log_var


@pytest.mark.slow
def test_here(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("huggingface_hub")
    lines = column("here")
    names = {"vae2aef": vae2aef, "vae": VAE(), "x": torch.rand(64, 8), "X": torch.rand(32, 3).numpy()}
    aef = names["aef"] = run(lines["wrap"], names)
    names["path"] = str(tmp_path / "aef.pt")
    assert run(lines["train"], names).ndim == 0
    run(lines["save"], names)
    assert torch.equal(run(lines["load"], {**names, "vae": VAE()}).encode(names["x"]), aef.encode(names["x"]))
    pytest.importorskip("safetensors")
    run(lines["save the addition alone"], {**names, "path": str(tmp_path / "added.safetensors")})
    assert (tmp_path / "added.safetensors").stat().st_size < (tmp_path / "aef.pt").stat().st_size
    assert callable(run(lines["push"], names)) and callable(run(lines["pull"], names))
    assert run(lines["evaluate"], names).std_error.shape == (64,) and run(lines["sample"], names).shape == (64, 8)
    assert run(lines["score outliers"], names).shape == (32,)
    assert isinstance(run(lines["back to the model's own class"], names), VAE)


def test_pythae(tmp_path, monkeypatch):
    models = pytest.importorskip("pythae.models")
    from pythae.pipelines import TrainingPipeline
    from pythae.samplers import NormalSampler

    monkeypatch.chdir(tmp_path)
    lines, data = column("pythae"), torch.rand(64, 1, 4, 4)
    vae = models.VAE(models.VAEConfig(input_dim=(1, 4, 4), latent_dim=2))
    names = {
        "VAE": models.VAE,
        "NormalSampler": NormalSampler,
        "vae": vae,
        "x": data,
        "folder": str(tmp_path / "saved"),
    }
    run(lines["train"], {**names, "TrainingPipeline": TrainingPipeline, "data": data[:8]})
    run(lines["save"], names)
    assert isinstance(run(lines["load"], names), models.VAE)
    assert callable(run(lines["push"], names)) and callable(run(lines["pull"], names))
    assert isinstance(run(lines["evaluate"], names), float) and len(run(lines["sample"], names)) == 64


@pytest.mark.filterwarnings("ignore")
def test_laplace(tmp_path):
    laplace = pytest.importorskip("laplace")
    lines, x = column("laplace-torch"), torch.randn(40, 3)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    names = {"Laplace": laplace.Laplace, "model": model, "x": x, "torch": torch, "path": str(tmp_path / "la.pt")}
    names["loader"] = DataLoader(TensorDataset(x, x[:, :1]), batch_size=10)
    names["la"] = run(lines["wrap"], names)
    run(lines["train"], names)
    run(lines["save"], names)
    assert run(lines["evaluate"], names).ndim == 0 and run(lines["sample"], names).shape[1:] == (40, 1)
    own = run(lines["back to the model's own class"], names)
    assert isinstance(own, nn.Sequential) and torch.equal(own(x), model(x))
    run(lines["load"], {**names, "la": run(lines["wrap"], names)})


@pytest.mark.filterwarnings("ignore")
def test_peft(tmp_path):
    peft = pytest.importorskip("peft")
    lines, x = column("peft"), torch.randn(5, 3)
    plain = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    names = {name: getattr(peft, name) for name in ("get_peft_model", "PeftModel")}
    names |= {"config": peft.LoraConfig(target_modules=["0"]), "model": copy.deepcopy(plain), "folder": str(tmp_path)}
    model = run(lines["wrap"], names)
    run(lines["save"], {**names, "model": model})
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json", ".md"}  # the addition alone
    again = run(lines["load"], {**names, "model": copy.deepcopy(plain)})
    torch.testing.assert_close(again(x), model(x))
    assert callable(run(lines["push"], {**names, "model": model}))
    assert isinstance(run(lines["export"], {**names, "model": model}), nn.Sequential)
