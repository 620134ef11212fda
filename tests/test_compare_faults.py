"""`vae2aef compare` when things break: stopped at any point, killed, damaged files, a full disk, two processes."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("typer")

from filelock import FileLock
from test_cli import SMALL, TINY, invoke
from typer.testing import CliRunner

from vae2aef.cli import app
from vae2aef.comparison import files
from vae2aef.comparison import folder as of_folder
from vae2aef.comparison.damage import damage
from vae2aef.comparison.display import Display
from vae2aef.comparison.folder import check_out

QUICK = [*SMALL, "--importance-samples", "4", "--test-limit", "4"]
COMMAND = ["compare", *QUICK, "--steps", "52", "--arms", "aef,vae", "--out"]
STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}


class Moment:
    """Sends a signal to its own process at one moment of a comparison.

    Args:
        number: of the signal.
        what: "step", "testing", the name of a file about to be put in place, or "clear".
        count: at which of these moments.
    """

    def __init__(self, number: int, what: str, count: int = 1) -> None:
        self.number, self.what, self.left = number, what, count

    def __call__(self, what: str) -> None:
        if what == self.what:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), self.number)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        start, replace, unlink = Display.start, os.replace, Path.unlink

        def started(display, name):
            progress = start(display, name)

            def loss(value):
                progress.loss(value)
                self("step")

            def testing(images):
                progress.testing(images)
                self("testing")

            return type(progress)(progress.resumed, loss, testing)

        def replaced(source, target):
            self(Path(target).name)
            replace(source, target)

        def unlinked(path, missing_ok=False):
            if path.name in of_folder.OF_A_RUN:
                self("clear")
            unlink(path, missing_ok=missing_ok)

        patch.setattr(Display, "start", started)
        patch.setattr(files.os, "replace", replaced)
        patch.setattr(Path, "unlink", unlinked)


def in_child(args: list[str], moment: Moment | None = None, most_bytes: int | None = None) -> tuple[int, str]:
    """Run the command line in a process of its own, forked from this one; return its exit code and its errors."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            if most_bytes is not None:  # a write beyond it fails, as on a full disk
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
            with pytest.MonkeyPatch.context() as patch:
                if moment is not None:
                    moment.install(patch)
                result = CliRunner().invoke(app, args)
            code = result.exit_code
            escaped = result.exception is not None and not isinstance(result.exception, SystemExit)
            text = f"ESCAPED {result.exception!r}" if escaped else result.stderr
            os.write(write, text.encode()[:4000])
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status), text


def outcome(out: Path) -> dict:
    """All that two comparisons must have in common, to the last bit."""
    found = {}
    for run in sorted((out / "runs").iterdir()):
        result = json.loads((run / "result.json").read_text())
        del result["seconds"], result["validation_seconds"]
        found[run.name] = result
        found[run.name + " weights"] = {
            k: v.tolist() for k, v in torch.load(run / "best.pt", weights_only=True).items()
        }
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a VAE of the user's own in it."""
    (tmp_path / "tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def no_pictures():
    """Leave out what takes most of the time, and is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae2aef.comparison.results._save_pictures", lambda outcome, out: None)
        patch.setattr("vae2aef.comparison.results.render", lambda *args: "page")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, no_pictures):
    """A comparison that was never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        tmp = tmp_path_factory.mktemp("whole")
        (tmp / "tiny.py").write_text(TINY)
        patch.chdir(tmp)
        assert invoke(*COMMAND, "out")[0] == 0
    return outcome(tmp / "out"), tmp / "out"


PLACES = [("step", 20), ("last.ckpt", 1), ("testing", 1), ("result.json", 1), ("step", 30), ("report.html", 1)]
"""Moments of training, measuring, testing and writing."""


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPS)
def test_stopped_at_any_point_it_ends_as_if_it_had_not_been(folder, whole, number):
    """Stopped again and again, each time further on, and started again with the same command each time."""
    stopped = 0
    for what, count in PLACES if number == signal.SIGKILL else PLACES[::2]:
        code, errors = in_child([*COMMAND, "out"], Moment(number, what, count))
        assert (code, errors) in ((STOPS[number], ""), (0, "")), what
        stopped += code != 0
    assert stopped >= 3
    assert invoke(*COMMAND, "out")[0] == 0
    assert outcome(folder / "out") == whole[0]
    assert [p.name for p in folder.glob("out/**/.*")] == []  # nothing half-written is left


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPS)
def test_with_overwrite_the_same_command_goes_on(folder, whole, number):
    """Another comparison is thrown away once; what was done after that is not, whenever it was stopped."""
    assert invoke("compare", *QUICK, "--steps", "2", "--arms", "aef", "--out", "out")[0] == 0
    mine = folder / "out" / "holiday.png"
    mine.write_bytes(b"mine")
    again = [*COMMAND, "out", "--overwrite"]
    for what, count in (("clear", 2), ("options.json", 1), ("options.json", 2), ("step", 51)):
        assert in_child(again, Moment(number, what, count))[0] == STOPS[number], what
    done = torch.load(folder / "out" / "runs" / "seed0-aef" / "last.ckpt", weights_only=True)["global_step"]
    assert done >= 50
    assert in_child(again, Moment(number, "step", 15))[0] == STOPS[number]  # went on: 15 steps end the first run
    assert (folder / "out" / "runs" / "seed0-aef" / "result.json").exists()
    assert invoke(*again)[0] == 0
    assert outcome(folder / "out") == whole[0] and mine.read_bytes() == b"mine"


def copy_of(whole: Path, target: Path) -> None:
    for path in whole.rglob("*"):
        if path.is_file():
            (target / path.relative_to(whole)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(whole)).write_bytes(path.read_bytes())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    path.write_text('{"arm": "aef"}')


def pickled(path: Path) -> None:
    """What would run code, were it loaded as pickles are."""

    class Harm:
        def __reduce__(self):
            return Path.touch, (path.with_name("harm"),)

    torch.save({"global_step": Harm()}, path)


@pytest.mark.parametrize("harm", [cut, empty, other, pickled, Path.unlink])
@pytest.mark.parametrize("name", ["result.json", "pictures.npz", "last.ckpt"])
def test_a_damaged_file_is_named_and_taken_out_of_the_way(tmp_path, whole, name, harm):
    copy_of(whole[1] / "runs" / "seed0-aef", tmp_path)
    assert damage(tmp_path, 4) == []
    if name == "last.ckpt":  # which nothing needs once there is a result
        (tmp_path / "result.json").unlink()
    harm(tmp_path / name)
    found = damage(tmp_path, 4)
    gone = harm is Path.unlink
    if gone and name != "pictures.npz":
        assert found == []
    else:
        assert len(found) == 1 and found[0].startswith(f"{tmp_path / name} is {'missing' if gone else 'damaged'}")
        assert "weights_only" not in found[0]
        assert not (tmp_path / ("last.ckpt" if name == "last.ckpt" else "result.json")).exists()
    assert not list(tmp_path.rglob("harm"))


@pytest.mark.parametrize("what", ["test", "log_prob", "NaN", "count"])
def test_a_result_that_is_no_result(tmp_path, whole, what):
    copy_of(whole[1] / "runs" / "seed0-aef", tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    if what == "test":
        del result["test"]
    elif what == "log_prob":
        result["test"]["log_prob"] = 3
    elif what == "NaN":
        result["test"]["log_prob"][0] = float("nan")
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert len(damage(tmp_path, 5 if what == "count" else 4)) == 1


SPOILED = {
    "an empty curve": ("validation_bits_per_dim", []),
    "a curve of words": ("validation_bits_per_dim", [[5, "two"]]),
    "a curve that is NaN": ("validation_bits_per_dim", [[5, float("nan")]]),
    "no losses": ("training_loss", []),
    "losses of one number each": ("training_loss", [1.0, 2.0]),
    "an empty certificate": ("certificate", {}),
    "no certificate": ("certificate", None),
    "half a certificate": ("certificate", {"gap": 0.5}),
    "a certificate of NaN": ("certificate", {"gap": float("nan"), "std_error": 0.1}),
    "no parameters": ("parameters", {}),
    "no step": ("best_step", None),
    "no error of reconstruction": ("reconstruction_mse", None),
    "no seconds": ("seconds", None),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_result_whose_parts_are_spoiled(tmp_path, whole, what):
    """What the table and the report read is there, and numbers; without this they fail at the end of a comparison."""
    run = tmp_path / "seed0-aef"
    copy_of(whole[1] / "runs" / "seed0-aef", run)
    assert damage(run, 4) == []
    key, value = SPOILED[what]
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, key: value}))
    (said,) = damage(run, 4)
    assert said.startswith(f"{run / 'result.json'} is damaged (") and not (run / "result.json").exists()


@pytest.mark.parametrize("what", ["std_error", "effective_sample_size", "uncertain"])
def test_a_result_whose_test_is_spoiled(tmp_path, whole, what):
    run = tmp_path / "seed0-aef"
    copy_of(whole[1] / "runs" / "seed0-aef", run)
    result = json.loads((run / "result.json").read_text())
    result["test"][what] = None if what == "uncertain" else ["x"] * 4
    (run / "result.json").write_text(json.dumps(result))
    assert len(damage(run, 4)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "harm"), [("result.json", cut), ("pictures.npz", Path.unlink), ("last.ckpt", pickled)]
)
def test_a_damaged_run_is_done_again(folder, whole, name, harm):
    copy_of(whole[1], folder / "out")
    run = folder / "out" / "runs" / "seed0-aef"
    if name == "last.ckpt":
        (run / "result.json").unlink()
    untouched = {p: p.stat().st_mtime_ns for p in (folder / "out" / "runs" / "seed0-vae").iterdir()}
    harm(run / name)
    code, out, err = invoke(*COMMAND, "out")
    assert (code, err) == (0, "") and f"seed0-aef/{name} is " in " ".join(out.split()) and "weights_only" not in out
    assert outcome(folder / "out") == whole[0]
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched


@pytest.mark.parametrize("harm", [cut, empty, other])
def test_a_damaged_mark_is_named(folder, whole, harm):
    copy_of(whole[1], folder / "out")
    harm(folder / "out" / "options.json")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("out/**/*")}
    code, out, err = invoke(*COMMAND, "out")
    assert (code, out) == (2, "") and "out/options.json is damaged" in err and err.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("out/**/*")} == before
    check_out(folder / "out", overwrite=True)


def test_only_files_of_ours_are_deleted_and_by_name(folder, whole):
    out = folder / "out"
    copy_of(whole[1], out)
    mine = ["holiday.png", "samples.png", "results.json.bak", "runs/mine.txt", "runs/seed0-aef/mine.ckpt",
            "runs/seed0-gan/result.json", "runs/seed0-aef/.last.ckpt.12.tmp.bak"]  # fmt: skip
    for name in mine:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    (out / "runs" / "seed0-aef" / ".last.ckpt.123.tmp.ckpt").write_text("half")
    of_folder.clear(out)
    left = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert left == {*mine, "options.json", "compare.lock"}


def test_a_second_process_is_sent_away(folder, whole):
    copy_of(whole[1], folder / "out")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("out/runs/*/*")}
    with FileLock(folder / "out" / "compare.lock"):
        code, out, err = invoke(*COMMAND, "out")
        assert (code, out) == (2, "")
        assert "another process is working in this folder" in err and err.count("\n") == 1
        assert invoke(*COMMAND, "out", "--overwrite")[0] == 2
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("most_bytes", [100, 3_000, 12_000])
def test_a_full_disk_is_one_line_and_loses_nothing(folder, whole, most_bytes):
    """At the first file, at a checkpoint, at a picture."""
    code, err = in_child([*COMMAND, "out"], most_bytes=most_bytes)
    assert code == 2 and err.startswith("error ") and err.count("\n") == 1, err
    assert "cannot be written (" in err and "run the same command again" in err
    assert [p.name for p in folder.glob("out/**/.*")] == []
    assert invoke(*COMMAND, "out")[0] == 0
    assert outcome(folder / "out") == whole[0]


def test_a_runtime_error_that_is_not_of_writing_keeps_its_traceback(tmp_path):
    def bug(path):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        files.write_atomic(tmp_path / "a", bug)
