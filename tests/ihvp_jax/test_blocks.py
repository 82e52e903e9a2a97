"""How a product with a block is carried out: a loop over the columns on the host, all at once elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ihvp_jax import _derivatives
from ihvp_jax._backend import JaxBackend
from ihvp_jax._static import Static

WIDTH, EXAMPLES = 8, 500


def loss(params: dict, batch: tuple) -> jax.Array:
    (inputs,) = batch
    return jnp.mean(jnp.tanh(jnp.tanh(inputs @ params["first"]) @ params["second"]) ** 2)


def problem() -> tuple[dict, tuple]:
    rng = np.random.default_rng(0)
    params = {name: jnp.array(rng.normal(size=(WIDTH, WIDTH))) for name in ("first", "second")}
    return params, (jnp.array(rng.normal(size=(EXAMPLES, WIDTH))),)


def scratch(kind: str, columns: int) -> int:
    """The bytes that the compiled product takes beside its arguments and its result."""
    params, batch = problem()
    v = jnp.ones((2 * WIDTH**2, columns))
    if kind == "hvp":
        lowered = _derivatives.hvp.lower(Static(loss), params, batch, v)
    else:
        linear = _derivatives.linearize(Static(loss), params, batch)
        lowered = _derivatives.apply.lower(linear, params, v)
    return int(lowered.compile().memory_analysis().temp_size_in_bytes)


@pytest.mark.parametrize("kind", ["hvp", "linearize"])
def test_the_memory_of_a_product_does_not_grow_with_the_columns(kind: str) -> None:
    one_column_of_activations = EXAMPLES * WIDTH * 8
    assert scratch(kind, 64) - scratch(kind, 2) < one_column_of_activations


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("cuda", False)])
def test_columns_go_one_by_one_on_the_host_and_together_elsewhere(platform: str, loops: bool) -> None:
    params, batch = problem()
    linear = _derivatives.linearize(Static(loss), params, batch)
    traced = _derivatives.apply.trace(linear, params, jnp.ones((2 * WIDTH**2, 3)))
    assert ("stablehlo.while" in traced.lower(lowering_platforms=(platform,)).as_text()) is loops


def test_a_block_of_another_dtype_gives_products_in_that_of_the_parameters(backend: JaxBackend) -> None:
    params, batch = problem()
    exact = backend.hvp(loss, params, batch, np.eye(2 * WIDTH**2)[:, :3])
    product = backend.hvp(loss, params, batch, np.eye(2 * WIDTH**2, dtype=np.float32)[:, :3])
    assert product.dtype == jnp.float64
    np.testing.assert_array_equal(product, exact)
