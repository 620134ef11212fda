"""Marks that tests of several files share."""

import pytest
import torch

OLD_DYNAMO = torch.__version__ < "2.7"
"""`torch.__version__` is compared as a version."""
DYNAMO = "Dynamo of torch 2.4 to 2.6 misses attributes of named tuples"
needs_dynamo = pytest.mark.skipif(OLD_DYNAMO, reason=DYNAMO)
"""For `torch.compile` and `torch.export` of an AEF."""
