"""The numdiff backend over every framework's own gradient: for losses without a second derivative."""

import functools

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import TanhMLP
from ihvp._registry import usable_plugin
from ihvp.algebra import to_numpy

NETWORK = TanhMLP()


def hessian(backend):
    dialect = usable_plugin(backend).dialect()
    params = dialect.parameters(NETWORK.params)
    loss = functools.partial(NETWORK.loss, dialect.xp)
    with ihvp.use("numdiff", order=4):
        return ihvp.Hessian(ihvp.Objective(loss, params, NETWORK.batch))


@pytest.mark.parametrize("backend", ["torch", "tf", "jax"])
def test_products_agree_with_the_oracle(backend):
    v = np.random.default_rng(0).standard_normal(NETWORK.size)
    assert_allclose(hessian(backend) @ v, NETWORK.hvp(v), rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", ["torch", "tf", "jax"])
def test_parameters_are_bit_for_bit_the_same(backend):
    H = hessian(backend)
    objective = H.objective
    before = to_numpy(objective.backend.flatten(objective.params)).tobytes()
    _ = H @ np.ones(NETWORK.size)
    assert to_numpy(objective.backend.flatten(objective.params)).tobytes() == before
