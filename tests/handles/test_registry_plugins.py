"""Plugins: packages that are installed as far as importlib.metadata can tell."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec
from tritonasync.core.errors import ConfigurationError
from tritonasync.handles.registry.config import HandleConfig, HandleParts
from tritonasync.handles.registry.configs import EncoderConfig
from tritonasync.handles.registry.plugins import GROUP
from tritonasync.handles.registry.registry import ModelRegistry
from tritonasync.handles.task import TaskHandle

CLASSES = """
class Fast:
    def preprocess(self, inputs):
        return inputs
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package of one module, by its name and its entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, code, entries):
        (tmp_path / f"{name}.py").write_text(code)
        folder = tmp_path / f"{name}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
        (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")

    yield install
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def registry():
    return ModelRegistry(plugins=True)


def names(registry, model_type="encoder"):
    return [model.arch_type for model in registry.registered_models(model_type)]


def create(registry, arch_type):
    parts = HandleParts(FakeInvoker(), FakeInvoker(), FakeCatalog(spec([])), 1)
    return registry.create(EncoderConfig(name="net", arch_type=arch_type), parts)


REGISTERS = f"""{CLASSES}
calls = []

def register(registry):
    calls.append(registry)
    registry.register_model("encoder", arch_type="fast")(Fast)
"""


def test_a_plugin_registers_itself_when_its_name_is_looked_up(install, registry):
    install("acme", REGISTERS, {"acme": "acme:register"})
    assert "acme" not in sys.modules
    create(registry, "encoder")  # is there without it
    assert "acme" not in sys.modules
    create(registry, "fast")
    assert sys.modules["acme"].calls == [registry]
    assert names(registry) == ["encoder", "fast"]
    assert sys.modules["acme"].calls == [registry]  # once


def test_the_only_architecture_is_the_only_one_of_all_plugins(install, registry):
    """So that what a config makes does not depend on whether names were listed before."""

    @dataclass(frozen=True, kw_only=True)
    class SegmenterConfig(HandleConfig[TaskHandle[object, object]]):
        model_type = "segmenter"

    class Mine:
        def postprocess(self, outputs):
            return outputs

    registry.register_model_type(SegmenterConfig)
    registry.register_model("segmenter")(Mine)
    install("acme", REGISTERS.replace("encoder", "segmenter"), {"acme": "acme:register"})
    parts = HandleParts(FakeInvoker(), FakeInvoker(), FakeCatalog(spec([])), 1)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="2 architectures .* by arch_type: fast, mine"):
            registry.create(SegmenterConfig(name="net"), parts)


def test_listing_loads_plugins(install, registry):
    install("acme", REGISTERS, {"acme": "acme:register"})
    assert names(registry) == ["encoder", "fast"]


def test_a_registry_of_ones_own_has_no_plugins_unless_it_wants_them(install):
    install("acme", REGISTERS, {"acme": "acme:register"})
    assert names(ModelRegistry()) == ["encoder"]
    with pytest.raises(ConfigurationError, match=r"no arch_type 'fast' .* registered: encoder$"):
        create(ModelRegistry(), "fast")
    assert "acme" not in sys.modules


def test_each_registry_gets_them(install):
    install("acme", REGISTERS, {"acme": "acme:register"})
    first, second = ModelRegistry(plugins=True), ModelRegistry(plugins=True)
    assert names(first) == names(second) == ["encoder", "fast"]
    assert sys.modules["acme"].calls == [first, second]


@pytest.mark.parametrize("entry", ["acme", "acme:Fast"])
def test_a_module_or_class_registers_with_the_default_registry(tmp_path, install, entry):
    code = f"""
from tritonasync.handles.registry.registry import register_model
{CLASSES.replace("class", "@register_model('encoder')" + chr(10) + "class")}
"""
    install("acme", code, {"acme": entry})
    program = (
        "from tritonasync.handles.registry.registry import registered_models;"
        "print([m.arch_type for m in registered_models('encoder')])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("['encoder', 'fast']\n", "")


BROKEN = "raise ImportError('no torch')"
PREFIX = "'broken' of broken 1.2 (broken:register) cannot be loaded: ImportError: no torch"


def test_a_broken_plugin_is_named_and_takes_nothing_down(install, registry):
    install("broken", BROKEN, {"broken": "broken:register"})
    install("acme", REGISTERS, {"zacme": "acme:register"})
    with pytest.warns(RuntimeWarning) as caught:
        create(registry, "fast")
    assert [str(warning.message) for warning in caught] == [f"plugin {PREFIX}"]
    assert names(registry) == ["encoder", "fast"]  # and it is told once
    with pytest.raises(ConfigurationError) as error:
        create(registry, "slow")
    assert str(error.value) == (
        "model 'net': there is no arch_type 'slow' for model_type 'encoder'; registered: encoder, "
        f"fast; plugin {PREFIX}"
    )


@pytest.mark.filterwarnings("error")
def test_all_others_are_loaded_also_where_warnings_are_errors(install, registry):
    install("broken", BROKEN, {"broken": "broken:register"})
    install("acme", REGISTERS, {"zacme": "acme:register"})
    with pytest.raises(RuntimeWarning, match="no torch"):
        names(registry)
    assert names(registry) == ["encoder", "fast"]


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("", "AttributeError: module 'broken' has no attribute 'register'"),
        ("register = 3", "TypeError: expected a module, a class or a function that takes the regi"),
        ("def register(): ...", "TypeError: register() takes 0 positional arguments but 1 was"),
        (
            "def register(registry): registry.register_model('encoder', arch_type='encoder')(type"
            "('A', (), {'preprocess': lambda self, inputs: inputs}))",
            "ConfigurationError: arch_type 'encoder' of model_type 'encoder' is taken by triton",
        ),
        (
            "def register(registry): registry.register_model('segmenter')",
            "ConfigurationError: there is no model_type 'segmenter'; registered: classifier, det",
        ),
    ],
)
def test_what_is_said_of_a_plugin_that_does_it_wrong(install, registry, code, fault):
    install("broken", code, {"broken": "broken:register"})
    with pytest.warns(RuntimeWarning) as caught:
        assert names(registry) == ["encoder"]
    (warning,) = caught
    assert f"plugin 'broken' of broken 1.2 (broken:register) cannot be loaded: {fault}" in str(
        warning.message
    )


TYPE = """
from dataclasses import dataclass
from typing import Any
from tritonasync.handles.registry.config import HandleConfig
from tritonasync.handles.task import TaskHandle

@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(HandleConfig[TaskHandle[Any, Any]]):
    model_type = "segmenter"

def register(registry):
    registry.register_model_type(SegmenterConfig)
"""


def test_a_plugin_may_need_the_model_type_of_another_that_comes_later(install, registry):
    install("first", REGISTERS.replace('"encoder"', '"segmenter"'), {"a": "first:register"})
    install("second", TYPE, {"b": "second:register"})
    assert names(registry, "segmenter") == ["fast"]


def test_threads_wait_for_the_one_that_loads(install, registry):
    slow = REGISTERS.replace("calls = []", "import time\ntime.sleep(0.3)\ncalls = []")
    install("acme", slow, {"acme": "acme:register"})
    found = []

    def look():
        found.append(registry.architecture("encoder", "fast").__name__)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)  # so that the others come while the first loads
    for thread in threads:
        thread.join()
    assert found == ["Fast"] * 4
    assert len(sys.modules["acme"].calls) == 1


def test_importing_a_plugin_while_another_thread_loads_it_does_not_wait_for_ever(
    install, registry, monkeypatch
):
    """The importing thread holds the module's import lock, and asks for what only loading gives."""
    monkeypatch.setattr("tritonasync.handles.registry.plugins._PATIENCE_S", 0.2)
    code = f"""{CLASSES}
import acme_test_state
acme_test_state.importing.set()
acme_test_state.loading.wait(5)
try:
    acme_test_state.registry.register_model("unknown")
except Exception as error:
    acme_test_state.said.append(str(error))

def register(registry):
    registry.register_model("encoder", arch_type="fast")(Fast)
"""
    install("acme", code, {"acme": "acme:register"})
    state = type(sys)("acme_test_state")
    state.importing, state.loading, state.said = threading.Event(), threading.Event(), []
    state.registry = registry
    monkeypatch.setitem(sys.modules, "acme_test_state", state)
    load = registry._plugins._load_all
    monkeypatch.setattr(
        type(registry._plugins), "_load_all", lambda _, r: (state.loading.set(), load(r))[1]
    )
    importing = threading.Thread(target=__import__, args=("acme",))
    importing.start()
    assert state.importing.wait(5)
    assert names(registry) == ["encoder", "fast"]
    importing.join(5)
    assert not importing.is_alive()
    assert state.said[0].startswith("there is no model_type 'unknown'")
