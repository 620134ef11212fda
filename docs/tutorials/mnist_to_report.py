# %% [markdown]
# # From MNIST to the report
#
# A notebook in jupytext's percent format: `jupytext --to ipynb mnist_to_report.py`, or run it as a script. It takes
# Keras's `mnist.npz` (arrays `x_train` and `x_test`) from the environment variable MNIST, and a few minutes.

# %%
import os

import numpy as np
import torch
from torch import nn

import vae2aef

torch.manual_seed(0)
with np.load(os.environ.get("MNIST", "mnist.npz")) as file:
    np.savez("few.npz", x_train=file["x_train"][:4000], x_test=file["x_test"][:500])  # so that it takes minutes
    x = torch.from_numpy(file["x_train"][:4000]).flatten(1) / 255
    test = torch.from_numpy(file["x_test"][:64]).flatten(1) / 255
STEPS = int(os.environ.get("STEPS", 300))

# %% [markdown]
# Your VAE: any module. Its forward says what is encoder, noise and decoder.


# %%
class VAE(nn.Module):
    def __init__(self, pixels=784, latents=16, hidden=200):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latents))
        self.decoder = nn.Sequential(nn.Linear(latents, hidden), nn.SiLU(), nn.Linear(hidden, pixels))

    def forward(self, x):
        mean, log_var = self.encoder(x.flatten(1)).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return self.decoder(z).view_as(x), mean, log_var


# %% [markdown]
# One line wraps it, one line is the loss. Grey levels are scored as they are.

# %%
aef = vae2aef.wrap(VAE(), example=x[:256], likelihood="discretized_logistic")
optimizer = torch.optim.Adam(aef.parameters(), lr=1e-3)
for _ in range(STEPS):
    optimizer.zero_grad()
    aef(x[torch.randint(len(x), (128,))]).backward()
    optimizer.step()

# %% [markdown]
# The marginal log-likelihood of held-out images, the same estimate for any VAE, in bits per dimension.

# %%
estimate = aef.log_prob(test, num_samples=64, seed=0)
bits = vae2aef.bits_per_dim(estimate.value, (784,), bins=1)  # the likelihood is of levels: nothing to add
print(f"AEF after {STEPS} steps: {bits.mean():.3f} bits per dimension")

# %% [markdown]
# Is it better than the VAE? The comparison trains both from the same weights, and writes the report.


# %%
def make_vae():
    return VAE()


if __name__ == "__main__":
    rows = vae2aef.compare(
        make_vae,
        "few.npz",
        "report",
        arms="vae,aef-noise",
        likelihood="discretized_logistic",
        core_flow="none",
        steps=STEPS,
        importance_samples=64,
        test_limit=64,
        device="cpu",
        quiet=True,
    )
    for row in rows:
        print(f"{row.arm}: {row.bits_per_dim:.3f} ± {row.interval:.3f} bits per dimension")
    print(f"AEF minus VAE: {rows[1].difference:+.3f} ± {rows[1].difference_interval:.3f}")
    print("see", os.path.join("report", "report.html"))
