"""Numpy arrays on their way to TensorFlow and back."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from ihvp_tf._host import aligned_copy, share, to_tensor


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("offset", range(4))
def test_memory_is_aligned_for_the_kernels(size, offset):
    copy = aligned_copy(np.arange(size + offset, dtype=np.float32)[offset:])
    assert copy.ctypes.data % 64 == 0
    np.testing.assert_array_equal(copy, np.arange(offset, size + offset))


def test_a_shared_tensor_has_the_memory_of_the_array():
    memory = aligned_copy(np.arange(5.0))
    assert np.shares_memory(np.asarray(share(memory)), memory)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(6)[::-2],
        np.array(2.5),
        np.zeros((0, 3)),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["a", "bc"]),
        np.array([b"a", "ü"], dtype=object),
        np.array([1, 2], np.uint8),
        np.array([1.5, -2], np.float16),
        np.array([1.5, -2]).astype(tf.bfloat16.as_numpy_dtype),
        np.float32(1.5),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_of_any_kind_is_what_tensorflow_makes_of_it(array):
    tensor, expected = to_tensor(array), tf.convert_to_tensor(array)
    assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(tensor.numpy(), expected.numpy())


def test_a_tensor_does_not_follow_the_array():
    array = aligned_copy(np.ones(3))
    tensor = to_tensor(array)
    array[:] = 2
    np.testing.assert_array_equal(tensor.numpy(), np.ones(3))


@pytest.mark.parametrize("leaf", ["cube", 3, None, tf.constant(1.0)])
def test_other_leaves_stay_as_they_are(leaf):
    assert to_tensor(leaf) is leaf


@pytest.mark.parametrize("columns", [(), (2,)])
def test_a_product_belongs_to_the_caller(backend, columns):
    # Of ½ wᵀw, whose Hessian gives back v: nothing of the graph's or the caller's may lie behind it.
    def loss(params, batch):
        return tf.nn.l2_loss(params[0])

    params, v = [tf.Variable(np.arange(3.0))], np.ones((3, *columns))
    product = backend.hvp(loss, params, None, v)
    product[:] = np.nan
    np.testing.assert_array_equal(v, 1)
    np.testing.assert_array_equal(params[0].numpy(), np.arange(3.0))
    np.testing.assert_array_equal(backend.hvp(loss, params, None, v), v)


def test_a_block_comes_as_one_contiguous_vector_after_another(backend):
    params = [tf.Variable(np.arange(3.0))]
    product = backend.hvp(lambda p, b: tf.reduce_sum(p[0] ** 3), params, None, np.ones((3, 2)))
    assert product.flags.f_contiguous


def test_a_wrong_loss_leaves_v_alone(backend):
    v = np.ones(3)
    with pytest.raises(ZeroDivisionError):
        backend.hvp(lambda p, b: p[0] / (1 // 0), [tf.Variable(np.arange(3.0))], None, v)
    np.testing.assert_array_equal(v, 1)
