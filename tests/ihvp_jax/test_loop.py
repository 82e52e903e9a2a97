"""Batches of one size in one compiled loop, and what a Hessian over several batches makes of changes."""

from __future__ import annotations

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp_jax._backend import JaxBackend

X = np.random.default_rng(0).standard_normal((11, 3))
V = np.array([1.0, -2.0, 0.5])


class Counted:
    """``mean tanh(x w)²``, which counts how often it is traced."""

    def __init__(self) -> None:
        self.traces = 0

    def __call__(self, params: Any, batch: Any) -> Any:
        self.traces += 1
        return jnp.mean(jnp.tanh(batch["x"] @ params["w"]) ** 2) * batch.get("scale", 1.0)


@pytest.fixture
def params() -> dict[str, Any]:
    return {"w": jnp.array([0.3, -0.2, 0.5])}


def expected(params: Any, x: np.ndarray, v: Any = V) -> np.ndarray:
    t = np.tanh(x @ np.asarray(params["w"]))
    curvature = 2 * (1 - t**2) * (1 - 3 * t**2)
    return (x.T * curvature) @ (x @ v) / len(x)


@pytest.mark.parametrize("size", [1, 2, 3, 11])
def test_a_loop_sums_the_products_of_whole_pieces(backend: JaxBackend, params: Any, size: int) -> None:
    total = sum(expected(params, X[i * size : (i + 1) * size]) for i in range(11 // size))
    assert_allclose(backend.hvp_sum(Counted(), params, {"x": X}, jnp.asarray(V), size), total, rtol=1e-12)


def test_what_is_no_array_with_rows_belongs_to_every_piece(backend: JaxBackend, params: Any) -> None:
    for scale in (2.0, np.array(2.0), jnp.array(2.0)):
        product = backend.hvp_sum(Counted(), params, {"x": X, "scale": scale}, jnp.asarray(V), 5)
        assert_allclose(product, 2 * expected(params, X[:5]) + 2 * expected(params, X[5:10]), rtol=1e-12)


def test_loops_of_other_values_and_widths_trace_the_loss_no_more(backend: JaxBackend, params: Any) -> None:
    loss = Counted()
    for scale in (1.0, 2.0):
        for v in (V, np.eye(3), np.ones((3, 2))):
            backend.hvp_sum(loss, {"w": scale * params["w"]}, {"x": scale * X}, jnp.asarray(v), 2)
    assert loss.traces == 1


def test_products_over_pieces_trace_nothing_after_the_first(params: Any) -> None:
    loss = Counted()
    for data in ({"x": X}, [{"x": X[:4]}, {"x": X[4:]}]):
        H = ihvp.Hessian(ihvp.Objective(loss, params, data, batch_size=2))
        _ = H @ V
        traces = loss.traces
        for scale in (2.0, 3.0):
            _ = H @ (scale * V)
        assert loss.traces == traces


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("batch_size", [None, 2, 4])
@pytest.mark.parametrize("kind", ["one batch", "a list"])
def test_products_follow_leaves_that_are_replaced(
    params: Any, budget: int | None, batch_size: int | None, kind: str
) -> None:
    data: Any = {"x": X} if kind == "one batch" else [{"x": X[:6]}, {"x": X[6:]}]
    H = ihvp.Hessian(ihvp.Objective(Counted(), params, data, batch_size=batch_size), budget)
    assert_allclose(H @ V, expected(params, X), rtol=1e-12)
    params["w"] = 2 * params["w"]
    assert_allclose(H @ V, expected(params, X), rtol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 2, 4])
def test_products_follow_numpy_leaves_that_change_in_place(batch_size: int | None) -> None:
    params = {"w": np.array([0.3, -0.2, 0.5])}
    objective = ihvp.Objective(Counted(), params, [{"x": X}], batch_size=batch_size, backend="jax")
    H = ihvp.Hessian(objective)
    assert_allclose(H @ V, expected(params, X), rtol=1e-12)
    params["w"] *= 2
    assert_allclose(H @ V, expected(params, X), rtol=1e-12)


def test_products_follow_parameters_that_are_replaced_on_the_objective(params: Any) -> None:
    H = ihvp.Hessian(ihvp.Objective(Counted(), params, [{"x": X[:6]}, {"x": X[6:]}]))
    _ = H @ V
    H.objective.params = {"w": 2 * params["w"]}
    assert_allclose(H @ V, expected(H.objective.params, X), rtol=1e-12)


def test_a_hundred_dropped_operators_leave_no_arrays(params: Any) -> None:
    objective = ihvp.Objective(Counted(), params, [{"x": X[:6]}, {"x": X[6:]}])
    _ = ihvp.Hessian(objective) @ V
    gc.collect()
    before = len(jax.live_arrays())
    for _ in range(100):
        _ = ihvp.Hessian(objective) @ V
    gc.collect()
    assert len(jax.live_arrays()) <= before
