# %% [markdown]
# # From MNIST to the report
#
# A notebook, shown with what it printed and drew. Its source is `docs/tutorials/mnist_to_report.py`, a script in
# jupytext's percent format: editors open it as a notebook, `jupytext --to ipynb` makes one of it, and
# `MNIST=path/to/mnist.npz python docs/tutorials/mnist_to_report.py` runs it as it is, in 80 seconds of one CPU core.
# `mnist.npz` is Keras's, with arrays `x_train` and `x_test`.

# %%
import json
import os

import numpy as np
import torch
from PIL import Image
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
print(aef.summary())
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
# Test images, their reconstructions, and samples; all are means of p(x | z).

# %%
rows = [test[:12], aef.reconstruct(test[:12]), aef.sample(12)]
grid = torch.cat([torch.cat(list(row.view(-1, 28, 28).clamp(0, 1)), 1) for row in rows])
Image.fromarray((255 * grid).byte().numpy()).resize((672, 168))

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
    with open(os.path.join("report", "results.json"), encoding="utf-8") as file:
        print(*json.load(file)["verdict"], sep="\n")
    for row in rows:
        print(f"{row.arm}: {row.bits_per_dim:.3f} ± {row.interval:.3f} bits per dimension")
    print(f"AEF minus VAE: {rows[1].difference:+.3f} ± {rows[1].difference_interval:.3f}")
    print("see", os.path.join("report", "report.html"))

# %% [markdown]
# The learning curves, one of the pictures of the report: `report/report.html` is one file, interactive, and begins with
# the same verdict. [What is in it](compare.md#the-report). Few steps, few data and one seed: for figures that decide
# anything see the [results](results.md).

# %%
Image.open("report/curves.png").reduce(2) if __name__ == "__main__" else None
