"""Scores and their derivatives by inputs in every framework, against dense linear algebra."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import TanhMLP
from ihvp._registry import usable_plugin

TRAIN, TEST = TanhMLP(rows=9), TanhMLP(rows=9)
TEST.batch = tuple(array[::-1][:4].copy() for array in TRAIN.batch)
TEST.batch = (TEST.batch[0] + 0.3, TEST.batch[1])
DAMPING = 3.0

pytestmark = pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")


@functools.cache
def influence(backend):
    dialect = usable_plugin(backend).dialect()
    loss = functools.partial(TRAIN.loss, dialect.xp)
    source = {"grad": TRAIN.gradient} if backend == "numdiff" else {"loss": loss}
    objective = ihvp.Objective(
        **source, params=dialect.parameters(TRAIN.params), data=TRAIN.batch, backend=backend
    )
    return ihvp.Influence(objective, DAMPING, ihvp.CG(rtol=1e-8 if backend == "numdiff" else 1e-12))


@functools.cache
def inverse_products():
    slopes = np.stack([TEST.flat_gradient(rows=slice(j, j + 1)) for j in range(4)], axis=1)
    return np.linalg.solve(TRAIN.hessian() + DAMPING * np.eye(TRAIN.size), slopes)


@pytest.mark.parametrize("backend", ["torch", "tf", "jax", "numdiff"])
def test_scores(backend):
    rows = np.stack([TRAIN.flat_gradient(rows=slice(i, i + 1)) for i in range(9)])
    expected = inverse_products().T @ rows.T / 9
    tolerance = (1e-7 if backend == "numdiff" else 1e-11) * np.abs(expected).max()
    assert_allclose(influence(backend).scores(TEST.batch), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", ["torch", "tf", "jax", "numdiff"])
def test_derivatives_by_inputs(backend):
    # The batch's mean has 1/9 in it, as the scores have.
    expected = [TRAIN.input_derivatives(column) for column in inverse_products().T]
    found = influence(backend).on_inputs(TEST.batch)
    for part, exact in zip(found, map(np.stack, zip(*expected, strict=True)), strict=True):
        tolerance = (1e-7 if backend == "numdiff" else 1e-11) * np.abs(exact).max()
        assert_allclose(part, exact, rtol=0, atol=tolerance)
