"""AEFs on the Hugging Face Hub, or in a folder: `save_pretrained`, `from_pretrained`, `push_to_hub`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vae2aef.aef import AEF, require_aef
from vae2aef.wrapping.load import load

try:
    from huggingface_hub import ModelHubMixin, hf_hub_download
except ImportError as problem:
    raise ImportError('vae2aef.hub needs huggingface_hub: pip install "vae2aef[hub]"') from problem

FILE = "aef.pt"


class AEFHub(ModelHubMixin, library_name="vae2aef", tags=["vae", "normalizing-flow"]):
    """Hold an AEF, with the methods of the Hub: what `aef.save` writes, in a repository or a folder.

    The VAE's code is not in the repository: whoever loads it passes a VAE of the same class.

    Args:
        aef: to be saved.

    Attributes:
        aef: the AEF.

    Example:
        >>> AEFHub(aef).push_to_hub("name/repository")  # doctest: +SKIP
        >>> aef = AEFHub.from_pretrained("name/repository", vae=MyVAE()).aef  # doctest: +SKIP
    """

    def __init__(self, aef: AEF) -> None:
        self.aef = require_aef(aef)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.aef.save(save_directory / FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        vae: Any = None,
        **options: Any,
    ) -> AEFHub:
        """Load; `vae` and further options are those of `vae2aef.load`."""
        path = Path(model_id) / FILE
        if vae is None:
            raise ValueError(f"expected the VAE too: {cls.__name__}.from_pretrained({str(model_id)!r}, vae=MyVAE())")
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    model_id,
                    FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
            )
        return cls(load(path, vae, **options))
