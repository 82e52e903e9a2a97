"""Numpy parameters in structures, and the gradients that belong to them."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest

from ihvp.backend import GradientFunction
from ihvp.errors import GradientMismatch, GradientRequired, ParameterError
from ihvp_numdiff._backend import NumdiffBackend

Layer = namedtuple("Layer", ["weight", "bias"])

STRUCTURES = {
    "array": np.arange(6.0).reshape(2, 3),
    "scalar array": np.array(1.5),
    "dict": {"z": np.ones((2, 2)), "a": np.zeros(3)},
    "nested": {"layers": [(np.ones(2), np.full((1, 2), 3.0)), (np.zeros(1), np.array(2.0))], "b": np.ones(1)},
    "named tuple": Layer(np.ones((2, 2)), np.zeros(2)),
    "mixed dtypes": [np.array([1 / 3], np.float32), np.array([1 / 3])],
    "transposed": np.arange(6.0).reshape(2, 3).T,
}


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("name", STRUCTURES)
def test_unflatten_inverts_flatten(name):
    backend, params = NumdiffBackend(), STRUCTURES[name]
    assert_same(backend.unflatten(backend.flatten(params), like=params), params)


def test_flatten_keeps_the_insertion_order_of_dicts():
    vector = NumdiffBackend().flatten({"z": np.array([1.0]), "a": np.array([[2.0, 3.0]])})
    np.testing.assert_array_equal(vector, [1, 2, 3])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("array", {"params": slice(0, 6)}),
        ("dict", {"z": slice(0, 4), "a": slice(4, 7)}),
        ("named tuple", {"0": slice(0, 4), "1": slice(4, 6)}),
    ],
)
def test_blocks_are_the_arrays_in_their_places(name, expected):
    assert NumdiffBackend().blocks(STRUCTURES[name]) == expected


def test_blocks_are_where_flatten_puts_the_arrays():
    backend, params = NumdiffBackend(), STRUCTURES["nested"]
    vector = backend.flatten(params)
    first = backend.blocks(params)["layers.0.1"]
    np.testing.assert_array_equal(vector[first], [3, 3])


def test_flatten_is_a_copy():
    params = np.ones(3)
    NumdiffBackend().flatten(params)[:] = 0
    np.testing.assert_array_equal(params, np.ones(3))


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"w": np.arange(3)}, r"params\['w'\] is numpy.ndarray of shape \(3,\) and dtype int64"),
        ([np.ones(2, complex)], r"params\[0\] .* complex128"),
        ({"w": [1.0, 2.0]}, r"params\['w'\]\[0\] is float"),
        (None, "params is None"),
        ({}, "hold no number"),
        (np.ones((0, 3)), r"shape \(0, 3\)\) hold no number"),
    ],
)
def test_parameters_that_are_no_floating_arrays_are_refused(params, found):
    with pytest.raises(ParameterError, match=found):
        NumdiffBackend().flatten(params)


PARAMS = {"w": np.array([[1.0, 2.0]]), "b": np.array([3.0])}


@pytest.mark.parametrize(
    "gradient",
    [
        {"w": np.array([[10.0, 20.0]]), "b": np.array([30.0])},
        {"b": np.array([30.0]), "w": np.array([[10.0, 20.0]])},
        {"w": [[10, 20]], "b": [30]},
        np.array([10.0, 20.0, 30.0]),
        np.array([10.0, 20.0, 30.0], np.float32),
    ],
    ids=["structure", "other order of keys", "lists of numbers", "flat", "flat in float32"],
)
def test_gradient_may_come_in_the_structure_or_flat(gradient):
    found = NumdiffBackend().grad(GradientFunction(lambda params, batch: gradient), PARAMS, None)
    np.testing.assert_array_equal(found, [10.0, 20.0, 30.0], strict=True)


def test_gradient_by_a_list_may_be_a_tuple():
    found = NumdiffBackend().grad(
        GradientFunction(lambda params, batch: (np.ones(1), np.zeros(2))), [np.ones(1), np.ones(2)], None
    )
    np.testing.assert_array_equal(found, [1, 0, 0])


@pytest.mark.parametrize(
    ("gradient", "found"),
    [
        (None, "None at gradient"),
        (1.0, "float at gradient"),
        (np.ones(4), r"numpy.ndarray of shape \(4,\)"),
        ({"w": np.ones((1, 2))}, r"keys \['w'\]"),
        ({"w": np.ones((2, 1)), "b": np.ones(1)}, r"shape \(2, 1\) at gradient\['w'\].*shape \(1, 2\)"),
        ({"w": None, "b": np.ones(1)}, r"None at gradient\['w'\]"),
        ({"w": [[1.0], [2.0, 3.0]], "b": np.ones(1)}, r"gradient\['w'\]"),
        (np.ones(3, complex), "complex128"),
        ([np.ones((1, 2)), np.ones(1)], "list"),
    ],
)
def test_gradient_of_another_structure_is_refused(gradient, found):
    with pytest.raises(GradientMismatch, match=found):
        NumdiffBackend().grad(GradientFunction(lambda params, batch: gradient), PARAMS, None)


def test_gradient_by_a_list_of_the_wrong_length_is_refused():
    with pytest.raises(GradientMismatch, match="length 1 at gradient; expected a list or tuple of length 2"):
        NumdiffBackend().grad(
            GradientFunction(lambda params, batch: [np.ones((2, 2))]), [np.ones(2), np.ones(2)], None
        )


@pytest.mark.parametrize("method", ["grad", "hvp", "product_error"])
def test_plain_loss_over_numpy_asks_for_its_gradient(method):
    backend, arguments = NumdiffBackend(), (lambda w, batch: (w**2).sum(), np.ones(2), None)
    vector = () if method == "grad" else (np.ones(2),)
    with pytest.raises(GradientRequired, match=r"Pass grad=.*numpy|numpy.*Pass grad="):
        getattr(backend, method)(*arguments, *vector)


def test_product_over_a_structure_equals_the_flat_one():
    params = {"a": np.array([[0.1, 0.2]]), "b": [np.array(0.3)]}

    def gradient(w, batch):  # of Σ exp over all
        return {"b": [np.exp(w["b"][0])], "a": np.exp(w["a"])}

    product = NumdiffBackend().hvp(GradientFunction(gradient), params, None, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(product, np.exp([0.1, 0.2, 0.3]) * [1, 2, 3], rtol=1e-8)
