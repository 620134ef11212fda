"""Marks that tests of several files share."""

import pytest
import torch

needs_dynamo = pytest.mark.skipif(
    torch.__version__ < "2.7", reason="Dynamo of torch 2.4 to 2.6 misses attributes of named tuples"
)
"""For `torch.compile` of an AEF; `torch.__version__` is compared as a version."""
