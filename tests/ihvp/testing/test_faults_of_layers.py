"""Faults of opened models and of named blocks, and the tests of the contract that find them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest


def changed(change):
    """A mutation: ``change(opened)`` of whatever model is opened."""

    def mutation(backend):
        original = backend.open

        def open_(predict, params, batch):
            opened = original(predict, params, batch)
            change(opened)
            return opened

        backend.open = open_

    return mutation


def pulled(change):
    def of(opened):
        original = opened.pull_back
        opened.pull_back = lambda cotangents: [change(part) for part in original(cotangents)]

    return of


def layer(**changes):
    def of(opened):
        opened.layers = [dataclasses.replace(found, **changes) for found in opened.layers]

    return of


def only_the_last_layer(opened):
    opened.layers, opened.inputs = opened.layers[1:], opened.inputs[1:]
    original = opened.pull_back
    opened.pull_back = lambda cotangents: original(cotangents)[1:]


def inputs_without_the_axis_of_groups(opened):
    opened.inputs = [part[:, :, 0] for part in opened.inputs]


def examples_in_another_order(opened):
    original = opened.pull_back
    opened.inputs = [part[::-1] for part in opened.inputs]
    opened.pull_back = lambda cotangents: [part[:, ::-1] for part in original(cotangents)]


def biases_of_the_first_layer_only_at_both(opened):
    opened.layers = [dataclasses.replace(found, bias=0) for found in opened.layers]


def used_up(opened):
    original, calls = opened.pull_back, []
    opened.pull_back = lambda cotangents: [
        part * (len(calls) < 4) for part in original(cotangents) if calls.append(0) is None
    ]


def transposed_outputs(opened):
    opened.outputs = lambda: opened.array.T.ravel()


def shapes_are_one(opened):
    opened.shapes = [(opened.array.size,)]


def gradient_of_the_sum(opened):
    original = opened.output_gradient
    opened.output_gradient = lambda loss: 9 * original(loss)


def hvp_of_the_first_example(opened):
    original = opened.output_hvp
    opened.output_hvp = lambda loss, v: np.where(np.arange(len(v))[:, None] < 3, original(loss, v), 0)


def hvp_of_two_columns(opened):
    original = opened.output_hvp
    opened.output_hvp = lambda loss, v: original(loss, v) * (np.arange(v.shape[1]) < 2)


GRADIENT = "test_derivatives_by_what_layers_give_make_up_the_gradient"
OPENED = [
    (only_the_last_layer, GRADIENT, "open must see the two products"),
    (layer(start=0), GRADIENT, "open must see the two products"),
    (layer(axes=(0, 1)), GRADIENT, "must be its part of the gradient"),
    (pulled(lambda part: part * (np.arange(part.shape[1]) < 8)[:, None, None, None]), GRADIENT, "example 8"),
    (pulled(lambda part: part[:1].repeat(3, axis=0)), GRADIENT, "must be its part"),
    (pulled(lambda part: part[:, :, :, 0]), GRADIENT, r"must give \(B, S, groups, d_out\)"),
    (inputs_without_the_axis_of_groups, GRADIENT, r"inputs must be \(B, S, groups, d_in\)"),
    (examples_in_another_order, GRADIENT, "example 0"),
    (biases_of_the_first_layer_only_at_both, GRADIENT, "must be its part"),
    (used_up, "test_a_model_that_is_open_can_be_pulled_back_often", "the same at every call"),
    (transposed_outputs, "test_an_open_model_has_the_outputs", "outputs must be"),
    (shapes_are_one, "test_an_open_model_has_the_outputs", "shapes must be"),
    (gradient_of_the_sum, "test_an_open_model_has_the_derivatives", "output_gradient must be"),
    (hvp_of_the_first_example, "test_an_open_model_has_the_derivatives", "output_hvp must be"),
    (hvp_of_two_columns, "test_an_open_model_has_the_derivatives", "output_hvp must be"),
]


def opens_the_first_batch(backend):
    original, kept = backend.open, []

    def open_(predict, params, batch):
        kept.append(tuple(array.copy() for array in batch))
        return original(predict, params, kept[0])

    backend.open = open_


def open_moves_the_parameters(backend):
    original = backend.open

    def open_(predict, params, batch):
        opened = original(predict, params, batch)
        params["w1"][...] += 1e-9
        return opened

    backend.open = open_


def open_writes_to_the_batch(backend):
    original = backend.open

    def open_(predict, params, batch):
        opened = original(predict, params, batch)
        batch[0][...] += 1e-9
        return opened

    backend.open = open_


def cotangent_loss_is_a_mean(backend):
    backend.cotangent_loss = lambda predict: (
        lambda params, batch: (predict(params, batch[0]) * batch[1][0]).mean()
    )


def blocks_leave_one_out(backend):
    original = backend.blocks
    backend.blocks = lambda params: {key: part for key, part in original(params).items() if key != "b2"}


def blocks_overlap(backend):
    original = backend.blocks
    backend.blocks = lambda params: {
        key: slice(part.start, part.stop + (key == "b1")) for key, part in original(params).items()
    }


MEMBERS = [
    (opens_the_first_batch, "test_a_model_is_opened_with_the_present", "at the time of the call"),
    (open_moves_the_parameters, "test_opening_a_model_leaves_nothing_behind", "leave the parameters"),
    (open_writes_to_the_batch, "test_opening_a_model_leaves_nothing_behind", "write to the batch"),
    (cotangent_loss_is_a_mean, "test_cotangent_loss_is_the_product", "summed over the examples"),
    (blocks_leave_one_out, "test_blocks_are_the_arrays", "each once"),
    (blocks_overlap, "test_blocks_are_the_arrays", "each once"),
]


@pytest.mark.parametrize(
    ("mutation", "test", "duty"),
    [pytest.param(changed(row[0]), *row[1:], id=f"opened {i}") for i, row in enumerate(OPENED)]
    + [pytest.param(*row, id=row[0].__name__) for row in MEMBERS],
)
def test_a_fault_is_found(suite, mutation, test, duty):
    contract = suite(mutation)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=duty):
        contract.run(test)
