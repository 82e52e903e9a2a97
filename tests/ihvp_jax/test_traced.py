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
RANDOM = ihvp.LiSSA(batch_size=2, scale=10.0, recursion_depth=3, rtol=None)


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
    "what the loss of random batches refers to": lambda t: (
        ihvp.solve(hessian(loss=lambda w, x: t * half_square(w, x)), V, solver=RANDOM).x
    ),
    "random batches of data": lambda t: ihvp.solve(hessian(x=t * A), V, solver=RANDOM).x,
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
    with pytest.raises(ihvp.IhvpError, match=r"is traced, inside jit.*Call ihvp outside"):
        jax.jit(call)(2.0)


@pytest.mark.parametrize(
    "program",
    [
        lambda H: jax.vmap(lambda v: ihvp.solve(H, v).x)(jnp.eye(3)),
        lambda H: jax.grad(lambda v: v @ ihvp.solve(H, v).x)(jnp.asarray(V)),
        lambda H: jax.grad(jax.checkpoint(lambda v: H.quadratic_form(v)))(jnp.asarray(V)),
        lambda H: jax.lax.scan(lambda v, _: (ihvp.OPG(H.objective) @ v, None), jnp.asarray(V), None, 2),
        lambda H: jax.eval_shape(lambda v: H @ H @ v, jnp.asarray(V)),
    ],
    ids=["vmap", "grad", "checkpoint", "scan", "eval_shape"],
)
def test_so_is_what_other_transformations_trace(program: Callable[[ihvp.Hessian], Any]) -> None:
    with pytest.raises(ihvp.errors.TracedValue, match=r"v is traced, .*pass a block.*differentiable_solve"):
        program(hessian())


def weighed() -> ihvp.Hessian:
    """The same matrix over two batches whose examples weigh 1 and 2, and one that weighs nothing."""
    x, t = jnp.sqrt(jnp.asarray(A)), jnp.array([1.0, 2.0, 0.0])

    def loss(w: jax.Array, batch: Any) -> jax.Array:
        x, t = batch
        return jnp.sum(t * (x @ w) ** 2) / 2 / jnp.sum(t)

    data = [(x[:1], t[:1]), (x[1:], t[1:])]
    return ihvp.Hessian(ihvp.Objective(loss, jnp.ones(3), data, weights=lambda batch: batch[1]))


def gauss_newton() -> ihvp.GaussNewton:
    objective = ihvp.Objective(
        lambda o, x: jnp.mean(o**2) / 2, jnp.ones(3), jnp.sqrt(3 * A), predict=lambda w, x: x @ w
    )
    return ihvp.GaussNewton(objective)


@pytest.mark.parametrize(
    ("make", "matrix"),
    [
        (hessian, A),
        (weighed, np.diag([1 / 3, 4 / 3, 0.0])),
        (gauss_newton, A),
        (lambda: 2 * hessian() + gauss_newton() + 0.5, 3 * A + 0.5 * np.eye(3)),
    ],
    ids=["Hessian", "weighed batches", "Gauss–Newton", "a sum"],
)
def test_products_are_part_of_a_program(make: Callable[[], ihvp.LinearOperator], matrix: Any) -> None:
    M, v = make(), jnp.asarray(V)
    assert_allclose(jax.jit(lambda v: M @ v)(v), matrix @ V, rtol=1e-12)
    assert_allclose(jax.vmap(lambda v: M @ v)(jnp.eye(3)), matrix, rtol=1e-12, atol=1e-12)
    assert_allclose(jax.grad(lambda v: v @ (M @ v))(v), 2 * matrix @ V, rtol=1e-12)
    assert_allclose(jax.lax.scan(lambda v, _: (M @ v, None), v, None, 2)[0], matrix @ matrix @ V, rtol=1e-12)
    assert_allclose(M @ V, matrix @ V, rtol=1e-12)
    with pytest.raises(ihvp.errors.WrongShape):
        jax.jit(lambda v: M @ v)(jnp.ones(4))


def test_where_only_something_else_is_mapped_or_differentiated_results_are_right() -> None:
    H, v = hessian(), jnp.asarray(V)
    assert_allclose(jax.vmap(lambda t: t * (H @ v))(jnp.arange(2.0)), [0 * V, A @ V], rtol=1e-12)
    assert_allclose(jax.grad(lambda t: t * jnp.sum(ihvp.solve(H, v, damping=1.0).x))(3.0), 2 / 3, rtol=1e-5)


def test_nothing_of_a_trace_is_kept() -> None:
    H = hessian()
    H.verify()
    with pytest.raises(ihvp.errors.TracedValue):
        jax.jit(lambda t: t * (H @ V))(2.0)
    assert_allclose(jax.jit(lambda t: t * (H @ jnp.asarray(V)))(2.0), 2 * A @ V, rtol=1e-12)
    assert_allclose(H @ V, A @ V, rtol=1e-12)
