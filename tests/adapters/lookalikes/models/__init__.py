"""Stand-in for the package `models` of PyTorch-VAE; see README.md beside this folder."""
