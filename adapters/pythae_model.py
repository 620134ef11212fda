"""An AEF as a pythae model again, for pythae's trainers, pipelines and samplers."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.wrapping import wrap


class PythaeModel(nn.Module):
    """An AEF as a pythae model: for `BaseTrainer`, `TrainingPipeline` and the samplers that call the model.

    Args:
        aef: made by `vae2aef.wrap` from a pythae VAE.
    """

    device: Any = None

    def __init__(self, aef: AEF) -> None:
        super().__init__()
        self.aef = aef
        self.model_name = f"AEF_{aef.vae.model_name}"
        self.model_config = aef.vae.model_config
        self.latent_dim = aef.vae.latent_dim
        self.input_dim = aef.vae.input_dim

    def forward(self, inputs: dict[str, Any], **kwargs: Any) -> Any:
        """Return a ModelOutput with `loss`, `recon_loss`, `reg_loss` (scalars, nats), `recon_x` and `z`.

        Args:
            inputs: pythae's batch; `inputs["data"]` is `(batch, *event)`.
            **kwargs: what pythae's trainers hand on (`epoch`, `dataset_size`), unused.
        """
        from pythae.models.base.base_utils import ModelOutput

        terms = self.aef(inputs["data"], terms=True)
        recon_loss = -terms.residual.mean()
        return ModelOutput(
            loss=terms.loss,
            recon_loss=recon_loss,
            reg_loss=terms.loss - recon_loss,
            recon_x=terms.reconstruction,
            z=terms.z,
        )

    def encoder(self, x: Tensor) -> Any:
        """Return a ModelOutput with `embedding`: the AEF's latents, `(batch, latent)`."""
        from pythae.models.base.base_utils import ModelOutput

        return ModelOutput(embedding=self.aef.encode(x))

    def decoder(self, z: Tensor) -> Any:
        """Return a ModelOutput with `reconstruction`: the AEF's mean, `(batch, *event)`."""
        from pythae.models.base.base_utils import ModelOutput

        return ModelOutput(reconstruction=self.aef.decode(z))

    def reconstruct(self, inputs: Tensor) -> Tensor:
        """Return the reconstructions of data, `(batch, *event)`."""
        return self.aef.reconstruct(inputs)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the latents of data, `(batch, latent)`."""
        return self.aef.encode(inputs)

    def get_nll(self, data: Tensor, n_samples: int = 128, batch_size: int = 100) -> float:
        """Return the mean log p(x) in nats, with pythae's sign: see `AEF.log_prob`."""
        proposal = self.aef.tune_proposal(data)
        batches = data.split(batch_size)
        found = [self.aef.log_prob(x, num_samples=n_samples, proposal=proposal).value for x in batches]
        return torch.cat(found).mean().item()

    def update(self) -> None:
        """Do nothing, as pythae's VAE does at the end of an epoch."""

    def save(self, dir_path: str) -> None:
        """Write what pythae writes for the VAE, and `aef.pt` with the state of the AEF, into a folder.

        The VAE alone is read back by pythae's `AutoModel.load_from_folder`, the AEF by `PythaeModel.load`.
        """
        self.aef.vae.save(dir_path)
        torch.save(self.aef.state_dict(), os.path.join(dir_path, "aef.pt"))

    @classmethod
    def load(cls, dir_path: "str | os.PathLike[str]", example: Any, **options: Any) -> "PythaeModel":
        """Read back a saved AEF.

        Args:
            dir_path: the folder.
            example: as in `vae2aef.wrap`.
            **options: those that `vae2aef.wrap` was called with.

        Raises:
            FileNotFoundError: if the folder holds no AEF.
            RuntimeError: from torch, if the options are not those of the saved AEF.
        """
        from pythae.models import AutoModel

        path = Path(dir_path) / "aef.pt"
        if not path.is_file():
            raise FileNotFoundError(f"expected {path}, written by PythaeModel.save; pass the folder of a saved AEF")
        aef = wrap(AutoModel.load_from_folder(str(dir_path)), example=example, **options)
        aef.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return cls(aef)
