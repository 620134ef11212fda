"""File formats: each reader returns [train, test], or [all] when the file does not say."""

from __future__ import annotations

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np

from vae2aef.comparison.errors import InputError

ACCEPTED = "digits, a .npz or .npy file, an IDX file (plain or .gz), or a folder of images"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
# The third byte of an IDX file names the type; numbers are big-endian.
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read(path: Path) -> list[np.ndarray]:
    """Read a file or folder.

    Args:
        path: an existing file or folder.

    Returns:
        `[train, test]`, or `[all]` when the source does not say which is which.

    Raises:
        InputError: the format is unknown or the content unreadable.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".npy":
        return [_read_numpy(path)]
    if "idx" in path.name or path.suffix == ".gz":
        return _read_idx_pair(path)
    raise InputError(f"{path}: do not know this kind of file. Accepted: {ACCEPTED}")


def _read_numpy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as problem:
        raise InputError(_numpy_problem(path, problem)) from problem


def _read_npz(path: Path) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = file.files
            for pair in (("x_train", "x_test"), ("train", "test")):
                if all(key in keys for key in pair):
                    return [file[key] for key in pair]
            for key in ("x_train", "train", "x", "X", "data", "images"):
                if key in keys:
                    return [file[key]]
            if len(keys) == 1:
                return [file[keys[0]]]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as problem:
        raise InputError(_numpy_problem(path, problem)) from problem
    raise InputError(f"{path}: holds the arrays {keys}, expected x_train and x_test, train and test, or one array")


def _numpy_problem(path: Path, problem: Exception) -> str:
    # NumPy takes any file that it does not know for a pickle.
    known = _head(path).startswith((b"\x93NUMPY", b"PK"))
    if known and "allow_pickle" in str(problem):
        return f"{path}: holds Python objects, which are never unpickled; save a plain array of numbers"
    return f"{path}: not a readable NumPy file ({problem})"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def _read_idx_pair(path: Path) -> list[np.ndarray]:
    train = _read_idx(path)
    sibling = path.with_name(path.name.replace("train", "t10k", 1))
    return [train, _read_idx(sibling)] if sibling != path and sibling.exists() else [train]


def _read_idx(path: Path) -> np.ndarray:
    """The format of MNIST: two zero bytes, a type, the number of sizes, the sizes, the values."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as problem:
        raise InputError(f"{path}: cannot be read ({problem})") from problem
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES:
        raise InputError(
            f"{path}: not an IDX file (the first bytes are {raw[:4].hex(' ') or 'missing'}). Accepted: {ACCEPTED}"
        )
    dtype, dims = np.dtype(IDX_TYPES[raw[2]]), raw[3]
    start = 4 + 4 * dims
    if len(raw) < start:
        raise InputError(f"{path}: the IDX header is cut off after {len(raw)} of {start} bytes")
    shape = struct.unpack(f">{dims}I", raw[4:start])
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if dims < 2:
        raise InputError(f"{path}: {dims} dimension(s), so these are labels; give the file of images")
    if len(raw) - start != expected:
        raise InputError(f"{path}: shape {shape} needs {expected} bytes of data, {len(raw) - start} are there")
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _read_folder(path: Path) -> list[np.ndarray]:
    if (path / "train").is_dir() and (path / "test").is_dir():
        return [_read_images(path / "train"), _read_images(path / "test")]
    return [_read_images(path)]


def _read_images(folder: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"{folder}: no images in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    images: list[np.ndarray] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                mode = {"1": "L", "P": "RGB", "LA": "RGBA", "CMYK": "RGB"}.get(image.mode, image.mode)
                if mode not in ("L", "RGB", "RGBA"):
                    raise InputError(f"{path}: image mode {image.mode}, expected 8-bit grey or colour")
                images.append(np.asarray(image.convert(mode)))
        except (UnidentifiedImageError, OSError, SyntaxError) as problem:
            raise InputError(f"{path}: not a readable image ({problem})") from problem
        if images[-1].shape != images[0].shape:
            raise InputError(
                f"{path}: size {images[-1].shape} differs from {images[0].shape} of {paths[0].name}; "
                "bring all images to one size and colour mode first"
            )
    return np.stack(images)
