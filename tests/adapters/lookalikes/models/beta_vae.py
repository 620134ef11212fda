from models.vanilla_vae import VanillaVAE


class BetaVAE(VanillaVAE):
    beta = 4

    def loss_function(self, *args, **kwargs):
        loss = super().loss_function(*args, **kwargs)
        return {**loss, "loss": loss["Reconstruction_Loss"] - self.beta * kwargs["M_N"] * loss["KLD"]}
