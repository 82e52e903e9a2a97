"""Faults that any method can have, tried in each: the contract finds them and says what a backend must do.

A fault is a function that breaks one method of a correct backend.
"""

from __future__ import annotations

import copy

import autograd.numpy
import numpy as np
import pytest

from ihvp.testing.methods import METHODS

EVERY = [method.name for method in METHODS]
OF_VECTORS = [method.name for method in METHODS if method.of_vectors]
LIKE_VECTORS = [method.name for method in METHODS if method.like_vectors]
OF_A_LOSS = [name for name in EVERY if name not in ("value", "push_forward")]


def keeps_the_first_parameters(backend, name):
    seen = {}

    def method(original, functions, params, batch):
        kept = seen.setdefault(id(params), copy.deepcopy(params))
        return original(functions, kept, batch)

    backend.around(name, method)


def keeps_the_first_batch(backend, name):
    seen = {}

    def method(original, functions, params, batch):
        return original(functions, params, seen.setdefault(id(batch), copy.deepcopy(batch)))

    backend.around(name, method)


def sees_64_rows(backend, name):
    backend.around(
        name,
        lambda original, functions, params, batch: original(
            functions, params, tuple(array[:64] for array in batch)
        ),
    )


def multiplies_32_columns(backend, name):
    def change(result):
        if name == "input_derivatives" and result.ndim == 3:
            result[32:] = 0
        elif name == "push_forward" or (name != "input_derivatives" and result.ndim == 2):
            result[..., 32:] = 0
        return result

    backend.change_results(name, change)


def halves_the_first_array_of_a_dict(backend, name):
    def method(original, functions, params, batch):
        if isinstance(batch, dict):
            batch = {"x": batch["x"] / 2, "y": batch["y"]}
        return original(functions, params, batch)

    backend.around(name, method)


def leaves_half_precision_as_it_is(backend, name):
    backend.change_results(name, lambda result: np.asarray(result, np.float16))


def hides_nan(backend, name):
    backend.change_results(name, np.nan_to_num)


def sums_a_vector(backend, name):
    def summed(function):
        return lambda first, batch: autograd.numpy.sum(function(first, batch))

    def method(original, functions, params, batch):
        return original((*functions[:-1], summed(functions[-1])), params, batch)

    backend.around(name, method)


def moves_the_parameters(backend, name):
    def method(original, functions, params, batch):
        result = original(functions, params, batch)
        for leaf in params.values():
            leaf[...] = np.nextafter(leaf, np.inf)
        return result

    backend.around(name, method)


def writes_to_the_batch(backend, name):
    def method(original, functions, params, batch):
        result = original(functions, params, batch)
        batch[0][...] += 1e-12
        return result

    backend.around(name, method)


def writes_to_v(backend, name):
    def doubled(original):
        def method(*arguments):
            result = original(*arguments)
            v = next(argument for argument in reversed(arguments) if isinstance(argument, np.ndarray))
            v *= 2
            return result

        return method

    original = getattr(backend, name)
    if name in ("linearize", "linearize_gauss_newton", "batch_products"):
        setattr(backend, name, lambda *arguments: doubled(original(*arguments)))
    else:
        setattr(backend, name, doubled(original))


def replaces_the_parameters_by_copies(backend, name):
    def method(original, functions, params, batch):
        result = original(functions, params, batch)
        params.update(copy.deepcopy(params))
        return result

    backend.around(name, method)


def trainable(params):
    return [leaf for leaf in params.values() if hasattr(leaf, "requires_grad")]


def leaves_a_gradient(backend, name):
    def method(original, functions, params, batch):
        for leaf in trainable(params):
            leaf.grad = np.ones(leaf.shape)
        return original(functions, params, batch)

    backend.around(name, method)


def leaves_requires_grad_when_the_loss_raises(backend, name):
    def method(original, functions, params, batch):
        for leaf in trainable(params):
            leaf.requires_grad = True
        result = original(functions, params, batch)
        for leaf in trainable(params):
            leaf.requires_grad = False
        return result

    backend.around(name, method)


def leaves_other_parameters_when_the_loss_raises(backend, name):
    def method(original, functions, params, batch):
        try:
            return original(functions, params, batch)
        except KeyError:
            params["b1"][0] += 1
            raise

    backend.around(name, method)


def returns_what_it_keeps(backend, name):
    kept = {}
    backend.change_results(name, lambda result: kept.setdefault(result.tobytes(), result))


FAULTS = [
    (
        keeps_the_first_parameters,
        EVERY,
        "test_the_present_parameters_count",
        "values at the time of the call",
    ),
    (keeps_the_first_batch, EVERY, "test_the_present_batch_counts", "use the batch's values at the time"),
    (sees_64_rows, EVERY, "test_all_rows_of_a_batch_count", "must use every row of the batch"),
    (
        multiplies_32_columns,
        OF_VECTORS,
        "test_blocks_of_any_width_and_layout",
        "130 columns what it gives each",
    ),
    (halves_the_first_array_of_a_dict, EVERY, "test_a_dict_is_a_batch", "must take a batch that is a dict"),
    (
        leaves_half_precision_as_it_is,
        LIKE_VECTORS,
        "test_half_precision_has_vectors_in_single_precision",
        "return the array type, dtype",
    ),
    (hides_nan, EVERY, "test_nan_is_passed_on", "must not hide NaN"),
    (
        sums_a_vector,
        OF_A_LOSS,
        "test_a_loss_with_axes_is_refused",
        "must refuse a loss that is a vector",
    ),
    (moves_the_parameters, EVERY, "test_nothing_is_left_behind", "must leave the parameters as they were"),
    (writes_to_the_batch, EVERY, "test_nothing_is_left_behind", "must not write to the batch"),
    (writes_to_v, OF_VECTORS, "test_nothing_is_left_behind", "must not write to v"),
    (replaces_the_parameters_by_copies, EVERY, "test_nothing_is_left_behind", "the same objects and bits"),
    (leaves_a_gradient, EVERY, "test_nothing_is_left_behind", "the same gradients and marks"),
    (leaves_requires_grad_when_the_loss_raises, EVERY, "test_nothing_is_left_behind", "when the loss raises"),
    (
        leaves_other_parameters_when_the_loss_raises,
        EVERY,
        "test_nothing_is_left_behind",
        "when the loss raises",
    ),
    (
        returns_what_it_keeps,
        LIKE_VECTORS,
        "test_a_result_is_the_callers_own",
        "must not return what it keeps",
    ),
]


@pytest.mark.parametrize(
    ("fault", "method", "test", "duty"),
    [
        pytest.param(fault, method, test, duty, id=f"{method} {fault.__name__}")
        for fault, methods, test, duty in FAULTS
        for method in methods
    ],
)
def test_a_fault_of_any_method_is_found(suite, fault, method, test, duty):
    contract = suite(lambda backend: fault(backend, method))
    with pytest.raises((AssertionError, pytest.fail.Exception), match=duty):
        contract.run(f"{test}[{method}]")
