"""Labels that nobody asked for, and a first line of a CSV that is a datum: nothing is lost without a word."""

import numpy as np
import pytest

from vae2aef.comparison.data import load
from vae2aef.comparison.errors import InputError

RNG = np.random.RandomState(0)
X = RNG.randint(0, 256, (30, 4)).astype(np.uint8)
TWO = np.arange(20) % 2


def saved(tmp_path, **labels):
    np.savez(tmp_path / "a.npz", x_train=X[:20], x_test=X[20:], **labels)
    return load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (TWO[:, None], TWO[:10, None]),
        (np.eye(2)[TWO], np.eye(2)[TWO[:10]]),
        (TWO.astype(float), TWO[:10]),
        (TWO.astype(bool), TWO[:10].astype(bool)),
        (np.array(["a", "b"])[TWO], np.array(["a", "b"])[TWO[:10]]),
    ],
)
def test_labels_in_forms_that_can_be_read(tmp_path, train, test):
    data = saved(tmp_path, y_train=train, y_test=test)
    assert data.labels["train"].tolist() == TWO.tolist() and data.labels["test"].tolist() == TWO[:10].tolist()
    assert data.notes == () and len(data.classes) == 2


HOLED = np.where(TWO == 1, 1.0, np.nan)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            {"y_train": TWO.astype(object), "y_test": TWO[:10]},
            "y_train holds Python objects, never unpickled",
        ),
        ({"y_train": HOLED, "y_test": TWO[:10]}, "those of the train data are missing in 10 rows"),
        ({"y_train": np.zeros((20, 3)), "y_test": TWO[:10]}, "have shape (20, 3), expected one a row: (20,)"),
        ({"y_train": TWO[:7], "y_test": TWO[:10]}, "those of the train data have shape (7,)"),
        ({"y_train": np.array(0), "y_test": TWO[:10]}, "those of the train data have shape ()"),
        ({"y_train": TWO}, "there are none of the test data"),
        ({"y_train": np.array(["2020-01-01", "NaT"] * 10, "M8[D]"), "y_test": TWO[:10]}, "are missing in 10 rows"),
    ],
)
def test_labels_that_cannot_be_read_are_left_out_and_named(tmp_path, labels, said):
    data = saved(tmp_path, **labels)
    assert data.labels == {} and data.classes == () and len(data.x_train) == 20
    (note,) = data.notes
    assert note.startswith("labels are left out: ") and said in note and "\n" not in note


def test_labels_of_a_single_array_of_another_length(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=TWO)
    data = load(str(tmp_path / "a.npz"))
    assert data.labels == {} and "those of the data have shape (20,)" in data.notes[0]


# ---------------------------------------------------------------- tables


@pytest.fixture
def frame():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"a": RNG.randn(40), "b": RNG.randn(40) * 9})


def table(tmp_path, frame, **options):
    frame.to_csv(tmp_path / "a.csv", index=False, **options)
    return str(tmp_path / "a.csv")


def rows(data):
    return len(data.x_train) + len(data.x_test)


@pytest.mark.parametrize("values", [["x", None] * 20, [1.0, None] * 20, ["", "x"] * 20])
def test_empty_cells_among_labels(tmp_path, frame, values):
    data = load(table(tmp_path, frame.assign(label=values)))
    assert data.labels == {} and rows(data) == 40
    assert any(note == "labels are left out: those of the data are missing in 20 rows" for note in data.notes)


def test_labels_of_text_and_numbers(tmp_path, frame):
    data = load(table(tmp_path, frame.assign(label=["x", 1] * 20)))
    assert data.classes == ("1", "x")


def test_a_second_column_that_is_named_like_labels(tmp_path, frame):
    data = load(table(tmp_path, frame.assign(label=["x", "z"] * 20, y=RNG.randn(40))))
    assert data.event_shape == (3,) and "columns named like labels, and features: y" in data.notes


def test_a_column_called_split(tmp_path, frame):
    data = load(table(tmp_path, frame.assign(split=RNG.randn(40))))
    assert data.event_shape == (3,) and rows(data) == 40
    assert data.notes == ("column split holds numbers, names no parts of the data, and is a feature",)
    with pytest.raises(InputError, match=r"column split has 3 empty cells, expected train, validation or test"):
        load(table(tmp_path, frame.assign(split=["train"] * 30 + ["test"] * 7 + [None] * 3)))


def test_a_split_within_saved_data(tmp_path, frame, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    frame["split"] = ["train"] * 30 + ["test"] * 10
    whole = datasets.Dataset.from_pandas(frame)
    whole.save_to_disk(tmp_path / "one")
    data = load(str(tmp_path / "one"))
    assert (len(data.x_train), len(data.x_test)) == (30, 10)
    datasets.DatasetDict(train=whole, test=whole).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match=r"a column split of their own, beside the splits of the data set; remove it"):
        load(str(tmp_path / "two"))


def test_a_csv_without_names_keeps_its_first_line(tmp_path, frame):
    frame.loc[0] = [3.5, -2.0]
    data = load(table(tmp_path, frame, header=False))
    assert rows(data) == 40 and 3.5 in data.x_train[:, 0].tolist() + data.x_test[:, 0].tolist()
    assert data.notes == ("the first line, 3.5, -2.0, holds numbers and no names, and is a datum",)


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ("0,1", "holds rising numbers"),
        ("1.5,2.5", "holds rising numbers"),
        ("2019,2020", "holds rising numbers"),
        ("5.1,setosa", "holds numbers beside words"),
        (",2.5", "holds numbers beside words"),
    ],
)
def test_a_first_line_that_may_be_either_is_asked_for(tmp_path, first, why):
    pytest.importorskip("pandas")
    (tmp_path / "a.csv").write_text(first + "\n" + "".join(f"{a},{b}\n" for a, b in RNG.randn(30, 2)))
    with pytest.raises(InputError, match=rf"{why}, and may be a datum or the names of the columns: put a line of"):
        load(str(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text("x0,x1\n" + "".join(f"{a},{b}\n" for a, b in RNG.randn(30, 2)))
    assert rows(load(str(tmp_path / "a.csv"))) == 30


def test_a_first_line_that_counts_is_a_header(tmp_path):
    pandas = pytest.importorskip("pandas")
    counted = pandas.DataFrame(RNG.randn(30, 9))
    data = load(table(tmp_path, counted))
    assert rows(data) == 30 and data.notes == ("the first line, 0, 1, 2, 3, ..., counts the columns and is no datum",)
    counted.columns = range(1, 10)
    data = load(table(tmp_path, counted.assign(label=["x", "z"] * 15)))
    assert rows(data) == 30 and data.event_shape == (9,) and data.classes == ("x", "z")


def test_a_csv_of_bits_without_names(tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "a.csv").write_text(
        "\n".join(",".join(row) for row in np.where(RNG.rand(30, 4) > 0.5, "True", "False"))
    )
    assert rows(load(str(tmp_path / "a.csv"))) == 30
