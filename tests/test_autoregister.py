"""Importing wkv registers its models with transformers, in either order, without importing it."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from wkv import _autoregister

CHECK = """
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
config = AutoConfig.for_model("rwkv")
assert type(config).__module__.startswith("wkv."), type(config)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as M
assert M[type(config)].__module__.startswith("wkv."), M[type(config)]
assert 'exec_module' not in vars(sys.modules["transformers"].__spec__.loader)
assert not any(type(f).__module__ == "wkv._autoregister" for f in sys.meta_path)
print("registered")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "first",
    [
        "import wkv; assert not {'transformers', 'torch', 'numpy'} & set(sys.modules)",
        "import transformers, wkv",
        "from wkv.hf import RwkvForCausalLM",
    ],
)
def test_the_auto_classes_are_ours_whatever_is_imported_first(first):
    quiet = "import sys, warnings; warnings.simplefilter('error', RuntimeWarning)\n"
    done = run(quiet + first + CHECK)
    assert done.stdout.strip() == "registered", done.stderr


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """A library that takes no time to import, and a module of ours that imports it."""
    (tmp_path / "fake_library.py").write_text("import fake_parts\nready = True\n")
    (tmp_path / "fake_parts.py").write_text("")
    (tmp_path / "fake_hf.py").write_text(
        "import fake_library\ncalls = []\n"
        "def register():\n    assert fake_library.ready\n    calls.append(1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_autoregister, "TARGET", "fake_library")
    monkeypatch.setattr(_autoregister, "NEEDED", ("fake_hf",))
    monkeypatch.setattr(
        sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, _autoregister._Finder)]
    )
    yield lambda: importlib.import_module("fake_hf").register()
    for name in ("fake_library", "fake_parts", "fake_hf"):
        sys.modules.pop(name, None)


def waiting() -> int:
    return sum(isinstance(f, _autoregister._Finder) for f in sys.meta_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "order", [["fake_library"], ["fake_hf"], ["fake_library", "fake_hf"], ["json", "fake_hf"]]
)
def test_registration_happens_once_however_the_library_comes_in(fakes, order):
    _autoregister.install(fakes)
    _autoregister.install(fakes)
    assert waiting() == 1
    assert "fake_library" not in sys.modules
    for name in order:
        importlib.import_module(name)
    assert sys.modules["fake_hf"].calls == [1]
    assert waiting() == 0


def test_a_library_that_is_there_is_told_at_once(fakes):
    importlib.import_module("fake_library")
    _autoregister.install(fakes)
    assert sys.modules["fake_hf"].calls == [1]
    assert waiting() == 0


def test_an_import_that_fails_is_waited_for_again(fakes, tmp_path):
    _autoregister.install(fakes)
    good = (tmp_path / "fake_library.py").read_text()
    (tmp_path / "fake_library.py").write_text("raise ImportError('broken')")
    with pytest.raises(ImportError, match="broken"):
        importlib.import_module("fake_library")
    assert waiting() == 1
    (tmp_path / "fake_library.py").write_text(good + "# another size than before\n")
    importlib.invalidate_caches()
    importlib.import_module("fake_library")
    assert sys.modules["fake_hf"].calls == [1]


def test_a_library_that_is_missing_stays_missing(fakes, tmp_path):
    (tmp_path / "fake_library.py").unlink()
    _autoregister.install(fakes)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fake_library")


def test_without_torch_there_is_nothing_to_register(fakes, monkeypatch):
    monkeypatch.setattr(_autoregister.importlib.util, "find_spec", lambda name: None)
    _autoregister.install(fakes)
    importlib.import_module("fake_library")
    assert "fake_hf" not in sys.modules


def test_a_failure_to_register_is_a_warning_and_the_library_still_imports(fakes):
    def broken():
        raise RuntimeError("incompatible")

    _autoregister.install(broken)
    with pytest.warns(RuntimeWarning, match=r"RuntimeError: incompatible.*wkv\.register\(\)"):
        importlib.import_module("fake_library")
    assert sys.modules["fake_library"].ready


def test_the_front_door_names_what_there_is():
    import wkv

    for name in dir(wkv):
        assert getattr(wkv, name) is not None
    assert {"load", "State", "ModelConfig", "LanguageModel", "register"} <= set(dir(wkv))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        wkv.lode  # noqa: B018
