"""Faults of ``product_error``, and the tests of the contract that find them."""

from __future__ import annotations

import functools

import numpy as np
import pytest


def stated(change):
    def mutation(backend):
        original = backend.product_error
        backend.product_error = functools.partial(change, original)

    mutation.__name__ = change.__name__
    return mutation


@stated
def an_error_is_nine_times_too_small(original, loss, params, batch, v):
    return original(loss, params, batch, v) / 9


@stated
def an_error_is_constant(original, loss, params, batch, v):
    return 1e-9


@stated
def an_error_is_that_of_a_unit_vector(original, loss, params, batch, v):
    return original(loss, params, batch, v / np.linalg.norm(v))


@stated
def an_error_knows_nothing_of_the_loss(original, loss, params, batch, v):
    return 3e-10 * np.linalg.norm(v)


@stated
def an_error_is_zero(original, loss, params, batch, v):
    return 0.0


@stated
def an_error_is_far_too_large(original, loss, params, batch, v):
    return 1e6 * original(loss, params, batch, v)


ERRORS = [
    (an_error_is_nine_times_too_small, "test_the_stated_error_of_a_product_is_of_the_size", "of the size of"),
    (an_error_is_constant, "test_the_stated_error_grows_with_the_product", "1024 times the v"),
    (an_error_is_that_of_a_unit_vector, "test_the_stated_error_grows", "product_error must be"),
    (
        an_error_knows_nothing_of_the_loss,
        "test_the_stated_error_grows_with_the_product",
        "1024 times the loss",
    ),
    (
        an_error_is_zero,
        "test_the_stated_error_of_a_product_is_of_the_size",
        "product_error must be of the size",
    ),
    (
        an_error_is_far_too_large,
        "test_the_stated_error_of_a_product_is_of_the_size",
        "product_error must be of",
    ),
]


@pytest.mark.parametrize(
    ("mutation", "test", "duty"), [pytest.param(*row, id=row[0].__name__) for row in ERRORS]
)
def test_a_fault_of_a_stated_error_is_found(suite, mutation, test, duty):
    contract = suite(mutation, approximate=True)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=duty):
        contract.run(test)
