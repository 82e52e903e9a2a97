"""How often a loss is traced: its Python body runs once a trace, so a counter inside it tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ihvp
from ihvp_jax._backend import JaxBackend
from ihvp_jax._derivatives import followed


class Counted:
    def __init__(self) -> None:
        self.traces = 0

    def __call__(self, params: dict, batch: Any) -> jax.Array:
        self.traces += 1
        return jnp.mean(jnp.tanh(batch[0] @ params["w"]) ** 2)


def problem(examples: int = 5) -> tuple[dict, tuple]:
    return {"w": jnp.linspace(-1.0, 1.0, 3)}, (np.ones((examples, 3)),)


CALLS: dict[str, Callable[[JaxBackend, Any, dict, tuple], Any]] = {
    "grad": lambda backend, loss, params, batch: backend.grad(loss, params, batch),
    "hvp": lambda backend, loss, params, batch: backend.hvp(loss, params, batch, jnp.ones(3)),
    "block": lambda backend, loss, params, batch: backend.hvp(loss, params, batch, jnp.ones((3, 2))),
    "linearize": lambda backend, loss, params, batch: backend.linearize(loss, params, batch)(jnp.ones(3)),
    "per_example_grads": lambda backend, loss, params, batch: backend.per_example_grads(loss, params, batch),
}


@pytest.mark.parametrize("name", CALLS)
def test_repeated_calls_trace_the_loss_once(name: str) -> None:
    loss = Counted()
    for scale in (1.0, 2.0, 3.0):
        params, batch = problem()
        CALLS[name](JaxBackend(), loss, {"w": scale * params["w"]}, (scale * batch[0],))
    assert loss.traces == 1


def test_gradient_products_blocks_and_linearisation_share_one_trace(backend: JaxBackend) -> None:
    loss, (params, batch) = Counted(), problem()
    for name in ("grad", "hvp", "block", "linearize"):
        CALLS[name](backend, loss, params, batch)
    assert loss.traces == 1


def test_products_of_many_widths_do_not_trace_the_loss_again(backend: JaxBackend) -> None:
    loss, (params, batch) = Counted(), problem()
    linear = backend.linearize(loss, params, batch)
    for columns in (1, 2, 5):
        backend.hvp(loss, params, batch, jnp.ones((3, columns)))
        linear(jnp.ones((3, columns)))
    assert loss.traces == 1


def test_another_shape_of_batch_is_traced_once_more(backend: JaxBackend) -> None:
    loss = Counted()
    for examples in (5, 7, 5, 7):
        backend.grad(loss, *problem(examples))
    assert loss.traces == 2


def test_every_linearisation_shares_the_compiled_application(backend: JaxBackend) -> None:
    from ihvp_jax._derivatives import apply

    loss, (params, batch) = Counted(), problem()
    backend.linearize(loss, params, batch)(jnp.ones(3))
    compiled = apply._cache_size()
    for scale in (2.0, 3.0):
        JaxBackend().linearize(loss, {"w": scale * params["w"]}, batch)(jnp.ones(3))
    assert apply._cache_size() == compiled


def test_products_solves_and_certificates_of_equal_objectives_share_one_program() -> None:
    loss, v, compiled = Counted(), jnp.ones(3), followed._cache_size()
    for damping in (2.0, 3.0):
        hessian = ihvp.Hessian(ihvp.Objective(loss, *problem()))
        x = ihvp.solve(hessian, v, damping=damping, solver=ihvp.CG(rtol=1e-5)).x
        np.testing.assert_allclose(hessian @ x + damping * x, v, rtol=1e-4)
    assert followed._cache_size() == compiled + 1


def test_steps_with_random_batches_share_one_program() -> None:
    loss, v = Counted(), jnp.ones(3)
    solves = [ihvp.LiSSA(scale=scale, batch_size=2, recursion_depth=20, rtol=None) for scale in (30.0, 40.0)]
    compiled = []
    for damping, solver in zip((2.0, 3.0), solves, strict=True):
        hessian = ihvp.Hessian(ihvp.Objective(loss, *problem()))
        # All examples are the same, so that each batch has the Hessian.
        matrix, before = hessian.to_dense() + damping * np.eye(3), followed._cache_size()
        x = ihvp.solve(hessian, v, damping=damping, solver=solver).x
        compiled.append(followed._cache_size() - before)
        np.testing.assert_allclose(x, neumann(matrix, solver), rtol=1e-5)
    # One for the steps, and one for the certificate.
    assert compiled == [2, 0]


def neumann(matrix: np.ndarray, solver: ihvp.LiSSA) -> np.ndarray:
    """The mean over the second half of the recursion's steps from ones."""
    step, s, path = np.asarray(matrix, np.float64) / solver.scale, np.ones(3), []
    for _ in range(solver.recursion_depth):
        s = 1 + s - step @ s
        path.append(s)
    return np.mean(path[solver.recursion_depth // 2 :], axis=0) / solver.scale


def test_products_after_the_first_compile_nothing(
    backend: JaxBackend, caplog: pytest.LogCaptureFixture
) -> None:
    loss, (params, batch) = Counted(), problem()
    linear = backend.linearize(loss, params, batch)

    def products(v: jax.Array) -> None:
        backend.grad(loss, params, batch)
        backend.hvp(loss, params, batch, v)
        linear(v)
        backend.unflatten(backend.flatten(params), params)

    products(jnp.ones(3))
    v = jnp.arange(3.0)
    block = jnp.ones((3, 9))
    with jax.log_compiles(True):
        caplog.clear()
        products(v)
        assert caplog.messages == []
        linear(block)  # a shape that is new does leave a message
        assert "Compiling" in caplog.text


@dataclasses.dataclass
class Unhashable:
    power: int
    traces: int = 0

    def __call__(self, w: jax.Array, batch: Any) -> jax.Array:
        self.traces += 1
        return jnp.sum(w**self.power)


def test_an_unhashable_loss_is_known_by_its_identity(backend: JaxBackend) -> None:
    square, cubic = Unhashable(2), Unhashable(3)
    with pytest.raises(TypeError):
        hash(square)
    for _ in range(3):
        np.testing.assert_allclose(backend.grad(square, jnp.array([2.0]), None), [4.0])
        np.testing.assert_allclose(backend.grad(cubic, jnp.array([2.0]), None), [12.0])
    assert (square.traces, cubic.traces) == (1, 1)


@pytest.mark.parametrize(
    ("constant", "slope"), [("double", 2.0), (3, 3.0), (True, 1.0), (1, 10.0), (1.0, 100.0)], ids=repr
)
def test_batch_leaves_that_are_no_arrays_are_constants(
    backend: JaxBackend, constant: object, slope: float
) -> None:
    slopes = {(str, "double"): 2.0, (int, 3): 3.0, (bool, True): 1.0, (int, 1): 10.0, (float, 1.0): 100.0}
    key = {"kind": constant, "x": np.ones(2)}

    def loss(w: jax.Array, batch: dict) -> jax.Array:
        return slopes[type(batch["kind"]), batch["kind"]] * jnp.sum(w * batch["x"])

    np.testing.assert_array_equal(backend.grad(loss, jnp.ones(2), key), [slope, slope])


def constants_by_type(w: jax.Array, batch: dict) -> jax.Array:
    return {bool: 1.0, int: 10.0, float: 100.0}[type(batch["kind"])] * jnp.sum(w)


def test_equal_constants_of_different_types_are_told_apart(backend: JaxBackend) -> None:
    gradients = [backend.grad(constants_by_type, jnp.ones(1), {"kind": kind}) for kind in (True, 1, 1.0)]
    np.testing.assert_array_equal(gradients, [[1.0], [10.0], [100.0]])


def test_arrays_of_strings_are_constants(backend: JaxBackend) -> None:
    batch = {"text": np.array(["a", "b"]), "x": np.array([2.0, 3.0])}
    gradient = backend.grad(lambda w, b: jnp.sum(w * b["x"][b["text"] == "b"]), jnp.ones(1), batch)
    np.testing.assert_array_equal(gradient, [3.0])


def test_arrays_of_other_frameworks_reach_the_loss_as_jax_arrays(backend: JaxBackend) -> None:
    class Foreign:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return np.array([2.0, 3.0])

    gradient = backend.grad(lambda w, batch: jnp.sum(jnp.exp(w) * batch[0]), jnp.zeros(2), (Foreign(),))
    np.testing.assert_array_equal(gradient, [2.0, 3.0])
