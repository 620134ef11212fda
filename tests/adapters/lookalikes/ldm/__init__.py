"""Stand-in for the package `ldm` of latent-diffusion; see README.md beside this folder."""
