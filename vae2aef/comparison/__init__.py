"""`vae2aef compare`: one VAE, several ways to train it, one honest table. Needs the extra `demo`."""
