"""How a product with a block is carried out: on the host so many columns at once as its caches hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ihvp_jax import _derivatives
from ihvp_jax._backend import JaxBackend
from ihvp_jax._static import Static

WIDTH, FEW, MANY = 8, 500, 50_000


def loss(params: dict, batch: tuple) -> jax.Array:
    (inputs,) = batch
    return jnp.mean(jnp.tanh(jnp.tanh(inputs @ params["first"]) @ params["second"]) ** 2)


def problem(examples: int) -> tuple[dict, tuple]:
    rng = np.random.default_rng(0)
    params = {name: jnp.array(rng.normal(size=(WIDTH, WIDTH))) for name in ("first", "second")}
    return params, (jnp.array(rng.normal(size=(examples, WIDTH))),)


def scratch(kind: str, examples: int, columns: int) -> int:
    """The bytes that the compiled product takes beside its arguments and its result."""
    params, batch = problem(examples)
    v = jnp.ones((2 * WIDTH**2, columns))
    if kind == "hvp":
        lowered = _derivatives.hvp.lower(Static(loss), params, batch, v)
    else:
        linear = _derivatives.linearize(Static(loss), params, batch)
        lowered = _derivatives.apply.lower(linear, params, v)
    return int(lowered.compile().memory_analysis().temp_size_in_bytes)


@pytest.mark.parametrize("kind", ["hvp", "linearize"])
def test_columns_of_many_examples_share_the_memory_of_one(kind: str) -> None:
    one_column_of_activations = MANY * WIDTH * 8
    assert scratch(kind, MANY, 64) - scratch(kind, MANY, 2) < one_column_of_activations


@pytest.mark.parametrize(
    ("platform", "examples", "columns", "loops"),
    [("cpu", MANY, 3, True), ("cpu", FEW, 1000, True), ("cpu", FEW, 3, False), ("cuda", MANY, 3, False)],
)
def test_the_host_loops_where_the_columns_together_are_large(
    platform: str, examples: int, columns: int, loops: bool
) -> None:
    params, batch = problem(examples)
    linear = _derivatives.linearize(Static(loss), params, batch)
    traced = _derivatives.apply.trace(linear, params, jnp.ones((2 * WIDTH**2, columns)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in text) is loops


@pytest.mark.parametrize("cached", [1, 100_000, 1 << 24], ids=["one by one", "in groups", "together"])
@pytest.mark.parametrize("kind", ["hvp", "linearize", "gnvp"])
def test_a_block_is_its_columns_however_many_go_at_once(
    backend: JaxBackend, monkeypatch: pytest.MonkeyPatch, kind: str, cached: int
) -> None:
    monkeypatch.setattr(_derivatives, "_CACHED", cached)
    params, batch = problem(100)

    def fresh(params: dict, batch: tuple) -> jax.Array:  # compiled for this test alone
        return loss(params, batch)

    def predict(params: dict, batch: tuple) -> jax.Array:
        return jnp.tanh(batch[0] @ params["first"]) @ params["second"]

    def multiply(v: jax.Array) -> jax.Array:
        if kind == "hvp":
            return backend.hvp(fresh, params, batch, v)
        if kind == "linearize":
            return backend.linearize(fresh, params, batch)(v)
        return backend.gnvp(predict, lambda outputs, batch: jnp.mean(outputs**4), params, batch, v)

    block = jnp.array(np.random.default_rng(1).normal(size=(2 * WIDTH**2, 7)))
    columns = np.stack([multiply(block[:, i]) for i in range(7)], axis=1)
    np.testing.assert_allclose(multiply(block), columns, rtol=1e-11, atol=1e-15)


def test_a_block_of_another_dtype_gives_products_in_that_of_the_parameters(backend: JaxBackend) -> None:
    params, batch = problem(FEW)
    exact = backend.hvp(loss, params, batch, np.eye(2 * WIDTH**2)[:, :3])
    product = backend.hvp(loss, params, batch, np.eye(2 * WIDTH**2, dtype=np.float32)[:, :3])
    assert product.dtype == jnp.float64
    np.testing.assert_array_equal(product, exact)
