"""Random files and random options: either they work, or the error is ours, and says in one line what to do."""

import io
import pickle
import traceback
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zoo_core import SmallVAE

import vae2aef
from vae2aef.comparison.data import load
from vae2aef.comparison.errors import InputError

HERE = Path(vae2aef.__file__).parent
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))

SUFFIXES = (".npy", ".npz", ".gz", ".csv", ".parquet", "-idx3-ubyte", "-idx3-ubyte.gz", ".txt", ".png")
KINDS = hnp.scalar_dtypes() | hnp.array_dtypes() | hnp.nested_dtypes() | st.sampled_from([np.dtype(object)])
USUAL = st.sampled_from([np.dtype(name) for name in ("u1", "f4", "f8", "i8", "?", "f2", "u2")])


@st.composite
def arrays(draw: Any) -> np.ndarray:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=12))
    dtype = draw(USUAL | KINDS)
    if dtype.hasobject:
        return np.full(shape, None, dtype)
    return draw(hnp.arrays(dtype, shape, fill=hnp.from_dtype(dtype)))


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def as_npz(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


NAMES = st.sampled_from(["x_train.npy", "x_test.npy", "x.npy", "y_train.npy", "y_test.npy", "../x.npy", "x", "a.txt"])
WHOLE = st.one_of(
    st.binary(max_size=200),
    arrays().map(as_npy),
    st.dictionaries(NAMES, arrays().map(as_npy) | st.binary(max_size=40), max_size=4).map(as_npz),
    st.just(pickle.dumps({"x": 1})),
    st.text(max_size=200).map(str.encode),
    st.lists(st.lists(st.floats() | st.integers() | st.text(max_size=3), max_size=4), max_size=14).map(
        lambda rows: "\n".join(",".join(map(str, row)) for row in rows).encode(errors="replace")
    ),
)


@st.composite
def files(draw: Any) -> bytes:
    """Whole ones, such with an end cut off, and such with bytes changed."""
    content = bytearray(draw(WHOLE))
    for _ in range(draw(st.integers(0, 3)) if content else 0):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


def require_a_file_is_read_or_refused(folder: Path, content: bytes, suffix: str, bins: int | None) -> None:
    path = folder / f"data{suffix}"
    path.write_bytes(content)
    try:
        found = load(str(path), bins)
    except InputError as problem:
        assert str(problem) and "\n" not in str(problem).strip(), problem
    else:
        assert found.x_train.isfinite().all() and len(found.x_train) >= 8
    assert [p.name for p in folder.iterdir()] == [path.name]
    path.unlink()


FILE = {"content": files(), "suffix": st.sampled_from(SUFFIXES), "bins": st.sampled_from([None, 1, 2, 256])}


@pytest.mark.filterwarnings("ignore")
@FEW
@given(**FILE)
def test_random_files(tmp_path_factory, content, suffix, bins):
    require_a_file_is_read_or_refused(tmp_path_factory.mktemp("fuzz"), content, suffix, bins)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@MANY
@given(**FILE)
def test_many_random_files(tmp_path_factory, content, suffix, bins):
    require_a_file_is_read_or_refused(tmp_path_factory.mktemp("fuzz"), content, suffix, bins)


# ------------------------------------------------------------------ options of wrap

ODD = st.booleans() | st.integers(-3, 5) | st.floats() | st.text(max_size=5) | st.sampled_from([
    None, (), [], {}, object(), int, len, torch.zeros(3), torch.nn.Linear(2, 2), {"z": 1.0}, lambda *a, **k: None,
    np.float32(0.5), torch.distributions.Normal,
])  # fmt: skip
WORDS = {
    "core": ("linear", "noise", "patch", "center", "random", "normalized"),
    "core_flow": ("none", "coupling", "maf"),
    "prior": ("coupling", "maf"),
    "likelihood": ("learned", "channel", "shared", "laplace", "bernoulli_logits", "poisson_log", 0.5),
    "kl": ("analytic", "sampled"),
    "preprocess": ("logit", "standardize", ["logit", "standardize"]),
    "noise": (0.0, 0.3, 1.0),
    "start": ("exact", "random"),
    "encoder_scale": ("log_std", "log_var", "std", "var"),
    "decoder_scale": (None, "std"),
    "encoder": (None,),
    "decoder": (None,),
    "forward": (None,),
    "output": (None,),
    "added": (None,),
}
X = torch.rand(6, 2, 3)
OTHERS = [
    X[0], X[:0], X[:1], X.double(), X.half(), X.int(), X * torch.nan, X * 1e30, X > 0.5, X[..., 0], (X,), (X, X[:, 0]),
    (X, "a"), [X], {"x": X}, X.numpy(), None, "x", 3, X.to_sparse(), torch.tensor(1.0),
]  # fmt: skip
EXAMPLES = st.just(X) | st.just(X) | st.sampled_from(OTHERS)


@st.composite
def calls(draw: Any) -> tuple[Any, dict[str, Any]]:
    names = draw(st.lists(st.sampled_from(list(WORDS)), unique=True, max_size=3))
    given_ = {name: draw(st.sampled_from(WORDS[name]) | ODD) for name in names}
    return draw(EXAMPLES), {"encoder_scale": "log_std", **given_}


def require_it_wraps_or_says_why(example: Any, options: dict[str, Any]) -> None:
    try:
        aef = vae2aef.wrap(SmallVAE((2, 3), (3,)), example=example, **options)
    except FileNotFoundError as problem:  # of added=
        assert isinstance(options["added"], str) and options["added"] in str(problem)
    except (vae2aef.WrapError, ValueError, TypeError) as problem:
        last = traceback.extract_tb(problem.__traceback__)[-1]
        assert Path(last.filename).is_relative_to(HERE), f"{options}: {type(problem).__name__} from {last}: {problem}"
        assert str(problem).strip()
    else:
        assert isinstance(aef, vae2aef.AEF)


@pytest.mark.filterwarnings("ignore")
@settings(FEW, max_examples=25)
@given(calls())
def test_random_options(call):
    require_it_wraps_or_says_why(*call)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@MANY
@given(calls())
def test_many_random_options(call):
    require_it_wraps_or_says_why(*call)


@pytest.mark.parametrize("damage", ["descr", "header", "magic", "scalar"])
def test_damaged_arrays_inside_a_zip_are_named(tmp_path, damage):
    """What a longer fuzzing found: each ended in a traceback of NumPy's, or of ours."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(()) if damage == "scalar" else np.zeros((12, 3)))
    content = buffer.getvalue()
    content = {
        "descr": content.replace(b"'descr': '<f8'", b"'descr': '<f8 "),
        "header": content.replace(b"{'descr'", b"\0'descr'"),
        "magic": b"\x93NUMPZ" + content[6:],
    }.get(damage, content)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(InputError, match=r"x\.npz: (not a readable NumPy file|holds a single number)"):
        load(str(tmp_path / "x.npz"))


def test_a_sigma_that_no_float_holds_is_refused():
    aef = vae2aef.wrap(SmallVAE((4,), (2,)), example=torch.rand(8, 4), encoder_scale="log_std")
    for value in (3.5e38, 1e16, float("inf"), float("nan"), -1.0):
        with pytest.raises(ValueError, match="expected noise 0"):
            aef.noise = value
    assert aef.noise == pytest.approx(0.3)
