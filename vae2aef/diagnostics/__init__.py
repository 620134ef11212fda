"""`vae2aef.check`: everything about a VAE that matters before it is trained as an AEF."""

from vae2aef.diagnostics.checks import check
from vae2aef.diagnostics.findings import Finding, Report

__all__ = ["Finding", "Report", "check"]
