"""Each way data comes in, and each way it can be wrong."""

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vae2aef.comparison.data import load
from vae2aef.comparison.errors import InputError

RNG = np.random.RandomState(0)
GREY = RNG.randint(0, 256, (20, 5, 4)).astype(np.uint8)
SHARED = Path(__file__).parents[2] / "shared"


def idx_bytes(array: np.ndarray, code: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


def test_photographs_are_tiles_that_tell_their_place():
    from sklearn.datasets import load_sample_images

    data = load("photographs")
    assert data.bins == 256 and data.event_shape == (1, 8, 8)
    assert len(data.x_train) + len(data.x_test) == 2 * (427 // 8) * (640 // 8)
    china = load_sample_images().images[0].astype(float) @ [0.299, 0.587, 0.114]
    tiles = torch.cat([data.x_train, data.x_test])[:, 0].double()
    wanted = torch.from_numpy(china[16:24, 320:328]).round()
    assert (tiles - wanted).abs().amax((1, 2)).min() == 0


def test_digits_are_integers_with_seventeen_levels_and_a_fixed_split():
    first, second = load("digits"), load("digits")
    assert first.event_shape == (1, 8, 8)
    assert first.bins == 17
    assert int(first.x_train.max()) == 16
    assert len(first.x_train) + len(first.x_test) == 1797
    assert torch.equal(first.x_test, second.x_test)
    assert first.digest() == second.digest()


def test_validation_is_a_tenth_and_disjoint():
    data = load("digits")
    train, validation = data.split_validation()
    assert len(validation) == 144
    everything = torch.cat([train, validation]).flatten(1).sort(0).values
    assert torch.equal(everything, data.x_train.flatten(1).sort(0).values)


@pytest.mark.parametrize("names", [("x_train", "x_test"), ("train", "test")])
def test_npz_with_train_and_test(tmp_path, names):
    np.savez(tmp_path / "a.npz", **{names[0]: GREY, names[1]: GREY[:3]})
    data = load(str(tmp_path / "a.npz"))
    assert torch.equal(data.x_train, torch.from_numpy(GREY)[:, None])
    assert torch.equal(data.x_test, torch.from_numpy(GREY[:3])[:, None])
    assert data.bins == 256


def test_a_single_array_gives_a_fifth_to_the_test_set(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    data = load(str(tmp_path / "a.npy"))
    assert (len(data.x_train), len(data.x_test)) == (16, 4)
    rows = {row.tobytes() for row in torch.cat([data.x_train, data.x_test]).numpy()}
    assert rows == {row.tobytes() for row in GREY}


def test_channels_come_first(tmp_path):
    colour = RNG.randint(0, 256, (12, 5, 6, 3)).astype(np.uint8)
    np.save(tmp_path / "last.npy", colour)
    np.save(tmp_path / "first.npy", np.moveaxis(colour, -1, 1))
    last, first = load(str(tmp_path / "last.npy")), load(str(tmp_path / "first.npy"))
    assert last.event_shape == (3, 5, 6)
    assert torch.equal(last.x_train, first.x_train)


@pytest.mark.parametrize(
    ("shape", "event"),
    [((1, 4, 4), (1, 4, 4)), ((3, 6, 4), (3, 6, 4)), ((4, 4, 1), (1, 4, 4)), ((4, 6, 3), (3, 4, 6)),
     ((4, 5, 5), (4, 5, 5)), ((4, 6, 4), (4, 4, 6))],
)  # fmt: skip
def test_an_image_of_four_pixels_a_side_has_not_four_channels(tmp_path, shape, event):
    """The fewer values are the channels; where they are as many, the last."""
    np.save(tmp_path / "a.npy", RNG.randint(0, 256, (12, *shape)).astype(np.uint8))
    assert load(str(tmp_path / "a.npy")).event_shape == event


def test_vectors_stay_vectors(tmp_path):
    np.save(tmp_path / "a.npy", RNG.rand(20, 7))
    data = load(str(tmp_path / "a.npy"))
    assert data.event_shape == (7,)
    assert (data.bins, data.x_train.dtype) == (1, torch.float32)


def test_floats_on_the_8_bit_grid_are_8_bit_data(tmp_path):
    np.save(tmp_path / "a.npy", GREY.astype(np.float32) / 255)
    np.save(tmp_path / "b.npy", GREY)
    grid, whole = load(str(tmp_path / "a.npy")), load(str(tmp_path / "b.npy"))
    assert grid.bins == 256
    assert torch.equal(grid.x_train, whole.x_train)
    assert load(str(tmp_path / "a.npy"), bins=1).bins == 1


def test_bins_of_other_integers(tmp_path):
    np.save(tmp_path / "a.npy", GREY.astype(np.int64) * 4)
    assert load(str(tmp_path / "a.npy"), bins=1021).x_train.dtype == torch.int32
    with pytest.raises(InputError, match=r"in steps of 4, which may be 256 levels or 1021;.*--bins 256 or --bins 1021"):
        load(str(tmp_path / "a.npy"))
    np.save(tmp_path / "b.npy", GREY > 100)
    assert load(str(tmp_path / "b.npy")).bins == 2


@pytest.mark.parametrize("packed", [False, True])
def test_idx_with_its_test_sibling(tmp_path, packed):
    for name, array in (("train", GREY), ("t10k", GREY[:4])):
        raw = idx_bytes(array)
        path = tmp_path / f"{name}-images-idx3-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(raw) if packed else raw)
    data = load(str(tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"))
    assert torch.equal(data.x_train[:, 0], torch.from_numpy(GREY))
    assert len(data.x_test) == 4


def test_idx_numbers_are_big_endian(tmp_path):
    array = RNG.rand(12, 3).astype(">f4")
    (tmp_path / "a-idx2").write_bytes(idx_bytes(array, 0x0D))
    data = load(str(tmp_path / "a-idx2"))
    assert torch.cat([data.x_train, data.x_test]).sum().item() == pytest.approx(array.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not an IDX file"),
        (b"hello world", "not an IDX file"),
        (idx_bytes(GREY)[:10], "cut off"),
        (idx_bytes(GREY)[:-1], "needs 400 bytes of data, 399"),
        (idx_bytes(np.zeros(20, np.uint8)), "labels"),
    ],
)
def test_damaged_idx(tmp_path, raw, message):
    (tmp_path / "a-idx3-ubyte").write_bytes(raw)
    with pytest.raises(InputError, match=message):
        load(str(tmp_path / "a-idx3-ubyte"))


def test_damaged_gzip(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match="cannot be read"):
        load(str(tmp_path / "a.gz"))


@pytest.mark.parametrize(("shape", "event"), [((5, 4), (1, 5, 4)), ((5, 4, 3), (3, 5, 4))])
def test_a_folder_of_images(tmp_path, shape, event):
    for i in range(11):
        Image.fromarray(RNG.randint(0, 256, shape).astype(np.uint8)).save(tmp_path / f"{i:02}.png")
    (tmp_path / "readme.txt").write_text("no image")
    data = load(str(tmp_path))
    assert data.event_shape == event
    assert len(data.x_train) + len(data.x_test) == 11


def test_a_folder_with_train_and_test(tmp_path):
    for part, n in (("train", 10), ("test", 3)):
        (tmp_path / part).mkdir()
        for i in range(n):
            Image.fromarray(GREY[i]).save(tmp_path / part / f"{i}.png")
    data = load(str(tmp_path))
    assert torch.equal(data.x_test[:, 0], torch.from_numpy(GREY[:3]))


def test_the_first_odd_image_is_named(tmp_path):
    for i, size in enumerate([(5, 4), (5, 4), (6, 4), (7, 4)]):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match=r"2\.png: size \(6, 4\) differs from \(5, 4\) of 0\.png"):
        load(str(tmp_path))


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png: not a readable image"):
        load(str(tmp_path))


def test_what_is_not_there_or_not_known(tmp_path):
    with pytest.raises(
        InputError, match=r"no such file or folder: nowhere\.npz\. Accepted: photographs, digits, a \.npz"
    ):
        load("nowhere.npz")
    with pytest.raises(InputError, match="no images in this folder"):
        load(str(tmp_path))
    (tmp_path / "a.mat").write_text("1,2")
    with pytest.raises(InputError, match="do not know this kind of file"):
        load(str(tmp_path / "a.mat"))
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="not a readable NumPy file"):
        load(str(tmp_path / "a.npz"))


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x_train=np.array([{}, 1], dtype=object), x_test=GREY)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match="never unpickled"):
            load(str(tmp_path / name))


def header(shape, dtype="<f4", version=1):
    """A .npy that promises values, and holds eight bytes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text + b"12345678"


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


SEVEN_TIB = (7 * 2**18, 1024, 1024)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (
            "a.npy",
            lambda p: p.write_bytes(header(SEVEN_TIB)),
            r"promises 7,696,581,394,432 bytes of values, and \d+ are",
        ),
        ("a.npy", lambda p: p.write_bytes(header((-5, 4))), "not a readable NumPy file|samples of shape"),
        ("a.npy", lambda p: p.write_bytes(header((2**70, 4))), "promises"),
        ("a.npz", lambda p: zipped(p, {"x_train.npy": header(SEVEN_TIB)}), "promises 7,696,581,394,432 bytes"),
        ("a.npz", lambda p: zipped(p, {"readme.txt": "hello"}), "a zip file that holds no arrays"),
        ("a.npz", lambda p: zipped(p, {}), "a zip file that holds no arrays"),
        ("a.npz", lambda p: zipped(p, {"x_train.npy": b"text"}), "not a readable NumPy file"),
        ("a.npz", lambda p: zipped(p, {"../../x.npy": b"\x93NUMPY"}), "not a readable NumPy file"),
        ("a-idx3.gz", lambda p: p.write_bytes(gzip.compress(idx((2**31, 2**10, 2**10)))), "bytes of memory are free"),
        ("a-idx3.gz", lambda p: p.write_bytes(gzip.compress(idx((9, 2, 2)) + bytes(10**7))), "more are there"),
        (
            "a-idx3.gz",
            lambda p: p.write_bytes(gzip.compress(bytes(10**7))),
            "labels; give the file of images|not an IDX",
        ),
    ],
)
def test_bombs_and_false_promises(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        load(str(tmp_path / name))
    assert "allow_pickle" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [name] and not (tmp_path.parent.parent / "x.npy").exists()


def idx(shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """A .npz of some kB that holds, and says so, more than is free."""
    np.savez_compressed(tmp_path / "a.npz", x_train=np.zeros((2000, 40, 40)))
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    monkeypatch.setattr("vae2aef.comparison.readers.free_memory", lambda device: 10**7)
    with pytest.raises(InputError, match="holds 25,600,000 bytes of values, and 10,000,000 bytes of memory are free"):
        load(str(tmp_path / "a.npz"))
    np.savez_compressed(tmp_path / "b.npz", x_train=np.zeros((600, 40, 40)), x_test=np.zeros((600, 40, 40)))
    with pytest.raises(InputError, match="holds 15,360,000 bytes"):  # each would fit
        load(str(tmp_path / "b.npz"))


def test_an_image_bomb_is_refused(tmp_path, monkeypatch):
    from PIL import Image

    Image.new("L", (300, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"a\.png: an image too large"):
        load(str(tmp_path))


@pytest.mark.parametrize("value", [1e200, 1e30, -1e16, 2**60])
def test_values_that_float32_cannot_square(tmp_path, value):
    array = np.arange(80).reshape(20, 4) + (0 if isinstance(value, int) else 0.5)
    array[3, 2] = value
    np.save(tmp_path / "a.npy", array)
    for bins in (None, 1) if isinstance(value, float) else (None,):
        with pytest.raises(InputError, match="which float32 cannot square or tell apart; scale the data"):
            load(str(tmp_path / "a.npy"), bins)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 4, 4), np.uint8), "0 samples"),
        (np.zeros((20, 0)), "0, expected|not empty"),
        (np.zeros((3, 4, 4), np.uint8), "3 samples, at least 10"),
        (np.full((20, 4), np.nan), "NaN"),
        (np.full((20, 4), np.inf), "NaN or infinite"),
        (np.full((20, 4), -1), "integers from -1"),
        (np.zeros((20, 4), complex), "complex128"),
        (np.full((20, 4), 7), "7 to 7, which may be 8 levels"),
        (np.full((20, 4), 200), "in steps of 200, which may be 2 levels or 256"),
        (np.ones((20, 4)), "all data are the same, so there is nothing to learn"),
        (np.zeros(20), r"shape \(20,\)"),
        (np.zeros((20, 5, 5, 7), np.uint8), r"1, 3 or 4 channels"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=message):
        load(str(tmp_path / "a.npy"))


def test_other_arrays_and_shapes_in_npz(tmp_path):
    np.savez(tmp_path / "a.npz", a=GREY, b=GREY)
    with pytest.raises(InputError, match=r"\['a', 'b'\], expected x_train and x_test"):
        load(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", x_train=GREY, x_test=GREY[:, :3])
    with pytest.raises(InputError, match=r"\(1, 5, 4\), test samples \(1, 3, 4\)"):
        load(str(tmp_path / "b.npz"))


def test_the_mnist_file():
    path = SHARED / "data" / "mnist.npz"
    if not path.exists():
        pytest.skip("shared/data/mnist.npz is not on this machine")
    data = load(str(path))
    assert (data.event_shape, data.bins, len(data.x_train), len(data.x_test)) == ((1, 28, 28), 256, 60000, 10000)


# ---------------------------------------------------------------- how many levels

LEVELS17 = RNG.randint(0, 17, (40, 8, 8))


def saved(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    return str(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_whole_floats_are_levels(tmp_path, dtype):
    data = load(saved(tmp_path, GREY.astype(dtype)))
    assert (data.bins, data.x_train.dtype) == (256, torch.uint8)
    assert set(torch.cat([data.x_train, data.x_test]).flatten().tolist()) == set(GREY.flatten().tolist())


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_zeros_and_ones_are_two_levels(tmp_path, dtype):
    data = load(saved(tmp_path, (GREY > 100).astype(dtype)))
    assert (data.bins, int(data.x_train.max())) == (2, 1)
    assert load(saved(tmp_path, (GREY > 100).astype(np.float32)), bins=256).x_train.max() == 255


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("levels", "divisor"), [(17, 16), (16, 16), (16, 15), (18, 17), (1021, 1020)])
def test_few_evenly_spaced_floats_ask_for_their_levels(tmp_path, levels, divisor, dtype):
    whole = RNG.randint(0, levels, (40, 25, 25))
    whole[0, 0, :2] = 0, levels - 1
    path = saved(tmp_path, (whole / divisor).astype(dtype))
    distinct = len(np.unique(whole))
    with pytest.raises(InputError, match=rf"{distinct} distinct values.* --bins {levels}\b.*--bins 1 "):
        load(path)
    data = load(path, bins=levels)
    assert data.bins == levels
    assert np.array_equal(np.sort(torch.cat([data.x_train, data.x_test]).flatten()), np.sort(whole.flatten()))
    assert load(path, bins=1).x_train.is_floating_point()


@pytest.mark.parametrize("change", [lambda x: 2 * x - 1, lambda x: (x - 0.1307) / 0.3081, lambda x: x.round(1) * 7])
def test_levels_that_were_rescaled_are_discrete_still(tmp_path, change):
    x = change(RNG.randint(0, 256, (40, 8, 8)) / 255)
    with pytest.raises(InputError, match=r"distinct values.*the integers themselves.*--bins 1 "):
        load(saved(tmp_path, x.astype(np.float32)))
    assert load(saved(tmp_path, x), bins=1).bins == 1


def test_continuous_floats_are_taken_as_such(tmp_path):
    for x in (
        RNG.rand(50, 40),
        RNG.rand(50, 40).astype(np.float32) * 7 - 3,
        np.linspace(-1, 2, 80).reshape(20, 4),  # evenly spaced, each value once
        RNG.rand(9)[RNG.randint(0, 9, (50, 40))],  # few, but not evenly spaced
    ):
        assert load(saved(tmp_path, x)).bins == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_small_whole_numbers_ask_for_their_levels(tmp_path, dtype):
    path = saved(tmp_path, LEVELS17.astype(dtype))
    with pytest.raises(InputError, match=r"0 to 16, which may be 17 levels.*--bins 17 or --bins 256") as caught:
        load(path)
    assert ("--bins 1 if" in str(caught.value)) == (dtype is np.float32)
    assert (load(path, bins=17).bins, load(path, bins=256).bins) == (17, 256)


@pytest.mark.parametrize(
    ("array", "bins", "message"),
    [
        (GREY * 4.0, None, r"whole numbers from 0 to 1020 in steps of 4.*--bins 256 or --bins 1021, or --bins 1 "),
        (
            GREY.astype(int) * 4 + GREY % 3,
            None,
            r"integers from 0 to 10\d\d, expected 0 to 255; .*--bins 1024 \(10-bit values\) or --bins 10\d\d",
        ),
        (GREY - 100.0, None, "whole numbers from -100 to .*shift them to start at 0, or --bins 1 "),
        (RNG.rand(20, 4), 256, r"not on the grid k/255 which --bins 256 means; leave --bins out"),
        (GREY, 1, "these are integers; save them as floats"),
    ],
)
def test_levels_that_do_not_fit(tmp_path, array, bins, message):
    with pytest.raises(InputError, match=message):
        load(saved(tmp_path, array), bins=bins)


def test_a_npz_that_is_called_npy_is_read_as_what_it_is(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.rand(40, 3))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    assert load(str(tmp_path / "x.npy"), 1).x_train.shape == (32, 3)
    with zipfile.ZipFile(tmp_path / "empty.npy", "w"):
        pass
    with pytest.raises(InputError, match="a zip file that holds no arrays"):
        load(str(tmp_path / "empty.npy"))
