from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ihvp.errors import (
    LossIndependentOfParameters,
    LossNotScalar,
    ParameterError,
    UnequalBatches,
    UnsupportedOperation,
)
from ihvp_jax._backend import JaxBackend

METHODS: dict[str, Callable[[JaxBackend, Any, Any, Any], Any]] = {
    "grad": lambda backend, loss, w, batch: backend.grad(loss, w, batch),
    "hvp": lambda backend, loss, w, batch: backend.hvp(loss, w, batch, jnp.ones(3)),
    "block": lambda backend, loss, w, batch: backend.hvp(loss, w, batch, jnp.ones((3, 2))),
    "linearize": lambda backend, loss, w, batch: backend.linearize(loss, w, batch),
    "per_example_grads": lambda backend, loss, w, batch: backend.per_example_grads(loss, w, batch),
    "gnvp": lambda backend, loss, w, batch: backend.gnvp(lambda w, batch: 2 * w, loss, w, batch, jnp.ones(3)),
}
BATCH = (np.ones((2, 3)),)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda w, batch: w, r"jax.Array of shape \(3,\) and dtype float64"),
        (lambda w, batch: w[:1], r"jax.Array of shape \(1,\) and dtype float64"),
        (lambda w, batch: None, "None"),
        (lambda w, batch: jnp.argmax(w), r"jax.Array of shape \(\) and dtype int64"),
        (lambda w, batch: jnp.sum(w) + 1j, r"jax.Array of shape \(\) and dtype complex128"),
        (lambda w, batch: 3, "int"),
        (lambda w, batch: (jnp.sum(w), {}), "tuple"),
    ],
    ids=["vector", "one element", "None", "integer", "complex", "int", "tuple"],
)
def test_a_loss_that_is_no_real_scalar_is_named(
    backend: JaxBackend, method: str, loss: Callable[..., Any], found: str
) -> None:
    with pytest.raises(LossNotScalar, match=f"The loss returned {found}; expected one real scalar"):
        METHODS[method](backend, loss, jnp.ones(3), BATCH)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "loss",
    [
        lambda w, batch: 1.0,
        lambda w, batch: jnp.sum(batch[0]),
        lambda w, batch: jnp.sum(jax.lax.stop_gradient(w)),
        lambda w, batch: jnp.mean(jnp.argmax(w) == 1, dtype=float),
        jax.jit(lambda w, batch: jnp.sum(jnp.round(w))),
    ],
    ids=["constant", "data only", "stop_gradient", "accuracy", "round"],
)
def test_a_loss_without_a_path_to_the_parameters_is_named(
    backend: JaxBackend, method: str, loss: Callable[..., Any]
) -> None:
    with pytest.raises(LossIndependentOfParameters):
        METHODS[method](backend, loss, jnp.ones(3), BATCH)


def test_a_parameter_that_the_loss_leaves_out_has_a_zero_gradient(backend: JaxBackend) -> None:
    gradient = backend.grad(lambda p, batch: p["a"] ** 2, {"a": jnp.array(3.0), "b": jnp.ones(2)}, None)
    np.testing.assert_array_equal(gradient, [6.0, 0.0, 0.0])


def test_a_linear_loss_depends_on_the_parameters(backend: JaxBackend) -> None:
    np.testing.assert_array_equal(backend.hvp(lambda w, batch: jnp.sum(w), jnp.ones(2), None, jnp.ones(2)), 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [KeyError, TypeError, ValueError, NotImplementedError, ParameterError])
def test_errors_of_the_loss_pass_unchanged(backend: JaxBackend, method: str, kind: type[Exception]) -> None:
    raised = kind("the loss's own")

    def loss(w: jax.Array, batch: Any) -> jax.Array:
        raise raised

    with pytest.raises(kind) as caught:
        METHODS[method](backend, loss, jnp.ones(3), BATCH)
    assert caught.value is raised


@jax.custom_vjp
def host_square(x: jax.Array) -> jax.Array:
    return x**2


def _host_rule(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    doubled = jax.pure_callback(lambda x: 2 * x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    return (cotangent * doubled,)


host_square.defvjp(lambda x: (x**2, x), _host_rule)


@pytest.mark.parametrize("method", ["hvp", "block", "linearize"])
def test_an_operation_without_a_second_derivative_is_named(backend: JaxBackend, method: str) -> None:
    def loss(w: jax.Array, batch: Any) -> jax.Array:
        return jnp.sum(host_square(w))

    np.testing.assert_array_equal(backend.grad(loss, jnp.ones(3), None), [2.0, 2.0, 2.0])
    with pytest.raises(UnsupportedOperation, match=r"JAX cannot differentiate .*callback.* twice") as caught:
        METHODS[method](backend, loss, jnp.ones(3), None)
    assert isinstance(caught.value.__cause__, ValueError)


def test_parameters_are_bit_for_bit_the_same_after_calls_and_errors(backend: JaxBackend) -> None:
    w = np.array([0.1, 0.2, 0.3])
    before = w.tobytes()
    for call in METHODS.values():
        call(backend, lambda w, batch: jnp.sum(w**3), w, BATCH)
        with pytest.raises(LossNotScalar):
            call(backend, lambda w, batch: w, w, BATCH)
    assert w.tobytes() == before


def test_per_example_gradients_refuse_arrays_of_unequal_length(backend: JaxBackend) -> None:
    with pytest.raises(UnequalBatches, match="have 2 and 3 examples"):
        backend.per_example_grads(lambda w, batch: jnp.sum(w), jnp.ones(3), (np.ones(2), np.ones(3)))


def test_gnvp_refuses_outputs_that_are_no_floating_arrays(backend: JaxBackend) -> None:
    with pytest.raises(
        ParameterError, match=r"output of predict.*\['label'\] is jax.Array of shape \(\) and dtype int64"
    ):
        backend.gnvp(
            lambda w, batch: {"label": jnp.argmax(w)},
            lambda outputs, batch: 1.0,
            jnp.ones(3),
            (),
            jnp.ones(3),
        )
