"""Make the data of the results page: `python prepare.py FOLDER --images /path/with/mnist.npz`.

Needs scikit-image (photographs), river (Shuttle), sktime (power demand) and scanpy (blood cells), in any environment;
what cannot be imported is left out, and said.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

TRAIN_PHOTOGRAPHS = ("camera", "coins", "moon", "page", "brick", "grass", "gravel", "astronaut", "coffee", "rocket")
TEST_PHOTOGRAPHS = ("chelsea", "clock", "text", "cell")
TEST_ROWS = 2000


def split(x: np.ndarray, test: int) -> dict[str, np.ndarray]:
    order = np.random.default_rng(0).permutation(len(x))
    return {"x_train": x[order[test:]], "x_test": x[order[:test]]}


def standardised(x: np.ndarray, test: int) -> dict[str, np.ndarray]:
    """Split, and bring each column to mean 0 and spread 1 on the training data."""
    parts = split(x.astype(np.float64), test)
    mean, spread = parts["x_train"].mean(0), parts["x_train"].std(0)
    keep = spread > 1e-8
    return {k: ((v[:, keep] - mean[keep]) / spread[keep]).astype(np.float32) for k, v in parts.items()}


def digits(images: Path) -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    return split(load_digits().images.astype(np.uint8)[:, None], 300)


def of_file(name: str, rows: int) -> Callable[[Path], dict[str, np.ndarray]]:
    """Take so many training images and 2000 test images, drawn from all of them: what a lent machine is sent."""

    def read(images: Path) -> dict[str, np.ndarray]:
        random = np.random.default_rng(0)
        with np.load(images / f"{name}.npz") as arrays:
            x = {"x_train": arrays["x_train"], "x_test": arrays["x_test"]}
        some = {k: v[random.permutation(len(v))[: {"x_train": rows, "x_test": TEST_ROWS}[k]]] for k, v in x.items()}
        channels_first = {k: v[:, None] if v.ndim == 3 else v.transpose(0, 3, 1, 2) for k, v in some.items()}
        return {k: np.ascontiguousarray(v) for k, v in channels_first.items()}

    return read


def bits(images: Path) -> dict[str, np.ndarray]:
    """Drawn once: each pixel is 1 with the probability of its grey level."""
    random = np.random.default_rng(0)
    return {
        k: (random.random(v.shape) < v / 255.0).astype(np.uint8) for k, v in of_file("mnist", 40_000)(images).items()
    }


def patches(images: Path) -> dict[str, np.ndarray]:
    """8 x 8 cuts of scikit-image's photographs in grey; the test data are of other photographs."""
    from skimage import color, data

    random = np.random.default_rng(0)

    def cut(names: tuple[str, ...], count: int) -> np.ndarray:
        found = []
        for name in names:
            try:
                image = getattr(data, name)()
            except Exception as problem:  # not bundled, and no net
                print(f"patches: {name} left out: {problem}")
                continue
            grey = image if image.ndim == 2 else np.rint(color.rgb2gray(image) * 255).astype(np.uint8)
            for _ in range(count):
                top, left = random.integers(grey.shape[0] - 8), random.integers(grey.shape[1] - 8)
                found.append(grey[top : top + 8, left : left + 8])
        return np.stack(found)[:, None]

    return {"x_train": cut(TRAIN_PHOTOGRAPHS, 4000), "x_test": cut(TEST_PHOTOGRAPHS, 500)}


def shuttle(images: Path) -> dict[str, np.ndarray]:
    """The measurements of the normal rows."""
    from river import datasets

    return standardised(np.array([list(x.values()) for x, anomaly in datasets.Shuttle() if not anomaly]), 2000)


def power(images: Path) -> dict[str, np.ndarray]:
    from sktime.datasets import load_italy_power_demand

    x, _ = load_italy_power_demand(return_X_y=True, return_type="numpy3d")
    return standardised(x[:, 0], 200)


def genes(images: Path) -> dict[str, np.ndarray]:
    import scanpy

    return standardised(np.asarray(scanpy.datasets.pbmc68k_reduced().X), 150)


MAKERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    "digits": digits, "mnist": of_file("mnist", 40_000), "fashion": of_file("fashion_mnist", 20_000),
    "mnist-bits": bits, "cifar10": of_file("cifar10_small", 9000), "patches": patches, "shuttle": shuttle,
    "power": power, "genes": genes,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of mnist.npz, fashion_mnist.npz, ...")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, make in MAKERS.items():
        try:
            arrays = make(options.images)
        except (ImportError, FileNotFoundError) as problem:
            print(f"{name}: left out: {problem}")
            continue
        np.savez_compressed(options.folder / f"{name}.npz", **arrays)
        print(name, {k: (v.shape, str(v.dtype)) for k, v in arrays.items()})
