"""torch, TensorFlow, JAX and finite differences give the same answers, in one process."""

import functools
from itertools import combinations

import numpy as np
import pytest
from numpy.testing import assert_array_less

import ihvp
from ihvp._problems import TanhMLP
from ihvp._registry import usable_plugin
from ihvp.algebra import to_numpy

NETWORK = TanhMLP(inputs=30, hidden=50, classes=10, rows=200)
EXACT = ("torch", "tf", "jax")
QUANTITIES = ("gradient", "product", "block product", "solution")


@functools.cache
def answers(backend, dtype="float64"):
    """Gradient, product, block product and a damped CG solution, as numpy arrays."""
    plugin = usable_plugin(backend)
    dialect = plugin.dialect()
    params = dialect.parameters({key: value.astype(dtype) for key, value in NETWORK.params.items()})
    if plugin.differentiates == "gradient":
        source = {"grad": NETWORK.gradient}
    else:
        source = {"loss": functools.partial(NETWORK.loss, dialect.xp)}
    batch = tuple(array.astype(dtype) for array in NETWORK.batch)
    objective = ihvp.Objective(**source, params=params, data=batch, backend=backend)
    H = ihvp.Hessian(objective)
    block = np.random.default_rng(0).standard_normal((NETWORK.size, 4)).astype(dtype)
    # No certificate is tighter than the error of a product.
    rtol = {"float64": 1e-12, "float32": 1e-4}[dtype] if backend != "numdiff" else 1e-3
    return {
        "gradient": to_numpy(objective.gradient()),
        "product": H @ block[:, 0],
        "block product": H @ block,
        "solution": ihvp.solve(H, block[:, 0], damping=1.0, solver=ihvp.CG(rtol=rtol)).x,
    }


def difference(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_the_network_is_as_large_as_promised():
    assert NETWORK.size >= 2000


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(("one", "other"), list(combinations(EXACT, 2)))
def test_exact_backends_agree_pairwise(one, other, quantity):
    assert_array_less(difference(answers(one)[quantity], answers(other)[quantity]), 1e-10)


@pytest.mark.parametrize("quantity", ["gradient", "product", "block product"])
@pytest.mark.parametrize("exact", EXACT)
def test_finite_differences_agree_with_exact_backends(exact, quantity):
    assert_array_less(difference(answers("numdiff")[quantity], answers(exact)[quantity]), 1e-7)


@pytest.mark.parametrize("backend", [*EXACT, "numdiff"])
def test_float32_agrees_with_float64(backend):
    found, expected = answers(backend, "float32"), answers(backend)
    for quantity in ("gradient", "product", "block product"):
        assert found[quantity].dtype == np.float32
        assert_array_less(difference(found[quantity], expected[quantity]), 1e-3)


@pytest.mark.parametrize("backend", [*EXACT, "numdiff"])
def test_the_oracle_agrees(backend):
    v = np.random.default_rng(0).standard_normal((NETWORK.size, 4))[:, 0]
    bound = 1e-7 if backend == "numdiff" else 1e-12
    assert_array_less(difference(answers(backend)["product"], NETWORK.hvp(v)), bound)
