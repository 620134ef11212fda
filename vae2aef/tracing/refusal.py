"""Why a forward cannot be traced, and the one remedy."""

NONE = "There is no remedy: it cannot be an AEF as it is"
"""What stands in the place of a remedy where none is known."""

PARTS = 'Pass encoder=lambda x: (loc, log_var), decoder=lambda z: mean, encoder_scale="log_var"'


ENTRY = "Pass forward=lambda x: ... that runs it as it is trained, from data to their mean"

FLOW = "Pass encoder=lambda x: vae2aef.Posterior(loc, scale, transform), decoder=lambda z: mean"
"""For what comes after loc + scale * u in the posterior: `transform` maps that to (z, log|det|)."""


CONDITION = (
    "Pass example=(x, c), if what it sees beside z is a condition c. If it is a part of x, such as a skip connection, "
    "there is no remedy: no p(x | z) is a density of x that is told x"
)


DRAW = "Draw by loc + scale * torch.randn_like(scale), with gradients"

SEVERAL = "Describe its latents in a vae2aef.VAEProgram, registered by vae2aef.register_adapter"

EACH_ROW = (
    "Pass forward=lambda x: ... that draws by loc + scale * torch.randn_like(scale), with loc of shape (batch, *latent)"
)

ONLY_Z = "Draw only the noise of z; nn.Dropout may stay"

OTHER_LATENT = (
    "Draw only the noise of z, if it is no latent; nn.Dropout may stay. If it is one, such as a Gumbel-softmax, there "
    "is no remedy: an AEF needs every latent to be location plus scale times noise"
)

OUTSIDE = "Leave the sampling out of the checkpoint"


class Refusal(Exception):
    """Why a forward cannot be traced; becomes a `WrapError` that lists the draws seen.

    Args:
        reason: what was expected and what came.
        fix: the one remedy.
    """

    def __init__(self, reason: str, fix: str = PARTS) -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix
