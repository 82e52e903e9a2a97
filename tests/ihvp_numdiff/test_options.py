"""The record of the plugin and its options."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ihvp.backend import CurvatureBackend, capabilities_of
from ihvp.errors import InvalidOption
from ihvp_numdiff._plugin import ihvp_backend


def test_declared_capabilities_are_the_implemented_ones():
    record = ihvp_backend()
    backend = record.factory(np.ones(2))
    assert isinstance(backend, CurvatureBackend)
    assert capabilities_of(backend) == record.capabilities == {"product_error", "value", "blocks", "reduce"}
    assert backend.device == "cpu"


def test_record_differentiates_gradients_of_numpy_parameters():
    record = ihvp_backend()
    assert (record.name, record.framework, record.differentiates) == ("numdiff", "numpy", "gradient")
    assert "numpy" in record.types


def test_dialect_is_numpy_and_copies_the_parameters():
    dialect, array = ihvp_backend().dialect(), np.ones(2)
    parameters = dialect.parameters({"w": array})
    assert dialect.xp is np
    parameters["w"][0] = 5
    np.testing.assert_array_equal(array, [1, 1])


@pytest.mark.parametrize("step", [0, -1e-3, float("nan"), float("inf"), "auto", 1j])
def test_step_must_be_positive_and_finite(step):
    with pytest.raises(InvalidOption, match=r"step is .*expected a positive finite number"):
        ihvp_backend().factory(step=step)


@pytest.mark.parametrize("order", [0, 1, 3, 6, "2"])
def test_order_must_be_2_or_4(order):
    with pytest.raises(InvalidOption, match=r"order is .*expected 2 or 4"):
        ihvp_backend().factory(order=order)


def test_numpy_step_is_accepted():
    assert ihvp_backend().factory(step=np.float32(0.5)).step == 0.5


def test_importing_the_plugin_loads_no_framework():
    code = (
        "import sys, ihvp_numdiff, ihvp_numdiff._plugin as p; p.ihvp_backend().factory(); "
        "print([m for m in ('torch', 'jax', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
