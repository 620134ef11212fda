"""The traced adapter: a VAE nobody has described, run as a whole by its own forward."""
