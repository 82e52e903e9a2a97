"""Calls from functions that JAX traces: a named error that says so, and nothing kept of the trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp

A = np.diag([1.0, 2.0, 3.0])
V = np.array([1.0, -1.0, 2.0])


def half_square(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ w) ** 2) / 2


def hessian(w: Any = None, x: Any = None, loss: Any = half_square, **options: Any) -> ihvp.Hessian:
    w = jnp.ones(3) if w is None else w
    return ihvp.Hessian(ihvp.Objective(loss, w, jnp.sqrt(3 * A) if x is None else x, **options))


CALLS: dict[str, Callable[[jax.Array], Any]] = {
    "a product": lambda t: hessian() @ (t * V),
    "a vector in the structure": lambda t: (
        hessian({"w": jnp.ones(3)}, loss=lambda p, x: half_square(p["w"], x)) @ {"w": t * V}
    ),
    "a solve": lambda t: ihvp.solve(hessian(), t * V).x,
    "a guess": lambda t: ihvp.solve(hessian(), V, x0=t * V).x,
    "parameters": lambda t: hessian(t * jnp.ones(3)) @ V,
    "other parameters": lambda t: hessian().objective.at(t * jnp.ones(3)).gradient(),
    "data": lambda t: hessian(x=t * A) @ V,
    "weighed data": lambda t: hessian(x=t * A, weights=lambda x: x[:, 0] ** 2).objective.gradient(),
    "the value": lambda t: hessian(x=t * A).objective.value(),
    "what the loss refers to": lambda t: hessian(loss=lambda w, x: t * half_square(w, x)) @ V,
    "damping": lambda t: ihvp.solve(hessian(), V, damping=t).x,
    "several dampings": lambda t: ihvp.solve(hessian(), V, damping=[1.0, t])[0].x,
    "a shift": lambda t: (hessian() + t) @ V,
    "a factor": lambda t: (t * hessian()) @ V,
    "a matrix": lambda t: ihvp.Dense(t * jnp.eye(3)) @ V,
    "test data": lambda t: ihvp.Influence(hessian(jnp.zeros(3)).objective).scores(t * jnp.eye(3)).values,
    "nothing, for a product": lambda t: t * (hessian() @ jnp.asarray(V)),
    "nothing, for a matrix": lambda t: t * ihvp.solve(ihvp.Dense(jnp.eye(3)), jnp.asarray(V)).x,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_jit_traces_is_refused(call: Callable[[jax.Array], Any]) -> None:
    with pytest.raises(ihvp.IhvpError, match=r"traced by JAX|JAX traces it.*Call ihvp outside"):
        jax.jit(call)(2.0)


@pytest.mark.parametrize(
    "program",
    [
        lambda H: jax.vmap(lambda v: H @ v)(jnp.eye(3)),
        lambda H: jax.grad(lambda v: v @ ihvp.solve(H, v).x)(jnp.asarray(V)),
        lambda H: jax.grad(jax.checkpoint(lambda v: H.quadratic_form(v)))(jnp.asarray(V)),
        lambda H: jax.lax.scan(lambda v, _: (H @ v, None), jnp.asarray(V), None, 2),
        lambda H: jax.eval_shape(lambda v: H @ v, jnp.asarray(V)),
    ],
    ids=["vmap", "grad", "checkpoint", "scan", "eval_shape"],
)
def test_so_is_what_other_transformations_trace(program: Callable[[ihvp.Hessian], Any]) -> None:
    with pytest.raises(ihvp.errors.TracedValue, match=r"v is traced by JAX.*pass a block"):
        program(hessian())


def test_where_only_something_else_is_mapped_or_differentiated_results_are_right() -> None:
    H, v = hessian(), jnp.asarray(V)
    assert_allclose(jax.vmap(lambda t: t * (H @ v))(jnp.arange(2.0)), [0 * V, A @ V], rtol=1e-12)
    assert_allclose(jax.grad(lambda t: t * jnp.sum(ihvp.solve(H, v, damping=1.0).x))(3.0), 2 / 3, rtol=1e-5)


def test_nothing_of_a_trace_is_kept() -> None:
    H = hessian()
    H.verify()
    with pytest.raises(ihvp.errors.TracedValue):
        jax.jit(lambda t: t * (H @ jnp.asarray(V)))(2.0)
    assert_allclose(H @ V, A @ V, rtol=1e-12)
