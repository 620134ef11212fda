"""What Lightning's loggers are given: read back from TensorBoard's event files, a CSV file, and W&B's offline run."""

import csv
import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import nn
from torch.utils.data import DataLoader

import vae2aef
from vae2aef.comparison.nets import MLPVAE
from vae2aef.training import AEFTask, Pictures

pytestmark = [
    pytest.mark.usefixtures("quick_fits"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*without a ``setup`` method.*"),
]
TERMS = ["train_prior", "train_residual", "train_log_det", "train_entropy"]
GAUGES = ["gauge_core_std", "gauge_log_scale", "gauge_core_share"]
SCALARS = {*TERMS, *GAUGES, "train_loss", "sigma", "val_log_prob", "val_uncertain"}


class Flat(nn.Module):
    """A VAE of flattened images."""

    def __init__(self):
        super().__init__()
        self.q, self.p = nn.Linear(20, 4), nn.Linear(2, 20)

    def forward(self, x):
        mean, log_var = self.q(x).chunk(2, 1)
        return self.p(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)), mean, log_var


def fit(logger, folder: Path, *callbacks, flat: bool = False, every: int = 2):
    """Two epochs of three steps, each with a validation."""
    torch.manual_seed(0)
    x = torch.rand(48, 1, 4, 5)
    if flat:
        aef = vae2aef.wrap(Flat(), example=(x := x.flatten(1)), noise=0.3)
    else:
        aef = vae2aef.wrap(MLPVAE((1, 4, 5), 2, hidden=8), example=x, encoder_scale="log_var", noise=0.3)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=logger, callbacks=list(callbacks), default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=every,
    )  # fmt: skip
    torch.manual_seed(1)
    trainer.fit(AEFTask(aef, validation_samples=4), DataLoader(x, batch_size=16), DataLoader(x[:16], batch_size=8))
    return aef, x


def require(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install {name}")


def is_loss(loss: float, *terms: float) -> bool:
    return sum(terms) == pytest.approx(-loss, abs=1e-4)


def test_any_logger_gets_the_terms_of_the_loss_sigma_and_the_gauge(tmp_path):
    fit(CSVLogger(tmp_path), tmp_path)
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) >= SCALARS
    written = [row for row in rows if row["train_loss"]]
    assert [row["step"] for row in written] == ["1", "3", "5"]
    assert all(is_loss(*(float(row[name]) for name in ("train_loss", *TERMS))) for row in written)
    assert {float(row["sigma"]) for row in written} == {torch.tensor(0.3).item()}
    validated = [row for row in rows if row["val_log_prob"]]
    assert len(validated) == 2 and all(row[name] for row in validated for name in GAUGES)


def test_terms_are_made_for_no_step_that_nobody_writes(tmp_path, monkeypatch):
    """They cost a map back to the data; all of it costs nothing where there is no logger."""
    asked, forward = [], vae2aef.AEF.forward
    monkeypatch.setattr(
        vae2aef.AEF, "forward", lambda self, *a, **k: (asked.append("terms" in k), forward(self, *a, **k))[1]
    )
    fit(CSVLogger(tmp_path), tmp_path, every=3)
    assert asked == [False, False, True] * 2
    asked.clear()
    fit(False, tmp_path)
    assert asked == [False] * 6


@pytest.mark.parametrize("flat", [False, True])
def test_tensorboard_shows_scalars_and_pictures(tmp_path, flat):
    require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    aef, x = fit(TensorBoardLogger(tmp_path), tmp_path, Pictures(3, (1, 4, 5) if flat else None), flat=flat)
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) >= SCALARS
    assert set(events.Tags()["images"]) == {"reconstructions", "samples"}
    for loss, *terms in zip(*(events.Scalars(name) for name in ("train_loss", *TERMS)), strict=True):
        assert is_loss(loss.value, *(term.value for term in terms))
    shown = [pixels(image.encoded_image_string) for image in events.Images("reconstructions")]
    assert [one.shape for one in shown] == [(8, 15)] * 2  # one a validation
    seen = x[:3].reshape(3, 4, 5)
    scaled = (seen - seen.min()) / (seen.max() - seen.min())
    torch.testing.assert_close(shown[1][:4], torch.cat(list(scaled), 1), atol=0.01, rtol=0)
    made = ((aef.reconstruct(x[:3]).reshape(3, 4, 5) - seen.min()) / (seen.max() - seen.min())).clamp(0, 1)
    torch.testing.assert_close(shown[1][4:], torch.cat(list(made), 1), atol=0.01, rtol=0)  # of the trained weights
    assert pixels(events.Images("samples")[0].encoded_image_string).shape == (4, 15)


def pixels(encoded: bytes) -> torch.Tensor:
    import io

    import numpy as np
    from PIL import Image

    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(encoded)).convert("L")) / np.float32(255))


def test_pictures_change_nothing_of_the_training(tmp_path):
    require("tensorboard")
    with_them, _ = fit(TensorBoardLogger(tmp_path), tmp_path, Pictures())
    without, _ = fit(TensorBoardLogger(tmp_path), tmp_path)
    assert all(torch.equal(value, without.state_dict()[name]) for name, value in with_them.state_dict().items())


def test_wandb_gets_scalars_and_pictures(tmp_path, monkeypatch):
    """Offline: what its run holds at the end, and the files that it wrote."""
    require("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    fit(WandbLogger(save_dir=tmp_path, project="vae2aef", offline=True), tmp_path, Pictures(3))
    logged = dict(wandb.run.summary)
    wandb.finish()
    terms = [logged[name] for name in ("train_loss", *TERMS)]
    assert set(logged) >= SCALARS | {"reconstructions", "samples"} and is_loss(*terms)
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1  # its service may be writing still
    shown = sorted(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))
    assert [path.name.split("_")[0] for path in shown] == ["reconstructions"] * 2 + ["samples"] * 2  # two validations
    assert pixels(shown[0].read_bytes()).shape == (8, 15)


def test_pictures_that_nobody_sees_are_named(tmp_path):
    with pytest.warns(UserWarning, match=r"pass Trainer\(logger=TensorBoardLogger"):
        fit(CSVLogger(tmp_path), tmp_path, Pictures())


def test_data_that_are_no_images_are_refused(tmp_path):
    require("tensorboard")
    with pytest.raises(ValueError, match=r"got data \(20,\). Pass Pictures\(shape=\(1, 28, 28\)\)"):
        fit(TensorBoardLogger(tmp_path), tmp_path, Pictures(3), flat=True)
    fit(TensorBoardLogger(tmp_path), tmp_path, Pictures(3, shape=(1, 4, 5)), flat=True)  # as it says


class Kept:
    """A logger of images that keeps them; all else Lightning's own does."""

    def __init__(self):
        self.images = {}

    def log_image(self, key, images, step):
        self.images[key] = torch.from_numpy(images[0])


def test_pictures_of_grey_levels_are_as_bright_as_the_data():
    """Levels are whole numbers up to 255, reconstructions of dequantised data lie within 0 and 1."""
    torch.manual_seed(0)
    x = torch.randint(0, 256, (16, 1, 4, 5), dtype=torch.uint8)
    vae = MLPVAE((1, 4, 5), 2, hidden=8)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_var", preprocess=["dequantize", "logit"])
    kept = Kept()

    class Trainers:
        loggers, global_step, sanity_checking, is_global_zero = [kept], 1, False, True

    Pictures(n=4).on_validation_batch_end(Trainers(), AEFTask(aef), None, x, 0)
    data, made = kept.images["reconstructions"].chunk(2, 0)
    assert data.max() == 255 and made.float().mean() > 50 and kept.images["samples"].float().mean() > 50
    low = x[:4].min()
    expected = torch.cat(list(x[:4, 0]), 1).float().sub(low).div(x[:4].max() - low).mul(255)
    torch.testing.assert_close(data.float(), expected, rtol=0, atol=1.01)


def test_a_trainer_that_logs_nothing_trains(tmp_path):
    fit(CSVLogger(tmp_path), tmp_path, every=0)
    (path,) = tmp_path.rglob("metrics.csv")
    assert "train_prior" not in path.read_text().splitlines()[0]
