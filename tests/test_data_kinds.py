"""What data are told or asked: alpha, constants, bits in 0 and 255, parts, labels, kinds of images, tables."""

import numpy as np
import pytest
import torch
from PIL import Image

from vae2aef.comparison.data import load
from vae2aef.comparison.errors import InputError

RNG = np.random.RandomState(0)
COLOUR = RNG.randint(0, 256, (12, 5, 4, 3)).astype(np.uint8)
GREY = COLOUR[..., 0]


def all_of(data):
    """Every datum, in an order that does not depend on the split."""
    rows = torch.cat([data.x_train, data.x_test]).flatten(1)
    return sorted(rows.tolist())


def write(folder, arrays, mode=None, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array, mode).save(folder / f"{i:03}.{suffix}")


def with_alpha(alpha):
    return np.concatenate([COLOUR, np.broadcast_to(alpha, COLOUR.shape[:3]).astype(np.uint8)[..., None]], -1)


def test_a_constant_alpha_is_left_out_and_named(tmp_path):
    write(tmp_path / "rgba", with_alpha(255))
    write(tmp_path / "rgb", COLOUR)
    data, plain = load(str(tmp_path / "rgba")), load(str(tmp_path / "rgb"))
    assert all_of(data) == all_of(plain) and data.event_shape == (3, 5, 4)
    assert data.notes == ("left out, as it is the same in all data: alpha (255)",) and plain.notes == ()


def test_an_alpha_that_varies_is_data_and_named(tmp_path):
    write(tmp_path / "a", with_alpha(GREY))
    data = load(str(tmp_path / "a"))
    assert data.event_shape == (4, 5, 4) and "alpha, varies and is scored" in data.notes[0]


def test_constant_features_are_left_out_only_where_they_are_so_in_all_data(tmp_path):
    x = RNG.rand(30, 4)
    x[:, 1] = 0.5
    np.savez(tmp_path / "a.npz", x_train=x[:20], x_test=x[20:])
    data = load(str(tmp_path / "a.npz"))
    assert data.event_shape == (3,) and data.notes == ("left out, as it is the same in all data: feature 1",)
    x[25, 1] = 0.6
    np.savez(tmp_path / "b.npz", x_train=x[:20], x_test=x[20:])
    assert load(str(tmp_path / "b.npz"), 1).event_shape == (4,)
    with pytest.raises(InputError, match=r"discrete among continuous features: feature 1 \(2 values\)"):
        load(str(tmp_path / "b.npz"))


def test_constant_pixels_stay_and_are_named(tmp_path):
    x = GREY.copy()
    x[:, 0] = 0
    np.save(tmp_path / "a.npy", x)
    data = load(str(tmp_path / "a.npy"))
    assert data.event_shape == (1, 5, 4) and data.notes[0].startswith("4 of 20 values of a datum are the same")


def test_grey_pictures_stored_as_colour_are_named(tmp_path):
    write(tmp_path / "a", np.repeat(GREY[..., None], 3, -1))
    data = load(str(tmp_path / "a"))
    assert data.event_shape == (3, 5, 4) and "three channels are equal" in data.notes[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("levels", "step"), [(2, 255), (16, 17), (4, 85)])
def test_levels_in_steps_are_asked_for_and_read(tmp_path, levels, step, dtype):
    whole = RNG.randint(0, levels, (30, 5, 4))
    whole[0, 0, :2] = levels - 1, 1
    np.save(tmp_path / "a.npy", (whole * step).astype(dtype))
    with pytest.raises(InputError, match=rf"in steps of {step}, which.*--bins {levels} or --bins 256"):
        load(str(tmp_path / "a.npy"))
    data = load(str(tmp_path / "a.npy"), levels)
    assert data.bins == levels and all_of(data) == sorted(whole.reshape(30, -1).tolist())
    assert load(str(tmp_path / "a.npy"), 256).x_train.max() == 255
    with pytest.raises(InputError, match="expected 0 to 2"):  # three levels are none of these
        load(str(tmp_path / "a.npy"), 3)
    if levels > 2:
        with pytest.raises(InputError, match="expected 0 to 1"):  # nor are they bits, though 255 is a multiple of 1
            load(str(tmp_path / "a.npy"), 2)


# ---------------------------------------------------------------- parts and labels


@pytest.mark.parametrize("name", ["val", "validation", "Valid"])
def test_validation_beside_training_and_test(tmp_path, name):
    for part, rows in (("train", COLOUR[:8]), (name, COLOUR[8:10]), ("test", COLOUR[10:])):
        write(tmp_path / part, rows)
    (tmp_path / "masks").mkdir()
    write(tmp_path / "masks", COLOUR[:1])
    data = load(str(tmp_path))
    train, validation = data.split_validation()
    assert [len(train), len(validation), len(data.x_test)] == [8, 2, 2]
    assert torch.equal(validation, torch.from_numpy(np.moveaxis(COLOUR[8:10], -1, 1)))
    assert data.notes == ("folders beside train that are not used: masks",)
    assert data.digest() != load_without_validation(tmp_path, name).digest()


def load_without_validation(folder, name):
    (folder / name).rename(folder / "other")
    return load(str(folder))


def test_training_and_validation_are_not_pooled(tmp_path):
    write(tmp_path / "train", COLOUR[:8])
    write(tmp_path / "val", COLOUR[8:])
    data = load(str(tmp_path))
    assert torch.equal(data.x_test, torch.from_numpy(np.moveaxis(COLOUR[8:], -1, 1)))
    assert data.x_validation is None and "the validation data are the test data" in data.notes[0]


def test_a_class_that_is_called_train(tmp_path):
    for name in ("bus", "train"):
        write(tmp_path / name, COLOUR[:6])
    data = load(str(tmp_path))
    assert len(data.x_train) + len(data.x_test) == 12 and data.classes == ("bus", "train")


def test_class_folders_are_labels(tmp_path):
    for part, n in (("train", 5), ("test", 2)):
        write(tmp_path / part / "cat", GREY[:n])
        write(tmp_path / part / "ant", 255 - GREY[:n])
    data = load(str(tmp_path))
    assert data.classes == ("ant", "cat")
    assert data.labels["train"].tolist() == [0] * 5 + [1] * 5 and data.labels["test"].tolist() == [0, 0, 1, 1]


def test_labels_follow_their_data(tmp_path):
    x = np.arange(40)[:, None] + RNG.rand(40, 3) / 4
    y = np.arange(40) % 7 + 10
    np.savez(tmp_path / "a.npz", x=x, y=y)
    data = load(str(tmp_path / "a.npz"))
    assert data.classes == tuple(map(str, range(10, 17)))
    parts = zip(
        (*data.split_validation(), data.some_test(5)), (*data.split_labels(), data.some_test_labels(5)), strict=True
    )
    for rows, labels in parts:
        assert (rows[:, 0].floor().long() % 7).tolist() == labels.tolist()


def test_labels_and_validation_of_npz(tmp_path):
    np.savez(
        tmp_path / "a.npz", x_train=GREY[:8], y_train=np.arange(8), x_val=GREY[8:10], y_val=[1, 2],
        x_test=GREY[10:], y_test=[3, 4],
    )  # fmt: skip
    data = load(str(tmp_path / "a.npz"))
    assert data.split_labels()[1].tolist() == [1, 2] and data.labels["test"].tolist() == [3, 4]
    np.savez(tmp_path / "b.npz", x_train=GREY[:8], y_train=np.eye(8), x_test=GREY[10:], y_test=np.eye(8)[:2])
    data = load(str(tmp_path / "b.npz"))
    assert data.labels["train"].tolist() == list(range(8)) and data.labels["test"].tolist() == [0, 1]


# ---------------------------------------------------------------- kinds of images


def test_bits_hold_at_most_one_bit(tmp_path):
    write(tmp_path / "a", (GREY > 100))
    data = load(str(tmp_path / "a"))
    assert data.bins == 2 and all_of(data) == sorted((GREY > 100).astype(int).reshape(12, -1).tolist())


def test_palettes_are_read_as_colours(tmp_path):
    for kind, image in (("p", lambda a: Image.fromarray(a).quantize(16)), ("g", lambda a: Image.fromarray(a[..., 0]))):
        folder = tmp_path / kind
        folder.mkdir()
        for i, array in enumerate(COLOUR):
            made = image(array)
            if kind == "g":  # a palette of greys, in another order than its numbers
                made = Image.fromarray(255 - array[..., 0])
                made.putpalette(np.repeat(np.arange(255, -1, -1, dtype=np.uint8), 3).tobytes())
            made.save(folder / f"{i}.png")
            if kind == "p":
                made.convert("RGB").save(tmp_path / f"true{i}.png")
    data = load(str(tmp_path / "p"))
    true = [np.moveaxis(np.asarray(Image.open(tmp_path / f"true{i}.png")), -1, 0).ravel().tolist() for i in range(12)]
    assert data.event_shape == (3, 5, 4) and all_of(data) == sorted(true) and "palette" in data.notes[0]
    grey = load(str(tmp_path / "g"))
    assert grey.event_shape == (1, 5, 4) and all_of(grey) == sorted(GREY.reshape(12, -1).astype(int).tolist())


def test_colours_of_printing_are_converted_and_named(tmp_path):
    for i, array in enumerate(COLOUR):
        Image.fromarray(array).convert("CMYK").save(tmp_path / f"{i:03}.tif")
    data = load(str(tmp_path))
    assert data.event_shape == (3, 5, 4) and "CMYK images are read as RGB" in data.notes


def test_sixteen_bits_are_read_or_asked_for(tmp_path):
    deep = (GREY.astype(np.uint16) * 256 + 3 * GREY).astype(np.uint16)
    deep[0, 0, 0] = 40_000
    write(tmp_path / "a", deep)
    data = load(str(tmp_path / "a"))
    assert data.bins == 65536 and all_of(data) == sorted(deep.astype(int).reshape(12, -1).tolist())
    write(tmp_path / "b", GREY.astype(np.uint16) * 16 + 1)
    with pytest.raises(InputError, match=r"--bins 4096 \(12-bit values\)"):
        load(str(tmp_path / "b"))
    assert load(str(tmp_path / "b"), 4096).bins == 4096
    write(tmp_path / "c", GREY.astype(np.uint16) * 257)
    assert all_of(load(str(tmp_path / "c"), 256)) == sorted(GREY.astype(int).reshape(12, -1).tolist())


def test_sixteen_bits_a_colour_are_refused(tmp_path):
    """Pillow reads the upper eight of them, without a word."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + RNG.bytes(4 * 6) for _ in range(5))
    head = struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"
    with pytest.raises(InputError, match=r"a\.png: 16 bits a colour, of which Pillow reads 8"):
        load(str(tmp_path))


def test_animations_are_refused_and_hidden_files_left_out(tmp_path):
    write(tmp_path / "a", GREY)
    (tmp_path / "a" / "._000.png").write_bytes(b"of macOS")
    (tmp_path / "a" / "__MACOSX").mkdir()
    (tmp_path / "a" / "__MACOSX" / "x.png").write_bytes(b"of macOS")
    data = load(str(tmp_path / "a"))
    assert len(data.x_train) + len(data.x_test) == 12 and data.notes[0].startswith("2 hidden files left out")
    frames = [Image.fromarray(a) for a in GREY[:3]]
    frames[0].save(tmp_path / "a" / "zzz.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"zzz\.gif: 3 frames or pages, expected a still image"):
        load(str(tmp_path / "a"))


def test_pictures_are_upright(tmp_path):
    turned = Image.fromarray(GREY[0])
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    for i in range(12):
        Image.fromarray(GREY[i]).save(tmp_path / f"{i:02}.png", exif=exif)
    assert load(str(tmp_path)).event_shape == (1, 4, 5)


# ---------------------------------------------------------------- tables


def table(tmp_path, frame, name="a.csv", **options):
    path = tmp_path / name
    getattr(frame, {"csv": "to_csv", "parquet": "to_parquet"}[name.split(".")[1]])(path, **options)
    return str(path)


@pytest.fixture
def frame():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"a": RNG.randn(40), "b": RNG.randn(40) * 9, "label": ["x", "y"] * 20})


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_tables(tmp_path, frame, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    data = load(table(tmp_path, frame, name))
    assert data.event_shape == (2,) and data.bins == 1 and data.classes == ("x", "y")
    wanted = frame[["a", "b"]].to_numpy().astype(np.float32)
    assert np.allclose(np.array(all_of(data)), wanted[np.lexsort(wanted.T[::-1])])
    assert any("column label holds labels" in note for note in data.notes)
    assert any("Unnamed: 0 numbers the rows" in note for note in data.notes) == name.endswith("csv")


def test_a_table_that_says_its_parts(tmp_path, frame):
    frame["split"] = ["train"] * 25 + ["val"] * 5 + ["test"] * 10
    data = load(table(tmp_path, frame, index=False))
    assert [len(part) for part in (*data.split_validation(), data.x_test)] == [25, 5, 10]
    assert np.allclose(data.x_test[:, 0], frame["a"][30:])
    frame.loc[3, "split"] = "holdout"
    with pytest.raises(InputError, match="column split says holdout, expected train, validation or test"):
        load(table(tmp_path, frame))


def test_tables_that_cannot_be_used(tmp_path, frame):
    with pytest.raises(InputError, match="columns that hold no numbers: city; leave them out"):
        load(table(tmp_path, frame.assign(city="Bonn")))
    with pytest.raises(InputError, match="missing values in the columns a; drop or fill"):
        load(table(tmp_path, frame.assign(a=frame.a.where(frame.a > 0))))
    (tmp_path / "b.csv").write_text('a,b\n"1,2\n')
    with pytest.raises(InputError, match=r"not a readable csv table|at least 10"):
        load(str(tmp_path / "b.csv"))


def test_discrete_columns_among_continuous_ones_are_asked_for(tmp_path, frame):
    path = table(tmp_path, frame.assign(rooms=RNG.randint(1, 5, 40)), index=False)
    with pytest.raises(InputError, match=r"rooms \(4 values\).*Leave these columns out; or add uniform.*--bins 1 "):
        load(path)
    assert load(path, 1).event_shape == (3,)


def test_tables_need_their_extra(tmp_path, frame, monkeypatch):
    import sys

    path = table(tmp_path, frame)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r'needs pandas: pip install "vae2aef\[tables\]"'):
        load(path)


# ---------------------------------------------------------------- Hugging Face


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return pytest.importorskip("datasets")


def test_saved_images_of_hugging_face(tmp_path, datasets):
    def part(rows):
        return datasets.Dataset.from_dict(
            {"image": [Image.fromarray(a) for a in rows], "label": [i % 2 for i in range(len(rows))]}
        )

    datasets.DatasetDict(train=part(GREY[:9]), test=part(GREY[9:])).save_to_disk(tmp_path / "d")
    data = load(str(tmp_path / "d"))
    assert torch.equal(data.x_test[:, 0], torch.from_numpy(GREY[9:])) and data.labels["train"].tolist()[:3] == [0, 1, 0]


def test_saved_numbers_of_hugging_face(tmp_path, datasets, frame):
    datasets.Dataset.from_pandas(frame).save_to_disk(tmp_path / "d")
    data = load(str(tmp_path / "d"))
    assert data.event_shape == (2,) and data.classes == ("x", "y")


SERIES = np.linspace(-1, 1, 60).reshape(12, 5)


def test_saved_sequences_of_hugging_face(tmp_path, datasets):
    rows = {"series": SERIES.tolist(), "label": [i % 3 for i in range(12)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "d")
    data = load(str(tmp_path / "d"), 1)
    assert data.event_shape == (5,) and len(data.x_train) + len(data.x_test) == 12
    every = torch.cat([data.x_train, data.x_test])
    torch.testing.assert_close(every[every[:, 0].argsort()], torch.from_numpy(SERIES).float())
    assert data.labels["train"].max() == 2


def test_sequences_of_vectors_in_parquet(tmp_path, datasets):
    pytest.importorskip("pyarrow")
    rows = SERIES.reshape(12, 5, 1).repeat(2, 2)
    parts = ["train"] * 9 + ["test"] * 3
    datasets.Dataset.from_dict({"motion": rows.tolist(), "split": parts}).to_parquet(tmp_path / "d.parquet")
    data = load(str(tmp_path / "d.parquet"), 1)
    assert data.event_shape == (1, 5, 2)  # as any array of two axes a datum
    torch.testing.assert_close(data.x_test[:, 0], torch.from_numpy(rows[9:]).float())


def test_lists_of_booleans_are_bits(tmp_path, datasets):
    datasets.Dataset.from_dict({"a": (SERIES > 0).tolist()}).save_to_disk(tmp_path / "d")
    data = load(str(tmp_path / "d"))
    assert data.bins == 2 and data.event_shape == (5,)


@pytest.mark.parametrize(("rows", "said"), [
    ({"a": [None, [1.0, 2.0]]}, "row 0: column a holds no numbers there"),
    ({"a": [[1.0, 2.0], [1.0]]}, r"lists of column a have shapes \(1,\), \(2,\); pad or cut them to one"),
    ({"a": [[1.0, 2.0], [1.0, None]]}, "missing or infinite values in column a"),
    ({"a": [[{"k": 1}], [{"k": 2}]]}, "row 0: column a holds no numbers there"),
    ({"a": [["x"], ["y"]]}, "row 0: column a holds no numbers there"),
    ({"a": [[[1.0], [1.0, 2.0]], [[1.0], [1.0]]]}, "row 0: column a holds no numbers there, or lists of two lengths"),
    ({"a": [[1.0], [2.0]], "b": [1.0, 2.0]}, "column a holds lists, and there are the columns b beside it"),
])  # fmt: skip
def test_sequences_that_are_no_array_are_named(tmp_path, datasets, rows, said):
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "d")
    with pytest.raises(InputError, match=said):
        load(str(tmp_path / "d"), 1)
