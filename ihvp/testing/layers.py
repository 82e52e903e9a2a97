"""Models opened at their layers, and the names of parameters."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from ihvp.algebra import to_numpy
from ihvp.backend import OpenModel
from ihvp.layers import Layer
from ihvp.testing.case import NETWORK, Case, Contract, at, dialect_of, each_dtype

COTANGENTS = np.random.default_rng(24).standard_normal((3, NETWORK.rows, NETWORK.batch[1].shape[1]))


class LayerContract(Contract):
    """What is seen of a network of two layers is complete, and everything that is named is there."""

    @each_dtype
    def test_derivatives_by_what_layers_give_make_up_the_gradient(self, dtype: str) -> None:
        case, opened = self.opened(dtype)
        pulled = opened.pull_back(self.cotangents(case))
        seen = {(layer.start, layer.stop) for layer in opened.layers}
        for key in ("w1", "w2"):
            assert _place(key) in seen, (
                f"open must see the two products of an input with a weight; it saw {list(opened.layers)}"
            )
        assert len(opened.inputs) == len(pulled) == len(opened.layers)
        for row, cotangent in enumerate(COTANGENTS):
            for layer, inputs, derivatives in zip(opened.layers, opened.inputs, pulled, strict=True):
                found = _multiplied_out(layer, to_numpy(inputs), to_numpy(derivatives)[row])
                for n in range(NETWORK.rows):
                    expected = _gradient(cotangent, slice(n, n + 1))
                    self.compare(case, layer, found[n : n + 1], expected, f"example {n}")
                self.compare(case, layer, found, _gradient(cotangent), "all examples")

    @each_dtype
    def test_cotangent_loss_is_the_product_with_the_outputs(self, dtype: str) -> None:
        self.require("layers")
        case = self.case(NETWORK, dtype)
        loss = case.optional.cotangent_loss(_model(self.name))
        for cotangent in COTANGENTS:
            gradient = case.backend.grad(loss, case.params, (case.batch, [cotangent.astype(dtype)]))
            duty = "cotangent_loss must be ⟨outputs, cotangents⟩, summed over the examples"
            self.close(case, gradient, _gradient(cotangent), duty, product=False)

    @each_dtype
    def test_an_open_model_has_the_outputs(self, dtype: str) -> None:
        case, opened = self.opened(dtype)
        expected = NETWORK.predict(np, NETWORK.params, NETWORK.batch)
        assert [tuple(shape) for shape in opened.shapes] == [expected.shape], (
            f"shapes must be those that the model returned, {[expected.shape]}; they are {opened.shapes}"
        )
        duty = "outputs must be what the model returned, row by row"
        self.close(case, opened.outputs(), expected.ravel(), duty, product=False)

    @each_dtype
    def test_an_open_model_has_the_derivatives_of_a_loss_by_the_outputs(self, dtype: str) -> None:
        case, opened = self.opened(dtype)
        loss = case.functions.output_loss
        assert loss is not None
        outputs = NETWORK.predict(np, NETWORK.params, NETWORK.batch)
        gradient = NETWORK.output_gradient(outputs, NETWORK.batch[1])
        duty = "output_gradient must be the gradient of the loss by the outputs"
        self.close(case, opened.output_gradient(loss), gradient.ravel(), duty, product=False)
        p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        v = np.random.default_rng(25).standard_normal((outputs.size, 4))
        columns = v.reshape(*outputs.shape, -1)
        mean = np.einsum("nc,nck->nk", p, columns)
        expected = (p[:, :, None] * (columns - mean[:, None])).reshape(v.shape) / NETWORK.rows
        duty = "output_hvp must be the product with the Hessian of the loss by the outputs"
        self.close(case, opened.output_hvp(loss, case.native(v)), expected, duty)

    def test_a_model_that_is_open_can_be_pulled_back_often(self) -> None:
        case, opened = self.opened()
        first = [to_numpy(part) for part in opened.pull_back(self.cotangents(case))]
        opened.pull_back(self.cotangents(case)[:1])
        for part, again in zip(first, opened.pull_back(self.cotangents(case)), strict=True):
            assert_array_equal(part, to_numpy(again), "pull_back must give the same at every call")

    def test_a_model_is_opened_with_the_present_parameters_and_batch(self) -> None:
        case, _ = self.opened()
        moved = at(NETWORK, {key: 1.25 * value for key, value in NETWORK.params.items()})
        self.change(case, moved.params)
        case.batch[0][...] *= 1.5
        expected = moved.predict(np, moved.params, case.batch)
        found = case.optional.open(_model(self.name), case.params, case.batch).outputs()
        duty = "open must use the values of parameters and batch at the time of the call"
        self.close(case, found, expected.ravel(), duty, product=False)

    def test_opening_a_model_leaves_nothing_behind(self) -> None:
        self.require("layers")
        case = self.case(NETWORK)
        before, batch = case.state(), copy.deepcopy(case.batch)
        opened = case.optional.open(_model(self.name), case.params, case.batch)
        opened.pull_back(self.cotangents(case))
        assert case.state() == before, "open must leave the parameters as they were, objects and bits"
        for array, expected in zip(case.batch, batch, strict=True):
            assert_array_equal(array, expected, "open must not write to the batch")

    def test_blocks_are_the_arrays_of_the_parameters(self) -> None:
        self.require("blocks")
        case = self.case(NETWORK)
        blocks = case.optional.blocks(case.params)
        assert all(isinstance(name, str) for name in blocks)
        assert sorted((part.start, part.stop) for part in blocks.values()) == sorted(
            map(_place, NETWORK.params)
        ), f"blocks must be the part of the vector that each array is, each once; they are {dict(blocks)}"

    def opened(self, dtype: str = "float64") -> tuple[Case, OpenModel]:
        """The network, opened."""
        self.require("layers")
        case = self.case(NETWORK, dtype)
        return case, case.optional.open(_model(self.name), case.params, case.batch)

    def cotangents(self, case: Case) -> Any:
        """Three of them, ``(V, F)``, as the backend takes them."""
        return case.native(COTANGENTS.reshape(len(COTANGENTS), -1))

    def compare(
        self, case: Case, layer: Layer, matrices: NDArray[Any], gradient: NDArray[Any], of: str
    ) -> None:
        """What a layer multiplies out to in some examples with its part of their gradient."""
        total = matrices.sum(axis=0, keepdims=True)
        for part, entries in zip(layer.slices, layer.parts(total), strict=True):
            duty = f"Σ g aᵀ of {layer} must be its part of the gradient of {of}"
            self.close(case, entries[:, 0], gradient[part], duty, product=False)


@functools.cache
def _model(name: str) -> Callable[..., Any]:
    # Cached so that frameworks that compile a model find it again in the next test.
    return functools.partial(_network, dialect_of(name).xp)


def _network(xp: Any, params: Any, batch: Any) -> Any:
    hidden = xp.tanh(xp.matmul(batch[0], params["w1"]) + params["b1"])
    return xp.matmul(hidden, params["w2"]) + params["b2"]


def _gradient(cotangent: NDArray[Any], rows: slice = slice(None)) -> NDArray[Any]:
    """``∇ ⟨cotangent, outputs⟩`` of some examples, by hand."""
    batch = tuple(array[rows] for array in NETWORK.batch)
    return NETWORK.flat(NETWORK.pulled_back(NETWORK.params, batch, cotangent[rows]))


def _multiplied_out(layer: Layer, inputs: NDArray[Any], derivatives: NDArray[Any]) -> NDArray[Any]:
    """``Σ_s g aᵀ`` of each example, ``(B, groups, d_out, d_in)``, with the sum of g as the bias's column."""
    if layer.one_hot:
        inputs = np.eye(layer.d_in)[inputs][:, :, None, :]
    expected = (NETWORK.rows, derivatives.shape[1], layer.groups, layer.d_out)
    assert derivatives.shape == expected, f"pull_back must give (B, S, groups, d_out); {derivatives.shape}"
    expected = (*expected[:3], layer.d_in)
    assert inputs.shape == expected, f"inputs must be (B, S, groups, d_in); they are {inputs.shape}"
    if layer.bias is not None:
        inputs = np.concatenate([inputs, np.ones_like(inputs[..., :1])], axis=-1)
    return np.asarray(np.einsum("bsgo,bsgi->bgoi", derivatives, inputs))


def _place(key: str) -> tuple[int, int]:
    """Where in the vector an array of the network begins and ends."""
    keys = list(NETWORK.params)
    start = sum(NETWORK.params[before].size for before in keys[: keys.index(key)])
    return start, start + NETWORK.params[key].size
