from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import ihvp
import ihvp_torch
from ihvp.backend import CurvatureBackend, capabilities_of
from ihvp.errors import InvalidOption
from ihvp_torch import _plugin


@pytest.mark.parametrize("module", ["ihvp_torch", "ihvp_torch._plugin"])
def test_importing_the_plugin_does_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_record_declares_what_the_backend_implements():
    record = _plugin.ihvp_backend()
    backend = record.factory()
    assert isinstance(backend, CurvatureBackend)
    assert capabilities_of(backend) == record.capabilities


def test_device_is_where_the_parameters_are():
    assert _plugin.factory({"w": torch.ones(2, device="meta")}).device == "meta"


def test_device_without_parameters_is_torchs_default():
    with torch.device("meta"):
        assert _plugin.factory().device == "meta"
    assert _plugin.factory().device == "cpu"


def test_package_exports_the_backend():
    assert isinstance(_plugin.factory(), ihvp_torch.TorchBackend)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = ihvp_torch.Nothing


class TestDialect:
    def test_parameters_keep_names_values_and_dtypes(self):
        arrays = {"w": np.array([1.0, 2.0]), "b": np.array(3.0, dtype=np.float32)}
        parameters = _plugin.dialect().parameters(arrays)
        assert list(parameters) == ["w", "b"]
        assert parameters["w"].dtype == torch.float64
        assert parameters["b"].dtype == torch.float32
        np.testing.assert_array_equal(parameters["w"], arrays["w"])

    def test_parameters_are_copies(self):
        array = np.array([1.0])
        parameters = _plugin.dialect().parameters({"w": array})
        array[0] = 5.0
        assert parameters["w"].item() == 1.0

    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            (lambda xp, x: xp.sum(xp.exp(x)), np.exp([[1, 2], [3, 4]])),
            (lambda xp, x: xp.sum(xp.log(x)), 1 / np.array([[1, 2], [3, 4]])),
            (lambda xp, x: xp.sum(xp.tanh(x)), 1 - np.tanh([[1, 2], [3, 4]]) ** 2),
            (lambda xp, x: xp.sum(xp.sum(x, axis=1) ** 2), [[6, 6], [14, 14]]),
            (lambda xp, x: xp.mean(x), np.full((2, 2), 0.25)),
            (lambda xp, x: xp.sum(xp.max(x, axis=1)), [[0, 1], [0, 1]]),
            (lambda xp, x: xp.reshape(x, (4,))[1], [[0, 1], [0, 0]]),
            (lambda xp, x: xp.sum(xp.matmul(x, xp.asarray([[1.0], [2.0]], dtype=x.dtype))), [[1, 2], [1, 2]]),
        ],
        ids=["exp", "log", "tanh", "sum", "mean", "max", "reshape", "matmul"],
    )
    def test_function_has_its_derivative(self, backend, function, expected):
        dialect = _plugin.dialect()
        params = dialect.parameters({"x": np.array([[1.0, 2.0], [3.0, 4.0]])})
        gradient = backend.grad(lambda p, _: function(dialect.xp, p["x"]), params, None)
        np.testing.assert_allclose(gradient.reshape(2, 2), expected, rtol=1e-12)


@pytest.mark.parametrize(("option", "kinds"), [(True, (True, False)), (False, (False, False))])
def test_compilation_is_an_option_of_use(option, kinds):
    def chosen():
        backend = ihvp.Objective(lambda p, _: p[0].sum(), [torch.ones(2)]).backend
        return backend._compiler is not None, backend._patient

    with ihvp.use("torch", compile=option):
        assert chosen() == kinds
    assert chosen() == (False, True)
    with ihvp.use("torch", compile="always"), pytest.raises(InvalidOption, match='True, False or "auto"'):
        chosen()
