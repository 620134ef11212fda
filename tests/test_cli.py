"""The command line as a user meets it, interruption included."""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("typer")

from rich.console import Console
from typer.testing import CliRunner

import vae2aef
from vae2aef import __main__ as entry
from vae2aef.cli import app
from vae2aef.comparison.device import require_device
from vae2aef.comparison.factory import find_factory, name_of

pytestmark = pytest.mark.usefixtures("quick_fits", "quick_pictures")
TINY = """
from vae2aef.comparison.nets import MLPVAE

def make(event_shape, latents):
    vae = MLPVAE(event_shape, latents, hidden=6)
    return {"vae": vae, "encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}
"""
SMALL = [
    "--vae",
    "tiny:make",
    "--latents",
    "2",
    "--core-flow",
    "none",
    "--importance-samples",
    "8",
    "--test-limit",
    "20",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a VAE of the user's own in it."""
    (tmp_path / "tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    return tmp_path


def start(folder, *args):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "vae2aef", *args],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
    )  # fmt: skip


def invoke(*args):
    """In this process, which saves the seconds that importing takes."""
    result = CliRunner().invoke(app, list(args))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_ctrl_c_loses_nothing(folder):
    """Stopped in the second of two runs and started again, it ends like one that was never stopped."""
    command = ["compare", *SMALL, "--steps", "120", "--arms", "aef,aef-noise", "--out"]
    process = start(folder, *command, "stopped")
    checkpoint = folder / "stopped" / "runs" / "seed0-aef-noise" / "last.ckpt"
    wait_for(checkpoint, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (130, "")
    assert "Run the same command again to go on" in out
    assert not (folder / "stopped" / "results.json").exists()
    assert not checkpoint.with_name("result.json").exists()
    stopped_at = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 30 <= stopped_at < 120

    process = start(folder, *command, "stopped")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert "aef, seed 0: test" in out
    assert "(from before)" in out
    assert "VAE and AEF on photographs" in out
    assert (folder / "stopped" / "report.html").stat().st_size > 10_000
    assert len(json.loads((folder / "stopped" / "results.json").read_text())["rows"]) == 2
    assert [p.name for p in folder.glob("**/.*")] == []

    process = start(folder, *command, "whole")  # a process too: here the search for modes is a quick one
    assert process.communicate(timeout=300)[1] == "" and process.returncode == 0
    for arm in ("aef", "aef-noise"):
        stopped, whole = (
            json.loads((folder / name / "runs" / f"seed0-{arm}" / "result.json").read_text())
            for name in ("stopped", "whole")
        )
        for result in (stopped, whole):
            del result["seconds"], result["validation_seconds"]
        assert stopped == whole


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(20_000):
        if path.exists():
            return
        if process.poll() is not None:
            pytest.fail(f"ended before {path.name} was there: {process.communicate()}")
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"no {path.name} in time: {process.communicate()}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "nowhere.npz"], "no such file or folder: nowhere.npz. Accepted: photographs, digits"),
        (["--out", "tiny.py/sub"], "tiny.py is a file, expected a folder"),
        (["--out", "tiny.py"], "tiny.py is a file, expected a folder"),
        (["--vae", "tiny:missing"], "tiny has no missing"),
        (["--arms", "gan"], "unknown gan; known are vae, vae+features, aef, aef-noise"),
        (["--device", "cuda:99"], "--device cuda:99: torch finds"),
        (["--device", "cuda:x"], "--device must be auto, cpu, cuda, cuda:N or mps, got cuda:x"),
        (["--device", "cpu:1"], "--device must be auto, cpu, cuda, cuda:N or mps, got cpu:1"),
        (["--device", ""], "--device must be auto, cpu, cuda, cuda:N or mps, got"),
        (["--data", "wide.npy"], "--preprocess logit takes data within 0 and 1"),
        (["--data", "nan.npy"], "NaN"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(folder, args, message):
    np.save(folder / "wide.npy", np.linspace(-1, 2, 80).reshape(20, 4))
    np.save(folder / "nan.npy", np.full((20, 4), np.nan))
    before = contents(folder)
    code, out, err = invoke("compare", *SMALL, *([] if "--out" in args else ["--out", "result"]), *args)
    assert (code, out) == (2, "")
    assert err.startswith("error ")
    assert message in err
    assert err.count("\n") == 1
    assert contents(folder) == before


def test_a_device_that_is_not_there(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, found in (("mps", "torch finds no Apple GPU"), ("cuda:2", "2 CUDA devices, cuda:0 to cuda:1; use")):
        code, out, err = invoke("compare", *SMALL, "--device", device, "--out", "result")
        assert (code, out) == (2, "") and found in err
        assert not (folder / "result").exists()
    require_device("cuda")
    require_device("cuda:1")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can make folders")
def test_a_folder_that_cannot_be_made(folder):
    code, out, err = invoke("compare", *SMALL, "--out", "/proc/vae2aef/out")
    assert (code, out) == (2, "")
    assert err.startswith("error --out /proc/vae2aef/out: ")
    assert err.count("\n") == 1


def contents(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != "__pycache__"}


SCRIPT = """
import sys
import vae2aef
from beside import HIDDEN
from vae2aef.comparison.nets import MLPVAE

print("run")

def make(event_shape, latents):
    vae = MLPVAE(event_shape, latents, hidden=HIDDEN)
    return {"vae": vae, "encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}

if __name__ == "__main__":
    vae2aef.compare(
        make, "digits", "out", steps=1, latents=2, core_flow="none", importance_samples=4, test_limit=4,
        arms="aef", device="cpu",
    )
"""


def test_a_factory_of_a_module_that_is_run_is_named_by_the_module(monkeypatch):
    """`python -m package.module`: as a file it could not import relatively."""
    main = types.ModuleType("__main__")
    main.__spec__ = importlib.machinery.ModuleSpec("package.module", None)
    main.__file__ = "package/module.py"
    exec(TINY, main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert name_of(main.make) == "package.module:make"


@pytest.mark.parametrize("name", ["other", "some.where", "tiny_0123abcd"])
def test_a_factory_of_a_module_made_by_a_path_is_named_by_its_file(folder, monkeypatch, name):
    """Under the name that whoever loaded it gave it, no import finds it."""
    spec = importlib.util.spec_from_file_location(name, folder / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    assert name_of(module.make) == "tiny.py:make"
    monkeypatch.delitem(sys.modules, name)
    assert name_of(find_factory("tiny.py:make")) == "tiny.py:make"  # as --vae loads it
    importlib.import_module("tiny")
    assert name_of(sys.modules["tiny"].make) == "tiny:make"


@pytest.mark.slow
@pytest.mark.parametrize("where", [".", "scripts"])
def test_a_script_writes_a_command_that_can_be_run(folder, where):
    """From the folder of the script and from another; the script is not run a second time to find its own function."""
    (folder / where).mkdir(exist_ok=True)
    (folder / where / "script.py").write_text(SCRIPT)
    (folder / where / "beside.py").write_text("HIDDEN = 6")
    done = subprocess.run(
        [sys.executable, os.path.join(where, "script.py")], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("run") == 1
    command = json.loads((folder / "out" / "results.json").read_text())["command"]
    words = shlex.split(command)
    assert words[words.index("--vae") + 1] == os.path.normpath(os.path.join(where, "script.py:make"))
    code, out, err = invoke(*words[1:])
    assert (code, err) == (0, "") and "(from before)" in out  # the same comparison


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("none.py:make", "importing none.py failed: FileNotFoundError: there is no file"),
        ("tiny.py:other", "tiny.py has no other"),
        ("tiny.py", "expected mlp, conv, package.module:factory, or file.py:factory"),
        ("broken.py:make", "importing broken.py failed: ZeroDivisionError"),
    ],
)
def test_factories_of_files(folder, spec, said):
    (folder / "broken.py").write_text("1 / 0")
    code, out, err = invoke("compare", *SMALL, "--vae", spec, "--out", "result")
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1


def test_a_factory_of_a_notebook_is_named(folder, monkeypatch):
    """It has no file: the comparison runs, and a note says that its command line does not."""
    main = types.ModuleType("__main__")
    exec(TINY, main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    options = {"steps": 1, "latents": 2, "core_flow": "none", "importance_samples": 4, "test_limit": 4}
    vae2aef.compare(main.make, "digits", "out", arms="aef", device="cpu", quiet=True, **options)
    notes = json.loads((folder / "out" / "results.json").read_text())["notes"]
    assert any("make was defined in a notebook" in note and "--vae file.py:make" in note for note in notes)


def test_other_options_in_the_same_folder_are_refused(folder):
    command = ["compare", *SMALL, "--arms", "aef", "--out", "result", "--steps"]
    assert invoke(*command, "2")[0] == 0
    code, _, err = invoke(*command, "3")
    assert code == 2
    assert "--steps is 2 there and 3 now" in err
    assert invoke(*command, "3", "--overwrite")[0] == 0


def test_a_diverged_run_is_one_line(folder):
    code, _, err = invoke("compare", *SMALL, "--arms", "aef", "--out", "result", "--steps", "5", "--lr", "1e30")
    assert code == 2
    assert err.startswith("error aef, seed 0: ")
    assert "smaller --lr" in err


def test_bugs_keep_their_traceback(folder, monkeypatch):
    def bug(*args):
        raise ZeroDivisionError

    monkeypatch.setattr("vae2aef.comparison.compare.compare", bug)
    with pytest.raises(ZeroDivisionError):
        invoke("compare", *SMALL)


def test_version_and_help():
    assert invoke("--version")[1].startswith("vae2aef ")
    code, out, _ = invoke("compare", "--help")
    assert code == 0
    for option in (
        "--data",
        "--vae",
        "--latents",
        "--steps",
        "--seeds",
        "--arms",
        "--preprocess",
        "--prior",
        "--core-flow",
    ):
        assert option in out


@pytest.mark.parametrize("command", ["compare", "check", "evaluate"])
def test_it_says_at_once_what_it_does(folder, monkeypatch, command):
    """Before anything is read, whatever fails then."""
    said = []
    status = Console.status
    monkeypatch.setattr(
        Console, "status", lambda self, text, **more: (said.append(text), status(self, text, **more))[1]
    )
    words = ["tiny:make"] if command == "check" else ["--vae", "tiny:make"]
    assert invoke(command, *words, "--data", "nowhere.npz")[0] == 2
    assert said and said[0].startswith(("loading", "reading nowhere.npz"))
    said.clear()
    monkeypatch.setattr(sys, "argv", ["vae2aef", "--version"])
    with pytest.raises(SystemExit):
        entry.main()
    assert said == ["loading torch and Lightning"]


AT_TORCH = """
import sys


class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("HERE TORCH", file=sys.stderr, flush=True)
        return None


sys.meta_path.insert(0, AtTorch())
sys.argv = ["vae2aef", "compare", "--help"]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a terminal of POSIX")
@pytest.mark.parametrize(
    "start",
    [
        "from vae2aef.__main__ import main; main()",  # what pip's script does
        "import runpy; runpy.run_module('vae2aef', run_name='__main__', alter_sys=True)",  # python -m vae2aef
    ],
)
@pytest.mark.slow
def test_the_first_word_comes_before_torch(tmp_path, start):
    """On a terminal the first seconds, which torch's import takes, are not blank; what is piped on stays clean."""
    import pty

    terminal, end = pty.openpty()
    with (tmp_path / "piped").open("w") as piped:
        process = subprocess.Popen(
            [sys.executable, "-c", AT_TORCH + start], stdin=end, stderr=end, stdout=piped,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        )  # fmt: skip
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's end of a terminal
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert process.wait() == 0
    assert shown.index(b"loading torch") < shown.index(b"HERE TORCH")
    assert "--data" in (said := (tmp_path / "piped").read_text()) and "loading" not in said


def test_check_names_data_that_the_logit_does_not_take(folder):
    """As compare does, and the option that helps; it blamed the VAE."""
    np.save("a.npy", 3 * np.random.RandomState(0).randn(40, 6))
    code, out, err = invoke("check", "tiny:make", "--data", "a.npy", "--latents", "2")
    assert (code, out) == (2, "") and "--preprocess logit takes data within 0 and 1, a.npy has values from -" in err
    code, out, err = invoke("check", "tiny:make", "--data", "a.npy", "--latents", "2", "--preprocess", "standardize")
    assert (code, err) == (0, "") and "ERROR" not in out


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(entry, "NEEDED", ("json", "no_such_package", "nor_this_one"))
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == 'vae2aef needs no_such_package, nor_this_one: pip install "vae2aef[demo]"\n'
