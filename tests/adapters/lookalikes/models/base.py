from torch import nn


class BaseVAE(nn.Module):
    """Base class of PyTorch-VAE's models; what the adapter knows by name."""
