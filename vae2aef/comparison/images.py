"""Folders of images: grey, colours, bits and floats as they are; what is converted is said, all else refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vae2aef.comparison.errors import InputError
from vae2aef.comparison.found import Found, split_of, without_test
from vae2aef.comparison.readers import require_room

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
ARCHIVER = "__MACOSX"  # what macOS leaves in archives


def read_folder(path: Path) -> Found:
    """Read a folder of images of one size: all within it or, where there are `train` and another part, these parts.

    Folders within, one level down, are classes where all images of every part lie in one and each part has several.

    Args:
        path: the folder. `val`, `test` and other names of parts count beside `train` alone.

    Raises:
        InputError: there are no images, one cannot be read (see `as_array`), or their sizes or depths differ.
    """
    folders = {p: split_of(p.name) for p in sorted(path.iterdir()) if p.is_dir() and not _hidden(p.name)}
    splits = {part: p for p, part in folders.items() if part}
    if "train" not in splits or len(splits) == 1:
        return _joined({"all": _Folder(path)}, [])
    others = [p.name for p, part in folders.items() if not part and any(True for _ in _images(p)[0])]
    used, notes = without_test(splits)
    notes += [f"folders beside train that are not used: {', '.join(others)}"] if others else []
    return _joined({used[part]: _Folder(p) for part, p in splits.items()}, notes)


class _Folder:
    """The images of one folder, and the class of each by the folder it lies in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths, self.hidden = _images(folder)
        if not self.paths:
            raise InputError(f"{folder}: no images in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
        self.classes = [p.relative_to(folder).parts[0] if p.parent != folder else "" for p in self.paths]
        self.kinds: set[str] = set()

    def read(self) -> np.ndarray:
        """Return the images, `(n, height, width)` or with channels behind; refuse sizes and depths that differ."""
        first: np.ndarray | None = None
        images: list[np.ndarray] = []
        for path in self.paths:
            array, kind = _read_image(path)
            self.kinds.add(kind)
            if first is None:
                first = array
                require_room(self.folder, array.nbytes * len(self.paths), array.nbytes * len(self.paths))
            if array.shape != first.shape:
                raise InputError(
                    f"{path}: size {array.shape} differs from {first.shape} of {self.paths[0].name}; "
                    "bring all images to one size and colour mode first"
                )
            if array.dtype != first.dtype:
                raise InputError(
                    f"{path}: {array.dtype} values, and {first.dtype} in {self.paths[0].name}; bring all images to one "
                    "depth first"
                )
            images.append(array)
        return np.stack(images)


def _joined(folders: dict[str, _Folder], notes: list[str]) -> Found:
    found = Found({part: folder.read() for part, folder in folders.items()}, notes=notes)
    if hidden := sum(folder.hidden for folder in folders.values()):
        found.notes.append(
            f"{hidden} hidden file{'s' * (hidden > 1)} left out (names that begin with a dot, {ARCHIVER})"
        )
    kinds = set().union(*(folder.kinds for folder in folders.values()))
    found.notes += conversions(kinds)
    if "bits" in kinds:
        found.bins = 2
    if "16-bit" in kinds and max(int(part.max()) for part in found.parts.values()) >= 2**15:
        found.bins = 2**16
    classes = {part: folder.classes for part, folder in folders.items()}
    if all(all(names) and len(set(names)) > 1 for names in classes.values()):
        found.labels = {part: np.array(names) for part, names in classes.items()}
    return found


def conversions(kinds: set[str]) -> list[str]:
    """Say which kinds of images, from `as_array`, were not read as they are stored."""
    said = {"palette": "palette images are read as the colours that they show", "CMYK": "CMYK images are read as RGB"}
    return [text for kind, text in said.items() if kind in kinds]


def _images(folder: Path) -> tuple[list[Path], int]:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    seen = [p for p in paths if not any(map(_hidden, p.relative_to(folder).parts))]
    return seen, len(paths) - len(seen)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == ARCHIVER


def _read_image(path: Path) -> tuple[np.ndarray, str]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return as_array(image, str(path))
    except InputError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as problem:
        raise InputError(f"{path}: not a readable image ({problem})") from problem
    except (Image.DecompressionBombError, MemoryError) as problem:
        raise InputError(f"{path}: an image too large to be read ({problem})") from problem


def as_array(image: Any, name: str) -> tuple[np.ndarray, str]:
    """Return the values of a Pillow image, upright, and what kind it was.

    Args:
        image: opened, of any mode.
        name: for messages.

    Returns:
        (height, width) or (height, width, channels), and `"bits"`, `"16-bit"`, `"palette"`, `"CMYK"`, `"floats"` or
        `"8-bit"`. Grey with an alpha is returned as RGBA; palettes are the colours that they show, or grey if all are.

    Raises:
        InputError: for animations, colours of 16 bits (Pillow reads 8 of them without a word) and other modes.
    """
    from PIL import ImageOps

    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise InputError(f"{name}: {frames} frames or pages, expected a still image; save each as a file of its own")
    mode, raw = image.mode, str(image.tile[0][3]) if getattr(image, "tile", None) else ""
    if mode in ("RGB", "RGBA", "LA") and "16" in raw:
        raise InputError(f"{name}: 16 bits a colour, of which Pillow reads 8; convert to 8 bits, or give a .npy file")
    image = ImageOps.exif_transpose(image)
    if mode == "1":
        return np.asarray(image), "bits"
    if mode == "P":
        return _of_palette(image), "palette"
    if mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        array = np.asarray(image).astype(np.int64)
        if array.min() < 0 or array.max() >= 2**16:
            raise InputError(
                f"{name}: image mode {mode} with values from {array.min()} to {array.max()}, expected 16-bit grey"
            )
        return array.astype(np.uint16), "16-bit"
    if mode == "F":
        return np.asarray(image), "floats"
    if mode == "CMYK":
        return np.asarray(image.convert("RGB")), "CMYK"
    mode = {"LA": "RGBA", "PA": "RGBA"}.get(mode, mode)
    if mode not in ("L", "RGB", "RGBA"):
        raise InputError(f"{name}: image mode {image.mode}, expected 8-bit grey or colour, 16-bit grey, or bits")
    return np.asarray(image.convert(mode)), "8-bit"


def _of_palette(image: Any) -> np.ndarray:
    """The colours; one channel if all colours of the palette that occur are grey."""
    colours = np.asarray(image.convert("RGBA" if "transparency" in image.info else "RGB"))
    palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
    grey = bool((palette == palette[:, :1]).all())
    return colours[..., 0] if grey and colours.shape[-1] == 3 else colours
