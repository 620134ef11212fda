from models.vanilla_vae import VanillaVAE


class GammaVAE(VanillaVAE):
    """Named as a model whose posterior is no Gaussian."""
