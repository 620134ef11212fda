"""`wrap`: find the parts of a VAE, check them on an example, add what an AEF needs."""

from vae2aef.wrapping.wrap import wrap

__all__ = ["wrap"]
