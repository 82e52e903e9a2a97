"""Discovery and choice of backends, with plugins that exist in these tests alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import types
from dataclasses import dataclass

import numpy as np
import pytest

import ihvp
from ihvp import _inference, _registry, errors
from ihvp.backend import BackendPlugin
from ihvp.hookspecs import hookimpl


class Backend:
    """Five members, and what it was made with."""

    device = "cpu"

    def __init__(self, name, params, options):
        self.name, self.made_for, self.options = name, params, options

    def flatten(self, params):
        return np.zeros(2)

    def unflatten(self, vector, like):
        return like

    def grad(self, loss, params, batch):
        return np.ones(2)

    def hvp(self, loss, params, batch, v):
        return v.copy()


def plugin(name, framework="numpy", types_=(), factory=None, **fields):
    """A plugin module that answers the hook."""

    def make(params=None, **options):
        return Backend(name, params, options)

    module = types.ModuleType(f"plugin_{name}")

    @hookimpl
    def ihvp_backend():
        return BackendPlugin(
            name=name,
            framework=framework,
            install=f"pip install 'ihvp[{name}]'",
            factory=factory or make,
            types=tuple(types_),
            **fields,
        )

    module.ihvp_backend = ihvp_backend
    return module


@dataclass
class EntryPoint:
    name: str
    target: object

    def load(self):
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


@pytest.fixture
def register(monkeypatch):
    """Makes exactly the given plugins known, until the test is over."""

    def clear():
        _registry.registered.cache_clear()
        _inference._owner_of_type.cache_clear()

    def use_plugins(**targets):
        clear()
        entries = [EntryPoint(name, target) for name, target in targets.items()]
        monkeypatch.setattr(_registry.importlib.metadata, "entry_points", lambda group: entries)

    yield use_plugins
    monkeypatch.undo()
    clear()


@pytest.fixture
def frameworks(register):
    """Two frameworks that differentiate losses, and finite differences."""
    register(
        torch=plugin("torch", types_=["torch"]),
        jax=plugin("jax", types_=["jax", "jaxlib"]),
        numdiff=plugin("numdiff", types_=["numpy"], differentiates="gradient"),
    )


def array_of(module, base=object):
    """An instance of a class that says it was defined in ``module``."""
    return type("Array", (base,), {"__module__": module})()


def name_of(params, backend=None, **kwargs):
    return _inference.create_backend(params, backend, **kwargs).name


# The plugins of this distribution


def test_installed_plugins_are_listed_sorted():
    names = [info.name for info in ihvp.backends()]
    assert names == sorted(names)
    assert {"jax", "numdiff", "tf", "torch"} <= set(names)


def test_numdiff_is_installed_with_numpys_version():
    info = next(info for info in ihvp.backends() if info.name == "numdiff")
    assert (info.installed, info.version, info.error) == (True, np.__version__, None)
    assert info.capabilities == {"product_error", "value", "blocks", "reduce"}


def test_listing_backends_imports_no_framework():
    code = (
        "import sys, ihvp; assert ihvp.backends(); "
        "print(sorted({'torch', 'tensorflow', 'keras', 'jax', 'jaxlib', 'autograd'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# The three errors


@pytest.mark.parametrize(
    "choose",
    [lambda: ihvp.use("mxnet"), lambda: _inference.create_backend(None, "mxnet")],
    ids=["use", "backend="],
)
def test_unknown_backend_lists_the_known_ones(frameworks, choose):
    with pytest.raises(errors.UnknownBackend, match=r"'mxnet'\. Registered backends: jax, numdiff, torch"):
        choose()


def test_missing_framework_says_how_to_install_it(register):
    register(jax=plugin("jax", framework="framework_that_is_not_there"))
    with pytest.raises(errors.BackendNotInstalled, match=r"Install it with: pip install 'ihvp\[jax\]'"):
        ihvp.use("jax")


def test_missing_framework_is_found_by_inference_too(register):
    register(jax=plugin("jax", framework="framework_that_is_not_there", types_=["jax"]))
    with pytest.raises(errors.BackendNotInstalled):
        _inference.create_backend(array_of("jax._src.array"))


def test_framework_that_is_hidden_from_import_counts_as_missing(monkeypatch, register):
    monkeypatch.setitem(sys.modules, "hidden_framework", None)
    register(hidden=plugin("hidden", framework="hidden_framework"))
    with pytest.raises(errors.BackendNotInstalled):
        ihvp.use("hidden")
    assert not ihvp.backends()[0].installed


def _hook_that_raises():
    module = types.ModuleType("plugin")

    @hookimpl
    def ihvp_backend():
        raise ZeroDivisionError("in the hook")

    module.ihvp_backend = ihvp_backend
    return module


def _hook_that_returns(value):
    module = types.ModuleType("plugin")

    @hookimpl
    def ihvp_backend():
        return value

    module.ihvp_backend = ihvp_backend
    return module


def _hook_with_arguments():
    module = types.ModuleType("plugin")

    @hookimpl
    def ihvp_backend(unknown):
        raise AssertionError

    module.ihvp_backend = ihvp_backend
    return module


BROKEN = {
    "import error": (ImportError("no such symbol"), "ImportError: no such symbol"),
    "syntax error": (SyntaxError("bad"), "SyntaxError: bad"),
    "hook raises": (_hook_that_raises(), "ZeroDivisionError: in the hook"),
    "no hook": (types.ModuleType("plugin"), "no hook implementation named ihvp_backend"),
    "hook returns None": (_hook_that_returns(None), "returned None; expected an ihvp.backend.BackendPlugin"),
    "hook returns a dict": (_hook_that_returns({}), "returned dict; expected an ihvp.backend.BackendPlugin"),
    "another name": (plugin("other"), "named 'other'; expected 'broken'"),
    "unknown argument": (_hook_with_arguments(), "PluginValidationError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugin_raises_its_own_error_chained(register, case):
    target, text = BROKEN[case]
    register(broken=target)
    with pytest.raises(errors.BrokenBackend, match=text) as caught:
        ihvp.use("broken")
    assert isinstance(caught.value.__cause__, Exception)


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugin_leaves_the_others_working(register, case):
    register(broken=BROKEN[case][0], torch=plugin("torch", types_=["torch"]))
    rows = {info.name: info for info in ihvp.backends()}
    assert rows["torch"].error is None
    assert BROKEN[case][1] in rows["broken"].error
    assert name_of(array_of("torch")) == "torch"


def test_factory_that_cannot_import_is_a_broken_backend(register):
    def factory(params=None):
        raise ImportError("libcudart.so is missing")

    register(torch=plugin("torch", factory=factory))
    with pytest.raises(errors.BrokenBackend, match=r"libcudart\.so is missing") as caught:
        _inference.create_backend(None, "torch")
    assert isinstance(caught.value.__cause__, ImportError)


# use


def test_use_chooses_from_here_on_and_returns_what_can_end_it(frameworks):
    with ihvp.use("torch"):
        assert name_of(array_of("jax"), "jax") == "jax"
        assert name_of({}) == "torch"
        ihvp.use("jax")
        assert name_of({}) == "jax"
    with pytest.raises(errors.UndeterminedBackend):
        name_of({})


def test_use_as_a_block_restores_the_choice_before_it(frameworks):
    with ihvp.use("torch"):
        with ihvp.use("jax"):
            assert name_of({}) == "jax"
        assert name_of({}) == "torch"


def test_use_as_a_block_restores_the_choice_after_an_error(frameworks):
    with ihvp.use("torch"):
        with pytest.raises(KeyError), ihvp.use("jax"):
            raise KeyError
        assert name_of({}) == "torch"


def test_use_passes_its_options_to_the_factory(frameworks):
    with ihvp.use("torch", step=1e-2, order=4):
        assert _inference.create_backend("params").options == {"step": 1e-2, "order": 4}
        assert _inference.create_backend("params").made_for == "params"


def test_choice_that_cannot_work_leaves_the_one_before(frameworks):
    with ihvp.use("torch"):
        with pytest.raises(errors.UnknownBackend):
            ihvp.use("mxnet")
        assert name_of({}) == "torch"


def test_threads_keep_their_own_choice(frameworks):
    found, inside, outside = {}, threading.Barrier(2), threading.Barrier(2)

    def work(name):
        with ihvp.use(name):
            inside.wait(10)
            found[name] = name_of({})
            outside.wait(10)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("torch", "jax")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {"torch": "torch", "jax": "jax"}


def test_async_tasks_keep_their_own_choice(frameworks):
    async def work(name):
        with ihvp.use(name):
            await asyncio.sleep(0)
            return name_of({})

    async def both():
        return await asyncio.gather(work("torch"), work("jax"))

    assert asyncio.run(both()) == ["torch", "jax"]


def test_backend_argument_wins_over_use(frameworks):
    with ihvp.use("torch"):
        assert name_of({}, "jax") == "jax"


def test_backend_object_is_used_as_it_is(frameworks):
    backend = Backend("mine", None, {})
    assert _inference.create_backend({}, backend) is backend


@pytest.mark.parametrize("choice", [3, object(), np])
def test_backend_that_is_none_is_refused(frameworks, choice):
    with pytest.raises(
        errors.InvalidOption, match=r"backend is .*; expected a registered name or an object with"
    ):
        _inference.create_backend({}, choice)


# Inference


@pytest.mark.parametrize(
    ("module", "name"), [("torch", "torch"), ("torch.nn.modules", "torch"), ("jaxlib._jax", "jax")]
)
@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: [x], lambda x: {"a": (x,)}, lambda x: {"a": {"b": [x, x]}}],
    ids=["itself", "list", "dict", "nested"],
)
def test_backend_is_inferred_from_the_leaves(frameworks, module, name, wrap):
    assert name_of(wrap(array_of(module))) == name


def test_backend_is_inferred_from_a_base_class(frameworks):
    module = array_of("users_own_package", base=type(array_of("torch.nn")))
    assert name_of(module) == "torch"


def test_backend_is_inferred_from_the_fields_of_a_dataclass(frameworks):
    @dataclass
    class Model:
        weight: object

    assert name_of(Model(array_of("jax"))) == "jax"


def test_inference_compares_whole_package_names(frameworks):
    with pytest.raises(errors.UndeterminedBackend):
        name_of(array_of("torchvision.models"))


def test_inference_imports_nothing(frameworks):
    before = set(sys.modules)
    name_of(array_of("torch"))
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & {"torch", "jax", "tensorflow"}


def test_numpy_beside_a_framework_is_neutral(frameworks):
    assert name_of({"w": array_of("jax"), "scale": np.ones(2)}) == "jax"


def test_numpy_with_a_gradient_is_finite_differences(frameworks):
    assert name_of(np.ones(2), has_gradient=True) == "numdiff"


@pytest.mark.parametrize("backend", [None, "numdiff"])
def test_numpy_with_a_loss_alone_says_to_pass_a_gradient(frameworks, backend):
    with pytest.raises(errors.UndeterminedBackend, match="differentiates a gradient: pass grad="):
        _inference.create_backend(np.ones(2), backend)


def test_finite_differences_work_over_the_parameters_own_backend(frameworks):
    backend = _inference.create_backend([array_of("torch")], "numdiff")
    assert backend.name == "numdiff"
    assert backend.options["inner"].name == "torch"


def test_finite_differences_over_numpy_have_no_inner_backend(frameworks):
    assert _inference.create_backend(np.ones(2), "numdiff", has_gradient=True).options == {"inner": None}


@pytest.mark.parametrize("types", [(), ("numpy",)])
def test_a_second_backend_of_gradients_takes_numpy_arrays(register, types):
    register(
        numdiff=plugin("numdiff", types_=["numpy"], differentiates="gradient"),
        secant=plugin("secant", types_=types, differentiates="gradient"),
    )
    objective = ihvp.Objective(params=np.zeros(3), grad=lambda w, batch: w, backend="secant")
    assert objective.backend.name == "secant"
    assert objective.backend.options == {"inner": None}
    with pytest.raises(errors.UndeterminedBackend, match="'secant' differentiates a gradient"):
        ihvp.Objective(lambda w, batch: 0.0, np.zeros(3), backend="secant")


@pytest.mark.parametrize("params", [3, "weights", {}, [], [None], object()])
def test_parameters_of_no_framework_are_refused_with_the_known_ones(frameworks, params):
    with pytest.raises(
        errors.UndeterminedBackend, match=r"Choose one with .* Registered backends: jax, numdiff"
    ):
        _inference.create_backend(params)


@pytest.mark.parametrize("backend", [None, "numdiff"])
def test_parameters_of_two_frameworks_are_refused_with_both(frameworks, backend):
    params = [array_of("torch"), array_of("jaxlib._jax")]
    text = "Found parameters of jax and parameters of torch; expected parameters of one framework. Convert"
    with pytest.raises(errors.MixedFrameworks, match=text):
        _inference.create_backend(params, backend)


def test_parameters_of_another_framework_than_the_chosen_one_are_refused(frameworks):
    with (
        ihvp.use("jax"),
        pytest.raises(errors.MixedFrameworks, match="parameters for the chosen backend 'jax'"),
    ):
        _inference.create_backend([array_of("torch")])
