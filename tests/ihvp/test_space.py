"""The forms in which a caller may pass a vector."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from types import ModuleType

import numpy as np
import pytest

import ihvp
from ihvp.errors import IhvpError, MixedFrameworks, VectorError, WrongDtype, WrongShape
from ihvp.space import VectorSpace


@pytest.fixture
def space():
    return VectorSpace.of(np.zeros(3))


@pytest.fixture
def structured(regression):
    params = {"a": np.zeros((2, 1)), "b": np.zeros(1)}
    return ihvp.Objective(regression.loss, params, backend=regression).space


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 7)])
def test_native_vectors_and_blocks_enter_uncopied_and_leave_as_they_are(space, shape):
    v = np.ones(shape)
    flat, leave = space.enter(v)
    assert flat is v
    assert leave(v) is v


@pytest.mark.parametrize("shape", [(4,), (2,), (), (1, 3), (3, 0), (3, 1, 1), (0,)])
def test_other_shapes_are_refused_with_both_accepted_shapes(space, shape):
    with pytest.raises(WrongShape, match=r"expected \(3,\) for a vector or \(3, k\) with k ≥ 1"):
        space.enter(np.ones(shape))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.complex128, bool])
def test_other_dtypes_are_refused_with_both_dtypes(space, dtype):
    with pytest.raises(WrongDtype, match=r"expected float64, that of these parameters' vectors\. Cast v"):
        space.enter(np.ones(3, dtype))


@pytest.mark.parametrize("v", [[1.0, 2.0, 3.0], (1.0, 2.0, 3.0), {"a": np.ones(3)}, "abc", 1.0, None])
def test_what_is_no_array_is_refused_where_there_is_no_structure(space, v):
    with pytest.raises(VectorError, match=r"v is .*; expected an array of shape \(3,\) or \(3, k\)"):
        space.enter(v)


class Foreign:
    """An array of some other library that follows the Array API standard."""

    shape = (3,)

    def __array_namespace__(self, api_version=None):
        return ModuleType("other")


def test_arrays_of_another_framework_are_refused(space):
    with pytest.raises(
        MixedFrameworks, match=r"v of type .*Foreign of shape \(3,\); expected an array of numpy"
    ):
        space.enter(Foreign())


def test_structure_enters_flat_and_leaves_as_the_same_structure(structured):
    v = {"a": np.array([[1.0], [2.0]]), "b": np.array([3.0])}
    flat, leave = structured.enter(v)
    np.testing.assert_array_equal(flat, [1, 2, 3])
    back = leave(flat)
    assert list(back) == ["a", "b"]
    np.testing.assert_array_equal(back["a"], v["a"])


def test_structure_is_read_by_key_and_not_by_order(structured):
    v = OrderedDict(b=np.array([3.0]), a=np.array([[1.0], [2.0]]))
    np.testing.assert_array_equal(structured.enter(v)[0], [1, 2, 3])


@pytest.mark.parametrize(
    ("v", "text"),
    [
        ({"a": np.ones((2, 1))}, r"v is \['a'\]; expected a mapping with the keys \['a', 'b'\]"),
        ({"a": np.ones((2, 1)), "b": np.ones(1), "c": np.ones(1)}, r"expected a mapping with the keys"),
        (
            {"a": np.ones((1, 2)), "b": np.ones(1)},
            r"v\['a'\] is .*\(1, 2\); expected an array of shape \(2, 1\)",
        ),
        ({"a": 1.0, "b": np.ones(1)}, r"v\['a'\] is float; expected an array of shape"),
        ([np.ones((2, 1)), np.ones(1)], r"v is list; expected a mapping"),
    ],
    ids=["missing", "too many", "shape", "no array", "list"],
)
def test_structure_that_differs_is_refused_with_the_place(structured, v, text):
    with pytest.raises(VectorError, match=text):
        structured.enter(v)


def test_structure_of_another_dtype_is_refused(structured):
    with pytest.raises(WrongDtype):
        structured.enter({"a": np.ones((2, 1), np.float32), "b": np.ones(1, np.float32)})


def test_flat_vector_is_accepted_where_parameters_are_structured(structured):
    assert structured.enter(np.ones(3))[0].shape == (3,)


def test_vector_in_the_shape_of_a_matrix_of_parameters_comes_back_in_it(regression):
    space = ihvp.Objective(regression.loss, np.zeros((2, 3)), backend=regression).space
    v = np.arange(6.0).reshape(2, 3)
    flat, leave = space.enter(v)
    np.testing.assert_array_equal(flat, np.arange(6.0))
    np.testing.assert_array_equal(leave(flat), v)


def test_refused_structure_is_an_error_of_the_library_whatever_the_backend_raises(structured):
    with pytest.raises(IhvpError):
        structured.enter({"a": None, "b": None})


def test_space_knows_its_epsilon_and_makes_vectors_of_its_dtype():
    space = VectorSpace.of(np.zeros(3, np.float32))
    assert space.eps == np.finfo(np.float32).eps
    assert space.zeros().dtype == np.float32
    assert space.zeros(2).shape == (3, 2)
    assert space.asarray(np.ones(3)).dtype == np.float32


def test_identity_columns_are_columns_of_the_identity(space):
    np.testing.assert_array_equal(space.identity_columns(1, 3), np.eye(3)[:, 1:3])


@pytest.mark.parametrize("other", [np.zeros(4), np.zeros(3, np.float32)])
def test_spaces_of_other_size_or_dtype_do_not_match(space, other):
    assert space.matches(VectorSpace.of(np.ones(3)))
    assert not space.matches(VectorSpace.of(other))


def test_a_space_is_the_same_in_another_process(space, structured):
    for found in (space, structured):
        assert pickle.loads(pickle.dumps(found)).matches(found)
