"""Give back a VAE of the user's own class that is the trained AEF, for code that knows nothing of us."""

import copy
from typing import Any

from torch import Tensor, nn

from vae2aef.aef import AEF, require_aef
from vae2aef.errors import WrapError
from vae2aef.program import VAEProgram
from vae2aef.wrapping.find_parts import has_forward


def as_vae(aef: AEF) -> nn.Module:
    """Return a copy of the AEF's VAE whose forward draws u = n^-1(h(x) + sigma epsilon) where it drew noise.

    It is of a class derived from the user's own, with the same name: `isinstance` holds, and all of its methods are
    there. `forward` encodes, places u in the place of its one Gaussian draw, and decodes; what it returns has the shape
    and order that it always had. At sigma = 0 it is deterministic: `aef.reconstruct`. Decoding and sampling are the
    trained VAE's. `encode` returns g_m and g_s as ever: the location without h. The features and the core flow are a
    submodule, `aef_site`, in the `state_dict`: save that. The class is made here, where pickle cannot find it, so that
    the module itself cannot be saved whole (`torch.save(vae, path)`). The copy knows nothing of the AEF's
    preprocessing: hand it what the VAE saw.

    Args:
        aef: an AEF of one latent, in the expanded family.

    Returns:
        A module that shares nothing with the AEF.

    Raises:
        WrapError: if the VAE has several latents, no forward of its own, or a core that is part of the data.
        TypeError: if this is no AEF, or encoder or decoder were given as functions that hold a module.

    Example:
        >>> from vae2aef.comparison.nets import MLPVAE
        >>> import torch
        >>> import vae2aef
        >>> _ = torch.manual_seed(0)
        >>> x = torch.rand(8, 6)
        >>> aef = vae2aef.wrap(MLPVAE((6,), 2), example=x, noise=0.0)
        >>> vae = vae2aef.as_vae(aef)
        >>> isinstance(vae, MLPVAE), torch.allclose(vae(x)[0], aef.reconstruct(x), atol=1e-6)
        (True, True)
    """
    require_aef(aef)
    if isinstance(aef.parts, VAEProgram) or aef.partition is not None or not has_forward(aef.vae):
        why = "a core that is part of the data" if aef.partition is not None else "no forward that draws one latent"
        raise WrapError(f"{type(aef.vae).__name__} has {why}: its AEF is no VAE of that class; ", "use the AEF itself")
    copied = copy.deepcopy(aef)
    vae: Any = copied.vae
    own = type(vae)
    names = getattr(copied.parts, "awake", ())

    def forward(self: Any, x: Tensor, *cond: Any, **kwargs: Any) -> Any:
        from vae2aef.tracing.parts import awake
        from vae2aef.tracing.recording import Known

        site = self.aef_site
        u = site.flow(site.core.perturb(site.core(x)[0]))[0]
        x = x.view_as(x)
        record = Known(x, u)
        with awake(self, names), record:
            out = own.forward(self, x, *cond, **kwargs)
        if len(record.draws) != 1 or not record.drew:
            raise RuntimeError(
                f"the forward of {own.__name__} drew {len(record.draws)} times here, and not once Gaussian noise: in "
                "eval mode it may return the mean; call it in training mode, or use the AEF itself"
            )
        return out

    more = {"forward": forward, "__module__": own.__module__, "__doc__": own.__doc__, "__qualname__": own.__qualname__}
    vae.__class__ = type(own.__name__, (own,), more)
    vae.aef_site = copied.site("z")
    return vae
