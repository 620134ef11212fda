"""Tables, and data sets that Hugging Face's `datasets` saved: numbers or lists of them, labels named, text refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vae2aef.comparison.errors import InputError
from vae2aef.comparison.found import Found, split_of, without_test
from vae2aef.comparison.header import LABELS, SPLIT, read_header
from vae2aef.comparison.images import as_array, conversions

TABLES = {".csv": "read_csv", ".parquet": "read_parquet"}


def read_table(path: Path) -> Found:
    """Read a CSV or Parquet file: a row a datum, a column a feature, or one column of lists of one length.

    A column `label`, `labels`, `target`, `class` or `y` holds labels, a column `split` says train, validation or test.

    Raises:
        InputError: pandas (for Parquet pyarrow too) is missing, the file is damaged, or columns are no numbers.
    """
    pandas = _import("pandas", "tables")
    if path.suffix == ".parquet":
        _import("pyarrow", "tables")
    try:
        first = [] if path.suffix != ".csv" else _first_line(path, pandas)
        header, notes = read_header(first, str(path))
        frame = getattr(pandas, TABLES[path.suffix])(path, **({} if header else {"header": None}))
    except InputError:
        raise
    except Exception as problem:  # parsers have many ways to fail
        raise InputError(f"{path}: not a readable {path.suffix[1:]} table ({problem})") from problem
    found = _of_frame(frame, str(path), pandas)
    found.notes = notes + found.notes
    return found


def _first_line(path: Path, pandas: Any) -> list[str]:
    line = pandas.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    return [str(cell) for cell in line.iloc[0]]


def _of_frame(frame: Any, name: str, pandas: Any) -> Found:
    if not len(frame) or not len(frame.columns):
        raise InputError(f"{name}: an empty table ({len(frame)} rows, {len(frame.columns)} columns)")
    frame.columns = [str(column) for column in frame.columns]
    frame, notes = _without_row_numbers(frame)
    labels, split = _column(frame, LABELS), _column(frame, (SPLIT,))
    if split is not None and pandas.api.types.is_numeric_dtype(frame[split]):
        notes.append(f"column {split} holds numbers, names no parts of the data, and is a feature")
        split = None
    features = frame.drop(columns=[c for c in (labels, split) if c is not None])
    values, columns = _values(features, name, pandas)
    rows, more = _splits(None if split is None else frame[split], len(frame), name)
    found = Found({part: values[at] for part, at in rows.items()}, notes=notes + more, columns=columns)
    if labels is not None:
        found.notes.append(f"column {labels} holds labels and is no feature")
        if others := [c for c in features.columns if c.lower() in LABELS]:
            found.notes.append(f"columns named like labels, and features: {', '.join(others)}")
        found.labels = {part: frame[labels].to_numpy()[at] for part, at in rows.items()}
    return found


def _column(frame: Any, names: tuple[str, ...]) -> str | None:
    return next((column for column in frame.columns if column.lower() in names), None)


def _without_row_numbers(frame: Any) -> tuple[Any, list[str]]:
    """What pandas writes beside a table: 0, 1, 2, ..."""
    column = next((c for c in frame.columns if c.startswith(("Unnamed: ", "__index_level_"))), None)
    if column is None or not (frame[column].to_numpy() == np.arange(len(frame))).all():
        return frame, []
    return frame.drop(columns=column), [f"column {column} numbers the rows and is left out"]


def _splits(column: Any, size: int, name: str) -> tuple[dict[str, Any], list[str]]:
    """Which rows belong to which part."""
    if column is None:
        return {"all": slice(None)}, []
    if empty := int(column.isna().sum()):
        raise InputError(f"{name}: column split has {empty} empty cells, expected train, validation or test")
    said = [str(value) for value in column]
    parts = [split_of(value) for value in said]
    if unknown := sorted({value for value, part in zip(said, parts, strict=True) if part is None}):
        raise InputError(f"{name}: column split says {', '.join(unknown[:5])}, expected train, validation or test")
    used, notes = without_test({part for part in parts if part})
    if "train" not in used or "test" not in used.values():
        raise InputError(f"{name}: column split names {', '.join(sorted(used))} alone, expected train and test rows")
    return {used[part]: np.array([one == part for one in parts]) for part in used}, notes


def _values(features: Any, name: str, pandas: Any) -> tuple[np.ndarray, list[str]]:
    """Return the data, `(n, features)` or `(n, length, ...)`, and the names of the features."""
    sequences = _sequences(features, name)
    if sequences is not None:
        return sequences, []
    _require_numbers(features, name, pandas)
    return features.to_numpy(), list(features.columns)


def _sequences(features: Any, name: str) -> np.ndarray | None:
    """Return the rows of the one column that holds lists of numbers, `(n, length, ...)`; None if none holds lists."""
    nested = [
        c for c in features.columns if any(isinstance(row, list | tuple | np.ndarray) for row in features[c][:100])
    ]
    if not nested:
        return None
    column = nested[0]
    if others := [c for c in features.columns if c != column]:
        raise InputError(
            f"{name}: column {column} holds lists, and there are the columns {', '.join(others[:8])} beside it; leave "
            "one of the two out"
        )
    rows = []
    for number, row in enumerate(features[column]):
        array = _array(row)
        if array is None:
            raise InputError(f"{name}, row {number}: column {column} holds no numbers there, or lists of two lengths")
        rows.append(array)
    if len(shapes := {row.shape for row in rows}) > 1:
        raise InputError(
            f"{name}: lists of column {column} have shapes {', '.join(map(str, sorted(shapes)[:4]))}; pad or cut them "
            "to one"
        )
    if not np.isfinite(stacked := np.stack(rows)).all():
        raise InputError(f"{name}: missing or infinite values in column {column}; drop or fill them first")
    return stacked


def _array(row: Any) -> np.ndarray | None:
    """Return a list, of lists too, of numbers as an array; None if it is none."""
    try:
        array = np.asarray([_array(part) if isinstance(part, list | tuple | np.ndarray) else part for part in row])
    except (TypeError, ValueError):  # None is in the place of a row; lists of two lengths
        return None
    return array if array.dtype.kind in "biuf" and array.size else None


def _require_numbers(features: Any, name: str, pandas: Any) -> None:
    text = [c for c in features.columns if not pandas.api.types.is_numeric_dtype(features[c])]
    if text:
        raise InputError(
            f"{name}: columns that hold no numbers: {', '.join(text[:8])}; leave them out, turn them into numbers "
            f"(one column of 0 and 1 for each category), or call one of them {LABELS[0]} if it is a label"
        )
    if not len(features.columns):
        raise InputError(f"{name}: no features besides labels and split")
    if missing := [c for c in features.columns if features[c].isna().any()]:
        raise InputError(f"{name}: missing values in the columns {', '.join(missing[:8])}; drop or fill them first")


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of Hugging Face's `datasets`."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def read_saved_dataset(path: Path) -> Found:
    """Read what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote: images, lists, or numbers.

    Raises:
        InputError: `datasets` is missing, the folder is damaged, or there is no column, or more than one, of images.
    """
    datasets = _import("datasets", "tables")
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as problem:  # arrow has many ways to fail
        raise InputError(f"{path}: not a readable data set of Hugging Face ({problem})") from problem
    if not isinstance(loaded, dict):
        return _joined({"all": loaded}, path, datasets, [])
    named = {split_of(name): part for name, part in loaded.items()}
    splits = {part: kept for part, kept in named.items() if part}
    used, notes = without_test(splits)
    if "train" not in used or "test" not in used.values():
        raise InputError(f"{path}: splits {', '.join(loaded)}, expected train and test (or validation)")
    if others := [name for name in loaded if split_of(name) is None]:
        notes.append(f"splits that are not used: {', '.join(others)}")
    return _joined({used[part]: kept for part, kept in splits.items()}, path, datasets, notes)


def _joined(parts: dict[str, Any], path: Path, datasets: Any, notes: list[str]) -> Found:
    read: Callable[[Any], Found]
    pictures = [name for name, kind in next(iter(parts.values())).features.items() if isinstance(kind, datasets.Image)]
    if len(pictures) > 1:
        raise InputError(f"{path}: columns of images {', '.join(pictures)}, expected one; remove the others")
    if pictures:
        read = lambda part: _pictures(part, pictures[0], path)  # noqa: E731
    else:
        pandas = _import("pandas", "tables")
        read = lambda part: _of_frame(part.to_pandas(), str(path), pandas)  # noqa: E731
    found = {part: read(data) for part, data in parts.items()}
    if "all" in found:
        found["all"].notes = notes + found["all"].notes
        return found["all"]
    if named := [part for part, one in found.items() if "all" not in one.parts]:
        raise InputError(
            f"{path}: the {named[0]} data have a column split of their own, beside the splits of the data set; "
            "remove it"
        )
    first = next(iter(found.values()))
    joined = Found({part: one.parts["all"] for part, one in found.items()}, notes=notes + first.notes)
    joined.columns, joined.bins = first.columns, first.bins
    if all(one.labels for one in found.values()):
        joined.labels = {part: one.labels["all"] for part, one in found.items()}
    return joined


def _pictures(part: Any, column: str, path: Path) -> Found:
    made = [as_array(row[column], f"{path}, row {number}") for number, row in enumerate(part)]
    shapes = {array.shape for array, _ in made}
    if len(shapes) > 1:
        raise InputError(f"{path}: images of sizes {', '.join(map(str, sorted(shapes)[:4]))}; bring all to one size")
    label = next((name for name in part.column_names if name.lower() in LABELS), None)
    kinds = {kind for _, kind in made}
    found = Found({"all": np.stack([array for array, _ in made])}, bins=2 if kinds == {"bits"} else None)
    found.notes += conversions(kinds)
    if label is not None:
        found.labels = {"all": np.asarray(part[label])}
    return found


def _import(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise InputError(f'this needs {name}: pip install "vae2aef[{extra}]"') from problem
