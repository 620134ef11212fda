"""File formats: each reader returns [train, test], or [all] when the file does not say."""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from vae2aef.comparison.errors import InputError
from vae2aef.wrapping.room import free_memory

ACCEPTED = (
    "photographs, digits, a .npz or .npy file, an IDX file (plain or .gz), a .csv or .parquet table, a folder of "
    "images, or one that Hugging Face's datasets saved"
)
AS_NUMPY = "save the data as one array in a .npy file, of which only the rows in use are read"
IN_C_ORDER = "save the array in C order (np.ascontiguousarray), so that its rows can be read one by one"
UNREADABLE = (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
LARGE = 2**28  # bytes of a .npy from which on it stays on the disk
COPIES = 8  # of a float32 array, at most, that looking at its values as a whole takes
IDX_HEADER = 4 + 4 * 255
# The third byte of an IDX file names the type; numbers are big-endian.
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read(path: Path) -> list[np.ndarray]:
    """Read a file of arrays.

    Args:
        path: an existing file.

    Returns:
        `[train, test]`, or `[all]` when the source does not say which is which.

    Raises:
        InputError: the format is unknown or the content unreadable.
    """
    if path.suffix in (".npz", ".npy"):
        zipped = path.suffix == ".npz" or _head(path).startswith(b"PK")  # a .npz by another name
        arrays = _read_npz(path) if zipped else [_read_numpy(path)]
        if any(not array.ndim for array in arrays):
            raise InputError(f"{path}: holds a single number, expected an array, a row a sample")
        return arrays
    if "idx" in path.name or path.suffix == ".gz":
        return _read_idx_pair(path)
    raise InputError(f"{path}: do not know this kind of file. Accepted: {ACCEPTED}")


def _read_numpy(path: Path) -> np.ndarray:
    try:
        if not _head(path).startswith(b"\x93NUMPY"):
            return np.load(path, allow_pickle=False)  # which says what it is
        with path.open("rb") as file:
            shape, columns_first, dtype = _header(file)
            there = path.stat().st_size - file.tell()
        claimed = _bytes_of(shape, dtype)
        require_there(path, claimed, there)
        if dtype.kind in "biuf" and len(shape) > 1 and not columns_first and _is_large(claimed):
            return np.load(path, allow_pickle=False, mmap_mode="r")
        require_room(path, claimed, claimed, IN_C_ORDER if columns_first else AS_NUMPY)
        return np.load(path, allow_pickle=False)
    except (*UNREADABLE, MemoryError) as problem:
        raise InputError(_numpy_problem(path, problem)) from problem


def _is_large(size: int) -> bool:
    free = free_memory(torch.device("cpu"))
    return size > LARGE or (free is not None and size * COPIES > free)


def _read_npz(path: Path) -> list[np.ndarray]:
    try:
        keys = _arrays_within(path)
        with np.load(path, allow_pickle=False) as file:
            for pair in (("x_train", "x_test"), ("train", "test")):
                if all(key in keys for key in pair):
                    return [_member(file, key) for key in pair]
            for key in ("x_train", "train", "x", "X", "data", "images"):
                if key in keys:
                    return [_member(file, key)]
            if len(keys) == 1:
                return [_member(file, keys[0])]
    except (*UNREADABLE, MemoryError) as problem:
        raise InputError(_numpy_problem(path, problem)) from problem
    raise InputError(f"{path}: holds the arrays {keys}, expected x_train and x_test, train and test, or one array")


def _member(file: Any, key: str) -> np.ndarray:
    array = file[key]
    if not isinstance(array, np.ndarray):  # NumPy hands the bytes of what has no header of its own
        raise ValueError(f"{key} has no header of an array")
    return array


def _arrays_within(path: Path) -> list[str]:
    """Return the names of the arrays in a .npz, once all of them are known to fit into memory.

    A zip says in its directory how large its members are; a bomb of a few kB may claim, and hold, any size.
    """
    total = 0
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        for member in members:
            with archive.open(member) as file:
                claimed = _claimed(file)
            require_room(path, claimed, member.file_size)
            total += claimed
    if not members:
        raise InputError(
            f"{path}: a zip file that holds no arrays; expected x_train and x_test, as np.savez writes them"
        )
    require_room(path, total, total)
    return [member.filename.removesuffix(".npy") for member in members]


def _claimed(file: IO[bytes]) -> int:
    """Return how many bytes of values the header of a .npy promises; 0 for objects, which nobody reads."""
    shape, _, dtype = _header(file)
    return _bytes_of(shape, dtype)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        return read(file)
    except Exception as problem:  # of Python's tokenizer and parser too, which NumPy reads headers with
        raise ValueError(f"a damaged header: {problem}") from problem


def _bytes_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize


def require_room(path: Path, claimed: int, there: int, advice: str = AS_NUMPY) -> None:
    """Refuse what is not there, or does not fit, before memory is asked for.

    Args:
        path: the file.
        claimed: bytes that its header promises.
        there: bytes that it has.
        advice: what to do about data that do not fit.

    Raises:
        InputError: with both figures.
    """
    require_there(path, claimed, there)
    free = free_memory(torch.device("cpu"))
    if free is not None and claimed > free:
        raise InputError(f"{path}: holds {claimed:,} bytes of values, and {free:,} bytes of memory are free; {advice}")


def require_there(path: Path, claimed: int, there: int) -> None:
    """Refuse a header that promises more bytes than are there.

    Raises:
        InputError: with both figures.
    """
    if claimed > there:
        raise InputError(f"{path}: its header promises {claimed:,} bytes of values, and {there:,} are there")


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
    raw = _some_bytes(path, IDX_HEADER)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES:
        raise InputError(
            f"{path}: not an IDX file (the first bytes are {raw[:4].hex(' ') or 'missing'}). Accepted: {ACCEPTED}"
        )
    dtype, dims = np.dtype(IDX_TYPES[raw[2]]), raw[3]
    start = 4 + 4 * dims
    if len(raw) < start:
        raise InputError(f"{path}: the IDX header is cut off after {len(raw)} of {start} bytes")
    shape = struct.unpack(f">{dims}I", raw[4:start])
    expected = math.prod(shape) * dtype.itemsize
    if dims < 2:
        raise InputError(f"{path}: {dims} dimension(s), so these are labels; give the file of images")
    require_room(path, expected, expected)
    raw = _some_bytes(path, start + expected + 1)  # one more would be too many: a bomb is not unpacked further
    if len(raw) - start != expected:
        there = f"{len(raw) - start} are there" if len(raw) - start < expected else "more are there"
        raise InputError(f"{path}: shape {shape} needs {expected} bytes of data, {there}")
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _some_bytes(path: Path, most: int) -> bytes:
    """Return the first bytes of a file, unpacked if it is compressed."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(most)
    except (OSError, EOFError, zlib.error) as problem:
        raise InputError(f"{path}: cannot be read ({problem})") from problem
