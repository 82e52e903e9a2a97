from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ihvp
from ihvp.errors import ParameterError, WrongShape
from ihvp_jax._backend import JaxBackend


@jax.tree_util.register_pytree_node_class
class Layer:
    """A node of a user's own, with a static field."""

    def __init__(self, weight: object, bias: object, name: str) -> None:
        self.weight, self.bias, self.name = weight, bias, name

    def tree_flatten(self) -> tuple[tuple[object, object], str]:
        return (self.weight, self.bias), self.name

    @classmethod
    def tree_unflatten(cls, name: str, children: tuple[object, object]) -> Layer:
        return cls(*children, name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Affine:
    slope: jax.Array
    offset: jax.Array


def numbers(*shape: int, dtype: object = jnp.float64) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape, dtype)


TREES = {
    "array": lambda: numbers(3, 2),
    "0-d array": lambda: numbers(),
    "dict": lambda: {"w": numbers(3, 2), "b": numbers(2)},
    "nested": lambda: [{"w": numbers(2), "none": None}, (numbers(1), [numbers(2, 2)]), ()],
    "ordered dict": lambda: OrderedDict(z=numbers(2), a=numbers(3)),
    "custom node": lambda: [Layer(numbers(3, 2), numbers(2), "first"), Layer(numbers(2), None, "second")],
    "dataclass": lambda: Affine(numbers(2, 2), numbers()),
    "empty leaf": lambda: {"w": numbers(2), "unused": numbers(0, 4)},
    "numpy": lambda: {"w": np.arange(6.0).reshape(2, 3)},
    "dtypes": lambda: {"a": numbers(3, dtype=jnp.bfloat16), "b": numbers(2, dtype=jnp.float32)},
    "halves": lambda: {"a": numbers(3, dtype=jnp.bfloat16), "b": numbers(2, dtype=jnp.float16)},
}


@pytest.mark.parametrize("name", TREES)
def test_unflatten_is_the_exact_inverse_in_structure_shape_and_dtype(backend: JaxBackend, name: str) -> None:
    params = TREES[name]()
    restored = backend.unflatten(backend.flatten(params), params)
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    for got, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(params), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


def test_flatten_follows_the_order_of_jax_tree_leaves(backend: JaxBackend) -> None:
    params = {"b": jnp.array([3.0, 4.0]), "a": jnp.array([[1.0], [2.0]])}
    np.testing.assert_array_equal(backend.flatten(params), [1.0, 2.0, 3.0, 4.0])


def test_mixed_dtypes_are_promoted_in_the_vector(backend: JaxBackend) -> None:
    assert backend.flatten(TREES["dtypes"]()).dtype == jnp.float32
    assert backend.flatten(TREES["halves"]()).dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_vector_has_the_dtype_of_the_parameters_and_no_half_precision(
    backend: JaxBackend, dtype: str
) -> None:
    expected = jnp.promote_types(dtype, jnp.float32)
    assert backend.flatten({"w": jnp.ones(2, dtype)}).dtype == expected


def test_without_x64_numpy_float64_becomes_float32_as_everywhere_in_jax(backend: JaxBackend) -> None:
    with jax.enable_x64(False):
        assert backend.flatten({"w": np.ones(2)}).dtype == jnp.float32


def test_custom_node_reaches_the_loss_as_itself(backend: JaxBackend) -> None:
    params = Layer(jnp.array([2.0, 3.0]), jnp.array(5.0), "one")

    def loss(layer: Layer, batch: None) -> jax.Array:
        assert layer.name == "one"
        return layer.bias * jnp.sum(layer.weight**2)

    expected = np.array([[10.0, 0.0, 4.0], [0.0, 10.0, 6.0], [4.0, 6.0, 0.0]])
    np.testing.assert_allclose(backend.hvp(loss, params, None, jnp.eye(3)), expected, rtol=1e-14)


def test_a_registered_dataclass_reaches_the_loss_as_itself(backend: JaxBackend) -> None:
    gradient = backend.grad(
        lambda p, batch: jnp.sum(p.slope) * p.offset, Affine(jnp.ones(2), jnp.array(3.0)), None
    )
    np.testing.assert_array_equal(gradient, [3.0, 3.0, 2.0])


def call(backend: JaxBackend, method: str, params: object) -> object:
    loss, batch, v = (lambda p, batch: 1.0), (np.ones((2, 1)),), jnp.ones(3)
    return {
        "factory": lambda: JaxBackend(params),
        "flatten": lambda: backend.flatten(params),
        "unflatten": lambda: backend.unflatten(v, params),
        "grad": lambda: backend.grad(loss, params, batch),
        "hvp": lambda: backend.hvp(loss, params, batch, v),
        "linearize": lambda: backend.linearize(loss, params, batch),
        "per_example_grads": lambda: backend.per_example_grads(loss, params, batch),
        "gnvp": lambda: backend.gnvp(loss, loss, params, batch, v),
    }[method]()


METHODS = ["factory", "flatten", "unflatten", "grad", "hvp", "linearize", "per_example_grads", "gnvp"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "leaf", [np.arange(3), "text", 1 + 2j, object()], ids=lambda leaf: type(leaf).__name__
)
def test_a_leaf_that_is_not_floating_is_refused_by_its_path(
    backend: JaxBackend, method: str, leaf: object
) -> None:
    with pytest.raises(ParameterError, match=r"\['layer'\]\[1\] is .* Expected a pytree"):
        call(backend, method, {"layer": [jnp.ones(3), leaf]})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("params", [{}, (), [None]], ids=str)
def test_a_tree_without_arrays_is_refused(backend: JaxBackend, method: str, params: object) -> None:
    with pytest.raises(ParameterError, match="Found no parameter in"):
        call(backend, method, params)


def test_integer_parameters_are_named_with_dtype_and_shape(backend: JaxBackend) -> None:
    with pytest.raises(ParameterError, match=r"\['w'\] is jax.Array of shape \(3,\) and dtype int32"):
        backend.flatten({"w": jnp.arange(3, dtype=jnp.int32)})


@pytest.mark.parametrize("shape", [(4,), (4, 2), (3, 0), (), (3, 2, 1)], ids=str)
def test_a_vector_of_the_wrong_shape_is_refused(backend: JaxBackend, shape: tuple[int, ...]) -> None:
    params = {"w": jnp.ones(3)}
    with pytest.raises(WrongShape) as caught:
        backend.hvp(lambda p, batch: jnp.sum(p["w"] ** 2), params, None, jnp.ones(shape))
    assert f"v has shape {shape}; expected (3,)" in str(caught.value)


def test_a_vector_of_the_wrong_length_cannot_be_unflattened(backend: JaxBackend) -> None:
    with pytest.raises(WrongShape):
        backend.unflatten(jnp.ones(4), {"w": jnp.ones(3)})


def test_device_is_cpu_for_parameters_on_the_cpu() -> None:
    on_cpu = jax.device_put(jnp.ones(2), jax.devices("cpu")[0])
    assert JaxBackend({"w": on_cpu}).device == "cpu"


class State(Mapping):
    """A mapping that is a node of its own, as those of flax are."""

    def __init__(self, entries: Mapping) -> None:
        self._entries = dict(entries)

    def __getitem__(self, key: str) -> object:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


jax.tree_util.register_pytree_node(
    State,
    lambda s: ([s[key] for key in s], tuple(s)),
    lambda keys, values: State(zip(keys, values, strict=True)),
)


def test_a_registered_mapping_keeps_its_form_in_answers() -> None:
    params = State({"slope": numbers(3), "inner": State({"b": numbers(), "a": numbers(2)})})
    x = numbers(10, 3)

    def loss(p: State, batch: jax.Array) -> jax.Array:
        return jnp.mean((batch @ p["slope"] + p["inner"]["b"]) ** 2) + jnp.sum(p["inner"]["a"] ** 4)

    objective = ihvp.Objective(loss, params, x)
    H, flat = ihvp.Hessian(objective), jax.tree.leaves(params)
    for answer in (H @ params, ihvp.solve(H, params, damping=1.0).x):
        assert type(answer) is State
        assert type(answer["inner"]) is State
    expected = H @ jnp.concatenate([jnp.ravel(leaf) for leaf in flat])
    found = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(H @ params)])
    np.testing.assert_array_equal(found, expected)
