"""Property tests for a model of your own: is it invertible, is its log-determinant right, does everything train?

    import vae2aef.testing

    def test_my_aef():
        vae2aef.testing.check_invertible(aef, x)
        vae2aef.testing.check_jacobian(aef, x)
        vae2aef.testing.check_gradients(aef, x)

Each raises `AssertionError` with the worst case, or returns what it measured. All run in `eval()` mode, and leave
the model, its gradients and torch's random state as they were.
"""

from vae2aef.testing.gradients import check_gradients
from vae2aef.testing.invertible import check_invertible
from vae2aef.testing.jacobian import check_jacobian

__all__ = ["check_gradients", "check_invertible", "check_jacobian"]
