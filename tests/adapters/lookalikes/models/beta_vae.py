from models.vanilla_vae import VanillaVAE


class BetaVAE(VanillaVAE):
    beta = 4

    def loss_function(self, *args, **kwargs):
        losses = super().loss_function(*args, **{**kwargs, "M_N": self.beta * kwargs["M_N"]})
        return {**losses, "KLD": -losses["KLD"]}
