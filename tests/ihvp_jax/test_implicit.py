"""Solves and optima that JAX differentiates, against its own differences."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose

import ihvp

RNG = np.random.default_rng(0)
X, Y, V = RNG.standard_normal((12, 3)), RNG.standard_normal(12), RNG.standard_normal((3, 2))
W = {"w": np.array([0.5, -1.0, 0.3])}
TIGHT = ihvp.CG(rtol=1e-13)
TRACES: list[str] = []


def loss(w: Any, batch: Any) -> jax.Array:
    TRACES.append("loss")
    x, y = batch
    return jnp.log(jnp.cosh(x @ w["w"] - y)).mean() + 0.1 * (w["w"] ** 4).sum()


def ridge(w: Any, decay: jax.Array, batch: Any) -> jax.Array:
    TRACES.append("ridge")
    x, y = batch
    return ((x @ w["w"] - y) ** 2).mean() / 2 + (decay * w["w"] ** 2).sum() / 2


def fit(decay: jax.Array) -> dict[str, jax.Array]:
    return {"w": jnp.linalg.solve(X.T @ X / 12 + jnp.diag(decay), X.T @ Y / 12)}


def test_gradients_of_a_solve() -> None:
    H = ihvp.Hessian(ihvp.Objective(loss, jax.tree.map(jnp.asarray, W), (X, Y)))

    def solve(w: Any, v: Any, damping: Any) -> Any:
        return ihvp.differentiable_solve(H, v, damping, TIGHT, params=w)

    for v in (V[:, 0], V):
        check_grads(solve, (W, jnp.asarray(v), 0.3), 1, modes=["rev"])
    before = len(TRACES)
    jax.grad(lambda w: solve(w, jnp.asarray(V[:, 1]), 0.4).sum())({"w": jnp.asarray([0.2, 0.1, 0.3])})
    assert len(TRACES) == before
    for transform in (jax.jit, lambda f: jax.vmap(f, (None, 0))):
        with pytest.raises(ihvp.errors.TracedValue, match="jit, vmap"):
            transform(lambda w, v: solve(w, v, 0.3))(W, jnp.asarray(V.T))


def test_gradients_of_an_optimum_in_a_loop_that_traces_once() -> None:
    decay = jnp.asarray([0.1, 0.2, 0.3])
    problem = ihvp.InnerProblem(ridge, fit(decay), decay, (X, Y), solver=TIGHT)

    def optimum(decay: jax.Array) -> jax.Array:
        return problem.optimum(fit(jax.lax.stop_gradient(decay)), decay)["w"]

    check_grads(optimum, (decay,), 1, modes=["rev"])
    before = len(TRACES)
    found = jax.grad(lambda decay: (optimum(decay) ** 2).sum())(2 * decay)
    assert len(TRACES) == before
    assert_allclose(found, jax.grad(lambda decay: (fit(decay)["w"] ** 2).sum())(2 * decay), rtol=1e-8)
    for transform in (jax.jit, jax.grad, lambda f: jax.vmap(f)):
        with pytest.raises(ihvp.errors.TracedValue):
            transform(lambda t: ihvp.hypergradient(ridge, ridge, fit(decay), t * decay, (X, Y)).gradient[0])(
                jnp.ones(2) if transform not in (jax.jit, jax.grad) else 1.0
            )
