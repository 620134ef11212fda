"""A user's LightningModule keeps its loop: two lines change."""

from pathlib import Path

import pytest
import torch
from adapter_cases import CASES
from adapter_images import images
from torch import Tensor, nn

import vae2aef

lightning = pytest.importorskip("lightning")
CASE = CASES[0]
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.*"),  # advice on the number of workers
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.*"),
]


class LitVAE(lightning.LightningModule):
    """As users write it; with `vae` an AEF, `training_step` returns its loss."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.vae(batch)
        self.log("train_loss", loss)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def test_fit_checkpoint_and_restore(tmp_path: Path) -> None:
    x = images(CASE.shape, 256)
    module = LitVAE(vae2aef.wrap(CASE.make(), example=x, noise=0.3))
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, gradient_clip_val=200.0,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(x, batch_size=32, shuffle=True))
    assert len(module.losses) == 24
    assert sum(module.losses[-5:]) < sum(module.losses[:5])

    (checkpoint,) = tmp_path.rglob("*.ckpt")
    fresh = LitVAE(vae2aef.wrap(CASE.make(), example=x, noise=0.3))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    fresh.load_state_dict(state)
    torch.manual_seed(0)
    expected = module.vae.eval()(x)
    torch.manual_seed(0)
    assert torch.equal(fresh.vae.eval()(x), expected)
    # The VAE's own weights are under its own names, with one prefix.
    own = {key.removeprefix("vae.vae."): value for key, value in state.items() if key.startswith("vae.vae.")}
    CASE.make().load_state_dict(own)
