"""`--condition`: what a conditional VAE is told of each datum, from the labels of the data."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import one_hot

from vae2aef.comparison.data import Dataset
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.factory import BUILT_IN
from vae2aef.comparison.options import Options

WHERE = "y_train and y_test in the .npz, a folder for each class, or a column label"


class Conditions(NamedTuple):
    """What is handed to the VAE beside the data of each part: nothing, or one tensor with a row a datum."""

    train: tuple[Tensor, ...] = ()
    validation: tuple[Tensor, ...] = ()
    test: tuple[Tensor, ...] = ()


NONE = Conditions()


def read_conditions(dataset: Dataset, options: Options) -> Conditions:
    """Return the labels of training, validation and test data in the form that `--condition` names.

    Raises:
        InputError: the data have no labels, or a built-in VAE is asked to take them.
    """
    if options.condition == "none":
        return NONE
    if not dataset.labels:
        raise InputError(f"--condition {options.condition}: {options.data} holds no labels; expected {WHERE}")
    if options.vae in BUILT_IN:
        raise InputError(
            f"--condition {options.condition}: {options.vae} takes no conditions; give a conditional VAE of your own, "
            "whose encoder takes (x, y) and whose decoder takes (z, y)"
        )
    parts = [*dataset.split_labels(), dataset.some_test_labels(options.test_limit)]
    if options.condition == "one_hot":
        parts = [one_hot(part, len(dataset.classes)).float() for part in parts]
    return Conditions(*((part,) for part in parts))
