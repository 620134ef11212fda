"""VAEs with `encode`, `reparameterize` and `decode`, whose forward does something else with them: `VARIANTS` by name.

Each says by `posterior(x)` and `recon(z)` what its forward makes of the data and of z.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EVENT, LATENT = (2, 5), 3
SIZE = 10


class Plain(nn.Module):
    """As its methods say."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 8), nn.Tanh(), nn.Linear(8, 2 * LATENT))
        self.tail = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, SIZE), nn.Unflatten(1, EVENT))

    def encode(self, x: Tensor) -> Any:
        return self.body(x).chunk(2, 1)

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + (0.5 * logvar).exp() * torch.randn_like(mu)

    def decode(self, z: Tensor) -> Any:
        return self.tail(z)

    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.body(x).chunk(2, 1)
        return mu, (0.5 * logvar).exp()

    def recon(self, z: Tensor) -> Tensor:
        return self.tail(z)


class NormalisedInput(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward((x - 0.4) / 0.3)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().posterior((x - 0.4) / 0.3)


class Projection(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(LATENT, LATENT)

    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encode(x)
        return self.decode(self.project(self.reparameterize(mu, logvar))), mu, logvar

    def recon(self, z: Tensor) -> Tensor:
        return self.tail(self.project(z))


class FlowInside(Plain):
    """A flow whose end is not returned: a part of the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.w = nn.Parameter(torch.randn(LATENT)), nn.Parameter(torch.randn(LATENT))

    def flow(self, z: Tensor) -> Tensor:
        return z + self.u * torch.tanh(z @ self.w)[:, None]

    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encode(x)
        return self.decode(self.flow(self.reparameterize(mu, logvar))), mu, logvar

    def recon(self, z: Tensor) -> Tensor:
        return self.tail(self.flow(z))


class LogitsOfDecode(Plain):
    def forward(self, x: Tensor) -> Any:
        logits, mu, logvar = super().forward(x)
        return torch.sigmoid(logits), mu, logvar

    def recon(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.tail(z))


class Clamped(Plain):
    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar.clamp(-0.1, 0.1))), mu, logvar

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, scale = super().posterior(x)
        return mu, (0.5 * (2 * scale.log()).clamp(-0.1, 0.1)).exp()


class EncodeDraws(Plain):
    """`encode` returns (z, mu, logvar)."""

    def encode(self, x: Tensor) -> Any:
        mu, logvar = self.body(x).chunk(2, 1)
        return self.reparameterize(mu, logvar), mu, logvar

    def forward(self, x: Tensor) -> Any:
        z, mu, logvar = self.encode(x)
        return self.decode(z), mu, logvar


class TwoInputs(Plain):
    """`decode` takes something beside z, which is no datum."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(EVENT))

    def decode(self, z: Tensor, base: Tensor) -> Any:  # type: ignore[override]
        return self.tail(z) + base

    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar), self.base), mu, logvar

    def recon(self, z: Tensor) -> Tensor:
        return self.tail(z) + self.base


class TwoOutputs(Plain):
    """`decode` returns mean and log variance; forward returns the mean."""

    def decode(self, z: Tensor) -> Any:
        mean = self.tail(z)
        return mean, 0.1 * mean + 1.28

    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar))[0], mu, logvar


class ScaledLatent(Plain):
    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encode(x)
        z = 0.18215 * self.reparameterize(mu, logvar)
        return self.decode(z / 0.5), mu, logvar

    def recon(self, z: Tensor) -> Tensor:
        return self.tail(0.18215 * z / 0.5)


class Softplus(Plain):
    """No log at all, whatever it is called; and a step that only forward takes."""

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + F.softplus(logvar) * torch.randn_like(mu)

    def forward(self, x: Tensor, step: int = 0) -> Any:
        return super().forward(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = self.body(x).chunk(2, 1)
        return mu, F.softplus(raw)


VARIANTS = {
    cls.__name__: cls
    for cls in (
        NormalisedInput, Projection, FlowInside, LogitsOfDecode, Clamped, EncodeDraws, TwoInputs, TwoOutputs,
        ScaledLatent, Softplus,
    )
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- lost in silence before


class Planar(nn.Module):
    """z + u tanh(w z): returns z and log|det|."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.w = nn.Parameter(0.5 * torch.randn(LATENT)), nn.Parameter(0.5 * torch.randn(LATENT))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.tanh(z @ self.w)
        return z + self.u * t[:, None], (1 + (self.u @ self.w) * (1 - t.square())).abs().log()


class PlanarFlow(Plain):
    """A posterior flow, whose end is returned and has the prior."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = Planar()

    def forward(self, x: Tensor) -> Any:
        mu, logvar = self.encode(x)
        z, log_det = self.flow(self.reparameterize(mu, logvar))
        return {"recon": self.decode(z), "z": z, "log_det": log_det}


class SkipsInAttribute(Plain):
    """A U-Net: what `encode` keeps, `decode` reads."""

    def encode(self, x: Tensor) -> Any:
        self.skip = 0.9 * x
        return super().encode(x)

    def decode(self, z: Tensor) -> Any:
        return 0.1 * self.tail(z) + self.skip


class HiddenSkips(SkipsInAttribute):
    """The same behind a gate that is zero until it is trained, and without a forward."""

    forward = nn.Module.forward

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def decode(self, z: Tensor) -> Any:
        return self.tail(z) + self.gate * self.skip


class SkipsInTraining(SkipsInAttribute):
    """Only in training mode, and without a forward."""

    forward = nn.Module.forward

    def decode(self, z: Tensor) -> Any:
        return self.tail(z) + (self.skip.detach() if self.training else 0.0)


class MixesInTraining(Plain):
    """Mixes each datum with another one of the batch, chosen by NumPy."""

    forward = nn.Module.forward

    def decode(self, z: Tensor) -> Any:
        import numpy as np

        if not self.training:
            return self.tail(z)
        return self.tail(0.7 * z + 0.3 * z[torch.from_numpy(np.random.permutation(len(z)))])


class BatchNormed(Plain):
    """Batch normalisation both ways: rows mix in training mode, as they should."""

    def __init__(self) -> None:
        super().__init__()
        self.body.insert(2, nn.BatchNorm1d(8))
        self.tail.insert(1, nn.BatchNorm1d(8))


class OwnPrior(Plain):
    """A density of z of its own, known as `log_p_z`."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.randn(LATENT))

    def log_p_z(self, z: Tensor) -> Tensor:
        return torch.distributions.Normal(self.centre, 0.5).log_prob(z).sum(1)
