"""Faults of one member of a backend, and the tests of the contract that find them.

A mutation is a function that breaks a correct backend.
"""

from __future__ import annotations

import numpy as np
import pytest


def the_device_lies(backend):
    backend.device = "cuda:0"


def the_device_is_no_device(backend):
    backend.device = "the first GPU"


def flatten_goes_column_by_column(backend):
    backend.flatten = lambda params: np.concatenate([np.ravel(leaf, order="F") for leaf in params.values()])


def flatten_turns_the_order(backend):
    backend.flatten = lambda params: np.concatenate([np.ravel(params[key]) for key in reversed(params)])


def flatten_gives_what_it_keeps(backend):
    original, kept = backend.flatten, {}
    backend.flatten = lambda params: kept.setdefault(id(params), original(params))


def flatten_takes_any_number(backend):
    backend.flatten = lambda params: np.concatenate([np.ravel(np.asarray(leaf)) for leaf in params.values()])


def flatten_takes_complex_numbers(backend):
    original = backend.flatten

    def flatten(params):
        complex_ = all(leaf.dtype.kind == "c" for leaf in params.values())
        return original({key: leaf.real for key, leaf in params.items()} if complex_ else params)

    backend.flatten = flatten


def flatten_narrows(backend):
    original = backend.flatten

    def flatten(params):
        narrowest = min((leaf.dtype for leaf in params.values()), key=lambda dtype: dtype.itemsize)
        return original(params).astype(narrowest)

    backend.flatten = flatten


def unflatten_rounds(backend):
    original = backend.unflatten
    backend.unflatten = lambda vector, like: {
        key: leaf.astype(np.float32).astype(leaf.dtype) for key, leaf in original(vector, like).items()
    }


def unflatten_gives_all_arrays_the_vectors_dtype(backend):
    original = backend.unflatten
    backend.unflatten = lambda vector, like: {
        key: leaf.astype(vector.dtype) for key, leaf in original(vector, like).items()
    }


def grad_is_the_gradient_of_the_sum(backend):
    backend.around(
        "grad",
        lambda original, functions, params, batch: original(functions, params, batch) * len(batch[0]),
    )


def grad_is_noisy(backend):
    generator = np.random.default_rng()
    backend.change_results(
        "grad", lambda result: result * (1 + 1e-15 * generator.standard_normal(result.shape))
    )


def hvp_swallows_the_losss_error(backend):
    original = backend.hvp

    def hvp(loss, params, batch, v):
        try:
            return original(loss, params, batch, v)
        except KeyError:
            return 0 * v

    backend.hvp = hvp


def hvp_is_not_symmetric(backend):
    backend.change_results("hvp", lambda result: np.cumsum(result, axis=0))


def hvp_is_not_linear(backend):
    original = backend.hvp
    backend.hvp = lambda loss, params, batch, v: original(loss, params, batch, v) + 1e-6 * v**2


def hvp_drops_a_single_column(backend):
    backend.change_results("hvp", lambda result: np.squeeze(result))


def hvp_of_a_wide_block_is_cut(backend):
    backend.change_results("hvp", lambda result: result[:, : len(result)] if result.ndim == 2 else result)


def hvp_reads_memory_in_its_order(backend):
    original = backend.hvp
    backend.hvp = lambda loss, params, batch, v: original(
        loss, params, batch, np.ravel(v, order="K").reshape(v.shape)
    )


def hvp_gives_double_precision(backend):
    backend.change_results("hvp", lambda result: result.astype(np.float64))


def hvp_misses_some_curvature(backend):
    original = backend.hvp

    def hvp(loss, params, batch, v):
        return original(loss, params, batch, v) - 1e-3 * v

    backend.hvp = hvp


class Map:
    """What ``linearize`` returns, with another call."""

    def __init__(self, matvec, call=None, nbytes=None):
        self.matvec, self.call = matvec, call or (lambda matvec, v: matvec(v))
        self.nbytes = matvec.nbytes if nbytes is None else nbytes

    def __call__(self, v):
        return self.call(self.matvec, v)


def maps(backend, **changes):
    original = backend.linearize
    backend.linearize = lambda *arguments: Map(original(*arguments), **changes)


def a_map_never_looks_at_the_parameters_again(backend):
    maps(backend, call=lambda matvec, v: matvec.H @ v)


def a_map_goes_wrong_from_its_seventh_call(backend):
    original = backend.linearize

    def linearize(*arguments):
        calls = iter(range(1000))
        return Map(original(*arguments), call=lambda matvec, v: matvec(v) * (1 if next(calls) < 6 else 1.01))

    backend.linearize = linearize


def a_map_is_wrong_for_blocks(backend):
    maps(backend, call=lambda matvec, v: matvec(v) if v.ndim == 1 else matvec(v)[:, ::-1])


def a_map_says_that_it_keeps_nothing(backend):
    maps(backend, nbytes=0)


def hvp_sum_takes_the_last_rows_too(backend):
    original = backend.hvp_sum

    def hvp_sum(loss, params, batch, v, size):
        rest = len(batch[0]) % size
        total = original(loss, params, batch, v, size)
        return (
            total + backend.hvp(loss, params, tuple(array[-rest:] for array in batch), v) if rest else total
        )

    backend.hvp_sum = hvp_sum


def hvp_sum_is_a_mean(backend):
    original = backend.hvp_sum
    backend.hvp_sum = lambda loss, params, batch, v, size: (
        original(loss, params, batch, v, size) / (len(batch[0]) // size)
    )


def rows_are_those_of_the_mean(backend):
    backend.change_results("per_example_grads", lambda result: result / len(result))


def gnvp_is_the_hessian(backend):
    backend.gnvp = lambda predict, loss, params, batch, v: backend.hvp(
        lambda params, batch: loss(predict(params, batch), batch), params, batch, v
    )


def value_is_the_sum(backend):
    backend.around(
        "value",
        lambda original, functions, params, batch: original(functions, params, batch) * len(batch[0]),
    )


def example_products_leave_out_columns_beyond_the_sixteenth(backend):
    backend.change_results("example_products", lambda result: result[:, :16] if result.ndim == 2 else result)


def restore_gives_the_parameters_that_are_there(backend):
    backend.restore = lambda checkpoint, params: params


def push_forward_has_the_columns_first(backend):
    backend.change_results("push_forward", lambda part: np.moveaxis(part, -1, 0) if part.ndim > 1 else part)


def input_derivatives_have_the_columns_last(backend):
    backend.change_results(
        "input_derivatives", lambda part: np.moveaxis(part, 0, -1) if part.ndim == 3 else part
    )


def reduce_counts_this_process_twice(backend):
    backend.reduce = lambda vector: 2 * vector


ALONE = [
    (the_device_lies, "test_device_is_that_of_the_parameters", "device must say where the parameters are"),
    (the_device_is_no_device, "test_device_is_that_of_the_parameters", "device must be 'cpu', or kind and"),
    (flatten_goes_column_by_column, "test_flatten_lists_the_parameters_row_by_row", "flatten must list"),
    (flatten_turns_the_order, "test_flatten_lists_the_parameters_row_by_row", "flatten must list"),
    (flatten_gives_what_it_keeps, "test_flatten_gives_a_copy", "must not return"),
    (flatten_takes_any_number, "test_parameters_that_are_no_real_floating_numbers[int64]", "of dtype int64"),
    (flatten_takes_any_number, "test_parameters_that_are_no_real_floating_numbers[bool]", "of dtype bool"),
    (flatten_takes_complex_numbers, "test_parameters_that_are_no_real", "must refuse .* of dtype complex64"),
    (flatten_narrows, "test_parameters_of_two_dtypes", "must promote to float64"),
    (unflatten_rounds, "test_unflatten_is_the_exact_inverse", "must invert flatten"),
    (
        unflatten_gives_all_arrays_the_vectors_dtype,
        "test_parameters_of_two_dtypes",
        "every array its own dtype",
    ),
    (grad_is_the_gradient_of_the_sum, "test_grad_is_the_gradient", "grad must be the gradient"),
    (grad_is_noisy, "test_two_calls_give_the_same_bits", "the same bits"),
    (hvp_swallows_the_losss_error, "test_nothing_is_left_behind[hvp]", "must pass on the loss's own error"),
    (hvp_is_not_symmetric, "test_hvp_is_symmetric", "must be symmetric"),
    (hvp_is_not_linear, "test_hvp_is_linear", "must be linear"),
    (hvp_drops_a_single_column, "test_hvp_takes_a_block_of_one_column", "a block of any width"),
    (hvp_of_a_wide_block_is_cut, "test_hvp_takes_a_block_of_one_column_and_of_more", "a block of any width"),
    (hvp_reads_memory_in_its_order, "test_blocks_of_any_width_and_layout", "in any order in memory"),
    (hvp_gives_double_precision, "test_results_have_the_dtype", "dtype"),
    (hvp_misses_some_curvature, "test_hvp_is_the_product_with_the_hessian", "hvp must be the product"),
    (a_map_never_looks_at_the_parameters_again, "test_the_present_parameters_count", "linearise again"),
    (a_map_never_looks_at_the_parameters_again, "test_the_hessian_operator_follows", "present parameters"),
    (
        a_map_goes_wrong_from_its_seventh_call,
        "test_a_linearised_map_serves_many_products",
        "right at every call",
    ),
    (a_map_is_wrong_for_blocks, "test_linearize_is_hvp", "what hvp gives"),
    (
        a_map_says_that_it_keeps_nothing,
        "test_a_linearised_map_tells_what_it_keeps",
        "the memory that the map",
    ),
    (hvp_sum_takes_the_last_rows_too, "test_hvp_sum_is_the_sum", "leave out what is beyond"),
    (hvp_sum_is_a_mean, "test_hvp_sum_is_the_sum", "must be the sum"),
    (rows_are_those_of_the_mean, "test_per_example_gradients", "the gradient of example i alone"),
    (gnvp_is_the_hessian, "test_gnvp_is_the_product", "gnvp must be"),
    (value_is_the_sum, "test_value_is_the_loss", "value must be"),
    (
        example_products_leave_out_columns_beyond_the_sixteenth,
        "test_example_products_are",
        "example_products must",
    ),
    (restore_gives_the_parameters_that_are_there, "test_parameters_are_restored", "restore must give"),
    (push_forward_has_the_columns_first, "test_push_forward_is", "push_forward must be"),
    (input_derivatives_have_the_columns_last, "test_input_derivatives_are_those", "input_derivatives must"),
    (reduce_counts_this_process_twice, "test_reduce_over_one_process", "reduce must"),
]


@pytest.mark.parametrize("approximate", [False, True])
def test_what_mutants_are_made_of_passes(suite, approximate):
    contract = suite(approximate=approximate)
    for test in contract.tests:
        contract.run(test)


@pytest.mark.parametrize(
    ("mutation", "test", "duty"), [pytest.param(*row, id=row[0].__name__) for row in ALONE]
)
def test_a_fault_of_one_member_is_found(suite, mutation, test, duty):
    contract = suite(mutation)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=duty):
        contract.run(test)
