from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ihvp_jax._backend import JaxBackend


def toy(w: jax.Array, batch: None) -> jax.Array:
    return (1 - 2 * w[0] * w[1]) ** 2


TOY_HESSIAN = np.array([[8 / 9, 4 / 3], [4 / 3, 8.0]])  # at (1, 1/3)


def tanh_mlp(params: dict, batch: tuple) -> jax.Array:
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["w1"] + params["b1"])
    return jnp.mean(jnp.sum((hidden @ params["w2"] - targets) ** 2, axis=1))


@pytest.fixture
def mlp() -> tuple[dict, tuple]:
    rng = np.random.default_rng(0)
    shapes = {"w1": (4, 5), "b1": (5,), "w2": (5, 3)}
    params = {name: jnp.array(rng.normal(size=shape)) for name, shape in shapes.items()}
    return params, (rng.normal(size=(7, 4)), rng.normal(size=(7, 3)))


def dense_hessian(params: dict, batch: tuple) -> np.ndarray:
    """By jax.hessian, block by block in the order of the sorted names."""
    blocks, names = jax.hessian(tanh_mlp)(params, batch), sorted(params)
    return np.block(
        [
            [np.reshape(blocks[row][col], (params[row].size, params[col].size)) for col in names]
            for row in names
        ]
    )


class Softmax:
    """Softmax regression with closed forms in numpy: logits X W, mean cross entropy, W of shape (3, 4)."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.w, self.x, self.y = rng.normal(size=(3, 4)), rng.normal(size=(6, 3)), rng.integers(0, 4, 6)
        logits = self.x @ self.w
        self.p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        self.params, self.batch = {"w": jnp.array(self.w)}, {"x": self.x, "y": self.y}

    @staticmethod
    def predict(params: dict, batch: dict) -> jax.Array:
        return batch["x"] @ params["w"]

    @staticmethod
    def output_loss(logits: jax.Array, batch: dict) -> jax.Array:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], axis=1)
        return -jnp.mean(chosen)

    @classmethod
    def loss(cls, params: dict, batch: dict) -> jax.Array:
        return cls.output_loss(cls.predict(params, batch), batch)

    def example_gradients(self) -> np.ndarray:
        return np.einsum("ni,nc->nic", self.x, self.p - np.eye(4)[self.y]).reshape(6, 12)

    def hessian(self) -> np.ndarray:
        inner = np.einsum("nc,cd->ncd", self.p, np.eye(4)) - np.einsum("nc,nd->ncd", self.p, self.p)
        return np.einsum("ni,nj,ncd->icjd", self.x, self.x, inner).reshape(12, 12) / 6


def test_toy_gradient_is_the_closed_form(backend: JaxBackend) -> None:
    np.testing.assert_allclose(backend.grad(toy, jnp.array([1.0, 1 / 3]), None), [-4 / 9, -4 / 3], rtol=1e-14)


def test_toy_product_is_the_closed_form(backend: JaxBackend) -> None:
    product = backend.hvp(toy, jnp.array([1.0, 1 / 3]), None, jnp.ones(2))
    np.testing.assert_allclose(product, [20 / 9, 28 / 3], rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["hvp", "linearize"])
def test_toy_product_is_right_to_the_dtypes_epsilon(backend: JaxBackend, dtype: str, kind: str) -> None:
    w, v = jnp.array([1.0, 1 / 3], dtype), jnp.ones(2, jnp.promote_types(dtype, jnp.float32))
    product = backend.hvp(toy, w, None, v) if kind == "hvp" else backend.linearize(toy, w, None)(v)
    assert product.dtype == v.dtype
    relative = np.asarray(product, np.float64) / [20 / 9, 28 / 3] - 1
    assert np.abs(relative).max() <= 8 * float(jnp.finfo(dtype).eps)


def test_float32_products_need_no_x64(
    backend: JaxBackend, enable_x64: Callable[[bool], AbstractContextManager[None]]
) -> None:
    with enable_x64(False):
        product = backend.hvp(toy, jnp.array([1.0, 1 / 3]), None, jnp.ones(2))
        assert product.dtype == jnp.float32
        np.testing.assert_allclose(product, [20 / 9, 28 / 3], rtol=1e-6)


def test_hvp_is_the_dense_hessian(backend: JaxBackend, mlp: tuple[dict, tuple]) -> None:
    dense = dense_hessian(*mlp)
    np.testing.assert_allclose(backend.hvp(tanh_mlp, *mlp, jnp.eye(40)), dense, rtol=1e-12, atol=1e-13)


def test_linearize_is_the_dense_hessian(backend: JaxBackend, mlp: tuple[dict, tuple]) -> None:
    product = backend.linearize(tanh_mlp, *mlp)(jnp.eye(40))
    np.testing.assert_allclose(product, dense_hessian(*mlp), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["hvp", "linearize", "gnvp"])
def test_a_block_is_its_columns(backend: JaxBackend, kind: str) -> None:
    problem = Softmax()
    products: dict[str, Callable[[jax.Array], jax.Array]] = {
        "hvp": lambda v: backend.hvp(problem.loss, problem.params, problem.batch, v),
        "linearize": backend.linearize(problem.loss, problem.params, problem.batch),
        "gnvp": lambda v: backend.gnvp(
            problem.predict, problem.output_loss, problem.params, problem.batch, v
        ),
    }
    block = jnp.array(np.random.default_rng(2).normal(size=(12, 5)))
    columns = [products[kind](block[:, i]) for i in range(5)]
    result = products[kind](block)
    assert result.shape == (12, 5)
    np.testing.assert_allclose(result, np.stack(columns, axis=1), rtol=1e-12, atol=1e-14)


def test_hvp_is_the_closed_form_of_softmax_regression(backend: JaxBackend) -> None:
    problem = Softmax()
    product = backend.hvp(problem.loss, problem.params, problem.batch, jnp.eye(12))
    np.testing.assert_allclose(product, problem.hessian(), rtol=1e-12, atol=1e-14)


def test_gnvp_is_the_hessian_where_the_model_is_linear(backend: JaxBackend) -> None:
    problem = Softmax()
    product = backend.gnvp(problem.predict, problem.output_loss, problem.params, problem.batch, np.eye(12))
    np.testing.assert_allclose(product, problem.hessian(), rtol=1e-12, atol=1e-14)


def test_gnvp_is_the_product_of_dense_jacobians(backend: JaxBackend) -> None:
    def predict(w: jax.Array, batch: tuple) -> dict:
        return {"a": jnp.tanh(w[0] * w[1:]), "b": jnp.exp(w[:1])}

    def loss(outputs: dict, batch: tuple) -> jax.Array:
        return jnp.sum(outputs["a"] ** 4) + outputs["b"][0] ** 2 * outputs["a"][0]

    w = np.array([0.3, -0.5, 0.8])
    t, slope = np.tanh(w[0] * w[1:]), 1 - np.tanh(w[0] * w[1:]) ** 2
    jacobian = np.zeros((3, 3))
    jacobian[:2, 0], jacobian[[0, 1], [1, 2]], jacobian[2, 0] = slope * w[1:], slope * w[0], np.exp(w[0])
    inner = np.diag([12 * t[0] ** 2, 12 * t[1] ** 2, 2 * t[0]])
    inner[0, 2] = inner[2, 0] = 2 * np.exp(w[0])
    product = backend.gnvp(predict, loss, jnp.array(w), (), jnp.eye(3))
    np.testing.assert_allclose(product, jacobian.T @ inner @ jacobian, rtol=1e-13)


def test_per_example_gradients_are_the_closed_form(backend: JaxBackend) -> None:
    problem = Softmax()
    rows = backend.per_example_grads(problem.loss, problem.params, problem.batch)
    np.testing.assert_allclose(rows, problem.example_gradients(), rtol=1e-13, atol=1e-15)


def test_per_example_gradients_are_the_gradients_of_single_examples(
    backend: JaxBackend, mlp: tuple[dict, tuple]
) -> None:
    params, (inputs, targets) = mlp
    rows = backend.per_example_grads(tanh_mlp, params, (inputs, targets))
    for i, row in enumerate(rows):
        alone = backend.grad(tanh_mlp, params, (inputs[i : i + 1], targets[i : i + 1]))
        np.testing.assert_allclose(row, alone, rtol=1e-12, atol=1e-14)


def test_an_example_keeps_its_leading_dimension_and_shares_what_has_none(backend: JaxBackend) -> None:
    def loss(w: jax.Array, batch: dict) -> jax.Array:
        assert batch["x"].shape == (1, 2)
        assert batch["kind"] == "scaled"
        return batch["scale"] * jnp.mean(batch["x"] @ w)

    batch = {"x": np.array([[1.0, 2.0], [3.0, 4.0]]), "scale": np.array(10.0), "kind": "scaled"}
    rows = backend.per_example_grads(loss, jnp.ones(2), batch)
    np.testing.assert_array_equal(rows, [[10.0, 20.0], [30.0, 40.0]])


@pytest.mark.parametrize("batch", [None, (), {"scale": np.array(1.0)}], ids=["None", "empty", "0-d"])
def test_a_batch_without_rows_is_one_example(backend: JaxBackend, batch: object) -> None:
    rows = backend.per_example_grads(lambda w, batch: jnp.sum(w**2), jnp.array([1.0, 2.0]), batch)
    np.testing.assert_array_equal(rows, [[2.0, 4.0]])


def test_mixed_dtypes_give_one_vector_of_the_promoted_dtype(backend: JaxBackend) -> None:
    params = {"a": jnp.array([2.0], jnp.bfloat16), "b": jnp.array([3.0], jnp.float32)}

    def loss(p: dict, batch: None) -> jax.Array:
        return jnp.sum(p["a"] ** 2) * jnp.sum(p["b"])

    products = backend.hvp(loss, params, None, jnp.eye(2, dtype=jnp.float32))
    assert products.dtype == jnp.float32
    np.testing.assert_array_equal(products, [[6.0, 4.0], [4.0, 0.0]])


def test_linearize_notices_that_a_numpy_leaf_changed(backend: JaxBackend) -> None:
    w = np.array([1.0, 1 / 3])
    product = backend.linearize(toy, w, None)
    w[:] = [1.0, 0.5]
    np.testing.assert_allclose(product(jnp.ones(2)), [6.0, 12.0], rtol=1e-14)


def alive() -> int:
    """The bytes of all arrays."""
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_the_bytes_of_a_linearisation_are_those_that_it_keeps(backend: JaxBackend) -> None:
    params = {"w1": jnp.ones((4, 5)), "b1": np.ones(5), "w2": jnp.ones((5, 3))}
    batch = (jnp.ones((1000, 4)), jnp.ones((1000, 3)))
    backend.linearize(tanh_mlp, params, batch)  # constants of compiled functions stay
    before = alive()
    linear = backend.linearize(tanh_mlp, params, batch)
    copy_of_numpy_leaf = 5 * 8
    assert linear.nbytes == alive() - before + copy_of_numpy_leaf  # type: ignore[attr-defined]
    assert linear.nbytes > 1000 * 5 * 8  # type: ignore[attr-defined]


def test_dropped_linearisations_leave_nothing(backend: JaxBackend) -> None:
    params = {"w1": jnp.ones((4, 5)), "b1": jnp.ones(5), "w2": jnp.ones((5, 3))}
    batch, v = (jnp.ones((1000, 4)), jnp.ones((1000, 3))), jnp.ones(40)
    backend.linearize(tanh_mlp, params, batch)(v)
    before = alive()
    for _ in range(100):
        backend.linearize(tanh_mlp, params, batch)(v)
    assert alive() == before


@jax.custom_vjp
def cube(x: jax.Array) -> jax.Array:
    return x**3


# The forward rule calls `cube` itself: within a gradient it meets a custom_vjp that jvp refuses.
cube.defvjp(lambda x: (cube(x), x), lambda x, g: (3 * x**2 * g,))


@pytest.mark.parametrize("kind", ["hvp", "linearize"])
@pytest.mark.parametrize("shape", [(2,), (2, 3)], ids=["vector", "block"])
def test_custom_vjp_is_differentiated_in_reverse_over_reverse(
    backend: JaxBackend, kind: str, shape: tuple[int, ...]
) -> None:
    def loss(w: jax.Array, batch: None) -> jax.Array:
        return jnp.sum(cube(w)) ** 2

    w = np.array([0.5, -2.0])
    gradient = 3 * w**2
    hessian = 2 * np.outer(gradient, gradient) + 2 * np.sum(w**3) * np.diag(6 * w)
    v = np.random.default_rng(3).normal(size=shape)
    params = jnp.array(w)
    with pytest.raises(TypeError, match="custom_vjp"):  # else this test would show nothing
        jax.jvp(jax.grad(loss), (params, None), (params, None))
    product = (
        backend.hvp(loss, params, None, v) if kind == "hvp" else backend.linearize(loss, params, None)(v)
    )
    np.testing.assert_allclose(product, hessian @ v, rtol=1e-13)


def test_gnvp_falls_back_where_the_model_has_a_custom_vjp(backend: JaxBackend) -> None:
    w = np.array([0.5, -2.0])
    product = backend.gnvp(
        lambda w, batch: cube(w), lambda outputs, batch: jnp.sum(cube(outputs)), jnp.array(w), (), np.eye(2)
    )
    np.testing.assert_allclose(product, np.diag((3 * w**2) ** 2 * 6 * w**3), rtol=1e-13)


@pytest.mark.parametrize("kind", ["hvp", "linearize"])
def test_leaves_with_a_constant_gradient_have_rows_of_zeros(backend: JaxBackend, kind: str) -> None:
    def loss(params: dict, batch: None) -> jax.Array:
        return 2 * jnp.sum(params["linear"]) + jnp.sum(params["cubic"] ** 3)

    params = {"cubic": jnp.array([1.0, 2.0]), "linear": jnp.ones(2), "unused": jnp.ones(1)}
    columns = jnp.eye(5)
    if kind == "hvp":
        product = backend.hvp(loss, params, None, columns)
    else:
        product = backend.linearize(loss, params, None)(columns)
    np.testing.assert_array_equal(product, np.diag([6.0, 12.0, 0, 0, 0]))
