"""The registry: by class name through inheritance, by entry point, by shape; and what is unwrapped on the way in."""

import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from adapter_cases import CASES
from torch import Tensor, nn

import vae2aef
from vae2aef import registry
from vae2aef.parts import CallableParts


class Known(nn.Module):
    """A VAE whose outputs nobody could guess: a dict, the second entry a log standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(6, 4), nn.Linear(2, 6)

    def look(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_std = self.inward(x).chunk(2, dim=1)
        return {"mean": mean, "spread": log_std}


class Derived(Known):
    pass


NAME = f"{Known.__module__}.{Known.__qualname__}"


def adapt(vae: Any, x: Tensor) -> CallableParts:
    return CallableParts(lambda x: tuple(vae.look(x).values()), vae.outward, "log_std")


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test the registry as it is after import, and leave it so."""
    list(registry.find_adapters(object()))
    monkeypatch.setattr(registry, "_by_name", dict(registry._by_name))
    monkeypatch.setattr(registry, "_by_shape", list(registry._by_shape))


@pytest.mark.parametrize("vae", [Known(), Derived()], ids=["class", "subclass"])
def test_found_by_name_through_inheritance(vae: Known) -> None:
    x = torch.rand(5, 6)
    with pytest.raises(vae2aef.WrapError, match="none is registered"):
        vae2aef.wrap(vae, example=x)
    assert vae2aef.register_adapter(NAME)(adapt) is adapt
    aef = vae2aef.wrap(vae, example=x)
    assert aef.latent_shape == (2,)
    spread = vae.look(x)["spread"]
    torch.testing.assert_close(aef.parts.encode(x).scale, spread.exp())


def test_nearest_class_wins_and_a_name_can_be_replaced() -> None:
    near, far = (lambda vae, x: None), (lambda vae, x: None)
    vae2aef.register_adapter(NAME)(far)
    vae2aef.register_adapter(f"{Derived.__module__}.Derived")(near)
    assert list(registry.find_adapters(Derived()))[:2] == [near, far]
    vae2aef.register_adapter(NAME)(near)
    assert next(registry.find_adapters(Known())) is near


def test_an_adapter_may_decline() -> None:
    vae2aef.register_adapter(NAME)(adapt)
    vae2aef.register_adapter(f"{Derived.__module__}.Derived")(lambda vae, x: None)
    assert vae2aef.wrap(Derived(), example=torch.rand(5, 6)).latent_shape == (2,)


def test_conditions_and_scale_reach_the_adapter() -> None:
    seen = {}

    def conditional(vae: Any, x: Tensor, *cond: Any, encoder_scale: str | None = None, **kwargs: Any) -> None:
        seen.update(x=x, cond=cond, encoder_scale=encoder_scale, kwargs=kwargs)

    vae2aef.register_adapter(NAME)(conditional)
    x, y = torch.rand(5, 6), torch.arange(5)
    with pytest.raises(vae2aef.WrapError):
        vae2aef.wrap(Known(), example=(x, y, {"labels": y}), encoder_scale="var")
    assert torch.equal(seen["x"], x) and torch.equal(seen["cond"][0], y) and torch.equal(seen["kwargs"]["labels"], y)
    assert seen["encoder_scale"] == "var"


@pytest.mark.parametrize("arguments", [(), (adapt,), ("a.B", 3)], ids=["nothing", "no parentheses", "no name"])
def test_wrong_use_of_the_decorator(arguments: tuple) -> None:
    with pytest.raises(TypeError, match="register_adapter"):
        vae2aef.register_adapter(*arguments)


def entry_point(value: str) -> EntryPoint:
    return EntryPoint(name=NAME, value=value, group=registry.GROUP)


def test_entry_point_is_loaded_when_its_class_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = types.ModuleType("some_plugin")
    plugin.adapt = adapt  # type: ignore[attr-defined]
    monkeypatch.setattr(
        registry, "_installed", lambda: {NAME: entry_point("some_plugin:adapt"), "x.Y": entry_point("!")}
    )
    with pytest.raises(vae2aef.WrapError, match=r"some_plugin:adapt.*cannot be loaded: ModuleNotFoundError"):
        vae2aef.wrap(Derived(), example=torch.rand(5, 6))
    monkeypatch.setitem(sys.modules, "some_plugin", plugin)
    assert vae2aef.wrap(Derived(), example=torch.rand(5, 6)).latent_shape == (2,)


@pytest.mark.slow
def test_entry_point_of_an_installed_package(tmp_path: Any) -> None:
    """A real distribution on sys.path: found by its metadata, not imported until its class is wrapped."""
    info = tmp_path / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vae2aef.adapters]\ntheir_vae.Net = their_adapter:adapt\n")
    (tmp_path / "their_vae.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(6, 4), nn.Linear(2, 6)\n"
    )
    (tmp_path / "their_adapter.py").write_text(
        "from vae2aef.parts import CallableParts\n"
        "def adapt(vae, x):\n"
        "    return CallableParts(lambda x: vae.a(x).chunk(2, dim=1), vae.b, 'log_var')\n"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, vae2aef, their_vae\n"
        "vae2aef.wrap(torch.nn.Module(), example=torch.rand(2, 6), encoder=lambda x: (x[:, :2], x[:, 2:4]),\n"
        "             decoder=torch.nn.Linear(2, 6), encoder_scale='log_var')\n"
        "assert 'their_adapter' not in sys.modules\n"
        "print(vae2aef.wrap(their_vae.Net(), example=torch.rand(2, 6)).latent_shape)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "torch.Size([2])" in result.stdout, result.stderr


def test_no_codebase_is_imported() -> None:
    script = (
        "import sys, vae2aef, vae2aef.adapters\n"
        "found = {'pythae', 'diffusers', 'monai', 'lightning', 'pyro', 'accelerate'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


CASE = CASES[0]
compiles = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from inside torch.compile


@compiles
def test_a_compiled_module_is_unwrapped() -> None:
    vae = CASE.make()
    aef = vae2aef.wrap(torch.compile(vae), example=CASE.example())
    assert aef.vae is vae
    with pytest.raises(TypeError, match="AEF already"):
        vae2aef.wrap(torch.compile(aef), example=CASE.example())


@compiles
def test_parallel_modules_are_unwrapped(tmp_path: Any) -> None:
    vae = CASE.make()
    assert vae2aef.wrap(nn.DataParallel(vae), example=CASE.example()).vae is vae
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(torch.compile(vae))
        assert vae2aef.wrap(parallel, example=CASE.example()).vae is vae
    finally:
        torch.distributed.destroy_process_group()


def test_a_users_own_attribute_named_module_is_left_alone() -> None:
    vae = Known()
    vae.module = nn.Linear(2, 2)
    assert registry.unwrap(vae) is vae


def test_unknown_vae_says_what_was_tried_and_what_to_write() -> None:
    with pytest.raises(vae2aef.WrapError) as error:
        vae2aef.wrap(Known(), example=torch.rand(5, 6))
    for part in (NAME, "`encode` and `decode`", "`encoder` and `decoder`", "vae2aef.wrap(vae, example=x, encoder="):
        assert part in str(error.value)
