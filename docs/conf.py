"""Sphinx configuration."""

import vae2aef

project = "vae2aef"
author = "the vae2aef developers"
copyright = "2026, the vae2aef developers"
release = version = vae2aef.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # mnist.ipynb holds its outputs: docs/tutorials/execute.py
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "vae2aef"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_ivar = True
html_static_path: list[str] = []
